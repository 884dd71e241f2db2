//! Factors of channels that the whole model's answers gain by. They are chosen by the error of the layers that read the values;
//! that a layer errs less does not always bring the answers nearer, and then they are left out.

use std::collections::BTreeSet;

use super::{
    Clock,
    even_out::{Factors, divide},
    gate::{Gate, gains},
    planner::{Planner, Task},
    thin,
};
use crate::{
    analysis::types::{Types, infer},
    error::{ErrorKind, Result},
    ir::Model,
    passes::Context,
    plan::{ChannelFactors, Plan},
    validate::noise::{self, Noise, Source},
};

/// Samples that single roundings are measured on.
const FEW: usize = 4;

/// Those of the factors that bring the answers of the quantized model nearer to the original's, on samples that they were not
/// chosen on where there are enough: all, or what is left without those whose layers do more harm with them.
pub(super) fn confirmed(
    task: Task<'_>,
    samples: &[usize],
    chosen_on: &[usize],
    mut found: Factors,
    clock: &mut Clock<'_>,
) -> Result<Factors> {
    let mut plain = Planner::new(task, samples.to_vec(), Vec::new())?;
    let mut others: Vec<usize> = samples.iter().copied().filter(|s| !chosen_on.contains(s)).collect();
    if others.len() < chosen_on.len() {
        others = samples.to_vec();
    }
    let Some(gate) = Gate::new(&plain, others)? else { return Ok(found) };
    let (plan, _) = plain.plan(&plain.wishes()?, clock)?;
    let before = gate.noise(task.model, &plan, &plain.known)?;
    let mut weighed = false;
    while !found.is_empty() {
        let mut model = task.model.clone();
        let resolved = divide(&mut model, &found, task.resolved.clone(), &mut Context::default())?;
        let divided = Task { model: &model, resolved: &resolved, ..task };
        let mut even = Planner::new(divided, samples.to_vec(), Vec::new())?;
        let (even_plan, _) = even.plan(&even.wishes()?, clock)?;
        let after = gate.noise(&model, &even_plan, &even.known)?;
        log::info!("{} values evened out: {before:.4?} of the budget, {after:.4?} with them", found.len());
        if gains(before, after, 1.0) {
            break;
        }
        let count = found.len();
        if !weighed {
            weighed = true;
            let (before, after) = (alone(&plain, &gate, &found, &plan), alone(&even, &gate, &found, &even_plan));
            match (before, after) {
                (Ok(before), Ok(after)) => {
                    let mut gains = before.into_iter().zip(after).map(|(before, after)| after < before);
                    found.retain(|_, _| gains.next().unwrap_or(false));
                }
                (Err(error), _) | (_, Err(error)) if error.kind() == ErrorKind::Runtime => {}
                (Err(error), _) | (_, Err(error)) => return Err(error),
            }
        }
        if found.len() == count {
            found.clear();
        }
    }
    Ok(found)
}

/// The noise that the layers around each value make alone at the outputs, in the order of their names.
fn alone(planner: &Planner<'_>, gate: &Gate<'_>, found: &Factors, plan: &Plan) -> Result<Vec<f64>> {
    let (task, types) = (planner.task, infer(planner.task.model));
    let each: Vec<BTreeSet<Source>> =
        found.iter().map(|(name, by)| sources(task.model, &types, name, by)).collect::<Result<_>>()?;
    let wanted: BTreeSet<Source> = each.iter().flatten().cloned().collect();
    let mut few = planner.samples.clone();
    thin(&mut few, FEW);
    let Some(data) = task.dataset else { return Ok(Vec::new()) };
    let progress = |done, total| task.job.progress.part(done, total);
    let noise = noise::measure(task.model, plan, &planner.known, &wanted, data, &few, &progress)?;
    let noise = Noise(noise.0.into_iter().map(|(source, shares)| (source, gate.budget.scaled(&shares))).collect());
    Ok(each.iter().map(|sources| noise.worst(sources)).collect())
}

/// What is rounded around a value that is divided: the layers that take its factors in, what they read and what they make.
fn sources(model: &Model, types: &Types, name: &str, by: &ChannelFactors) -> Result<BTreeSet<Source>> {
    let mut found = BTreeSet::new();
    let Some(value) = model.find_value(model.main(), name) else { return Ok(found) };
    // A Mul that divides stands in front of the layers in the one model, and the value in the other.
    let readers = |v| model.value(v).readers().map(|(n, _)| n).collect::<Vec<_>>();
    let behind = |n| model.node(n).output(0).map_or_else(Vec::new, readers);
    let mut nodes = readers(value);
    match by.takes(model, types, name, value) {
        Ok(takes) => nodes.extend(takes.into_iter().map(|t| t.node)),
        Err(_) => nodes.extend(readers(value).into_iter().flat_map(behind)),
    }
    for n in nodes {
        let values = model.node(n).inputs().iter().chain(model.node(n).outputs()).flatten();
        found.extend(values.map(|&v| Source::Value(v)).chain([Source::Node(n), Source::AtRunTime(n)]));
    }
    Ok(found)
}
