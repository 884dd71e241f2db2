//! Which form of the model a plan is made for: as it is, or, in mode `auto`, with channels evened out where that pays.

use super::{
    Clock, Job, Outcome,
    absorb::absorb,
    even_out::even_out,
    planner::{self, Task},
    prices::saved,
};
use crate::{
    calibrate::{Dataset, dataset::Split},
    config::Mode,
    error::Result,
    ir::Model,
    passes::Context,
    report::Auto,
    scheme::Resolved,
};
/// A second plan must save this many times the time of the first.
const WORTH: f64 = 1.02;

/// Makes the plan of a job, and evens channels out if that is asked for. In mode `auto` it is also tried where the answers cost
/// nodes that the target is faster with. The model and what is resolved for it are then those that the plan speaks of.
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
    let may = config.mode == Mode::Auto && !config.smooth && dataset.is_some();
    let before = may.then(|| (model.clone(), resolved.clone(), samples.clone(), cx.diagnostics.clone()));
    let seen = samples.0.clone();
    let data = dataset.map(|d| (d, &seen[..]));
    let factors = even_out(job, model, resolved, data, clock, cx)?;
    let absorbed = absorb(job, model, resolved, data, clock, cx)?;
    let task = Task { job, model, resolved, dataset, rival: None };
    let mut outcome = planner::make(task, samples.0, samples.1, &mut cx.diagnostics, clock)?;
    (outcome.plan.channel_factors, outcome.plan.absorbed_biases) = (factors, absorbed);
    let lost = outcome.auto.as_ref().is_some_and(|a| a.floated > 0 || a.too_much());
    let Some((mut even, mut even_resolved, samples, diagnostics)) = before.filter(|_| lost && !clock.is_over()) else {
        return Ok(outcome);
    };
    let settings = job.settings.evening_out();
    let job = Job { settings: &settings, ..job.clone() };
    let first = std::mem::replace(&mut cx.diagnostics, diagnostics);
    let factors = even_out(&job, &mut even, &mut even_resolved, data, clock, cx)?;
    if !factors.is_empty() {
        let absorbed = absorb(&job, &mut even, &even_resolved, data, clock, cx)?;
        let rival = outcome.auto.as_ref().and_then(|a| a.before);
        let task = Task { job: &job, model: &even, resolved: &even_resolved, dataset, rival };
        let mut other = planner::make(task, samples.0, samples.1, &mut cx.diagnostics, clock)?;
        (other.plan.channel_factors, other.plan.absorbed_biases) = (factors, absorbed);
        if is_better(&other, &outcome) {
            (*model, *resolved) = (even, even_resolved);
            return Ok(other);
        }
    }
    cx.diagnostics = first;
    Ok(outcome)
}

/// Whether a plan with channels evened out is better than one without.
fn is_better(even: &Outcome, plain: &Outcome) -> bool {
    let time = |o: &Outcome| o.placement.as_ref().map_or(0.0, saved);
    let keeps = |o: &Outcome| !o.auto.as_ref().is_some_and(Auto::too_much);
    log::info!("auto: {:.0} us saved, {:.0} us with channels evened out", time(plain) / 1e3, time(even) / 1e3);
    match (keeps(even), keeps(plain)) {
        (true, true) => time(even) > WORTH * time(plain),
        (inside, _) => inside,
    }
}
