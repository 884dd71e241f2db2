//! Weights that are rounded by what their layers read, and that the whole model wants at the nearest codes all the same: less
//! error of a layer on the samples that its codes were fitted to is not always less at the model's outputs.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Clock, fit,
    gate::{Gate, gains},
    planner::Planner,
    thin,
};
use crate::{
    analysis::placement::{Placement, Wishes},
    diagnostics::{Diagnostic, count},
    error::{ErrorKind, Result},
    ir::{NodeId, ValueId},
    plan::{NodePlan, Plan, named_values},
    validate::noise::{self, Noise, Source},
    weights,
};

/// Samples that single layers are measured on.
const FEW: usize = 6;

/// The plan as it is, or with the nearest codes for weights whose fitted ones do more harm at the model's outputs.
pub(super) fn check(
    planner: &mut Planner<'_>,
    wishes: &Wishes,
    first: (Plan, Placement),
    clock: &mut Clock<'_>,
) -> Result<(Plan, Placement)> {
    if !fit::asked(&first.0) || planner.samples.len() < 2 {
        return Ok(first);
    }
    clock.step("judge weights");
    let model = planner.task.model;
    let Some(gate) = Gate::new(planner, planner.samples.clone())? else { return Ok(first) };
    let plain = with_nearest(&first.0, |_| true);
    let worse = match worse(planner, &gate, &first.0, &plain) {
        // Where single layers cannot be measured, the whole model still can.
        Err(error) if error.kind() == ErrorKind::Runtime => BTreeSet::new(),
        worse => worse?,
    };
    let known = planner.known.clone();
    let fitted = gate.noise(model, &first.0, &known)?;
    let nearest = gate.noise(model, &plain, &known)?;
    let all: BTreeSet<String> = weighted(&first.0).map(str::to_owned).collect();
    let mixed = match worse.is_empty() {
        true => fitted,
        false => gate.noise(model, &with_nearest(&first.0, |name| worse.contains(name)), &known)?,
    };
    log::info!(
        "weights fitted: {fitted:.4?} of the budget; at the nearest codes: {nearest:.4?}; {} of {} there: {mixed:.4?}",
        worse.len(),
        all.len()
    );
    let chosen = match (gains(fitted, mixed, 1.0), gains(mixed, nearest, 1.0)) {
        (_, true) if gains(fitted, nearest, 1.0) => all,
        (true, _) => worse,
        _ => return Ok(first),
    };
    let text = format!(
        "{} of layers rounded to the nearest codes: the answers are nearer to the original's so",
        count(chosen.len(), "weight")
    );
    planner.diagnostics.push(Diagnostic::note("nearest_is_better", text));
    planner.nearest = chosen;
    planner.plan(wishes, clock)
}

/// The names of the nodes whose weights are fitted.
fn weighted(plan: &Plan) -> impl Iterator<Item = &str> {
    let fitted = |n: &NodePlan| n.weight.as_ref().is_some_and(|w| w.algorithm != weights::DEFAULT);
    plan.nodes.iter().filter(move |(_, n)| fitted(n)).map(|(name, _)| &name[..])
}

fn with_nearest(plan: &Plan, which: impl Fn(&str) -> bool) -> Plan {
    let mut plan = plan.clone();
    plan.round_to_nearest(which);
    plan
}

/// The nodes whose fitted weights make more noise at the model's outputs than the nearest codes. Those with one weight go
/// together.
fn worse(planner: &Planner<'_>, gate: &Gate<'_>, fitted: &Plan, plain: &Plan) -> Result<BTreeSet<String>> {
    let (task, names) = (planner.task, named_values(planner.task.model));
    let mut of_weight: BTreeMap<ValueId, Vec<(&str, NodeId)>> = BTreeMap::new();
    for name in weighted(fitted) {
        let node = names.get(name).and_then(|&v| task.model.producer(v));
        let Some((node, weight)) = node.and_then(|n| Some((n, task.model.node(n).input(1)?))) else { continue };
        of_weight.entry(weight).or_default().push((name, node));
    }
    let wanted: BTreeSet<Source> = of_weight.values().flatten().map(|(_, n)| Source::Node(*n)).collect();
    let mut few = planner.samples.clone();
    thin(&mut few, FEW);
    let Some(data) = task.dataset else { return Ok(BTreeSet::new()) };
    let measure = |plan: &Plan| -> Result<Noise> {
        let progress = |done, total| task.job.progress.part(done, total);
        let noise = noise::measure(task.model, plan, &planner.known, &wanted, data, &few, &progress)?;
        Ok(Noise(noise.0.into_iter().map(|(source, shares)| (source, gate.budget.scaled(&shares))).collect()))
    };
    let (fitted, plain) = (measure(fitted)?, measure(plain)?);
    let harms = |nodes: &&Vec<(&str, NodeId)>| {
        let sources: Vec<Source> = nodes.iter().map(|(_, n)| Source::Node(*n)).collect();
        fitted.worst(&sources) > plain.worst(&sources)
    };
    Ok(of_weight.values().filter(harms).flatten().map(|(name, _)| (*name).to_owned()).collect())
}
