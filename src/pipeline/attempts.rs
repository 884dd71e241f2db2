//! Which form of the model a plan is made for: as it is, or, in mode `auto`, with Concats of uneven parts split and with channels
//! evened out, where that pays.

use std::collections::BTreeMap;

use super::{
    Clock, Job, Outcome,
    absorb::absorb,
    even_out::{Factors, even_out},
    planner::{self, Task},
    prices::saved,
};
use crate::{
    calibrate::{Dataset, dataset::Split},
    config::Mode,
    error::Result,
    ir::Model,
    passes::Context,
    plan::ChannelShifts,
    report::Auto,
    scheme::{Resolved, Settings},
};
/// A second plan must save this many times the time of the first.
const WORTH: f64 = 1.02;

/// Makes the plan of a job, and evens channels out if that is asked for. In mode `auto` that is also tried where the answers cost
/// nodes that the target is faster with, and so are Concats of uneven parts in float, where there are such. The model and what is
/// resolved for it are then those that the plan speaks of.
pub(super) fn plan(
    job: &Job<'_>,
    model: &mut Model,
    resolved: &mut Resolved,
    dataset: Option<&Dataset>,
    samples: (Vec<usize>, Split),
    clock: &mut Clock<'_>,
    cx: &mut Context,
) -> Result<Outcome> {
    let config = &job.settings.config;
    let may = config.mode == Mode::Auto && dataset.is_some();
    let before = may.then(|| (model.clone(), resolved.clone(), cx.diagnostics.clone()));
    let (factors, absorbed) = shape(job, (&mut *model, &mut *resolved), dataset, &samples.0, clock, cx)?;
    let task = Task { job, model, resolved, dataset, rival: None };
    let mut best = planner::make(task, samples.0.clone(), samples.1.clone(), &mut cx.diagnostics, clock)?;
    (best.plan.channel_factors, best.plan.absorbed_biases) = (factors, absorbed);
    let Some((prepared, plain, diagnostics)) = before else { return Ok(best) };
    let others: [(bool, Form); 2] = [
        (best.uneven > 0 && !config.split_concats, Settings::splitting_concats),
        (!config.smooth, Settings::evening_out),
    ];
    // What helps stays for what is tried after it.
    let mut settings = job.settings.clone();
    for (_, with) in others.into_iter().filter(|(may, _)| *may) {
        let lost = best.auto.as_ref().is_some_and(|a| a.floated > 0 || a.too_much());
        if !lost || clock.is_over() {
            break;
        }
        let other = with(&settings);
        let job = Job { settings: &other, ..job.clone() };
        let (mut formed, mut resolved_so) = (prepared.clone(), plain.clone());
        let first = std::mem::replace(&mut cx.diagnostics, diagnostics.clone());
        let (factors, absorbed) = shape(&job, (&mut formed, &mut resolved_so), dataset, &samples.0, clock, cx)?;
        if other.config.smooth && factors.is_empty() {
            cx.diagnostics = first;
            continue;
        }
        let rival = best.auto.as_ref().and_then(Auto::rank_before);
        let task = Task { job: &job, model: &formed, resolved: &resolved_so, dataset, rival };
        let mut made = planner::make(task, samples.0.clone(), samples.1.clone(), &mut cx.diagnostics, clock)?;
        (made.plan.channel_factors, made.plan.absorbed_biases) = (factors, absorbed);
        if is_better(&made, &best) {
            made.uneven = best.uneven;
            (*model, *resolved, best, settings) = (formed, resolved_so, made, other);
        } else {
            cx.diagnostics = first;
        }
    }
    Ok(best)
}

/// What changes the settings to those for another form of the model.
type Form = fn(&Settings) -> Settings;

/// Brings the model into the form that the settings ask for.
fn shape(
    job: &Job<'_>,
    (model, resolved): (&mut Model, &mut Resolved),
    dataset: Option<&Dataset>,
    samples: &[usize],
    clock: &mut Clock<'_>,
    cx: &mut Context,
) -> Result<(Factors, BTreeMap<String, ChannelShifts>)> {
    let data = dataset.map(|d| (d, samples));
    let factors = even_out(job, model, resolved, data, clock, cx)?;
    Ok((factors, absorb(job, model, resolved, data, clock, cx)?))
}

/// Whether the plan for another form of the model is better than the best so far.
fn is_better(other: &Outcome, best: &Outcome) -> bool {
    let time = |o: &Outcome| o.placement.as_ref().map_or(0.0, saved);
    let keeps = |o: &Outcome| !o.auto.as_ref().is_some_and(Auto::too_much);
    log::info!("auto: {:.0} us saved, {:.0} us in another form", time(best) / 1e3, time(other) / 1e3);
    match (keeps(other), keeps(best)) {
        (true, true) => time(other) > WORTH * time(best),
        (inside, _) => inside,
    }
}
