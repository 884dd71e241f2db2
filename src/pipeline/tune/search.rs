//! Which points are tried, in which order. Nothing here depends on the clock: two searches with one seed try the same points,
//! and one that goes on where another stopped tries what that one would have tried.

use std::{collections::BTreeSet, path::Path, time::Instant};

use super::{
    front::front,
    lab::{Lab, Planned},
    recipe::{EVERYTHING, Form, Ranges, Recipe},
    rung::{self, Family, integer_labels},
    state::{Known, Noises, State},
    steps::{self, Random},
};
use crate::{
    config::{FloatWeights, Mode},
    error::{ErrorKind, Result},
    ir::Model,
    pipeline::{auto::FITTED, prices::sources},
    plan::named_values,
    report::tune::{Budgets, Figures},
    validate::noise::{Noise, Source},
    weights,
};

/// Forms whose plans are looked at for many allowed noises, at most.
const FAMILIES: usize = 3;
/// Rungs of each ladder below the fastest plan, each with so much less noise allowed: 6 dB.
const RUNGS: i32 = 7;
const STEP: f64 = 0.25;
/// Passes through all ways to find new points that may find none before the search ends.
const IDLE: usize = 12;

/// Where the search stops.
pub(super) struct Limits {
    pub(super) points: usize,
    pub(super) until: Option<Instant>,
}

/// Why it stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Points,
    Time,
    NothingNew,
}

pub(super) struct Search<'s, 'a> {
    pub(super) lab: &'s mut Lab<'a>,
    pub(super) state: &'s mut State,
    pub(super) path: Option<&'s Path>,
    pub(super) budgets: Budgets,
    pub(super) limits: Limits,
    /// The points that this search has come to, in order.
    pub(super) seen: Vec<usize>,
    pub(super) families: Vec<Family>,
    pub(super) random: Random,
    /// The recipes that it has tried. The state may know more: what another search, or this one before it was stopped, tried later.
    pub(super) tried: BTreeSet<Recipe>,
    /// The plan that was made last.
    last: Option<(Recipe, Planned)>,
    end: Option<End>,
    /// Points whose other forms of stored weights were looked at.
    swapped: BTreeSet<usize>,
}

/// A point that a recipe leads to, and whether the search had not come to it before.
type Found = Option<(usize, bool)>;

impl<'s, 'a> Search<'s, 'a> {
    pub(super) fn new(
        lab: &'s mut Lab<'a>,
        state: &'s mut State,
        path: Option<&'s Path>,
        budgets: Budgets,
        limits: Limits,
        seed: u64,
    ) -> Self {
        Self {
            lab,
            state,
            path,
            budgets,
            limits,
            seen: Vec::new(),
            families: Vec::new(),
            random: Random(seed),
            tried: BTreeSet::new(),
            last: None,
            end: None,
            swapped: BTreeSet::new(),
        }
    }

    /// Tries points until there is an end to it.
    pub(super) fn run(&mut self) -> Result<End> {
        let user = Form::of(&self.lab.job.settings.config);
        let stored = self.forms_of_stored();
        // The ends of the ladder are tried whatever the limits.
        self.point(Recipe::all_float(&user, FloatWeights::Keep), true)?;
        let forms = self.forms(&user)?;
        let mut whole = Vec::new();
        for (i, form) in forms.iter().enumerate() {
            let found = self.point(Recipe::whole(form, stored[0]), i == 0)?;
            whole.extend(found.map(|(point, _)| (form.clone(), point)));
        }
        for &stored in &stored {
            self.point(Recipe::all_float(&user, stored), false)?;
        }
        self.found_families(&whole)?;
        for k in 1..=RUNGS {
            for f in 0..self.families.len() {
                let allowed = self.families[f].predicted * STEP.powi(k);
                self.rung(f, allowed)?;
            }
        }
        let mut idle = 0;
        while self.end.is_none() && idle < IDLE {
            idle = if self.refine()? { 0 } else { idle + 1 };
        }
        Ok(self.end.unwrap_or(End::NothingNew))
    }

    /// What may become of the weights of float nodes, the smallest first.
    pub(super) fn forms_of_stored(&self) -> Vec<FloatWeights> {
        match self.lab.job.settings.config.float_weights {
            FloatWeights::Int8 => vec![FloatWeights::Int8, FloatWeights::Float16],
            FloatWeights::Float16 => vec![FloatWeights::Float16],
            FloatWeights::Keep => vec![FloatWeights::Keep],
        }
    }

    /// The forms whose fastest plans are tried, the plainest first. What the user has set is not changed.
    fn forms(&mut self, user: &Form) -> Result<Vec<Form>> {
        let mode = self.lab.job.settings.config.mode;
        let free = user.algorithm == weights::DEFAULT;
        let algorithms: &[&str] = if free { &[weights::DEFAULT, FITTED] } else { &[&user.algorithm] };
        let mut ranges = match mode {
            Mode::Dynamic => vec![Ranges::Dynamic],
            _ => vec![Ranges::Static],
        };
        if mode == Mode::Auto && self.lab.has_dynamic_products(user)? {
            ranges.extend([Ranges::Mixed, Ranges::Dynamic]);
        }
        let mut forms = Vec::new();
        for &ranges in &ranges {
            forms.extend(algorithms.iter().map(|&a| Form { ranges, algorithm: a.to_owned(), ..user.clone() }));
        }
        let best = forms[algorithms.len() - 1].clone();
        forms.push(Form { everywhere: true, ..best.clone() });
        if best.per_channel {
            forms.push(Form { per_channel: false, ..best.clone() });
        }
        // Other ways to choose ranges, and channels that are evened out first.
        if mode != Mode::Dynamic {
            let others = ["mse", "min_max"].iter().filter(|&&o| o != user.observer);
            forms.extend(others.map(|&o| Form { observer: o.to_owned(), ..best.clone() }));
            if !best.smooth {
                forms.push(Form { smooth: true, ..best });
            }
        }
        Ok(forms)
    }

    /// The point that a recipe makes; `None` where the limits are reached. What `must` be is made all the same.
    pub(super) fn point(&mut self, recipe: Recipe, must: bool) -> Result<Found> {
        self.tried.insert(recipe.clone());
        if let Some(known) = self.state.find(&recipe) {
            return Ok(self.come_to(known));
        }
        if !must && self.is_over() {
            return Ok(None);
        }
        let planned = self.lab.planned(&recipe)?;
        let plan = planned.digest()?;
        let same = self.state.points.iter().position(|p| p.plan == plan);
        let found = match same {
            Some(i) => {
                self.state.points[i].also.push(recipe.clone());
                i
            }
            None => {
                let figures = self.lab.figures(&planned)?;
                let Figures { loss, estimate, bytes, .. } = figures;
                log::info!("tune: {}: loss {loss:.2e}, {estimate:.2} times as fast, {bytes} bytes", recipe.words());
                self.state.points.push(Known { recipe: recipe.clone(), also: Vec::new(), plan, figures });
                self.state.points.len() - 1
            }
        };
        self.last = Some((recipe, planned));
        self.state.save(self.path)?;
        Ok(self.come_to(found))
    }

    fn come_to(&mut self, point: usize) -> Found {
        let new = !self.seen.contains(&point);
        if new {
            self.seen.push(point);
            self.lab.job.progress.part(self.seen.len().min(self.limits.points), self.limits.points);
        }
        Some((point, new))
    }

    fn is_over(&mut self) -> bool {
        if self.end.is_none() {
            let late = self.limits.until.is_some_and(|until| Instant::now() >= until);
            self.end = match self.seen.len() >= self.limits.points {
                true => Some(End::Points),
                false => late.then_some(End::Time),
            };
        }
        self.end.is_some()
    }

    pub(super) fn figures(&self, point: usize) -> &Figures {
        &self.state.points[point].figures
    }

    /// The points seen so far that no other beats, by what does not depend on the clock.
    pub(super) fn front(&self) -> Vec<usize> {
        let figures: Vec<Figures> = self.seen.iter().map(|&i| self.figures(i).clone()).collect();
        let on = front(&figures, |f| f.estimate);
        self.seen.iter().zip(on).filter(|(_, on)| *on).map(|(&i, _)| i).collect()
    }

    /// Chooses the forms that are worth a ladder, by their fastest plans, and measures their noises.
    fn found_families(&mut self, whole: &[(Form, usize)]) -> Result<()> {
        let plain = |form: &Form| !form.everywhere && !form.evened();
        let gains =
            |(_, point): &&(Form, usize)| self.figures(*point).integer > 0 && self.figures(*point).estimate > 1.0;
        let mut some: Vec<&(Form, usize)> = whole.iter().filter(|(form, _)| plain(form)).filter(gains).collect();
        if some.is_empty() {
            some = whole.iter().filter(|(form, _)| !form.evened()).filter(gains).collect();
        }
        // A form whose fastest plan is another's, or that another beats in noise and speed, has no better ladder.
        let beaten = |&(_, p): &(Form, usize), i: usize, all: &[&(Form, usize)]| {
            let (p_noise, p_speed) = (self.figures(p).noise, self.figures(p).estimate);
            all.iter().enumerate().any(|(j, (_, q))| {
                let (noise, speed) = (self.figures(*q).noise, self.figures(*q).estimate);
                let as_good = noise <= p_noise && speed >= p_speed;
                j != i && as_good && (noise < p_noise || speed > p_speed || j < i)
            })
        };
        let all = some.clone();
        let mut i = 0;
        some.retain(|p| {
            i += 1;
            !beaten(p, i - 1, &all)
        });
        some.sort_by(|a, b| self.figures(b.1).estimate.total_cmp(&self.figures(a.1).estimate));
        let some: Vec<(Form, usize)> = some.into_iter().take(FAMILIES).cloned().collect();
        for (form, point) in some {
            if self.is_over() {
                break;
            }
            let placed = self.lab.placed(&Recipe::whole(&form, self.forms_of_stored()[0]))?;
            let labels = integer_labels(self.lab.prepared, &placed);
            let known = self.noise_of_values(&form);
            let family = Family { form, placed, known, predicted: 0.0, labels, rungs: Vec::new() };
            self.families.push(family);
            let f = self.families.len() - 1;
            match self.learn(f, &Recipe::whole(&self.families[f].form.clone(), self.forms_of_stored()[0]), point) {
                // The built-in runtime alone tries roundings one by one; without that there are only whole plans.
                Err(e) if e.kind() == ErrorKind::Runtime => {
                    log::warn!("single roundings cannot be measured: {e}");
                    self.families.pop();
                    continue;
                }
                done => done?,
            }
            let family = &mut self.families[f];
            family.predicted = family.known.worst(family.known.0.keys()).max(f64::MIN_POSITIVE);
            family.add(family.predicted, point);
        }
        Ok(())
    }

    /// What another family knows of values that are rounded in the same way.
    fn noise_of_values(&self, form: &Form) -> Noise {
        let same = self.families.iter().filter(|f| f.form.observes_as(form));
        let values = same.flat_map(|f| f.known.0.iter()).filter(|(s, _)| matches!(s, Source::Value(_)));
        Noise(values.map(|(s, shares)| (s.clone(), shares.clone())).collect())
    }

    /// Measures what is rounded in a point's plan and not known yet to a family.
    fn learn(&mut self, f: usize, recipe: &Recipe, point: usize) -> Result<()> {
        let form = self.families[f].form.clone();
        let model = self.lab.prepared;
        if let Some(known) = self.state.noises.iter().find(|n| n.form == form && n.point == point) {
            let found = known.shares.iter().filter_map(|(name, shares)| Some((source(model, name)?, shares.clone())));
            self.families[f].known.0.extend(found);
            return Ok(());
        }
        let planned = match self.last.take() {
            Some((of, planned)) if of == *recipe => planned,
            _ => self.lab.planned(recipe)?,
        };
        let mut wanted = sources(model, &planned.plan, &planned.placement);
        wanted.retain(|s| !self.families[f].known.0.contains_key(s));
        let found = if wanted.is_empty() { Noise::default() } else { self.lab.noise(&planned, &wanted)? };
        let named = found.0.iter().filter_map(|(s, shares)| Some((name(model, s)?, shares.clone())));
        let shares = named.collect();
        self.families[f].known.0.extend(found.0);
        self.state.noises.push(Noises { form, point, shares });
        self.state.save(self.path)
    }

    /// Tries the fastest plan of a family within an allowed noise. Returns the point and whether it is new.
    pub(super) fn rung(&mut self, f: usize, allowed: f64) -> Result<Found> {
        if self.is_over() && self.state.points.len() <= self.seen.len() {
            return Ok(None);
        }
        let recipe = rung::recipe(self.lab, &self.families[f], allowed)?;
        let Some((point, new)) = self.point(recipe.clone(), false)? else { return Ok(None) };
        self.families[f].add(allowed, point);
        if !recipe.float.contains(EVERYTHING) && self.figures(point).integer > 0 {
            self.learn(f, &recipe, point)?;
        }
        Ok(Some((point, new)))
    }

    /// One pass through all ways to find new points. Returns whether it found any.
    fn refine(&mut self) -> Result<bool> {
        let before = self.seen.len();
        for f in 0..self.families.len() {
            if let Some(allowed) = steps::towards_budgets(self, f) {
                self.rung(f, allowed)?;
            }
        }
        if let Some((f, allowed)) = steps::widest_gap(self) {
            self.rung(f, allowed)?;
        }
        for _ in 0..2 {
            if let Some(recipe) = steps::one_node_on(self) {
                self.point(recipe, false)?;
            }
        }
        let unswapped: Vec<usize> = self.front().into_iter().filter(|i| !self.swapped.contains(i)).collect();
        let near = unswapped.iter().find(|&&i| steps::is_near(self, i));
        if let Some(&point) = near.or(unswapped.first()) {
            self.swapped.insert(point);
            for stored in self.forms_of_stored() {
                let recipe = self.state.points[point].recipe.clone();
                let recipe = Recipe { stored, stored_of: Default::default(), ..recipe };
                self.point(recipe, false)?;
            }
        }
        for _ in 0..2 {
            if let Some(recipe) = steps::perturbed(self) {
                self.point(recipe, false)?;
            }
        }
        Ok(self.seen.len() > before)
    }
}

/// A source by what does not change from run to run.
fn name(model: &Model, source: &Source) -> Option<String> {
    let of = |n: &crate::ir::NodeId| model.node(*n).outputs().iter().copied().flatten().next();
    match source {
        Source::Value(v) => Some(format!("value {}", model.value(*v).name())),
        Source::Node(n) => of(n).map(|out| format!("node {}", model.value(out).name())),
        Source::AtRunTime(n) => of(n).map(|out| format!("dynamic {}", model.value(out).name())),
    }
}

fn source(model: &Model, name: &str) -> Option<Source> {
    let (kind, name) = name.split_once(' ')?;
    let value = *named_values(model).get(name)?;
    match kind {
        "value" => Some(Source::Value(value)),
        "dynamic" => model.producer(value).map(Source::AtRunTime),
        _ => model.producer(value).map(Source::Node),
    }
}
