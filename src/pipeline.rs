//! From file to file, step by step.

mod absorb;
mod already;
mod anew;
mod attempts;
mod auto;
mod before;
mod budget;
mod confirm;
mod convert;
mod dequantize;
mod diff;
mod dynamic;
mod even_out;
mod finish;
mod fit;
mod float8;
mod gate;
mod half_answers;
mod half_rules;
mod halves;
mod judge;
mod lint;
mod measure;
mod narrow;
mod nearest;
mod not_finite;
mod observed;
mod planner;
mod prices;
mod promised;
mod sensitivity;
mod split;
mod spread;
mod start;
mod trained;
pub mod tune;
mod weight_only;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use crate::{
    analysis::placement::{Placement, Shapes},
    bench::Measured,
    calibrate::{
        dataset::{Dataset, DatasetOptions, InputSpec, Split},
        table::Table,
    },
    config::{FloatWeights, Format, Mode, StackTraces},
    diagnostics::Diagnostic,
    error::{Error, Result},
    files::Files,
    ir::{Model, Tensor, ValueId},
    onnx_file::ReadOptions,
    passes::{self, Context, Options, Stage, convert_opset},
    plan::{KnownReads, Plan},
    report::Auto,
    runtime::{Runtime, tract::Tract},
    scheme::Settings,
    target::Target,
};

use self::start::{Read, Start, read, start, start_with};
pub use self::{
    convert::{ConvertJob, convert, convert_model},
    dequantize::{DequantizeJob, dequantize, dequantize_model},
    diff::{DiffJob, diff},
    finish::{check_labels, finish, odd_outputs, proof_of, run},
    lint::{LintJob, lint, lint_model},
    sensitivity::{Measure as MeasureSensitivity, Measured as MeasuredSensitivity, measure_sensitivity},
};

/// What to do, after the user's words have been resolved.
#[derive(Clone)]
pub struct Job<'a> {
    /// The model to read.
    pub model: PathBuf,
    /// The file to write; empty where nothing is written.
    pub output: PathBuf,
    /// Calibration data; not needed with a plan.
    pub data: Option<PathBuf>,
    /// Data to prove the result on, all of it; if `None`, calibration keeps some of its samples back for that.
    pub evaluation: Option<PathBuf>,
    /// What the user wants.
    pub settings: &'a Settings,
    /// What runs the model here.
    pub runtime: &'a dyn Runtime,
    /// Ranges from an earlier run, instead of calibration.
    pub ranges: Option<Table>,
    /// A plan from an earlier run, instead of placement and calibration.
    pub plan: Option<Plan>,
    /// Further files that the caller reads and writes, to be checked together with those above before the work.
    pub files: Files,
    /// How to read.
    pub read: ReadOptions,
    /// Told of each step and its progress.
    pub progress: &'a dyn Progress,
}

impl<'a> Job<'a> {
    /// From `model` to `output`, run by tract, with no data yet, and telling nobody of its progress.
    pub fn new(model: impl Into<PathBuf>, output: impl Into<PathBuf>, settings: &'a Settings) -> Self {
        Self {
            model: model.into(),
            output: output.into(),
            data: None,
            evaluation: None,
            settings,
            runtime: &Tract,
            ranges: None,
            plan: None,
            files: Files::default(),
            read: ReadOptions::default(),
            progress: &Silent,
        }
    }

    fn open_data(&self, path: &Path, model: &Model) -> Result<Dataset> {
        let images = self.settings.config.calibration.image.options();
        open_data(path, model, &DatasetOptions { images })
    }
}

/// Is told what goes on.
pub trait Progress: Sync {
    /// A step begins.
    fn step(&self, name: &'static str);
    /// `done` of `total` parts of the step are done.
    fn part(&self, done: usize, total: usize);
}

/// Tells nobody.
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _: &'static str) {}
    fn part(&self, _: usize, _: usize) {}
}

/// A quantized model in memory with what led to it.
pub struct Quantized {
    /// The model as read.
    pub original: Model,
    /// The model as it will be written.
    pub model: Model,
    /// The plan that was carried out.
    pub plan: Plan,
    /// What weights were rounded by, beside themselves.
    pub known: Arc<KnownReads>,
    /// What was measured, if the plan was.
    pub measured: Option<Measured>,
    /// Where the plan comes from; `None` if it was given.
    pub placement: Option<Placement>,
    /// How the answers of the fastest plan led to another.
    pub auto: Option<Auto>,
    /// The data, for the proof.
    pub dataset: Option<Dataset>,
    /// Ranges that calibration saw.
    pub table: Table,
    /// Samples that calibration saw.
    pub samples: Vec<usize>,
    /// Samples to prove the result on.
    pub proof_samples: Vec<usize>,
    /// Whether the proof's samples are new to calibration.
    pub held_out: bool,
    /// What was noticed.
    pub diagnostics: Vec<Diagnostic>,
    /// Seconds of each step.
    pub stages: Vec<(&'static str, f64)>,
    /// What shall compute in integers.
    promises: Vec<promised::Promise>,
    /// Weights that are NaN or infinite, in words.
    broken: Vec<String>,
    /// Concats in integers whose parts have very different ranges.
    uneven: usize,
    /// What is left as it is, in a file that is quantized already.
    left: Vec<already::Left>,
    /// Quantizers of training were taken out of the model.
    trained: bool,
}

/// Reads, prepares, places, calibrates, decides and rewrites; writes nothing.
pub fn quantize(job: &Job<'_>) -> Result<Quantized> {
    let config = &job.settings.config;
    if let Some(dtype) = config.precision.half() {
        return halves::quantize(job, dtype);
    }
    if let Some(dtype) = config.precision.float8().filter(|_| job.plan.is_none()) {
        return float8::quantize(job, dtype);
    }
    let without = config.mode == Mode::Auto && job.data.is_none() && job.plan.is_none() && !config.rules_need_data();
    let read = read(job)?;
    if without && !read.trained {
        let settings = job.settings.with_mode(Mode::Dynamic);
        let mut done = quantize_as_read(&Job { settings: &settings, ..job.clone() }, read)?;
        done.diagnostics.insert(0, before::without_data(job.evaluation.is_some()));
        return Ok(done);
    }
    quantize_as_read(job, read)
}

/// The same of a model that is read.
fn quantize_as_read<'a>(job: &Job<'a>, read: Read<'a>) -> Result<Quantized> {
    let config = &job.settings.config;
    let Start { mut clock, original, mut model, mut resolved, mut cx, dataset, evaluation, broken, trained } =
        start_with(job, read)?;
    if config.mode == Mode::Qat && !trained {
        return Err(trained::none(&cx.diagnostics).file(&job.model));
    }
    cx.diagnostics.extend(before::idle_budgets(config).filter(|_| job.plan.is_none()));
    cx.diagnostics.extend(before::idle_precision(config).filter(|_| job.plan.is_none()));
    if job.plan.is_none() && dataset.is_none() && !trained && job.settings.config.needs_data() {
        return Err(before::no_data(&job.settings.config));
    }
    let evaluated = evaluation.as_ref().map(|d| planner::proof_samples(job, d, &mut cx.diagnostics)).transpose()?;
    let evaluated = evaluated.unwrap_or_default();
    let (samples, split) = match &dataset {
        Some(data) if job.plan.is_none() => planner::samples(job, data, &mut cx.diagnostics)?,
        _ => (Vec::new(), Split::default()),
    };
    let mut outcome = match &job.plan {
        Some(plan) => {
            even_out::even_out(job, &mut model, &mut resolved, None, &mut clock, &mut cx)?;
            absorb::absorb(job, &mut model, &resolved, None, &mut clock, &mut cx)?;
            plan.check(&model, &job.settings.target)?;
            cx.diagnostics.extend(before::beside_a_plan(&job.settings.config));
            let found = dataset.as_ref().map(|d| planner::finite_samples(job, d, &mut cx.diagnostics)).transpose()?;
            let (samples, split) = found.unwrap_or_default();
            let (plan, proof_samples) = (plan.clone(), split.validation);
            let known = trained.then(|| trained::known(&mut cx));
            Outcome { plan, known, samples, proof_samples, held_out: true, ..Outcome::default() }
        }
        None if trained => {
            let data = dataset.as_ref();
            trained::plan(job, &mut model, &mut resolved, data, (samples, split), &mut clock, &mut cx)?
        }
        None if config.mode == Mode::WeightOnly => {
            let (models, data) = ((&original, &mut model), dataset.as_ref());
            weight_only::plan(job, models, &mut resolved, data, (samples, split), &mut clock, &mut cx)?
        }
        None => {
            let data = dataset.as_ref();
            attempts::plan(job, &mut model, &mut resolved, data, (samples, split), &mut clock, &mut cx)?
        }
    };
    if let Some(known) = outcome.known.take() {
        cx.known = known;
    } else if fit::asked(&outcome.plan) {
        clock.step("look at layers");
        let data = dataset.as_ref().map(|d| (d, &outcome.samples[..]));
        let (known, noticed) = fit::know(job, &model, &outcome.plan, data)?;
        cx.known = known;
        cx.diagnostics.extend(noticed);
    }
    if job.plan.is_none() {
        let data = dataset.as_ref().map(|d| (d, &outcome.samples[..]));
        cx.diagnostics.extend(half_rules::add(job, &model, &resolved, data, &mut outcome.plan, &mut clock)?);
    }
    let data = dataset.as_ref().or(evaluation.as_ref());
    let (measured, noticed) =
        measure::measure(job, [&original, &model], &resolved, data, &cx, &mut outcome, &mut clock)?;
    cx.diagnostics.extend(noticed);
    cx.options.stream_weights = (dataset.is_none() && evaluation.is_none()).then_some(STREAMED);
    let promises = promised::promises(&model, &outcome.plan);
    let left = already::left(&model, &outcome.plan, &job.settings.target);
    let end = Start { clock, original, model, resolved, cx, dataset, evaluation, broken, trained };
    Ok(Quantized { measured, promises, left, ..end.rewritten(job, outcome, evaluated)? })
}

/// The options of the passes.
fn options(settings: &Settings) -> Options {
    let config = &settings.config;
    Options {
        keep_stack_traces: config.stack_traces == StackTraces::Keep,
        // Bool masks are made of float constants, which are in 16 bits where the precision is.
        keep_masks: config.float_weights == FloatWeights::Keep || config.precision.half().is_some(),
        qoperator: (config.format == Format::Qoperator).then(|| settings.target.integer_ops()),
        seen_through: settings.target.seen_through.clone(),
        no_float8_zeros: !settings.target.float8.zero_points,
        least_opset: match config.precision.float8() {
            Some(_) => float8_opset(&settings.target),
            None => convert_opset::NEEDED,
        },
        ..Options::default()
    }
}

/// The operator set that floats of 8 bits need.
fn float8_opset(target: &Target) -> i64 {
    if target.float8.zero_points { convert_opset::FLOAT8 } else { convert_opset::TYPE_ATTRIBUTE }
}

/// Weights of more bytes than this, all together, are rounded when they are written, if nothing runs the model before.
const STREAMED: usize = 1 << 28;
/// With more bytes of weights than this, a model is not brought into memory.
const LARGE: usize = 1 << 30;
/// The largest weight of such a model that is changed before it is quantized.
const LARGEST_FOLDED: usize = 1 << 22;

/// The model in the form that the plan speaks of.
pub fn prepare(original: &Model, cx: &mut Context) -> Result<Model> {
    let mut model = original.clone();
    let weights = model.value_ids().into_iter().filter_map(|v| model.value(v).initializer());
    if weights.map(Tensor::byte_len).sum::<usize>() > LARGE {
        cx.options.largest_folded = LARGEST_FOLDED;
    }
    // Placement and the built-in runtime know the Q/DQ form, whatever is written in the end.
    let qoperator = cx.options.qoperator.take();
    passes::raise(&mut model, cx)?;
    cx.options.qoperator = qoperator;
    passes::run_stage_to_end(Stage::Prepare, &mut model, cx)?;
    passes::run_stage(Stage::Import, &mut model, cx)?;
    model.verify()?;
    Ok(model)
}

/// Opens data for a model.
pub fn open_data(path: &Path, model: &Model, options: &DatasetOptions) -> Result<Dataset> {
    let dataset = Dataset::open(path, &InputSpec::of_model(model)?, options)?;
    match dataset.len() {
        0 => Err(Error::data("holds no samples").file(path)),
        _ => Ok(dataset),
    }
}

/// Dtype and shape of every value of the main graph, from running one sample.
pub fn trace_shapes(runtime: &dyn Runtime, model: &Model, inputs: &[Tensor]) -> Result<Shapes> {
    let main = model.main();
    let made = model.nodes(main).into_iter().flat_map(|n| model.node(n).outputs().to_vec()).flatten();
    let values: Vec<ValueId> = made.collect();
    let mut shapes = Shapes::default();
    for (v, t) in model.required_inputs().into_iter().zip(inputs) {
        shapes.0.insert(v, (t.dtype(), t.dims().to_vec()));
    }
    let session = runtime.load(model, &values)?;
    session.run_observed(inputs, &mut |i, value| {
        shapes.0.insert(values[i], (value.dtype(), value.dims().to_vec()));
        Ok(())
    })?;
    Ok(shapes)
}

#[derive(Default)]
struct Outcome {
    plan: Plan,
    placement: Option<Placement>,
    auto: Option<Auto>,
    /// What weights were rounded by, where that is known.
    known: Option<Arc<KnownReads>>,
    table: Table,
    samples: Vec<usize>,
    proof_samples: Vec<usize>,
    held_out: bool,
    /// Concats that could be split, in the fastest plan.
    uneven: usize,
}

struct Clock<'a> {
    progress: &'a dyn Progress,
    stages: Vec<(&'static str, f64)>,
    /// When the running step began; `None` between steps.
    since: Option<Instant>,
    /// When searches shall end.
    until: Option<Instant>,
}

impl<'a> Clock<'a> {
    /// A clock that goes on after these steps.
    fn resumed(progress: &'a dyn Progress, stages: Vec<(&'static str, f64)>) -> Self {
        Clock { progress, stages, since: None, until: None }
    }

    /// Whether the time for searches is over.
    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Ends the step before and begins one; an empty name only ends.
    fn step(&mut self, name: &'static str) {
        if let (Some((_, seconds)), Some(since)) = (self.stages.last_mut(), self.since.take()) {
            *seconds = since.elapsed().as_secs_f64();
        }
        if !name.is_empty() {
            self.stages.push((name, 0.0));
            self.progress.step(name);
            self.since = Some(Instant::now());
        }
    }
}

/// Keeps `most` of the samples, evenly spread.
pub fn thin(samples: &mut Vec<usize>, most: usize) {
    let n = samples.len();
    if n > most {
        *samples = (0..most).map(|i| samples[i * n / most]).collect();
    }
}
