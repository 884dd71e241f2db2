//! What single units of a plan lose, tried in one model with what comes before computed once.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    Reference,
    labels::Labels,
    losses::{Loss, Losses},
    noise::{self, constant_bytes},
    rounded::{Carried, Twin},
    sensitivity::Task,
    switches::{Switches, When},
};
use crate::{
    calibrate::collect::for_each_sample,
    error::{Error, Result},
    ir::{Model, NodeId, Tensor},
    plan::{Form, Units, form, named_values},
    runtime::{Runtime, Session, Trials, tract::Tract},
};

/// What is lost with each unit alone, without each, and with all.
pub(super) fn losses(task: &Task<'_>, units: &Units) -> Result<[Vec<Loss>; 3]> {
    let Some(&first) = task.samples.first() else {
        return Err(Error::data("sensitivity is measured on samples, and there are none"));
    };
    let many = |n: usize| (0..n).map(|_| Mutex::new(Losses::default())).collect::<Vec<_>>();
    let (alone, without, all) = (many(units.nodes.len()), many(units.nodes.len()), many(1));
    let batches = batches(task.prepared, units);
    let runner = Runner {
        task,
        reference: match batches.len() {
            0 | 1 => None,
            // Where not all can be switched in one model, its float answers are not at hand each time.
            _ => Some(Reference::new(&Tract, task.prepared, task.data, task.samples, &|_, _| ())?),
        },
        done: AtomicUsize::new(0),
        total: (2 * units.nodes.len() + usize::from(units.nodes.is_empty())) * task.samples.len(),
    };
    let switchable = Switchable { task, units, carried: Carried::out(task.prepared, task.plan, task.known)?, first };
    let last = batches.len().saturating_sub(1);
    for (k, batch) in batches.into_iter().enumerate() {
        let (mut session, mut owners) = switchable.session(&batch, false)?;
        let sets = batch.clone().map(|u| numbers(&owners, |units| units.contains(&u))).collect();
        let trials = Trials { base: BTreeSet::new(), sets };
        runner.run(&*session, &trials, &alone[batch.clone()], None)?;
        if batch.len() < units.nodes.len() {
            drop(session);
            (session, owners) = switchable.session(&batch, true)?;
        }
        let only = |u: usize| move |units: &BTreeSet<usize>| units.len() == 1 && units.contains(&u);
        let sets = batch.clone().map(|u| numbers(&owners, only(u))).collect();
        let trials = Trials { base: (0..owners.len()).collect(), sets };
        runner.run(&*session, &trials, &without[batch], (k == last).then_some(&all[0]))?;
    }
    let losses = |of: Vec<Mutex<Losses>>| {
        let of = of.into_iter().map(|l| l.into_inner().unwrap_or_else(PoisonError::into_inner));
        of.map(|l| l.loss(task.original)).collect()
    };
    Ok([losses(alone), losses(without), losses(all)])
}

/// The numbers of those roundings whose units are asked for.
fn numbers(owners: &[BTreeSet<usize>], asked: impl Fn(&BTreeSet<usize>) -> bool) -> Vec<usize> {
    owners.iter().enumerate().filter(|(_, units)| asked(units)).map(|(number, _)| number).collect()
}

/// Units whose constants may be in memory twice at a time, and at least one batch, of none, for the whole.
fn batches(model: &Model, units: &Units) -> Vec<Range<usize>> {
    let bytes = |nodes: &Vec<NodeId>| nodes.iter().map(|&n| constant_bytes(model, n)).sum::<usize>();
    let found = noise::batches(units.nodes.iter().map(bytes));
    if found.is_empty() { std::iter::once(0..0).collect() } else { found }
}

/// The units of each number that can be chosen.
type Owners = Vec<BTreeSet<usize>>;

/// Makes models in which the roundings of some units can be switched.
struct Switchable<'a> {
    task: &'a Task<'a>,
    units: &'a Units,
    carried: Carried,
    /// A sample to run on.
    first: usize,
}

impl Switchable<'_> {
    /// A model for a batch of units; all others are quantized in it, or float. With the units of each number.
    fn session(&self, batch: &Range<usize>, others: bool) -> Result<(Box<dyn Session>, Owners)> {
        let Task { prepared, plan, known, data, .. } = *self.task;
        let mut owners = Owners::new();
        // Nothing where a rounding is of no unit that is ever quantized here.
        let mut when = |units: &BTreeSet<usize>| {
            let switched: BTreeSet<usize> = units.iter().copied().filter(|u| batch.contains(u)).collect();
            match (others && switched.len() < units.len(), switched.is_empty()) {
                (true, _) => Some(When::Always),
                (false, true) => None,
                (false, false) => {
                    owners.push(switched);
                    Some(When::Chosen(owners.len() - 1))
                }
            }
        };
        let mut of: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (u, nodes) in self.units.nodes.iter().enumerate() {
            of.extend(nodes.iter().map(|&n| (n, u)));
        }
        of.extend(self.units.biases(prepared));
        let wanted: BTreeSet<NodeId> =
            of.iter().filter(|(_, u)| others || batch.contains(u)).map(|(n, _)| *n).collect();
        let coded = |n: &NodeId| form(prepared, plan, *n) == Some(Form::WeightOnly);
        let changed: BTreeSet<NodeId> = wanted.iter().copied().filter(|n| !coded(n)).collect();
        let constants = self.carried.constants(prepared, &changed, &data.sample(self.first)?)?;
        let mut twins = self.carried.kernels(prepared, plan, known, &wanted)?;
        for &id in &wanted {
            let dynamic = form(prepared, plan, id) == Some(Form::Dynamic);
            let constants = constants.get(&id).cloned().unwrap_or_default();
            if !twins.contains_key(&id) && (dynamic || !constants.is_empty()) {
                twins.insert(id, Twin { constants, dynamic, kernel: None });
            }
        }
        drop(constants);
        let mut switches = Switches::new(prepared);
        for id in prepared.nodes(prepared.main()) {
            let Some(twin) = twins.remove(&id) else { continue };
            if let Some(when) = when(&BTreeSet::from([of[&id]])) {
                switches.node(id, twin, when)?;
            }
        }
        let names = named_values(prepared);
        for (name, activation) in &plan.activations {
            let Some(&value) = names.get(name) else { continue };
            let readings = self.units.readings(prepared, plan, value).into_iter();
            let readings: Vec<_> = readings.filter_map(|r| Some((when(&r.units)?, r.uses))).collect();
            if !readings.is_empty() {
                switches.value(value, activation, &readings)?;
            }
        }
        let model = switches.finish()?;
        Ok((Tract.load(&model, &[])?, owners))
    }
}

/// Runs trials on all samples.
struct Runner<'a> {
    task: &'a Task<'a>,
    /// The float answers, where models with all roundings off are not at hand.
    reference: Option<Reference<'a>>,
    done: AtomicUsize,
    total: usize,
}

impl Runner<'_> {
    /// Gathers what is lost in each trial, and with the base if that is asked for.
    fn run(
        &self,
        session: &dyn Session,
        trials: &Trials,
        each: &[Mutex<Losses>],
        base: Option<&Mutex<Losses>>,
    ) -> Result<()> {
        let task = self.task;
        for_each_sample(task.samples, &|_, _| (), |sample| {
            let inputs = task.data.sample(sample)?;
            let labels = task.data.labels(sample)?.map(|l| Labels::of(&l)).transpose()?;
            let update = |into: &Mutex<Losses>, answers: &[Tensor], changed: &[Tensor]| {
                let mut losses = into.lock().unwrap_or_else(PoisonError::into_inner);
                losses.update(task.original, sample, [answers, changed], labels.as_ref())
            };
            let all = |answers: &[Tensor]| {
                let mut tried = vec![false; each.len()];
                let mut judge = |number: usize, changed: &[Tensor]| {
                    let into = each.get(number).ok_or_else(|| Error::bug("a trial of no unit"))?;
                    tried[number] = true;
                    update(into, answers, changed)?;
                    (task.progress)((self.done.fetch_add(1, Ordering::Relaxed) + 1).min(self.total), self.total);
                    Ok(())
                };
                let whole = session.run_trials(&inputs, trials, &mut judge)?;
                // Where nothing is switched, all is as it was.
                let untried = each.iter().zip(tried).filter(|(_, tried)| !tried).map(|(into, _)| into);
                untried.chain(base).try_for_each(|into| update(into, answers, &whole))
            };
            match &self.reference {
                Some(reference) => reference.with_answers(sample, &inputs, all),
                None => all(&session.run_trials(&inputs, &Trials::default(), &mut |_, _| Ok(()))?),
            }
        })
    }
}
