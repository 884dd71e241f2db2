//! Mode `auto`: precision where it pays. The plan that is fastest is judged by its answers; where they are too far from the
//! original's, the roundings that do most of the harm for the time that they save are taken back.
//!
//! Each rounding is measured alone ([`noise`]); noises of a plan are taken to add up. A price on noise turns the search for the
//! fastest plan within a budget into a placement like any other: the price is raised until what is left fits the budget
//! (a Lagrange multiplier; H. Everett, "Generalized Lagrange Multiplier Method", 1963). The plan that comes of it is
//! measured as a whole, and the budget of the next try is corrected by what was found.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Clock,
    budget::Budget,
    planner::Planner,
    prices::{FOR_ANSWERS, all_float, cheapest, integer_sources, saved, sources, store_finer},
    thin,
};
use crate::{
    analysis::placement::{Placement, Wishes},
    calibrate::dataset::{Dataset, Split},
    config::Mode,
    diagnostics::Diagnostic,
    error::{Error, ErrorKind, Result},
    ir::{Model, ValueId},
    plan::{Form, KnownReads, NodePlan, Plan},
    report::Auto,
    validate::{
        Reference, compare_with,
        noise::{self, Noise, Source},
        sensitivity,
    },
    weights,
};

/// Samples that single roundings are measured on, at least and at most, and the trials that are aimed at for all together.
const FEW: (usize, usize) = (3, 8);
const TRIALS: usize = 512;
/// Samples that plans are judged on, where there are so many.
const JUDGED: usize = 24;
/// The same where the data have labels, and the labelled answers from which on these decide.
const LABELLED: usize = 256;
pub(super) const ENOUGH: u64 = 100;
/// Plans that are tried at most.
const ROUNDS: usize = 8;
/// What fits and what does not are near enough to stop.
const CLOSE: f64 = 1.2;
/// A plan that leaves more than this share of the budget is good enough; below, a faster one is looked for.
const USED: f64 = 0.6;

/// Values whose rounding uses less of the budget are not looked at for narrower ranges, nor more values than these.
const LOUD: f64 = 0.01;
const LOUDEST: usize = 24;
/// Shares of the range that are tried, and what a narrower one must leave at most of the value's noise.
const FACTORS: [f32; 3] = [0.8, 0.65, 0.5];
const GAINS: f64 = 0.8;

/// How weights are rounded where to the nearest codes is not good enough.
pub(super) const FITTED: &str = "adaround";

/// A plan, and what led to it.
pub(super) struct Chosen {
    pub(super) plan: Plan,
    pub(super) placement: Placement,
    pub(super) report: Option<Auto>,
}

impl Chosen {
    fn first((plan, placement): (Plan, Placement)) -> Self {
        Self { plan, placement, report: None }
    }
}

/// The plan as it is, or one whose answers are nearer to the original's.
pub(super) fn choose(
    planner: &mut Planner<'_>,
    split: &Split,
    wishes: &Wishes,
    first: (Plan, Placement),
    clock: &mut Clock<'_>,
) -> Result<Chosen> {
    let config = &planner.task.job.settings.config;
    let idle = first.0.integer_nodes() == 0 && first.0.stored_weights.is_empty();
    let Some(data) = planner.task.dataset.filter(|_| config.mode == Mode::Auto && !idle) else {
        return Ok(Chosen::first(first));
    };
    clock.step("judge");
    let judge = Judge::new(planner, split, data)?;
    let before = judge.noise(&first.0, &planner.known)?;
    let mut report = judge.report(before);
    if before <= 1.0 {
        return Ok(Chosen { report: Some(report), ..Chosen::first(first) });
    }
    let fastest = first.0.clone();
    let mut search = Search::new(planner, &judge, data, &first.0);
    let known = search.planner.known.clone();
    let mut found = Found { plan: first.0, placement: first.1, known, noise: before };
    found = search.fit_weights(found, wishes, clock)?;
    match search.measure(&found, clock) {
        Err(error) if error.kind() == ErrorKind::Runtime => {
            planner.diagnostics.push(not_measured(&error));
            return Ok(Chosen { plan: found.plan, placement: found.placement, report: Some(report) });
        }
        done => done?,
    }
    if found.noise > 1.0 {
        found = search.narrow(found, wishes, clock)?;
    }
    if found.noise > 1.0 {
        found = search.within_budget(found, wishes, clock)?;
    }
    search.planner.known = found.known;
    report.narrowed = search.narrowed;
    report.fitted = search.planner.algorithm.is_some();
    report.after = judge.budget.decibel(found.noise);
    report.floated = say_why(&fastest, &mut found.plan);
    Ok(Chosen { plan: found.plan, placement: found.placement, report: Some(report) })
}

fn not_measured(error: &Error) -> Diagnostic {
    let text = format!("the answers lose more than max_loss, and where that comes from cannot be measured: {error}");
    Diagnostic::warning("not_measured", text)
        .help("single roundings are measured in the built-in runtime; name nodes to keep in float with --keep-float")
}

/// The samples that plans are judged on: those that calibration has not seen, and others where they are few.
pub(super) fn judged_on(data: &Dataset, kept_back: &[usize], seen: &[usize]) -> Vec<usize> {
    let most = if data.has_labels() { LABELLED } else { JUDGED };
    let mut samples = kept_back.to_vec();
    thin(&mut samples, most);
    let mut others = seen.to_vec();
    thin(&mut others, most - samples.len());
    samples.extend(others.into_iter().filter(|s| !kept_back.contains(s)));
    samples.sort_unstable();
    samples
}

/// The samples that the single roundings of a plan are measured on.
pub(super) fn few_of(samples: &[usize], plan: &Plan) -> Vec<usize> {
    let mut few = samples.to_vec();
    let trials = plan.activations.len() + plan.nodes.values().filter(|n| n.weight.is_some()).count();
    thin(&mut few, (TRIALS / trials.max(1)).clamp(FEW.0, FEW.1));
    few
}

/// How plans are measured.
struct Judge<'a> {
    reference: Reference<'a>,
    model: &'a Model,
    budget: Budget,
    samples: Vec<usize>,
}

impl<'a> Judge<'a> {
    /// Judges on samples that calibration has not seen, as far as there are any, and on others where they are few.
    fn new(planner: &Planner<'a>, split: &Split, data: &'a Dataset) -> Result<Self> {
        let task = planner.task;
        let kept_back = if task.job.evaluation.is_none() { &split.validation[..] } else { &[] };
        let samples = judged_on(data, kept_back, &planner.samples);
        let reference = Reference::new(task.job.runtime, task.model, data, &samples, &|_, _| ())?;
        let budget = Budget::of(task.model, &planner.shapes, &task.job.settings.config);
        Ok(Self { reference, model: task.model, budget, samples })
    }

    /// The noise of a plan's answers as a share of the budget: of the output that uses most of it. Whether that is within the
    /// budget is for the labels to say where there are enough.
    fn noise(&self, plan: &Plan, known: &Arc<KnownReads>) -> Result<f64> {
        let model = sensitivity::quantized(self.model, plan.clone(), known)?;
        let compared = compare_with(&self.reference, &model, &self.samples, &|_, _| ())?;
        let shares: Vec<f64> = compared.outputs.iter().map(noise::share).collect();
        let used = self.budget.used(&shares);
        let labelled = compared.accuracy.filter(|a| a.count >= ENOUGH && a.original > 0);
        Ok(match labelled.map(|a| self.budget.lost(a.original, a.quantized)) {
            Some(lost) if lost <= 1.0 => used.min(1.0),
            Some(lost) => used.max(lost),
            None => used,
        })
    }

    fn report(&self, noise: f64) -> Auto {
        let (samples, aim) = (self.samples.len(), self.budget.aim());
        Auto { samples, aim, before: self.budget.decibel(noise), after: self.budget.decibel(noise), ..Auto::default() }
    }
}

/// A plan that is measured.
#[derive(Clone)]
struct Found {
    plan: Plan,
    placement: Placement,
    /// What its weights are rounded by.
    known: Arc<KnownReads>,
    /// As a share of the budget.
    noise: f64,
}

/// What is known on the way to a plan within the budget.
struct Search<'s, 'a> {
    planner: &'s mut Planner<'a>,
    judge: &'s Judge<'a>,
    data: &'s Dataset,
    /// The samples that single roundings are measured on.
    few: Vec<usize>,
    known: Noise,
    narrowed: usize,
}

impl<'s, 'a> Search<'s, 'a> {
    fn new(planner: &'s mut Planner<'a>, judge: &'s Judge<'a>, data: &'s Dataset, plan: &Plan) -> Self {
        let few = few_of(&planner.samples, plan);
        Self { planner, judge, data, few, known: Noise::default(), narrowed: 0 }
    }

    /// Rounds weights by what their layers read, where that brings the answers nearer to the original's.
    fn fit_weights(&mut self, found: Found, wishes: &Wishes, clock: &mut Clock<'_>) -> Result<Found> {
        if self.planner.task.job.settings.config.weight.algorithm != weights::DEFAULT {
            return Ok(found);
        }
        self.planner.algorithm = Some(FITTED);
        let made = self.planner.plan(wishes, clock)?;
        let fitted = self.judged(made, clock)?;
        log::info!("auto: {:.2e} of the budget, {:.2e} with weights fitted", found.noise, fitted.noise);
        if fitted.noise < GAINS * found.noise {
            return Ok(fitted);
        }
        self.planner.algorithm = None;
        Ok(found)
    }

    /// Judges the plan that was made last.
    fn judged(&self, (plan, placement): (Plan, Placement), clock: &mut Clock<'_>) -> Result<Found> {
        clock.step("judge");
        let known = self.planner.known.clone();
        let noise = self.judge.noise(&plan, &known)?;
        Ok(Found { plan, placement, known, noise })
    }

    /// Measures what is rounded in a plan and not known yet.
    fn measure(&mut self, found: &Found, clock: &mut Clock<'_>) -> Result<()> {
        clock.step("measure");
        let mut wanted = sources(self.planner.task.model, &found.plan, &found.placement);
        wanted.retain(|source| !self.known.0.contains_key(source));
        let noise = self.noise_of(&found.plan, &found.known, &wanted)?;
        self.known.0.extend(noise.0);
        Ok(())
    }

    /// The noise of single roundings of a plan, as shares of the budget.
    fn noise_of(&self, plan: &Plan, known: &Arc<KnownReads>, wanted: &BTreeSet<Source>) -> Result<Noise> {
        let job = self.planner.task.job;
        let progress = |done, total| job.progress.part(done, total);
        let noise = noise::measure(self.planner.task.model, plan, known, wanted, self.data, &self.few, &progress)?;
        Ok(Noise(noise.0.into_iter().map(|(source, shares)| (source, self.judge.budget.scaled(&shares))).collect()))
    }

    /// Chooses narrower ranges where the model's answers are nearer to the original's with them: by the noise at the
    /// outputs of each value alone, and kept if the plan as a whole fits the budget with them.
    fn narrow(&mut self, found: Found, wishes: &Wishes, clock: &mut Clock<'_>) -> Result<Found> {
        clock.step("measure");
        let model = self.planner.task.model;
        let mut loud: Vec<(f64, ValueId)> = Vec::new();
        for source in integer_sources(&found.placement) {
            let Source::Value(v) = source else { continue };
            let noise = self.known.worst([&source]);
            if noise >= LOUD && !self.planner.task.resolved.ranges.contains_key(&v) {
                loud.push((noise, v));
            }
        }
        loud.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        loud.truncate(LOUDEST);
        let wanted: BTreeSet<Source> = loud.iter().map(|&(_, v)| Source::Value(v)).collect();
        let mut best: BTreeMap<ValueId, (f64, f32)> = loud.iter().map(|&(noise, v)| (v, (noise, 1.0))).collect();
        if wanted.is_empty() {
            return Ok(found);
        }
        for factor in FACTORS {
            let mut plan = found.plan.clone();
            for v in best.keys() {
                if let Some(a) = plan.activations.get_mut(model.value(*v).name()) {
                    a.scale *= factor;
                }
            }
            let noise = self.noise_of(&plan, &found.known, &wanted)?;
            for (v, (least, chosen)) in &mut best {
                let now = noise.worst([&Source::Value(*v)]);
                if now < *least {
                    (*least, *chosen) = (now, factor);
                }
            }
        }
        let before: BTreeMap<ValueId, f64> = loud.into_iter().map(|(noise, v)| (v, noise)).collect();
        best.retain(|v, (noise, factor)| *factor < 1.0 && *noise < GAINS * before[v]);
        let table = self.planner.table.clone();
        for (v, (_, factor)) in &best {
            self.planner.table.narrow(model.value(*v).name(), *factor);
        }
        let made = self.planner.plan(wishes, clock)?;
        let narrower = self.judged(made, clock)?;
        let (before, after) = (found.noise, narrower.noise);
        log::info!("auto: {} narrower ranges: {before:.2e} of the budget, {after:.2e} with them", best.len());
        // Cut off is what is rare, and on few samples that may look better than it is: only where it saves other cures.
        if best.is_empty() || narrower.noise > 1.0 {
            self.planner.table = table;
            return Ok(found);
        }
        self.narrowed = best.len();
        Ok(narrower)
    }

    /// The fastest plan within the budget, or the one nearest to it.
    fn within_budget(&mut self, first: Found, wishes: &Wishes, clock: &mut Clock<'_>) -> Result<Found> {
        let model = self.planner.task.model;
        let predicted = self.known.worst(&sources(model, &first.plan, &first.placement));
        // What predictions are held to: noises that cancel or amplify each other show in the first plan.
        let mut allowed = (predicted / first.noise).clamp(0.1, 2.0);
        // The most that was held to and fitted, and the least that did not.
        let (mut fits, mut fails) = (None::<f64>, None::<f64>);
        let mut best = first.clone();
        let mut last = first;
        for _ in 0..ROUNDS {
            let priced = cheapest(self.planner, wishes, &self.known, &last.placement, allowed);
            let Some(priced) = priced else { break };
            let (mut plan, placement) = self.planner.plan(&priced, clock)?;
            store_finer(model, &mut plan, &placement, &self.known, allowed);
            let same = placement.nodes == last.placement.nodes;
            last = self.judged((plan, placement), clock)?;
            let (noise, integer) = (last.noise, last.plan.integer_nodes());
            log::info!(
                "auto: predictions held to {allowed:.2e} of the budget: {noise:.2e} measured, {integer} integer nodes save {:.0} us",
                saved(&last.placement) / 1e3
            );
            let better = match (best.noise <= 1.0, noise <= 1.0) {
                (true, true) => saved(&last.placement) > saved(&best.placement),
                (false, false) => noise < best.noise,
                (inside, _) => !inside,
            };
            if better {
                best = last.clone();
            }
            if noise <= 1.0 && (same || noise >= USED) {
                break;
            }
            match noise <= 1.0 {
                true => fits = Some(allowed),
                false => fails = Some(allowed),
            }
            allowed = match (fits, fails) {
                (Some(low), Some(high)) if high < CLOSE * low => break,
                (Some(low), Some(high)) => (low * high).sqrt(),
                _ => allowed * (0.9 / noise).clamp(0.1, 4.0),
            };
            self.measure(&last, clock)?;
        }
        if best.noise > 1.0 {
            let (plan, placement) = self.planner.plan(&all_float(wishes, &best.placement), clock)?;
            let plan = Plan { stored_weights: BTreeMap::new(), ..plan };
            let float = self.judged((plan, placement), clock)?;
            if float.noise < best.noise {
                best = float;
            }
        }
        Ok(best)
    }
}

/// Gives the nodes that were integer in the fastest plan and are float now their reason. Returns how many there are.
fn say_why(fastest: &Plan, plan: &mut Plan) -> usize {
    let integer = |n: &NodePlan| matches!(n.becomes, Form::Integer | Form::Dynamic);
    let were = |name: &String| fastest.nodes.get(name).is_some_and(integer);
    let floated = plan.nodes.iter_mut().filter(|(name, n)| n.becomes == Form::Float && were(name));
    floated.map(|(_, node)| node.reason = Some(FOR_ANSWERS.to_owned())).count()
}
