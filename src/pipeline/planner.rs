//! From a prepared model and data to a plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use super::{
    Clock, Job, Outcome, auto, dynamic, fit, narrow, nearest, observed::Observed, split, thin, trace_shapes,
    weight_only,
};
use crate::{
    analysis::placement::{self, Decision, Placement, Shapes, Wishes},
    calibrate::{
        check_count, check_inputs,
        collect::{Watch, collect},
        dataset::{Dataset, Split, split_of},
        means::{Axis, ChannelMeans},
        observers,
        table::Table,
    },
    diagnostics::Diagnostic,
    error::{Error, Result},
    ir::{Model, NodeId, Tensor, ValueId},
    plan::{self, KnownReads, Plan},
    scheme::Resolved,
};

/// Why a node stays float where nothing tells a range.
const WITHOUT_RANGE: &str = "the model has no quantizer for what it makes or reads, and there are no data to find a range by: give --calibration";

/// What a plan is made of.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) job: &'a Job<'a>,
    /// The prepared model.
    pub(super) model: &'a Model,
    pub(super) resolved: &'a Resolved,
    pub(super) dataset: Option<&'a Dataset>,
    /// What the fastest plan of another form of the model keeps, dB: mode `auto` looks no further where that of this one
    /// keeps no more.
    pub(super) rival: Option<f64>,
}

impl Task<'_> {
    /// The tensors of a sample.
    pub(super) fn sample(&self, i: usize) -> Result<Vec<Tensor>> {
        self.dataset.ok_or_else(|| Error::bug("a sample of no data")).and_then(|d| d.sample(i))
    }
}

/// Makes plans for one task. What calibration has found is kept from one to the next.
pub(super) struct Planner<'a> {
    pub(super) task: Task<'a>,
    pub(super) samples: Vec<usize>,
    pub(super) shapes: Shapes,
    pub(super) table: Table,
    /// Weights are rounded by this algorithm, not by that of the scheme.
    pub(super) algorithm: Option<&'static str>,
    /// The nodes whose weights get the nearest codes all the same.
    pub(super) nearest: BTreeSet<String>,
    /// What they are rounded by in the plan that was made last.
    pub(super) known: Arc<KnownReads>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// Places, calibrates and decides.
pub(super) fn make(
    task: Task<'_>,
    samples: Vec<usize>,
    split: Split,
    noticed: &mut Vec<Diagnostic>,
    clock: &mut Clock<'_>,
) -> Result<Outcome> {
    clock.step("place");
    let mut planner = Planner::new(task, samples, std::mem::take(noticed))?;
    let wishes = planner.wishes()?;
    let first = planner.plan(&wishes, clock)?;
    let first = nearest::check(&mut planner, &wishes, first, clock)?;
    let uneven = match task.job.settings.config.split_concats {
        true => 0,
        false => split::uneven(&planner, &wishes, &first.1).len(),
    };
    let (wishes, first) = split::split(&mut planner, wishes, first, clock)?;
    let first = narrow::fit(&mut planner, &wishes, first, clock)?;
    let auto::Chosen { plan, placement, report } = auto::choose(&mut planner, &split, &wishes, first, clock)?;
    let Planner { samples, table, known, diagnostics, .. } = planner;
    *noticed = diagnostics;
    let known = Some(known).filter(|_| fit::asked(&plan) && !samples.is_empty());
    let placement = Some(placement);
    let (proof_samples, held_out) = (split.validation, split.held_out);
    Ok(Outcome { plan, placement, auto: report, known, table, samples, proof_samples, held_out, uneven })
}

/// The samples to calibrate on, and how the data are split.
pub(super) fn samples(job: &Job<'_>, dataset: &Dataset, noticed: &mut Vec<Diagnostic>) -> Result<(Vec<usize>, Split)> {
    let (samples, split) = finite_samples(job, dataset, noticed)?;
    if job.settings.config.needs_data() {
        noticed.extend(check_count(samples.len()));
    }
    let stats = dataset.input_stats(&samples[..samples.len().min(16)])?;
    noticed.extend(check_inputs(stats.iter().map(|(n, s)| (n.as_str(), s))));
    match samples.is_empty() {
        true => Err(Error::data("there is no calibration sample")),
        false => Ok((samples, split)),
    }
}

/// The samples that calibration sees, and how the data are split. Those that hold NaN or infinity are left out before, so that
/// the others serve for both.
pub(super) fn finite_samples(
    job: &Job<'_>,
    dataset: &Dataset,
    noticed: &mut Vec<Diagnostic>,
) -> Result<(Vec<usize>, Split)> {
    let mut all: Vec<usize> = (0..dataset.len()).collect();
    let (mut split, mut note) = split_of(&all);
    let mut samples = seen(job, &all, &split);
    // All of the data are only looked at where those that are used are not all in order.
    if !dataset.not_finite(&[&samples[..], &split.validation[..]].concat())?.is_empty() {
        let (finite, left_out) = dataset.finite(&all).map_err(|e| at_data(e, job.data.as_deref()))?;
        noticed.extend(left_out);
        all = finite;
        (split, note) = split_of(&all);
        samples = seen(job, &all, &split);
    }
    if job.evaluation.is_none() {
        noticed.extend(note.filter(|_| job.settings.config.proof.samples > 0));
    }
    Ok((samples, split))
}

/// The samples of other data to prove the result on: all that are finite.
pub(super) fn proof_samples(job: &Job<'_>, data: &Dataset, noticed: &mut Vec<Diagnostic>) -> Result<Vec<usize>> {
    let all: Vec<usize> = (0..data.len()).collect();
    if job.settings.config.proof.samples == 0 {
        return Ok(all);
    }
    let (finite, left_out) = data.finite(&all).map_err(|e| at_data(e, job.evaluation.as_deref()))?;
    if let Some(said) = left_out {
        noticed.push(Diagnostic { message: format!("in the data to compare on, {}", said.message), ..said });
    }
    Ok(finite)
}

fn at_data(error: Error, path: Option<&Path>) -> Error {
    path.into_iter().fold(error, Error::file)
}

/// Those of the samples that calibration sees.
fn seen(job: &Job<'_>, all: &[usize], split: &Split) -> Vec<usize> {
    let mut samples = match job.evaluation {
        Some(_) => all.to_vec(),
        None => split.calibration.clone(),
    };
    thin(&mut samples, job.settings.config.calibration.samples.unwrap_or(usize::MAX));
    samples
}

impl<'a> Planner<'a> {
    /// Looks at the shapes of values.
    pub(super) fn new(task: Task<'a>, samples: Vec<usize>, mut diagnostics: Vec<Diagnostic>) -> Result<Self> {
        let job = task.job;
        let shapes = match samples.first() {
            Some(&first) => trace_shapes(job.runtime, task.model, &task.sample(first)?).map_err(|e| e.sample(first))?,
            None => {
                let (shapes, note) = dynamic::shapes_without_data(task.model);
                diagnostics.extend(note.filter(|_| job.evaluation.is_none()));
                shapes
            }
        };
        Ok(Self {
            task,
            samples,
            shapes,
            table: job.ranges.clone().unwrap_or_default(),
            algorithm: None,
            nearest: BTreeSet::new(),
            known: Arc::default(),
            diagnostics,
        })
    }

    /// What is wanted of the placement, with what would be lost at run time in float.
    pub(super) fn wishes(&self) -> Result<Wishes> {
        let Task { job, model, resolved, dataset, .. } = self.task;
        let mut wishes = dynamic::wishes(model, &job.settings.target, resolved, dataset.is_some())?;
        wishes.keep_float.extend(self.lost_at_run_time(&wishes)?);
        Ok(wishes)
    }

    /// Where nodes are placed under these wishes.
    pub(super) fn place(&self, wishes: &Wishes) -> Placement {
        placement::place(self.task.model, &self.task.job.settings.target, &self.shapes, wishes)
    }

    /// The same, and without data only so that all that is quantized has a range from somewhere.
    fn place_with_ranges(&self, wishes: &Wishes) -> Placement {
        let Task { model, resolved, .. } = self.task;
        let mut wishes = wishes.clone();
        loop {
            let placement = self.place(&wishes);
            if !self.samples.is_empty() || resolved.scheme.learned.values.is_empty() {
                return placement;
            }
            let known = |v: ValueId| {
                let given = resolved.ranges.contains_key(&v) || self.table.get(model.value(v).name()).is_some();
                given || plan::learned_grid(&placement, &resolved.scheme, v).is_some()
            };
            let unknown: BTreeSet<ValueId> = placement.roots().into_iter().filter(|&v| !known(v)).collect();
            let lost = placement.values.iter().filter(|(_, q)| unknown.contains(&q.root)).map(|(v, _)| *v);
            let lost: BTreeSet<ValueId> = lost.collect();
            let touches = |values: &[Option<ValueId>]| values.iter().flatten().any(|v| lost.contains(v));
            let integer: Vec<NodeId> =
                placement.nodes.iter().filter(|(_, d)| matches!(d, Decision::Integer(_))).map(|(n, _)| *n).collect();
            // What makes such a value, seen through clamps, or else all that read it.
            let makers =
                integer.iter().filter(|&&n| placement::made(model, &placement, n).iter().any(|v| lost.contains(v)));
            let mut float: Vec<NodeId> = makers.copied().collect();
            if float.is_empty() {
                float.extend(integer.iter().filter(|&&n| touches(model.node(n).inputs())));
            }
            if float.is_empty() {
                return placement;
            }
            wishes.keep_float.extend(float.into_iter().map(|n| (n, WITHOUT_RANGE.to_owned())));
        }
    }

    /// Products that data quantized at run time would destroy, with the reason in words.
    fn lost_at_run_time(&self, wishes: &Wishes) -> Result<BTreeMap<NodeId, String>> {
        let Task { job, model, resolved, .. } = self.task;
        if self.samples.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut few = self.samples.clone();
        thin(&mut few, dynamic::MEASURED);
        let free = |n| !wishes.ignore_cost && !wishes.forces(model, n);
        let sample = few.into_iter().map(|i| self.task.sample(i));
        let placement = self.place(wishes);
        dynamic::fragile_data(job.runtime, model, &job.settings.target, &placement, &resolved.scheme, free, sample)
    }

    /// The plan under these wishes. Values whose range is not known yet are calibrated.
    pub(super) fn plan(&mut self, wishes: &Wishes, clock: &mut Clock<'_>) -> Result<(Plan, Placement)> {
        let Task { job, model, resolved, .. } = self.task;
        let placement = self.place_with_ranges(wishes);
        let (float, placed) = (placement.float_time / 1e3, placement.placed_time / 1e3);
        log::info!(
            "by the cost model, the nodes with integer kernels take {float:.1} us in float, {placed:.1} us as placed"
        );
        clock.step("calibrate");
        let mut watches = if self.samples.is_empty() { Vec::new() } else { self.watches(&placement) };
        if !watches.is_empty() {
            let progress = |done, total| job.progress.part(done, total);
            watches = collect(job.runtime, model, watches, &self.samples, &|i| self.task.sample(i), &progress)?;
        }
        clock.step("decide");
        let table = &mut self.table;
        let observed = Observed::of(model, watches, table);
        let mut plan = plan::decide(model, &job.settings.target, &placement, &resolved.scheme, |v, types| {
            observed.range(model, resolved, table, v, types)
        })?;
        observed.diagnose(model, &mut self.diagnostics);
        let idle = self.idle_observer(&placement, observed.is_empty());
        self.diagnostics.extend(idle.filter(|i| !self.diagnostics.contains(i)));
        weight_only::add(model, &mut plan, resolved, job, self.task.dataset.is_some());
        if resolved.correct_bias {
            plan.input_means.clone_from(&self.table.input_means);
        }
        if resolved.stores_float_weights() {
            let stored = |n: NodeId| resolved.stored_as(model, n);
            plan::store_float_weights(model, &mut plan, &resolved.scheme, stored);
        }
        if let Some(algorithm) = self.algorithm {
            plan.round_weights_by(algorithm);
        }
        plan.round_to_nearest(|name| self.nearest.contains(name));
        if fit::asked(&plan) && !self.samples.is_empty() {
            clock.step("look at layers");
            let data = self.task.dataset.map(|d| (d, &self.samples[..]));
            let (known, noticed) = fit::know(job, model, &plan, data)?;
            self.known = known;
            self.diagnostics.extend(noticed.into_iter().filter(|n| !self.diagnostics.contains(n)).collect::<Vec<_>>());
        }
        Ok((plan, placement))
    }

    /// Says so where ranges were asked of a method that has none to choose.
    fn idle_observer(&self, placement: &Placement, none_observed: bool) -> Option<Diagnostic> {
        let observer = &self.task.job.settings.config.activation.observer;
        let asked = observer != observers::DEFAULT && !self.table.ranges.is_empty() && !placement.roots().is_empty();
        (self.task.job.ranges.is_some() && asked && none_observed).then(|| {
            let text = format!("no effect of observer {observer}: the ranges of all values are given");
            Diagnostic::warning("settings_without_effect", text)
                .help("leave out --observer, or remove values from the table of --ranges to have them calibrated")
        })
    }

    /// What must be known of which values, and is not in the table yet.
    fn watches(&self, placement: &Placement) -> Vec<Watch> {
        let (model, r, known) = (self.task.model, self.task.resolved, &self.table);
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
    pub(super) fn layer_inputs(&self, placement: &Placement) -> Vec<(ValueId, Axis)> {
        let (model, r) = (self.task.model, self.task.resolved);
        let rounded = |decision: &Decision| r.stores_float_weights() || decision.is_integer();
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
