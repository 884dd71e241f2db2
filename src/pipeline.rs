//! From file to file, step by step.

mod before;
mod convert;
mod dynamic;
mod finish;
mod fit;
mod measure;
mod promised;
mod sensitivity;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use crate::{
    analysis::placement::{self, Decision, Placement, Shapes},
    bench::Measured,
    calibrate::{
        check_count, check_inputs,
        collect::{Watch, collect},
        dataset::{Dataset, DatasetOptions, InputSpec, Split},
        means::{Axis, ChannelMeans},
        observers::{self, Observer},
        table::Table,
    },
    config::{FloatWeights, Format, StackTraces},
    diagnostics::Diagnostic,
    error::{Error, Result},
    files::Files,
    ir::{Model, NodeId, Tensor, ValueId},
    onnx_file::{self, ReadOptions},
    passes::{self, Context, Stage},
    plan::{self, KnownReads, Plan},
    runtime::{Runtime, tract::Tract},
    scheme::{Resolved, Settings},
};

pub use self::{
    convert::{ConvertJob, convert, convert_model},
    finish::{check_labels, finish, odd_outputs, proof_of, run},
    sensitivity::{Measured as MeasuredSensitivity, measure_sensitivity},
};

/// What to do, after the user's words have been resolved.
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
}

/// Reads, prepares, places, calibrates, decides and rewrites; writes nothing.
pub fn quantize(job: &Job<'_>) -> Result<Quantized> {
    let files = before::check(job)?;
    let mut clock = Clock::resumed(job.progress, Vec::new());
    clock.step("read");
    let original = onnx_file::read_with(&job.model, job.read)?;
    before::check_weights(&files)?;
    clock.step("prepare");
    let mut cx = Context::default();
    cx.options.keep_stack_traces = job.settings.config.stack_traces == StackTraces::Keep;
    cx.options.keep_masks = job.settings.config.float_weights == FloatWeights::Keep;
    let qoperator = job.settings.config.format == Format::Qoperator;
    cx.options.qoperator = qoperator.then(|| job.settings.target.integer_ops());
    let mut model = prepare(&original, &mut cx).map_err(|e| e.file(&job.model))?;
    cx.diagnostics.splice(0..0, before::look_at(&original));
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
    let mut run = Run { job, model: &model, resolved: &resolved, diagnostics: Vec::new(), clock };
    let mut outcome = match &job.plan {
        Some(plan) => {
            plan.check(&model, &job.settings.target)?;
            cx.diagnostics.extend(before::beside_a_plan(&job.settings.config));
            let split = dataset.as_ref().map(|d| d.split().0).unwrap_or_default();
            let samples = dataset.as_ref().map(|d| seen(job, d, &split)).unwrap_or_default();
            let (plan, proof_samples) = (plan.clone(), split.validation);
            Outcome { plan, samples, proof_samples, held_out: true, ..Outcome::default() }
        }
        None => run.make_plan(dataset.as_ref())?,
    };
    let Run { diagnostics, mut clock, .. } = run;
    cx.diagnostics.extend(diagnostics);
    if fit::asked(&outcome.plan) {
        clock.step("look at layers");
        let data = dataset.as_ref().map(|d| (d, &outcome.samples[..]));
        let (known, noticed) = fit::know(job, &model, &outcome.plan, data)?;
        cx.known = known;
        cx.diagnostics.extend(noticed);
    }
    let data = dataset.as_ref().or(evaluation.as_ref());
    let (measured, noticed) =
        measure::measure(job, [&original, &model], &resolved, data, &cx, &mut outcome, &mut clock)?;
    cx.diagnostics.extend(noticed);
    clock.step("rewrite");
    let promises = promised::promises(&model, &outcome.plan);
    cx.plan = Some(outcome.plan);
    for stage in measure::STAGES {
        passes::run_stage(stage, &mut model, &mut cx)?;
    }
    clock.step("");
    let plan = cx.plan.unwrap_or_default();
    let (dataset, proof_samples, held_out) = match evaluation {
        Some(data) => {
            let all = (0..data.len()).collect();
            (Some(data), all, job.evaluation != job.data)
        }
        None => (dataset, outcome.proof_samples, outcome.held_out),
    };
    Ok(Quantized {
        original,
        model,
        plan,
        known: cx.known,
        measured,
        placement: outcome.placement,
        dataset,
        table: outcome.table,
        samples: outcome.samples,
        proof_samples,
        held_out,
        diagnostics: cx.diagnostics,
        stages: clock.stages,
        promises,
    })
}

/// The model in the form that the plan speaks of.
pub fn prepare(original: &Model, cx: &mut Context) -> Result<Model> {
    let mut model = original.clone();
    // Placement and the built-in runtime know the Q/DQ form, whatever is written in the end.
    let qoperator = cx.options.qoperator.take();
    passes::raise(&mut model, cx)?;
    cx.options.qoperator = qoperator;
    passes::run_stage_to_end(Stage::Prepare, &mut model, cx)?;
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
    table: Table,
    samples: Vec<usize>,
    proof_samples: Vec<usize>,
    held_out: bool,
}

struct Clock<'a> {
    progress: &'a dyn Progress,
    stages: Vec<(&'static str, f64)>,
    /// When the running step began; `None` between steps.
    since: Option<Instant>,
}

impl<'a> Clock<'a> {
    /// A clock that goes on after these steps.
    fn resumed(progress: &'a dyn Progress, stages: Vec<(&'static str, f64)>) -> Self {
        Clock { progress, stages, since: None }
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

struct Run<'a, 'm> {
    job: &'a Job<'a>,
    model: &'m Model,
    resolved: &'m Resolved,
    diagnostics: Vec<Diagnostic>,
    clock: Clock<'a>,
}

impl Run<'_, '_> {
    fn make_plan(&mut self, dataset: Option<&Dataset>) -> Result<Outcome> {
        let (job, model) = (self.job, self.model);
        if dataset.is_none() && job.settings.config.needs_data() {
            return Err(before::no_data(&job.settings.config));
        }
        let (samples, split) = match dataset {
            Some(data) => self.samples(data)?,
            None => (Vec::new(), Split::default()),
        };
        self.clock.step("place");
        let sample = |i: usize| dataset.ok_or_else(|| Error::bug("a sample of no data")).and_then(|d| d.sample(i));
        let shapes = match samples.first() {
            Some(&first) => trace_shapes(job.runtime, model, &sample(first)?).map_err(|e| e.sample(first))?,
            None => {
                let (shapes, note) = dynamic::shapes_without_data(model);
                self.diagnostics.extend(note.filter(|_| job.evaluation.is_none()));
                shapes
            }
        };
        let mut wishes = dynamic::wishes(model, &job.settings.target, self.resolved, dataset.is_some())?;
        let mut placement = placement::place(model, &job.settings.target, &shapes, &wishes);
        let mut few = samples.clone();
        thin(&mut few, dynamic::MEASURED);
        let free = |n| !wishes.ignore_cost && !wishes.forces(model, n);
        let lost = dynamic::fragile_data(
            job.runtime,
            model,
            &job.settings.target,
            &placement,
            &self.resolved.scheme,
            free,
            few.into_iter().map(sample),
        )?;
        if !lost.is_empty() {
            wishes.keep_float.extend(lost);
            placement = placement::place(model, &job.settings.target, &shapes, &wishes);
        }
        let (float, placed) = (placement.float_time / 1e3, placement.placed_time / 1e3);
        log::info!(
            "by the cost model, the nodes with integer kernels take {float:.1} us in float, {placed:.1} us as placed"
        );
        self.clock.step("calibrate");
        let mut table = job.ranges.clone().unwrap_or_default();
        let watches = if samples.is_empty() { Vec::new() } else { self.watches(&placement, &table) };
        let watches = match watches.is_empty() {
            true => watches,
            false => {
                let progress = |done, total| job.progress.part(done, total);
                collect(job.runtime, model, watches, &samples, &sample, &progress)?
            }
        };
        self.clock.step("decide");
        let mut observed: BTreeMap<ValueId, Observer> = BTreeMap::new();
        for watch in watches {
            let name = model.value(watch.value).name();
            table.input_means.extend(watch.means.and_then(|m| m.means()).map(|m| (name.to_owned(), m)));
            observed.extend(watch.observer.map(|o| (watch.value, o)));
        }
        let mut plan = plan::decide(model, &job.settings.target, &placement, &self.resolved.scheme, |v, types| {
            if let Some(range) = self.resolved.ranges.get(&v) {
                return Ok(*range);
            }
            let name = model.value(v).name();
            if let Some(observer) = observed.get(&v) {
                table.insert(name, observer, types)?;
            }
            table.get(name).ok_or_else(|| Error::bug("a value was not observed").value(name))
        })?;
        for found in observed.iter().flat_map(|(v, o)| o.stats().diagnose(model.value(*v).name())) {
            // Inputs were looked at before, on fewer samples.
            self.diagnostics.retain(|d| d.code != found.code || d.subject != found.subject);
            self.diagnostics.push(found);
        }
        self.diagnostics.extend(self.idle_observer(&placement, &table, observed.is_empty()));
        if self.resolved.correct_bias {
            plan.input_means.clone_from(&table.input_means);
        }
        if self.resolved.store_float_weights {
            let keep = |n: NodeId| self.resolved.wishes.keeps_float(model, n).is_some();
            plan::store_float_weights(model, &mut plan, &self.resolved.scheme, keep);
        }
        let placement = Some(placement);
        Ok(Outcome { plan, placement, table, samples, proof_samples: split.validation, held_out: split.held_out })
    }

    /// The samples to calibrate on, and how the data are split.
    fn samples(&mut self, dataset: &Dataset) -> Result<(Vec<usize>, Split)> {
        let job = self.job;
        let (split, note) = dataset.split();
        if job.evaluation.is_none() {
            self.diagnostics.extend(note.filter(|_| job.settings.config.proof.samples > 0));
        }
        let samples = seen(job, dataset, &split);
        if job.settings.config.needs_data() {
            self.diagnostics.extend(check_count(samples.len()));
        }
        let stats = dataset.input_stats(&samples[..samples.len().min(16)])?;
        self.diagnostics.extend(check_inputs(stats.iter().map(|(n, s)| (n.as_str(), s))));
        match samples.is_empty() {
            true => Err(Error::data("there is no calibration sample")),
            false => Ok((samples, split)),
        }
    }

    /// Says so where ranges were asked of a method that has none to choose.
    fn idle_observer(&self, placement: &Placement, table: &Table, none_observed: bool) -> Option<Diagnostic> {
        let observer = &self.job.settings.config.activation.observer;
        let asked = observer != observers::DEFAULT && !table.ranges.is_empty() && !placement.roots().is_empty();
        (self.job.ranges.is_some() && asked && none_observed).then(|| {
            let text = format!("no effect of observer {observer}: the ranges of all values are given");
            Diagnostic::warning("settings_without_effect", text)
                .help("leave out --observer, or remove values from the table of --ranges to have them calibrated")
        })
    }

    /// What must be known of which values, and is not in the table yet.
    fn watches(&self, placement: &Placement, known: &Table) -> Vec<Watch> {
        let (model, r) = (self.model, self.resolved);
        let name = |v: ValueId| model.value(v).name();
        let mut watches: BTreeMap<ValueId, Watch> = BTreeMap::new();
        let watch = |value: ValueId| Watch { value, observer: None, means: None };
        for v in placement.roots() {
            if !r.ranges.contains_key(&v) && known.get(name(v)).is_none() {
                watches.entry(v).or_insert_with(|| watch(v)).observer = Some(r.choice(v).observer());
            }
        }
        for (v, axis) in self.layer_inputs(placement) {
            if !known.input_means.contains_key(name(v)) {
                watches.entry(v).or_insert_with(|| watch(v)).means = Some(ChannelMeans::new(axis));
            }
        }
        watches.into_values().collect()
    }

    /// What layers read whose weights will be rounded and whose biases shall be corrected for it.
    fn layer_inputs(&self, placement: &Placement) -> Vec<(ValueId, Axis)> {
        let (model, r) = (self.model, self.resolved);
        let integer = |decision: &Decision| matches!(decision, Decision::Integer(_) | Decision::Dynamic(_));
        let rounded = |decision: &Decision| r.store_float_weights || integer(decision);
        let layers = placement.nodes.iter().filter(|(_, d)| r.correct_bias && rounded(d));
        let input = |&(node, _): &(NodeId, Decision)| {
            let n = model.node(node);
            let axis = match n.op_type.as_str() {
                "Conv" => Axis::Second,
                "Gemm" | "MatMul" => Axis::Last,
                _ => return None,
            };
            let computed = n.input(0).filter(|&v| model.value(v).initializer().is_none())?;
            model.constant_input(node, 1).map(|_| (computed, axis))
        };
        layers.filter_map(input).collect()
    }
}

/// The samples that calibration sees.
fn seen(job: &Job<'_>, dataset: &Dataset, split: &Split) -> Vec<usize> {
    let mut samples = match job.evaluation {
        Some(_) => (0..dataset.len()).collect(),
        None => split.calibration.clone(),
    };
    thin(&mut samples, job.settings.config.calibration.samples.unwrap_or(usize::MAX));
    samples
}

/// Keeps `most` of the samples, evenly spread.
pub fn thin(samples: &mut Vec<usize>, most: usize) {
    let n = samples.len();
    if n > most {
        *samples = (0..most).map(|i| samples[i * n / most]).collect();
    }
}
