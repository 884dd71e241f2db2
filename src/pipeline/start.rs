//! The first steps of the job, whatever numbers the model is brought into (reading, preparing, opening data), and the last one:
//! carrying the plan out.

use std::time::Instant;

use super::{
    Clock, Job, Outcome, Quantized, before, float8_opset, measure::carry_out, not_finite, options, prepare, trained,
};
use crate::{calibrate::Dataset, error::Result, ir::Model, onnx_file, passes::Context, plan::Plan, scheme::Resolved};

/// What the first steps give.
pub(super) struct Start<'a> {
    pub(super) clock: Clock<'a>,
    /// The model as read.
    pub(super) original: Model,
    /// The prepared model.
    pub(super) model: Model,
    /// The settings for it.
    pub(super) resolved: Resolved,
    /// With what was noticed.
    pub(super) cx: Context,
    /// The calibration data.
    pub(super) dataset: Option<Dataset>,
    /// The data to prove the result on.
    pub(super) evaluation: Option<Dataset>,
    /// Nodes with weights that are no numbers, in words.
    pub(super) broken: Vec<String>,
    /// Quantizers of training were taken out of the model.
    pub(super) trained: bool,
}

/// The model as read.
pub(super) struct Read<'a> {
    clock: Clock<'a>,
    original: Model,
    /// Its data go through quantizers that the job brings to integers.
    pub(super) trained: bool,
}

/// Checks what can be known before, and reads the model.
pub(super) fn read<'a>(job: &Job<'a>) -> Result<Read<'a>> {
    let config = &job.settings.config;
    let files = before::check(job)?;
    let mut clock = Clock::resumed(job.progress, Vec::new());
    clock.until = config.time_limit().and_then(|limit| Instant::now().checked_add(limit));
    clock.step("read");
    let original = onnx_file::read_with(&job.model, job.read)?;
    before::check_weights(&files)?;
    let trained =
        trained::may(config) && trained::is_trained(&original, &job.settings.target).map_err(|e| e.file(&job.model))?;
    Ok(Read { clock, original, trained })
}

/// Reads and prepares the model, and opens the data.
pub(super) fn start<'a>(job: &Job<'a>) -> Result<Start<'a>> {
    start_with(job, read(job)?)
}

/// Prepares the model, and opens the data.
pub(super) fn start_with<'a>(job: &Job<'a>, read: Read<'a>) -> Result<Start<'a>> {
    let config = &job.settings.config;
    let Read { mut clock, original, trained } = read;
    clock.step("prepare");
    let mut cx = Context { options: options(job.settings), ..Context::default() };
    if job.plan.as_ref().is_some_and(Plan::has_float8) {
        cx.options.least_opset = float8_opset(&job.settings.target);
    }
    cx.options.import_quantizers = trained;
    let wide = if trained { trained::halves::widened(&original, &job.settings.target)? } else { None };
    let model = prepare(wide.as_ref().map_or(&original, |(wide, _)| wide), &mut cx).map_err(|e| e.file(&job.model))?;
    cx.diagnostics.extend(wide.map(|(_, said)| said));
    if trained::may(config) && !trained {
        cx.diagnostics.extend(trained::halves::stay(&original, &job.settings.target));
    }
    cx.diagnostics.splice(0..0, before::look_at(&original, trained));
    let (broken, said) = not_finite::weights(&original)?;
    cx.diagnostics.splice(0..0, said);
    if let Some(table) = &job.ranges {
        before::check_ranges(table, [&original, &model])?;
    }
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
    cx.diagnostics.extend(before::idle_beside_float8(config));
    Ok(Start { clock, original, model, resolved, cx, dataset, evaluation, broken, trained })
}

impl Start<'_> {
    /// The model as the plan of the outcome has it, with what the proof needs. `evaluated` are the samples of the evaluation data to
    /// compare on.
    pub(super) fn rewritten(mut self, job: &Job<'_>, outcome: Outcome, evaluated: Vec<usize>) -> Result<Quantized> {
        self.clock.step("rewrite");
        self.cx.plan = Some(outcome.plan);
        carry_out(&mut self.model, &mut self.cx)?;
        self.clock.step("");
        let (dataset, proof_samples, held_out) = match self.evaluation {
            Some(data) => (Some(data), evaluated, job.evaluation != job.data),
            None => (self.dataset, outcome.proof_samples, outcome.held_out),
        };
        Ok(Quantized {
            original: self.original,
            model: self.model,
            plan: self.cx.plan.unwrap_or_default(),
            known: self.cx.known,
            measured: None,
            placement: outcome.placement,
            auto: outcome.auto,
            dataset,
            table: outcome.table,
            samples: outcome.samples,
            proof_samples,
            held_out,
            diagnostics: self.cx.diagnostics,
            stages: self.clock.stages,
            promises: Vec::new(),
            broken: self.broken,
            uneven: outcome.uneven,
            left: Vec::new(),
            trained: self.trained,
        })
    }
}
