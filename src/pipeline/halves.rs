//! A model in 16-bit floats: which nodes can be, by data where there are some, and the change.

use std::collections::BTreeMap;

use super::{
    Clock, Job, Outcome, Quantized, before, half_answers,
    planner::{self, Task},
    start::{Start, start},
    thin,
};
use crate::{
    calibrate::{
        Dataset,
        dataset::Split,
        halves::{Rounding, roundings},
    },
    config::{FloatWeights, IoTypes},
    diagnostics::Diagnostic,
    error::Result,
    ir::{DType, Model, ValueId},
    plan::{ForAnswers, HalfTask, Plan, decide_halves, half_values},
    report::Auto,
    target::HalfForm,
};

/// The most samples to look at values on: magnitudes are known after few.
const LOOKED_AT: usize = 64;

/// Reads, prepares, looks at values, decides and rewrites; writes nothing.
pub(super) fn quantize(job: &Job<'_>, dtype: DType) -> Result<Quantized> {
    let Start { mut clock, original, model, resolved, mut cx, dataset, evaluation, broken, trained } = start(job)?;
    let evaluated = evaluation.as_ref().map(|d| planner::proof_samples(job, d, &mut cx.diagnostics)).transpose()?;
    let (mut samples, split) = match &dataset {
        Some(data) => planner::samples(job, data, &mut cx.diagnostics)?,
        None => (Vec::new(), Split::default()),
    };
    thin(&mut samples, LOOKED_AT);
    let (plan, auto) = match &job.plan {
        Some(plan) => {
            plan.check(&model, &job.settings.target)?;
            (plan.clone(), None)
        }
        None => {
            let task = Task { job, model: &model, resolved: &resolved, dataset: dataset.as_ref(), rival: None };
            make(task, dtype, (&samples, &split), &mut clock, &mut cx.diagnostics)?
        }
    };
    let outcome = Outcome {
        plan,
        auto,
        samples,
        proof_samples: split.validation,
        held_out: split.held_out,
        ..Outcome::default()
    };
    let end = Start { clock, original, model, resolved, cx, dataset, evaluation, broken, trained };
    let mut done = end.rewritten(job, outcome, evaluated.unwrap_or_default())?;
    done.diagnostics.extend(before::half_speed(&job.settings.target, dtype));
    Ok(done)
}

/// Looks at the values of the data, decides, and judges by the answers.
fn make(
    task: Task<'_>,
    dtype: DType,
    (samples, split): (&[usize], &Split),
    clock: &mut Clock<'_>,
    noticed: &mut Vec<Diagnostic>,
) -> Result<(Plan, Option<Auto>)> {
    let Task { job, model, resolved, dataset, .. } = task;
    let config = &job.settings.config;
    let target = &job.settings.target;
    // Weights alone tell what they lose themselves.
    let looks = target.half(dtype).form == HalfForm::Computed;
    let mut seen: BTreeMap<ValueId, Rounding> = BTreeMap::new();
    match dataset {
        Some(data) if looks => seen = look_at_values(job, model, dtype, (data, samples), clock)?,
        Some(_) => {}
        None => noticed.push(before::half_without_data(config, dtype, looks)),
    }
    clock.step("decide");
    let for_answers = ForAnswers::default();
    let half = HalfTask {
        model,
        target,
        dtype,
        io: config.io_types == IoTypes::Half,
        wishes: &resolved.wishes,
        seen: &seen,
        store: config.float_weights != FloatWeights::Keep,
        for_answers: &for_answers,
        only: None,
    };
    let first = decide_halves(&half)?;
    half_answers::choose(task, &half, (samples, split), first, clock, noticed)
}

/// What rounding does to the values of the data.
pub(super) fn look_at_values(
    job: &Job<'_>,
    model: &Model,
    dtype: DType,
    (data, samples): (&Dataset, &[usize]),
    clock: &mut Clock<'_>,
) -> Result<BTreeMap<ValueId, Rounding>> {
    clock.step("look at values");
    let mut few = samples.to_vec();
    thin(&mut few, LOOKED_AT);
    let values = half_values(model);
    let feed = |i: usize| data.sample(i);
    let progress = |done, all| job.progress.part(done, all);
    let found = roundings(job.runtime, model, dtype, &values, &few, &feed, &progress)?;
    Ok(values.into_iter().zip(found).collect())
}
