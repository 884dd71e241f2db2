//! A model in 16-bit floats: which nodes can be, by data where there are some, and the change.

use std::{collections::BTreeMap, sync::Arc};

use super::{Clock, Job, Quantized, before, not_finite, options, planner, prepare, thin};
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
    onnx_file,
    passes::{self, Context},
    plan::{HalfTask, KnownReads, Plan, decide_halves, half_values},
    target::HalfForm,
};

use super::measure::STAGES;

/// The most samples to look at values on: magnitudes are known after few.
const LOOKED_AT: usize = 64;

/// Reads, prepares, looks at values, decides and rewrites; writes nothing.
pub(super) fn quantize(job: &Job<'_>, dtype: DType) -> Result<Quantized> {
    let config = &job.settings.config;
    let files = before::check(job)?;
    let mut clock = Clock::resumed(job.progress, Vec::new());
    clock.step("read");
    let original = onnx_file::read_with(&job.model, job.read)?;
    before::check_weights(&files)?;
    let (broken, said) = not_finite::weights(&original)?;
    clock.step("prepare");
    let mut cx = Context { options: options(job.settings), ..Context::default() };
    cx.diagnostics.extend(said);
    // Bool masks are made of float constants, which are in 16 bits here.
    cx.options.keep_masks = true;
    let mut model = prepare(&original, &mut cx).map_err(|e| e.file(&job.model))?;
    cx.diagnostics.splice(0..0, before::look_at(&original));
    let resolved = job.settings.resolve(&original, &model)?;
    cx.diagnostics.extend(resolved.diagnostics.iter().cloned());
    let dataset = job.data.as_deref().map(|d| job.open_data(d, &original)).transpose()?;
    let evaluation = job.evaluation.as_deref().map(|d| job.open_data(d, &original)).transpose()?;
    for note in dataset.iter().chain(&evaluation).flat_map(Dataset::notes) {
        if !cx.diagnostics.contains(note) {
            cx.diagnostics.push(note.clone());
        }
    }
    cx.diagnostics.extend(before::idle_evaluation(job));
    cx.diagnostics.extend(before::idle_calibration(job));
    cx.diagnostics.extend(before::idle_beside_halves(config));
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
        Some(data) => {
            let all = (0..data.len()).collect();
            (Some(data), all, job.evaluation != job.data)
        }
        None => (dataset, split.validation, split.held_out),
    };
    let samples = if config.precision.half().is_some() && job.plan.is_some() { Vec::new() } else { samples };
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
