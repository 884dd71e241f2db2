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
    judge::{Judge, Judged},
    planner::Planner,
    prices::{all_float, cheapest, saved, sources, store_finer},
    thin,
};
use crate::{
    analysis::placement::{Decision, Placement, Wishes},
    calibrate::dataset::{Dataset, Split},
    config::Mode,
    diagnostics::{Diagnostic, count},
    error::{Error, ErrorKind, Result},
    ir::NodeId,
    ops::{self, Class},
    plan::{FOR_ANSWERS, Form, KnownReads, NodePlan, Plan},
    report::{Auto, Cure, Kept},
    validate::noise::{self, Noise, Source},
    weights,
};

/// Samples that single roundings are measured on, at least and at most, and the trials that are aimed at for all together.
const FEW: (usize, usize) = (3, 8);
const TRIALS: usize = 512;
/// Samples that plans are judged on, where there are so many.
const JUDGED: usize = 24;
/// The same for classifiers, whose closest calls must be among them.
const CALLED: usize = 96;
/// The same where the data have labels, and the labelled answers from which on these decide.
const LABELLED: usize = 256;
pub(super) const ENOUGH: u64 = 100;
/// Plans that are tried at most.
const ROUNDS: usize = 8;
/// What fits and what does not are near enough to stop.
const CLOSE: f64 = 1.2;
/// A plan that leaves more than this share of the budget is good enough; below, a faster one is looked for.
const USED: f64 = 0.6;

/// What a cure must leave at most of the noise.
pub(super) const GAINS: f64 = 0.8;

/// How weights are rounded where to the nearest codes is not good enough.
pub(super) const FITTED: &str = "adaround";

/// How much more, dB, a form of the model must keep in its fastest plan for its others to be looked at.
const AHEAD: f64 = 1.0;

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
    let mut judge = Judge::new(planner, split, data)?;
    let judged = judge.judge_first(&first.0, &planner.known)?;
    if judged.blind {
        return Ok(Chosen::first(first));
    }
    let (before, mut report) = (judged.used, judge.report(&judged));
    let beaten = planner.task.rival.zip(report.rank_before()).is_some_and(|(rival, kept)| kept < rival + AHEAD);
    if before <= 1.0 || beaten {
        return Ok(Chosen { report: Some(report), ..Chosen::first(first) });
    }
    let fastest = first.0.clone();
    let mut search = Search::new(planner, &judge, data, &first.0);
    let known = search.planner.known.clone();
    let mut found = Found { plan: first.0, placement: first.1, known, noise: before, judged };
    let first = found.judged.kept;
    let step = |name: String, before: Kept, after: Kept| Cure { name, before: before.sqnr, after: after.sqnr };
    if !clock.is_over() {
        found = search.fit_weights(found, wishes, clock)?;
        let fitted = search.planner.algorithm.map(|_| "rounding weights by what their layers read".to_owned());
        report.cures.extend(fitted.map(|name| step(name, first, found.judged.kept)));
    }
    match search.measure(&found, clock) {
        Err(error) if error.kind() == ErrorKind::Runtime => {
            planner.diagnostics.push(not_measured(&error));
            return Ok(Chosen { plan: found.plan, placement: found.placement, report: Some(report) });
        }
        done => done?,
    }
    if found.noise > 1.0 && !clock.is_over() {
        let wide = found.judged.kept;
        found = search.narrow(found, wishes, clock)?;
        let narrower = (search.narrowed > 0).then(|| format!("narrower ranges of {}", count(search.narrowed, "value")));
        report.cures.extend(narrower.map(|name| step(name, wide, found.judged.kept)));
    }
    let searched = found.judged.kept;
    report.enough = [report.enough, found.judged.enough].into_iter().flatten().min_by(f64::total_cmp);
    if found.noise > 1.0 {
        let offers = if clock.is_over() { wishes } else { &search.with_products_at_run_time(wishes, clock)? };
        found = search.within_budget(found, offers, clock)?;
    }
    search.planner.known = found.known;
    report.narrowed = search.narrowed;
    report.fitted = search.planner.algorithm.is_some();
    report = found.judged.chosen(report);
    report.out_of_time = clock.is_over();
    (report.floated, report.at_run_time) = say_why(&fastest, &mut found.plan);
    let at_run_time = (report.at_run_time > 0).then(|| {
        let left = if report.floated > 0 { ", with nodes left in float," } else { "" };
        format!("quantizing the data of {} at run time{left}", count(report.at_run_time, "node"))
    });
    report.cures.extend(at_run_time.map(|name| step(name, searched, found.judged.kept)));
    Ok(Chosen { plan: found.plan, placement: found.placement, report: Some(report) })
}

pub(super) fn not_measured(error: &Error) -> Diagnostic {
    let text = format!("the answers lose more than max_loss, and where that comes from cannot be measured: {error}");
    Diagnostic::warning("not_measured", text)
        .help("single roundings are measured in the built-in runtime; name nodes to keep in float with --keep-float")
}

/// The samples that plans are judged on: those that calibration has not seen, and others where they are few.
pub(super) fn judged_on(data: &Dataset, classifies: bool, kept_back: &[usize], seen: &[usize]) -> Vec<usize> {
    let most = match classifies {
        _ if data.has_labels() => LABELLED,
        true => CALLED,
        false => JUDGED,
    };
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

/// A plan that is measured.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) plan: Plan,
    pub(super) placement: Placement,
    /// What its weights are rounded by.
    pub(super) known: Arc<KnownReads>,
    /// As a share of the budget.
    pub(super) noise: f64,
    /// What the share stands for.
    judged: Judged,
}

/// What is known on the way to a plan within the budget.
pub(super) struct Search<'s, 'a> {
    pub(super) planner: &'s mut Planner<'a>,
    judge: &'s Judge<'a>,
    data: &'s Dataset,
    /// The samples that single roundings are measured on.
    few: Vec<usize>,
    pub(super) known: Noise,
    pub(super) narrowed: usize,
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
    pub(super) fn judged(&self, (plan, placement): (Plan, Placement), clock: &mut Clock<'_>) -> Result<Found> {
        clock.step("judge");
        let known = self.planner.known.clone();
        let judged = self.judge.judge(&plan, &known)?;
        Ok(Found { plan, placement, known, noise: judged.used, judged })
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
    pub(super) fn noise_of(&self, plan: &Plan, known: &Arc<KnownReads>, wanted: &BTreeSet<Source>) -> Result<Noise> {
        let job = self.planner.task.job;
        let progress = |done, total| job.progress.part(done, total);
        let noise = noise::measure(self.planner.task.model, plan, known, wanted, self.data, &self.few, &progress)?;
        Ok(Noise(noise.0.into_iter().map(|(source, shares)| (source, self.judge.budget.scaled(&shares))).collect()))
    }

    /// The wishes, with an offer to every product that can quantize its data at run time and gains by it: that needs no
    /// range that fits all samples, so it rounds less. What it rounds is measured.
    fn with_products_at_run_time(&mut self, wishes: &Wishes, clock: &mut Clock<'_>) -> Result<Wishes> {
        let (model, target) = (self.planner.task.model, &self.planner.task.job.settings.target);
        let free = |&n: &NodeId| {
            let product = ops::spec(model, n).is_some_and(|s| s.class == Class::Product);
            product && matches!(target.dynamic_kernel(model, n), Some(Ok(_))) && !wishes.names(n)
        };
        if wishes.ignore_cost {
            return Ok(wishes.clone());
        }
        let mut offered = wishes.clone();
        let products: Vec<NodeId> = model.nodes(model.main()).into_iter().filter(free).collect();
        offered.dynamic_nodes.extend(products.iter().map(|&n| (n, true)));
        let placement = self.planner.place(&offered);
        let gains = |(n, d): &(NodeId, Decision)| (matches!(d, Decision::Dynamic(_)) && free(n)).then_some(*n);
        let gaining: BTreeSet<NodeId> = placement.nodes.iter().filter_map(gains).collect();
        if !gaining.is_empty() {
            let (plan, placement) = self.planner.plan(&offered, clock)?;
            let known = self.planner.known.clone();
            log::info!("auto: {} products may quantize their data at run time", gaining.len());
            self.measure(&Found { plan, placement, known, noise: 0.0, judged: Judged::default() }, clock)?;
        }
        Ok(Wishes { float_at_run_time: gaining, ..wishes.clone() })
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
        for round in 0..ROUNDS {
            if clock.is_over() && round > 0 {
                break;
            }
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

/// Gives the nodes that were integer in the fastest plan and are float now their reason. Returns how many there are, and
/// how many of those that were integer quantize their data at run time.
fn say_why(fastest: &Plan, plan: &mut Plan) -> (usize, usize) {
    let integer = |n: &NodePlan| matches!(n.becomes, Form::Integer | Form::Dynamic);
    let were = |name: &String| fastest.nodes.get(name).is_some_and(integer);
    let was = |name: &String| fastest.nodes.get(name).is_some_and(|n| n.becomes == Form::Integer);
    let at_run_time = plan.nodes.iter().filter(|(name, n)| n.becomes == Form::Dynamic && was(name)).count();
    let floated = plan.nodes.iter_mut().filter(|(name, n)| n.becomes == Form::Float && were(name));
    (floated.map(|(_, node)| node.reason = Some(FOR_ANSWERS.to_owned())).count(), at_run_time)
}
