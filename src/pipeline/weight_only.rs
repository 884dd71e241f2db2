//! Mode `weight-only`: every node stays float, and weights become codes that kernels read.

use super::{
    Clock, Job, Outcome,
    even_out::{Factors, divide},
    fit,
    spread::{self, Chosen},
};
use crate::{
    analysis::placement::{Decision, Placement},
    calibrate::{Dataset, dataset::Split},
    config::AWQ,
    diagnostics::{Diagnostic, count},
    error::{Error, Result},
    ir::{DType, Model, NodeId},
    passes::Context,
    plan::{self, FewBits, Plan},
    scheme::Resolved,
};

/// Why nodes without such a weight stay as they are.
const NO_WEIGHT: &str = "no kernel reads codes here";

/// Why layers have no codes that get others when a target asks for it.
const BY_TARGET: &str = "stored as float16: of the bits that the target allows, it gains most by these";

/// The plan of a job.
pub(super) fn plan(
    job: &Job<'_>,
    (original, model): (&Model, &mut Model),
    resolved: &mut Resolved,
    dataset: Option<&Dataset>,
    (samples, split): (Vec<usize>, Split),
    clock: &mut Clock<'_>,
    cx: &mut Context,
) -> Result<Outcome> {
    let data = dataset.map(|d| (d, &samples[..]));
    let factors = scale(job, model, resolved, data, clock, cx)?;
    let spread = spread::spread(spread::Task { job, original, model, resolved, data }, clock, cx)?;
    clock.step("decide");
    let (chosen, known) = spread.map_or_else(Default::default, |s| (s.chosen, s.known));
    let mut plan = planned(job, model, resolved, &chosen, dataset.is_some())?;
    plan.channel_factors = factors;
    let (proof_samples, held_out) = (split.validation, split.held_out);
    Ok(Outcome { plan, known, samples, proof_samples, held_out, ..Outcome::default() })
}

/// Divides what layers read by factors that make their weights finer, where that is asked for.
fn scale(
    job: &Job<'_>,
    model: &mut Model,
    resolved: &mut Resolved,
    data: Option<(&Dataset, &[usize])>,
    clock: &mut Clock<'_>,
    cx: &mut Context,
) -> Result<Factors> {
    let asked = |id: &NodeId| resolved.weight_only(model, *id).is_some_and(|w| w.algorithm == AWQ);
    let nodes: Vec<NodeId> = model.nodes(model.main()).into_iter().filter(asked).collect();
    if nodes.is_empty() {
        return Ok(Factors::new());
    }
    if data.is_none() {
        let text = "no effect of algorithm awq: it looks at what layers read, and there are no calibration data; scales are chosen \
                    by the weights alone, as mse does";
        let help = "give --calibration with typical inputs";
        cx.diagnostics.push(Diagnostic::warning("settings_without_effect", text).help(help));
        return Ok(Factors::new());
    }
    clock.step("awq");
    let plan = planned(job, model, resolved, &Chosen::new(), data.is_some())?;
    let (known, noticed) = fit::know(job, model, &plan, data)?;
    cx.diagnostics.extend(noticed);
    let of = |&n: &NodeId| Some((n, plan::entry(model, &plan, n)?.few_bits.clone()?));
    let few = nodes.iter().filter_map(of).collect();
    let factors = plan::awq(&plan::AwqTask { model, few: &few, known: &known })?;
    let note = match factors.len() {
        0 => Diagnostic::note(
            "nothing_evened_out",
            "awq changes nothing: no constants around what layers read take factors in, or \
                              no layer gains by them",
        ),
        n => {
            let text =
                format!("awq: {} divided by factors, by which the weights that read them get finer", count(n, "value"));
            Diagnostic::note("evened_out", text)
        }
    };
    cx.diagnostics.push(note);
    *resolved = divide(model, &factors, resolved.clone(), cx)?;
    Ok(factors)
}

/// The plan with what was chosen for single nodes.
pub(super) fn planned(job: &Job<'_>, model: &Model, resolved: &Resolved, chosen: &Chosen, data: bool) -> Result<Plan> {
    let target = &job.settings.target;
    let float = |id: &NodeId| {
        let kept = resolved.wishes.keeps_float(model, *id);
        let half = matches!(chosen.get(id), Some(None)).then_some(BY_TARGET);
        (*id, Decision::Float(half.or(kept).unwrap_or(NO_WEIGHT).to_owned()))
    };
    let placement = Placement { nodes: model.nodes(model.main()).iter().map(float).collect(), ..Placement::default() };
    let unasked = |_, _| Err(Error::bug("no value is quantized in this mode"));
    let mut plan = plan::decide(model, target, &placement, &resolved.scheme, unasked)?;
    plan::pack_weights(model, &mut plan, |node, t| {
        // What a kernel may read is not packed for loading.
        let read = target.weight_only.iter().any(|row| model.node(node).is(&row.op)) && t.rank() == 2;
        let how = resolved.weight_only(model, node).filter(|_| !read)?;
        how.packed(t.len(), t.dims().first().copied().unwrap_or(1))
    });
    let wanted = |id: NodeId| match chosen.get(&id) {
        Some(how) => how.clone(),
        None => few_bits(model, resolved, id, data),
    };
    plan::weights_in_few_bits(model, &mut plan, target, wanted);
    if resolved.stores_float_weights() || !chosen.is_empty() {
        plan::store_float_weights(model, &mut plan, &resolved.scheme, |n| match chosen.get(&n) {
            Some(None) => Some(DType::Float16),
            _ => resolved.stored_as(model, n),
        });
    }
    Ok(plan)
}

/// Gives float nodes the weights in few bits that mode or rules ask for.
pub(super) fn add(model: &Model, plan: &mut Plan, resolved: &Resolved, job: &Job<'_>, data: bool) {
    plan::weights_in_few_bits(model, plan, &job.settings.target, |id| few_bits(model, resolved, id, data));
}

/// What the settings say of a node.
fn few_bits(model: &Model, resolved: &Resolved, id: NodeId, data: bool) -> Option<FewBits> {
    resolved.weight_only(model, id).map(|w| w.few_bits(model.node(id).is("Gather"), data))
}
