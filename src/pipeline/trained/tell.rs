//! What is said of a model that was trained with quantizers.

use std::collections::{BTreeMap, BTreeSet};

use super::stands_in;
use crate::{
    config::Config,
    diagnostics::{Diagnostic, count},
    ir::{Model, ValueId},
    plan::{Form, Learned, Plan},
    scheme::Resolved,
};

/// Clips that stand for quantizers in front of float nodes.
pub(super) fn clamps(clamps: usize, data: bool) -> Option<Diagnostic> {
    let text = format!(
        "{} what quantizers that are left out cut off",
        match clamps {
            0 => return None,
            1 => "1 Clip keeps".to_owned(),
            n => format!("{n} Clips keep"),
        }
    );
    let note = Diagnostic::note("quantizers_clamp", text);
    Some(match data {
        true => note,
        false => note.help("give --calibration: those that cut nothing off in it go"),
    })
}

/// Layers that keep codes of training which can saturate on the processor that the job names.
pub(super) fn saturating(nodes: &[String], cpu: &str) -> Option<Diagnostic> {
    let first = nodes.first()?;
    let text = format!(
        "sums of {} can saturate on processors of the kind {cpu}: codes of training are not narrowed for that",
        count(nodes.len(), "layer")
    );
    let help = format!("`qonvert lint --fix --cpu {cpu}` spreads these channels over fewer codes");
    Some(Diagnostic::warning("saturating_codes_of_training", text).on(first).help(help))
}

/// What became of the quantizers, in words.
pub(super) fn tell(model: &Model, learned: &Learned, resolved: &Resolved, plan: &Plan, kept: usize) -> Vec<Diagnostic> {
    let mut said = Vec::new();
    let weights = count(learned.weights.len(), "weight");
    let values = count(learned.values.len(), "value");
    let text = format!(
        "the model comes with quantizers, of {values} and {weights}: scales and codes are kept wherever integer kernels compute with them"
    );
    said.push(Diagnostic::note("trained_quantizers", text));
    let dropped: Vec<&str> = learned
        .values
        .keys()
        .filter(|v| resolved.scheme.grids.contains_key(v) && !stands_in(model, plan, **v))
        .map(|v| model.value(*v).name())
        .collect();
    if let Some(first) = dropped.first() {
        let text = format!(
            "{} left out, since no integer kernel computes with what they round: float nodes now read numbers that are not rounded",
            match dropped.len() {
                1 => "1 quantizer is".to_owned(),
                n => format!("{n} quantizers are"),
            }
        );
        said.push(Diagnostic::note("quantizers_left_out", text).on(*first));
    }
    if kept > 0 {
        let text =
            format!("kept in front of float nodes, for what it cuts off: {} of few codes", count(kept, "quantizer"));
        said.push(Diagnostic::note("quantizers_in_float", text));
    }
    let names: BTreeMap<&str, ValueId> = model.value_ids().into_iter().map(|v| (model.value(v).name(), v)).collect();
    let of_training = |name: &str| names.get(name).is_some_and(|v| resolved.scheme.grids.contains_key(v));
    let scales: BTreeSet<u32> = resolved.scheme.grids.values().map(|g| g.params.scale.to_bits()).collect();
    let (mut added, mut changed) = (Vec::new(), Vec::new());
    for (name, a) in &plan.activations {
        match (of_training(name), scales.contains(&a.scale.to_bits())) {
            (_, true) => {}
            (true, false) => changed.push(name.as_str()),
            (false, false) => added.push(name.as_str()),
        }
    }
    if let Some(first) = added.first() {
        let text = format!(
            "{} had no quantizer that a kernel needs: calibration has chosen the range",
            count(added.len(), "value")
        );
        said.push(Diagnostic::note("quantizers_added", text).on(*first));
    }
    if let Some(first) = changed.first() {
        let text = format!(
            "the learned scale of {} was changed: the kernel of an average refuses scales so far apart",
            count(changed.len(), "value")
        );
        said.push(Diagnostic::warning("learned_scales_changed", text).on(*first));
    }
    let integer = plan.nodes.iter().filter(|(_, n)| n.becomes == Form::Integer);
    let rounded: Vec<_> = integer.filter(|(_, n)| n.weight.as_ref().is_some_and(|w| !w.learned)).collect();
    if let Some((first, _)) = rounded.first() {
        let text =
            format!("the weights of {} had no quantizer: they get the nearest codes", count(rounded.len(), "node"));
        said.push(Diagnostic::note("weights_not_learned", text).on(first.as_str()));
    }
    said
}

/// Settings without effect on what training has chosen.
pub(super) fn idle(config: &Config) -> Option<Diagnostic> {
    let default = Config::default();
    let keys = [
        ("weight", config.weight != default.weight),
        ("max_loss", config.max_loss != default.max_loss),
        ("time_budget", config.time_budget != default.time_budget),
        ("equalize", config.equalize),
        ("smooth", config.smooth),
        ("absorb_biases", config.absorb_biases),
        ("fit_ranges", config.fit_ranges),
    ];
    let idle: Vec<&str> = keys.iter().filter(|(_, set)| *set).map(|(key, _)| *key).collect();
    (!idle.is_empty()).then(|| {
        let text = format!("no effect of {}: the model's own quantizers decide", idle.join(", "));
        Diagnostic::warning("settings_without_effect", text)
            .help("leave it out; or give the float model that was there before the quantizers")
    })
}
