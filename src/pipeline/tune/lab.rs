//! Makes points and measures them. What calibration has found is kept from one to the next, and so are the answers of the original.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

use super::{
    recipe::{Form, Ranges, Recipe},
    speed::Speeds,
    state::digest,
};
use crate::{
    analysis::placement::{self, Placement, Shapes, Wishes},
    calibrate::{Dataset, Table},
    config::Config,
    error::Result,
    files::Scratch,
    ir::{Model, NodeId},
    onnx_file::{self, WriteOptions},
    passes::{Context, Options},
    pipeline::{
        Clock, Job,
        auto::{ENOUGH, few_of},
        budget::Budget,
        even_out::even_out,
        measure::carry_out,
        nearest, options,
        planner::{Planner, Task},
        trace_shapes,
    },
    plan::{KnownReads, Plan},
    report::tune::Figures,
    scheme::Settings,
    validate::{
        Comparison, Reference, compare_with,
        noise::{self, Noise, Source},
    },
};

/// The loss that figures are in units of.
const PERCENT: f64 = 0.01;
/// What is worse than this is told as this, dB: nothing is left of the answers.
const LEAST_SQNR: f64 = -100.0;

/// What the search knows of the model, its data and the machine.
pub(super) struct Lab<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) original: &'a Model,
    /// The model that plans speak of.
    pub(super) prepared: &'a Model,
    pub(super) data: &'a Dataset,
    /// Those that calibration sees.
    pub(super) samples: Vec<usize>,
    pub(super) reference: Reference<'a>,
    /// Those that points are judged on.
    pub(super) judged: Vec<usize>,
    pub(super) speeds: Speeds,
    pub(super) clock: Clock<'a>,
    /// Operators of products that the target can run on data quantized at run time.
    pub(super) products: Vec<String>,
    budget: Budget,
    shapes: Shapes,
    /// Time of a run in float by the cost model.
    float_time: f64,
    /// Ranges by the method that chose them.
    tables: BTreeMap<String, Table>,
    scratch: Scratch,
}

/// A plan, and what it speaks of.
pub(super) struct Planned {
    pub(super) plan: Plan,
    pub(super) placement: Placement,
    known: Arc<KnownReads>,
    model: Model,
    options: Options,
}

/// What belongs to a run over all of the search.
pub(super) struct Setup<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) original: &'a Model,
    pub(super) prepared: &'a Model,
    pub(super) data: &'a Dataset,
    pub(super) samples: Vec<usize>,
    pub(super) reference: Reference<'a>,
    pub(super) judged: Vec<usize>,
    pub(super) speeds: Speeds,
    pub(super) clock: Clock<'a>,
}

impl<'a> Lab<'a> {
    /// Looks at shapes and times.
    pub(super) fn new(setup: Setup<'a>) -> Result<Self> {
        let Setup { job, original, prepared, data, samples, reference, judged, speeds, clock } = setup;
        let target = &job.settings.target;
        let first = samples.first().copied().unwrap_or_default();
        let shapes = trace_shapes(job.runtime, prepared, &data.sample(first)?).map_err(|e| e.sample(first))?;
        // Whatever the user's gates, figures are in units of what a percent allows.
        let budget = Budget::of(prepared, &shapes, &Config { max_loss: Some(PERCENT), ..Config::default() });
        let float_time = placement::float_time(prepared, target, &shapes);
        let constant = |n: &NodeId| prepared.constant_input(*n, 1).is_some();
        let matrix = |n: &NodeId| prepared.node(*n).is("MatMul") || prepared.node(*n).is("Gemm");
        let dynamic = |n: &NodeId| matches!(target.dynamic_kernel(prepared, *n), Some(Ok(_)));
        let nodes = prepared.nodes(prepared.main()).into_iter().filter(|n| matrix(n) && constant(n) && dynamic(n));
        let products: BTreeSet<String> = nodes.map(|n| prepared.node(n).op_type.clone()).collect();
        let products = products.into_iter().collect();
        let (tables, scratch) = (BTreeMap::new(), Scratch::new()?);
        Ok(Self {
            job,
            original,
            prepared,
            data,
            samples,
            reference,
            judged,
            speeds,
            clock,
            products,
            budget,
            shapes,
            float_time,
            tables,
            scratch,
        })
    }

    /// Whether some output holds vectors, which may have more noise.
    pub(super) fn has_vectors(&self) -> bool {
        self.budget.aims().iter().any(|&aim| aim < self.budget.aim() - 1.0)
    }

    /// The configuration of a recipe.
    pub(super) fn config(&self, recipe: &Recipe) -> Config {
        recipe.config(&self.job.settings.config, &self.products)
    }

    /// Does `work` with what makes plans of this recipe, in the way of `quantize`.
    pub(super) fn with_planner<T>(
        &mut self,
        recipe: &Recipe,
        work: impl FnOnce(&mut Planner<'_>, &Wishes, &mut Clock<'_>) -> Result<T>,
    ) -> Result<T> {
        self.with_model(recipe, work).map(|(done, ..)| done)
    }

    /// As [`Self::with_planner`], and hands out the model that the plans speak of, and the factors in it.
    fn with_model<T>(
        &mut self,
        recipe: &Recipe,
        work: impl FnOnce(&mut Planner<'_>, &Wishes, &mut Clock<'_>) -> Result<T>,
    ) -> Result<(T, Model, Evened, Options)> {
        let settings = Settings::new(self.config(recipe))?;
        let job = Job { settings: &settings, ..self.job.clone() };
        let mut model = self.prepared.clone();
        let mut resolved = settings.resolve(self.original, &model)?;
        let mut factors = Evened::default();
        let evened = recipe.form.evened();
        if evened {
            let mut cx = Context { options: options(&settings), ..Context::default() };
            let data = Some((self.data, &self.samples[..]));
            factors = even_out(&job, &mut model, &mut resolved, data, &mut self.clock, &mut cx)?;
        }
        // Divided values have ranges of their own.
        let (shapes, table) = match evened {
            true => (trace_shapes(job.runtime, &model, &self.data.sample(self.samples[0])?)?, Table::default()),
            false => (self.shapes.clone(), self.tables.remove(&recipe.form.observer).unwrap_or_default()),
        };
        let task = Task { job: &job, model: &model, resolved: &resolved, dataset: Some(self.data), rival: None };
        let (samples, known) = (self.samples.clone(), Arc::default());
        let (nearest, diagnostics) = (BTreeSet::new(), Vec::new());
        let mut planner = Planner { task, samples, shapes, table, algorithm: None, nearest, known, diagnostics };
        let done = planner.wishes().and_then(|wishes| work(&mut planner, &wishes, &mut self.clock));
        let table = std::mem::take(&mut planner.table);
        drop(planner);
        if !evened {
            self.tables.insert(recipe.form.observer.clone(), table);
        }
        Ok((done?, model, factors, options(&settings)))
    }

    /// The plan of a recipe: the one that `quantize` makes of its configuration.
    pub(super) fn planned(&mut self, recipe: &Recipe) -> Result<Planned> {
        let make = |planner: &mut Planner<'_>, wishes: &Wishes, clock: &mut Clock<'_>| {
            let first = planner.plan(wishes, clock)?;
            let (mut plan, placement) = nearest::check(planner, wishes, first, clock)?;
            // The table knows more than this plan asks for, which a run of its own would not.
            let model = planner.task.model;
            let read = planner.layer_inputs(&placement);
            let read: BTreeSet<&str> = read.iter().map(|(v, _)| model.value(*v).name()).collect();
            plan.input_means.retain(|name, _| read.contains(name.as_str()));
            Ok((plan, placement, planner.known.clone()))
        };
        let ((mut plan, placement, known), model, factors, options) = self.with_model(recipe, make)?;
        plan.channel_factors = factors;
        Ok(Planned { plan, placement, known, model, options })
    }

    /// Where the nodes of a recipe are placed.
    pub(super) fn placed(&mut self, recipe: &Recipe) -> Result<Placement> {
        self.with_planner(recipe, |planner, wishes, _| Ok(planner.place(wishes)))
    }

    /// What is known of a plan when its model is written and run.
    pub(super) fn figures(&mut self, planned: &Planned) -> Result<Figures> {
        self.clock.step("rewrite");
        let model = planned.rewritten()?;
        self.clock.step("judge");
        let compared = compare_with(&self.reference, &model, &self.judged, &|_, _| ())?;
        let sqnr = match compared.least_sqnr() {
            _ if compared.outputs.iter().any(|o| o.not_finite > 0) => Some(LEAST_SQNR),
            found => found.filter(|s| *s < f64::INFINITY).map(|s| s.max(LEAST_SQNR)),
        };
        let Lost { loss, noise, right } = lost(&self.budget, compared);
        let bytes = self.written(&model)?;
        let saved = planned.placement.float_time - planned.placement.placed_time;
        let float = self.float_time.max(planned.placement.float_time);
        let estimate = if saved < float { float / (float - saved) } else { 1.0 };
        self.clock.step("time");
        let measured = self.speeds.of(self.original, &model)?;
        self.clock.step("");
        Ok(Figures {
            loss,
            noise,
            sqnr,
            right,
            bytes,
            speed: measured.map_or(estimate, |m| m.median),
            certain: measured.map(|m| [m.low, m.high]),
            estimate,
            integer: planned.plan.integer_nodes(),
        })
    }

    /// The loss of a recipe on the samples of the proof.
    pub(super) fn proved(&mut self, recipe: &Recipe, proof: &Reference<'_>, samples: &[usize]) -> Result<f64> {
        let model = self.planned(recipe)?.rewritten()?;
        self.clock.step("prove");
        Ok(lost(&self.budget, compare_with(proof, &model, samples, &|_, _| ())?).loss)
    }

    /// Bytes of the model when it is written as the job will write it.
    fn written(&self, model: &Model) -> Result<u64> {
        let name = self.job.output.file_name().unwrap_or("model.onnx".as_ref());
        let path = self.scratch.path().join(name);
        let external = self.job.settings.config.external_data.then_some(true);
        onnx_file::write(model, &path, WriteOptions { external_data: external })?;
        let length = |path: &Path| fs::metadata(path).map_or(0, |m| m.len());
        let weights = onnx_file::data_path(&path);
        let bytes = length(&path) + length(&weights);
        // What cannot be removed goes with the folder.
        let _ = fs::remove_file(weights);
        Ok(bytes)
    }

    /// The noise of single roundings of a plan, in the unit of the figures.
    pub(super) fn noise(&self, planned: &Planned, wanted: &BTreeSet<Source>) -> Result<Noise> {
        let few = few_of(&self.samples, &planned.plan);
        let progress = |done, total| self.job.progress.part(done, total);
        let Planned { plan, known, model, .. } = planned;
        let found = noise::measure(model, plan, known, wanted, self.data, &few, &progress)?;
        Ok(Noise(found.0.into_iter().map(|(source, shares)| (source, self.budget.scaled(&shares))).collect()))
    }

    /// Whether any product of the form would be quantized at run time.
    pub(super) fn has_dynamic_products(&mut self, form: &Form) -> Result<bool> {
        if self.products.is_empty() {
            return Ok(false);
        }
        let dynamic = Form { ranges: Ranges::Dynamic, ..form.clone() };
        let placed = self.placed(&Recipe::whole(&dynamic, crate::config::FloatWeights::Int8))?;
        let model = self.prepared;
        Ok(placed.nodes.iter().any(|(n, d)| d.is_integer() && self.products.contains(&model.node(*n).op_type)))
    }
}

type Evened = BTreeMap<String, crate::plan::ChannelFactors>;

impl Planned {
    /// What tells the plan from others.
    pub(super) fn digest(&self) -> Result<String> {
        digest_of(&self.plan)
    }

    /// The model that the passes make of it.
    fn rewritten(&self) -> Result<Model> {
        let mut model = self.model.clone();
        let mut cx = Context {
            plan: Some(self.plan.clone()),
            known: self.known.clone(),
            options: self.options.clone(),
            ..Context::default()
        };
        carry_out(&mut model, &mut cx)?;
        Ok(model)
    }
}

/// What a comparison says of the answers that are lost.
struct Lost {
    loss: f64,
    noise: f64,
    right: Option<[u64; 2]>,
}

fn lost(budget: &Budget, compared: Comparison) -> Lost {
    let shares: Vec<f64> = compared.outputs.iter().map(noise::share).collect();
    let noise = budget.used(&shares);
    let right = compared.accuracy.filter(|a| a.count >= ENOUGH && a.original > 0);
    let right = right.map(|a| [a.original, a.quantized]);
    // Noise grows with the square of what it costs.
    let by_noise = PERCENT * noise.sqrt();
    let loss = right.map_or(by_noise, |[a, b]| (a as f64 - b as f64).max(0.0) / a as f64);
    Lost { loss, noise, right }
}

/// What tells a plan from others: all but the words that say why.
pub(super) fn digest_of(plan: &Plan) -> Result<String> {
    let mut plan = plan.clone();
    plan.nodes.values_mut().for_each(|node| node.reason = None);
    Ok(digest([plan.to_yaml()?.as_bytes()]))
}
