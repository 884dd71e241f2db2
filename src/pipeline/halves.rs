//! A model in 16-bit floats: which nodes can be, by data where there are some, and the change.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Clock, Job, Quantized, before,
    measure::STAGES,
    planner,
    start::{Start, start},
    thin,
};
use crate::{
    analysis::placement::Wishes,
    calibrate::{
        Dataset, Table,
        dataset::Split,
        halves::{Rounding, roundings},
    },
    config::IoTypes,
    diagnostics::Diagnostic,
    error::Result,
    ir::{DType, Model, ValueId},
    passes,
    plan::{HalfTask, KnownReads, Plan, decide_halves, half_values},
    target::HalfForm,
};

/// The most samples to look at values on: magnitudes are known after few.
const LOOKED_AT: usize = 64;

/// Reads, prepares, looks at values, decides and rewrites; writes nothing.
pub(super) fn quantize(job: &Job<'_>, dtype: DType) -> Result<Quantized> {
    let Start { mut clock, original, mut model, resolved, mut cx, dataset, evaluation, broken } = start(job)?;
    let evaluated = evaluation.as_ref().map(|d| planner::proof_samples(job, d, &mut cx.diagnostics)).transpose()?;
    let (mut samples, split) = match &dataset {
        Some(data) => planner::samples(job, data, &mut cx.diagnostics)?,
        None => (Vec::new(), Split::default()),
    };
    thin(&mut samples, LOOKED_AT);
    let plan = match &job.plan {
        Some(plan) => {
            plan.check(&model, &job.settings.target)?;
            plan.clone()
        }
        None => {
            let data = dataset.as_ref().map(|d| (d, &samples[..]));
            make(job, &model, dtype, &resolved.wishes, data, &mut clock, &mut cx.diagnostics)?
        }
    };
    clock.step("rewrite");
    cx.plan = Some(plan);
    for stage in STAGES {
        passes::run_stage(stage, &mut model, &mut cx)?;
    }
    clock.step("");
    cx.diagnostics.extend(before::half_speed(&job.settings.target, dtype));
    let (dataset, proof_samples, held_out) = match evaluation {
        Some(data) => (Some(data), evaluated.unwrap_or_default(), job.evaluation != job.data),
        None => (dataset, split.validation, split.held_out),
    };
    Ok(Quantized {
        original,
        model,
        plan: cx.plan.unwrap_or_default(),
        known: Arc::new(KnownReads::default()),
        measured: None,
        placement: None,
        auto: None,
        dataset,
        table: Table::default(),
        samples,
        proof_samples,
        held_out,
        diagnostics: cx.diagnostics,
        stages: clock.stages,
        promises: Vec::new(),
        left: Vec::new(),
        broken,
        uneven: 0,
    })
}

/// Looks at the values of the data, and decides.
fn make(
    job: &Job<'_>,
    model: &Model,
    dtype: DType,
    wishes: &Wishes,
    data: Option<(&Dataset, &[usize])>,
    clock: &mut Clock<'_>,
    noticed: &mut Vec<Diagnostic>,
) -> Result<Plan> {
    let target = &job.settings.target;
    let mut seen: BTreeMap<ValueId, Rounding> = BTreeMap::new();
    // Weights alone tell what they lose themselves.
    let looks = target.half(dtype).form == HalfForm::Computed;
    match data.filter(|_| looks) {
        Some((data, samples)) => {
            clock.step("look at values");
            let values = half_values(model);
            let feed = |i: usize| data.sample(i);
            let progress = |done, all| job.progress.part(done, all);
            let found = roundings(job.runtime, model, dtype, &values, samples, &feed, &progress)?;
            seen.extend(values.into_iter().zip(found));
        }
        None if looks => noticed.push(before::half_without_data(dtype)),
        None => {}
    }
    clock.step("decide");
    let io = job.settings.config.io_types == IoTypes::Half;
    decide_halves(&HalfTask { model, target, dtype, io, wishes, seen: &seen })
}
