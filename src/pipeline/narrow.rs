//! Other ranges where the model's answers are nearer to the original's with them: the noise that the rounding of each value
//! makes at the outputs is measured alone, with several shares of the range that its observer chose.
//!
//! Yury Nahshan et al., "Loss Aware Post-training Quantization" (2019), choose steps by the loss of the whole model, and Di Wu et
//! al., "EasyQuant: Post-training Quantization via Scale Optimization" (2020), by the answers of the layer. Here no labels are
//! needed: the loss is the noise at the model's outputs, and the roundings of a plan are taken to add up.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Clock,
    auto::{Found, GAINS, Search},
    gate::{Gate, gains},
    planner::Planner,
    prices::integer_sources,
    thin,
};
use crate::{
    analysis::placement::{Placement, Wishes},
    calibrate::Table,
    config::Mode,
    diagnostics::{Diagnostic, count},
    error::{ErrorKind, Result},
    ir::{Model, ValueId},
    plan::{Activation, Plan},
    quant::{QuantTarget, Range},
    validate::noise::{self, Noise, Source},
};

/// Values whose rounding uses less of the budget are not looked at for narrower ranges, nor more values than these.
const LOUD: f64 = 0.01;
const LOUDEST: usize = 24;
/// Shares of the range that mode auto tries.
const FACTORS: [f32; 3] = [0.8, 0.65, 0.5];

/// Shares that are tried where ranges are to be fitted: of both ends, wider and narrower, and then of one end alone. Ends do
/// not go beyond what calibration has seen, and after so many shares in a row that gain nothing a value has what it needs.
const BOTH: [&[f32]; 2] = [&[1.2, 1.5], &[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]];
const ALONE: [f32; 2] = [0.85, 0.8];
const MISSES: usize = 2;
/// Samples that single ranges are chosen on, at least and at most, and the trials of a share that are aimed at; and samples
/// that they must gain on as well.
const FEW: (usize, usize) = (3, 8);
const TRIALS: usize = 160;
const CONFIRMED: usize = 16;

/// The shares of both ends of a range that are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Share {
    lo: f32,
    hi: f32,
}

impl Share {
    const WHOLE: Self = Self { lo: 1.0, hi: 1.0 };

    fn of(&self, a: &mut Activation) -> Result<()> {
        if self.lo == self.hi {
            a.scale *= self.hi;
            return Ok(());
        }
        let whole = a.params().representable()?;
        let target = QuantTarget { dtype: a.dtype, symmetric: false, reduce_range: false };
        let params = target.params(Range::new(whole.lo * self.lo, whole.hi * self.hi))?;
        (a.scale, a.zero_point) = (params.scale, params.zero_point);
        Ok(())
    }
}

/// What is tried of a value's range.
#[derive(Debug, Clone, Copy)]
struct Tried {
    /// Its noise with the whole range, and the least so far.
    before: f64,
    least: f64,
    share: Share,
    /// How many shares in a row have gained nothing.
    misses: usize,
}

impl Tried {
    fn whole(noise: f64) -> Self {
        Self { before: noise, least: noise, share: Share::WHOLE, misses: 0 }
    }
}

/// Values, each with the share of its range that leaves least noise so far.
struct Shares<'m> {
    model: &'m Model,
    best: BTreeMap<ValueId, Tried>,
}

impl<'m> Shares<'m> {
    /// The loudest of some values.
    fn of(model: &'m Model, mut loud: Vec<(f64, ValueId)>) -> Self {
        loud.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        loud.truncate(LOUDEST);
        let tried = |(noise, v)| (v, Tried::whole(noise));
        Self { model, best: loud.into_iter().map(tried).collect() }
    }

    fn sources(&self) -> BTreeSet<Source> {
        self.best.keys().map(|&v| Source::Value(v)).collect()
    }

    /// Tries another share for each value for which one is proposed.
    fn try_all(
        &mut self,
        plan: &Plan,
        propose: impl Fn(ValueId, &Tried) -> Option<Share>,
        noise_of: impl FnOnce(&Plan, &BTreeSet<Source>) -> Result<Noise>,
    ) -> Result<()> {
        let (mut plan, mut proposed) = (plan.clone(), BTreeMap::new());
        for (&v, tried) in &self.best {
            let Some(share) = propose(v, tried).filter(|s| *s != tried.share) else { continue };
            if let Some(a) = plan.activations.get_mut(self.model.value(v).name()) {
                share.of(a).map_err(|e| e.value(self.model.value(v).name()))?;
                proposed.insert(v, share);
            }
        }
        if proposed.is_empty() {
            return Ok(());
        }
        let noise = noise_of(&plan, &proposed.keys().map(|&v| Source::Value(v)).collect())?;
        for (v, share) in proposed {
            let now = noise.worst([&Source::Value(v)]);
            match self.best.get_mut(&v) {
                Some(tried) if now < tried.least => (tried.least, tried.share, tried.misses) = (now, share, 0),
                Some(tried) => tried.misses += 1,
                None => {}
            }
        }
        Ok(())
    }

    /// Begins another kind of shares.
    fn go_on(&mut self) {
        self.best.values_mut().for_each(|tried| tried.misses = 0);
    }

    /// Keeps the values that gain.
    fn keep_gains(&mut self) {
        self.best.retain(|_, tried| tried.share != Share::WHOLE && tried.least < GAINS * tried.before);
    }

    fn cut(&self, table: &mut Table) {
        for (v, Tried { share, .. }) in &self.best {
            table.narrow(self.model.value(*v).name(), share.lo, share.hi);
        }
    }
}

impl Search<'_, '_> {
    /// Chooses narrower ranges where the model's answers are nearer to the original's with them: by the noise at the
    /// outputs of each value alone, and kept if the plan as a whole fits the budget with them.
    pub(super) fn narrow(&mut self, found: Found, wishes: &Wishes, clock: &mut Clock<'_>) -> Result<Found> {
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
        let mut shares = Shares::of(model, loud);
        if shares.best.is_empty() {
            return Ok(found);
        }
        for factor in FACTORS {
            let propose = |_, _: &Tried| Some(Share { lo: factor, hi: factor });
            shares.try_all(&found.plan, propose, |plan, wanted| self.noise_of(plan, &found.known, wanted))?;
        }
        shares.keep_gains();
        let table = self.planner.table.clone();
        shares.cut(&mut self.planner.table);
        let made = self.planner.plan(wishes, clock)?;
        let narrower = self.judged(made, clock)?;
        let (before, after) = (found.noise, narrower.noise);
        log::info!("auto: {} narrower ranges: {before:.2e} of the budget, {after:.2e} with them", shares.best.len());
        // Cut off is what is rare, and on few samples that may look better than it is: only where it saves other cures.
        if shares.best.is_empty() || narrower.noise > 1.0 {
            self.planner.table = table;
            return Ok(found);
        }
        self.narrowed = shares.best.len();
        Ok(narrower)
    }
}

/// Fits the ranges of a plan where that is asked for: on half of the samples shares are chosen, the other half must confirm
/// each of them, and that the whole model gains.
pub(super) fn fit(
    planner: &mut Planner<'_>,
    wishes: &Wishes,
    first: (Plan, Placement),
    clock: &mut Clock<'_>,
) -> Result<(Plan, Placement)> {
    let config = &planner.task.job.settings.config;
    if !config.fit_ranges {
        return Ok(first);
    }
    if config.mode == Mode::Dynamic || planner.samples.is_empty() || first.0.activations.is_empty() {
        let why = match planner.samples.is_empty() {
            true => "it needs data, and there are none",
            false => "no value has a range from calibration",
        };
        let diagnostic = Diagnostic::warning("settings_without_effect", format!("no effect of fit_ranges: {why}"));
        planner.diagnostics.push(diagnostic.help("give --calibration, and --mode static or auto"));
        return Ok(first);
    }
    clock.step("fit ranges");
    let half = |first: usize| planner.samples.iter().copied().skip(first).step_by(2).collect::<Vec<_>>();
    let Some(gate) = Gate::new(planner, half(1))? else {
        planner.diagnostics.push(no_gain("there are too few samples to confirm a gain on"));
        return Ok(first);
    };
    let chosen = chosen(planner, &gate, &first, [half(0), half(1)]);
    let mut shares = match chosen {
        Err(error) if error.kind() == ErrorKind::Runtime => {
            let text = format!("no effect of fit_ranges: what single roundings do cannot be measured: {error}");
            planner.diagnostics.push(
                Diagnostic::warning("settings_without_effect", text)
                    .help("they are measured in the built-in runtime; choose an --observer instead"),
            );
            return Ok(first);
        }
        chosen => chosen?,
    };
    let (table, known) = (planner.table.clone(), planner.known.clone());
    let before = gate.noise(planner.task.model, &first.0, &known)?;
    while !shares.best.is_empty() {
        shares.cut(&mut planner.table);
        let made = planner.plan(wishes, clock)?;
        clock.step("fit ranges");
        let after = gate.noise(planner.task.model, &made.0, &planner.known)?;
        log::info!("{} fitted ranges: {before:.4?} of the budget, {after:.4?} with them", shares.best.len());
        if gains(before, after, 1.0) {
            let text = format!("the ranges of {} are chosen by the model's answers", count(shares.best.len(), "value"));
            planner.diagnostics.push(Diagnostic::note("ranges_fitted", text));
            return Ok(made);
        }
        planner.table = table.clone();
        // Together they harm: the half that gains most may not.
        let mut all: Vec<(f64, ValueId)> = shares.best.iter().map(|(v, t)| (t.before - t.least, *v)).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let most: BTreeSet<ValueId> = all.iter().take(all.len() / 2).map(|(_, v)| *v).collect();
        shares.best.retain(|v, _| most.contains(v));
    }
    planner.known = known;
    planner.diagnostics.push(no_gain("with no other range does a value's rounding do a fifth less harm"));
    Ok(first)
}

fn no_gain(why: &str) -> Diagnostic {
    Diagnostic::note("no_ranges_fitted", format!("fit_ranges changes nothing: {why}"))
}

/// The shares of ranges that gain on both halves of the samples.
fn chosen<'m>(
    planner: &Planner<'m>,
    gate: &Gate<'_>,
    (plan, placement): &(Plan, Placement),
    [mut few, mut others]: [Vec<usize>; 2],
) -> Result<Shares<'m>> {
    let task = planner.task;
    let (model, known) = (task.model, &planner.known);
    let name = |v: ValueId| model.value(v).name();
    let given = |v: ValueId| {
        task.resolved.ranges.contains_key(&v) || task.job.ranges.as_ref().is_some_and(|t| t.get(name(v)).is_some())
    };
    let fits =
        |v: ValueId| !given(v) && planner.table.ranges.contains_key(name(v)) && plan.activations.contains_key(name(v));
    let values: BTreeSet<Source> =
        integer_sources(placement).into_iter().filter(|s| matches!(s, Source::Value(v) if fits(*v))).collect();
    thin(&mut few, (TRIALS / values.len().clamp(1, LOUDEST)).clamp(FEW.0, FEW.1));
    thin(&mut others, CONFIRMED);
    let measure = |plan: &Plan, wanted: &BTreeSet<Source>, samples: &[usize]| -> Result<Noise> {
        let Some(data) = task.dataset else { return Ok(Noise::default()) };
        let progress = |done, total| task.job.progress.part(done, total);
        let noise = noise::measure(model, plan, known, wanted, data, samples, &progress)?;
        Ok(Noise(noise.0.into_iter().map(|(source, shares)| (source, gate.budget.scaled(&shares))).collect()))
    };
    let plain = measure(plan, &values, &few)?;
    let least = LOUD * plain.worst(&values);
    let loud = plain.0.keys().filter_map(|source| match source {
        Source::Value(v) => Some((plain.worst([source]), *v)).filter(|(noise, _)| *noise > 0.0 && *noise >= least),
        Source::Node(_) | Source::AtRunTime(_) => None,
    });
    let mut shares = Shares::of(model, loud.collect());
    // Ends go no farther than numbers were seen.
    let within = |v: ValueId, share: Share| {
        let entry = planner.table.ranges.get(name(v))?;
        let end = |share: f32, end: f32, seen: Option<f32>| match seen {
            Some(seen) if share > 1.0 && end != 0.0 => share.min((seen / end).max(1.0)),
            _ => share.min(1.0),
        };
        Some(Share { lo: end(share.lo, entry.lo, entry.min), hi: end(share.hi, entry.hi, entry.max) })
    };
    for side in BOTH {
        shares.go_on();
        for &factor in side {
            let open = |tried: &Tried| tried.misses < MISSES;
            let both = Share { lo: factor, hi: factor };
            let propose = |v, tried: &Tried| within(v, both).filter(|_| open(tried));
            shares.try_all(plan, propose, |plan, wanted| measure(plan, wanted, &few))?;
        }
    }
    let two_ends = |v: ValueId| {
        let types = task.resolved.scheme.activations.get(&v).copied().unwrap_or(task.resolved.scheme.activation);
        !types.symmetric && planner.table.ranges.get(name(v)).is_some_and(|e| e.lo < 0.0 && e.hi > 0.0)
    };
    for upper in [true, false] {
        shares.go_on();
        for factor in ALONE {
            let one = |now: Share| match upper {
                true => Share { hi: now.hi * factor, ..now },
                false => Share { lo: now.lo * factor, ..now },
            };
            let open = |v, tried: &Tried| tried.misses == 0 && two_ends(v);
            let propose = |v, tried: &Tried| within(v, one(tried.share)).filter(|_| open(v, tried));
            shares.try_all(plan, propose, |plan, wanted| measure(plan, wanted, &few))?;
        }
    }
    shares.keep_gains();
    if shares.best.is_empty() {
        return Ok(shares);
    }
    // What is rare may be cut by chance: the other half must gain as well.
    let mut confirmed = Shares { model, best: shares.best.clone() };
    let whole = measure(plan, &shares.sources(), &others)?;
    for (v, tried) in &mut confirmed.best {
        let before = whole.worst([&Source::Value(*v)]);
        *tried = Tried::whole(before);
    }
    let propose = |v: ValueId, _: &Tried| shares.best.get(&v).map(|t| t.share);
    confirmed.try_all(plan, propose, |plan, wanted| measure(plan, wanted, &others))?;
    confirmed.keep_gains();
    log::info!("{} of {} fitted ranges are confirmed", confirmed.best.len(), shares.best.len());
    Ok(confirmed)
}
