//! Nodes that rules bring into 16-bit floats, beside integers and weights in few bits.

use std::collections::{BTreeMap, BTreeSet};

use super::{Clock, Job, before, halves::look_at_values};
use crate::{
    analysis::placement::Wishes,
    calibrate::Dataset,
    diagnostics::{Diagnostic, count},
    error::Result,
    ir::{DType, Model, NodeId},
    plan::{ForAnswers, Form, HalfTask, Plan, decide_halves},
    scheme::Resolved,
    target::HalfForm,
};

/// Adds them to a plan that has them in float.
pub(super) fn add(
    job: &Job<'_>,
    model: &Model,
    resolved: &Resolved,
    data: Option<(&Dataset, &[usize])>,
    plan: &mut Plan,
    clock: &mut Clock<'_>,
) -> Result<Vec<Diagnostic>> {
    let Some((dtype, _)) = resolved.halves_of.values().next() else { return Ok(Vec::new()) };
    let (dtype, target) = (*dtype, &job.settings.target);
    let looks = target.half(dtype).form == HalfForm::Computed;
    let mut noticed: Vec<Diagnostic> = before::half_speed(target, dtype).into_iter().collect();
    let seen = match data.filter(|(_, samples)| !samples.is_empty()) {
        Some(data) if looks => look_at_values(job, model, dtype, data, clock)?,
        Some(_) => BTreeMap::new(),
        None => {
            noticed.push(before::half_without_data(&job.settings.config, dtype, looks));
            BTreeMap::new()
        }
    };
    clock.step("decide");
    let only: BTreeSet<NodeId> = resolved.halves_of.keys().copied().collect();
    let (wishes, for_answers) = (Wishes::default(), ForAnswers::default());
    let half = decide_halves(&HalfTask {
        model,
        target,
        dtype,
        io: false,
        wishes: &wishes,
        seen: &seen,
        store: true,
        for_answers: &for_answers,
        only: Some(&only),
    })?;
    let mut done = half.stored_weights.len();
    for (name, node) in half.nodes {
        // A clamp that vanishes into the integer node in front of it computes nothing.
        if plan.nodes.get(&name).is_some_and(|n| n.becomes != Form::Float) {
            continue;
        }
        let was = plan.nodes.get(&name).and_then(|n| n.reason.clone());
        let reason = node.reason.as_ref().map(|why| match was {
            Some(rule) => format!("{rule}, but {why}"),
            None => why.clone(),
        });
        done += usize::from(node.becomes == Form::Half);
        if node.becomes == Form::Half || plan.nodes.contains_key(&name) {
            plan.nodes.insert(name, crate::plan::NodePlan { reason, ..node });
        }
    }
    let asked = format!(" brings it into {dtype}");
    for reason in plan.nodes.values_mut().filter_map(|n| n.reason.as_mut()).filter(|r| r.ends_with(&asked)) {
        reason.push_str(", but it has to do with no floats");
    }
    plan.stored_weights.extend(half.stored_weights);
    plan.halves = half.halves.filter(|_| done > 0);
    noticed.extend((done == 0).then(|| nothing(resolved, dtype)));
    Ok(noticed)
}

fn nothing(resolved: &Resolved, dtype: DType) -> Diagnostic {
    let rules: BTreeSet<&str> = resolved.halves_of.values().map(|(_, who)| who.as_str()).collect();
    let rules: Vec<&str> = rules.into_iter().collect();
    let nodes = count(resolved.halves_of.len(), "node");
    let text = format!("no effect of {}: none of {nodes} can be in {dtype}", rules.join(", "));
    Diagnostic::warning("settings_without_effect", text)
        .help("the reasons stand at the nodes in the plan (--dump-plan)")
}
