//! What goes back to 32 bits for the sake of the answers. What each rounding alone does to them is measured; noises of many
//! roundings are taken to add up, and what brings most for the least is taken back until the rest fits.

use std::collections::{BTreeMap, BTreeSet};

use super::{ForAnswers, HalfTask, Work, constants, stored};
use crate::{
    error::Result,
    ir::{DType, Model, NodeId, ValueId},
    ops::{self, Class},
    plan::{FOR_THE_ANSWERS, Form, Plan, named_values},
    quant::halves::largest,
};

/// What is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HalfSource {
    /// A value.
    Value(ValueId),
    /// The constants of a node.
    Constants(NodeId),
}

/// Noise of each source at each output, as shares of what the output may have.
pub type HalfNoise = BTreeMap<HalfSource, Vec<f64>>;

/// The share of bfloat16's noise that float16 has: its steps are an eighth.
const FINER: f64 = 1.0 / 64.0;
/// What it costs to store a weight in another type of the same size, in nodes.
const OTHER_TYPE: f64 = 1e-3;
/// What costs nothing is done until noise is this share of what is allowed: as much less as float16 is allowed less than bfloat16.
pub const FREE: f64 = 0.1;
/// Sources that are looked at in each step.
const LOOKED_AT: usize = 64;
/// Nodes that go back with one value at most.
const GROUP: usize = 64;

/// A plan of 16-bit floats, what it rounds, and what is taken back.
pub struct Answers<'a> {
    task: &'a HalfTask<'a>,
    work: Work<'a>,
    noise: &'a HalfNoise,
    half: BTreeSet<NodeId>,
    /// The types that weights are stored in.
    stored: BTreeMap<ValueId, DType>,
    /// Weights that could be stored in float16 instead of bfloat16.
    finer: BTreeSet<ValueId>,
    /// Bytes of all weights.
    bytes: usize,
    changed: ForAnswers,
}

/// Something that can be taken back.
#[derive(Debug, Clone)]
enum Step {
    /// These nodes keep 32 bits, for the sake of a value.
    Nodes(ValueId, Vec<NodeId>),
    /// The weights of a node are stored in float16.
    Finer(NodeId),
    /// A node keeps its constants as they are.
    Constants(NodeId),
}

/// What was before a step.
#[derive(Debug, Default)]
struct Undo {
    nodes: Vec<NodeId>,
    weights: Vec<(ValueId, Option<DType>)>,
}

impl<'a> Answers<'a> {
    /// Of a plan that was made for the task.
    pub fn of(task: &'a HalfTask<'a>, plan: &Plan, noise: &'a HalfNoise) -> Result<Self> {
        let (model, names) = (task.model, named_values(task.model));
        let is_half = |name: &str| plan.nodes.get(name).is_some_and(|n| n.becomes == Form::Half);
        let named = |v: ValueId| names.get(model.value(v).name()) == Some(&v) && is_half(model.value(v).name());
        let work = Work::new(task);
        let first = |n: NodeId| model.node(n).outputs().iter().copied().flatten().next();
        let half = work.nodes.iter().copied().filter(|&n| first(n).is_some_and(named)).collect();
        let stored: BTreeMap<ValueId, DType> =
            plan.stored_weights.iter().filter_map(|(name, s)| Some((*names.get(name)?, s.dtype))).collect();
        let mut finer = BTreeSet::new();
        for (&v, _) in stored.iter().filter(|(_, dtype)| **dtype == DType::Bfloat16) {
            let Some(t) = model.value(v).constant() else { continue };
            finer.extend(constants::reason(t, DType::Float16)?.is_none().then_some(v));
        }
        let bytes =
            model.value_ids().into_iter().filter(|&v| stored::is_weight(model, v)).map(|v| size(model, v)).sum();
        Ok(Self { task, work, noise, half, stored, finer, bytes, changed: task.for_answers.clone() })
    }

    /// All that the plan rounds in the main graph.
    pub fn sources(&self) -> BTreeSet<HalfSource> {
        let model = self.task.model;
        let mut found = BTreeSet::new();
        for &n in &self.work.nodes {
            if model.node(n).graph() != model.main() {
                continue;
            }
            found.insert(HalfSource::Constants(n));
            found.extend(self.values_of(n).into_iter().filter(|&v| !self.is_moved(v)).map(HalfSource::Value));
        }
        let noisy = |s: &HalfSource| self.active(*s) > 0.0;
        found.into_iter().filter(noisy).collect()
    }

    /// Whether 16-bit nodes make the value, and so all that read it.
    pub fn made_half(&self, v: ValueId) -> bool {
        self.task.model.producer(v).is_some_and(|n| self.half.contains(&n))
    }

    /// Whether a node reads an input in 16 bits.
    pub fn reads_half(&self, n: NodeId, input: usize) -> bool {
        self.half.contains(&n) && !ops::always_float(self.task.model, n, input)
    }

    /// The noise of all that is rounded at each output.
    pub fn total(&self) -> Vec<f64> {
        let all = self.work.nodes.iter().flat_map(|&n| self.sources_of(n)).collect();
        self.sum(&all)
    }

    /// Takes roundings back until no output has more noise than this. What takes neither room nor time is done until there is no
    /// more than [`FREE`] of that.
    pub fn hold_to(mut self, allowed: f64) -> ForAnswers {
        let mut total = self.total();
        for (free, allowed) in [(true, allowed * FREE), (false, allowed)] {
            while total.iter().any(|t| *t > allowed) {
                let Some((step, after)) = self.best(&total, allowed, free) else { break };
                let freed = total.iter().zip(&after).map(|(a, b)| a - b).fold(0.0, f64::max);
                self.take(&step, freed);
                total = after;
            }
        }
        self.changed
    }

    /// Whether something can be taken back that takes neither room nor time.
    pub fn has_free(&self) -> bool {
        self.work.nodes.iter().any(|&n| self.can_be_finer(n))
    }

    /// The step that brings most for what it costs, and what is left then.
    fn best(&mut self, total: &[f64], allowed: f64, free: bool) -> Option<(Step, Vec<f64>)> {
        let over: Vec<usize> = (0..total.len()).filter(|&k| total[k] > allowed).collect();
        let weigh = |noise: &[f64]| over.iter().map(|&k| noise.get(k).copied().unwrap_or(0.0)).sum::<f64>();
        let mut loud: Vec<(f64, HalfSource)> = Vec::new();
        for (&source, noise) in self.noise {
            let weight = self.active(source) * weigh(noise);
            loud.extend((weight > 0.0).then_some((weight, source)));
        }
        loud.retain(|(_, source)| !free || matches!(source, HalfSource::Constants(_)));
        loud.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut best: Option<(f64, Step, Vec<f64>)> = None;
        for (_, source) in loud.into_iter().take(LOOKED_AT) {
            for step in self.steps(source).into_iter().filter(|s| !free || matches!(s, Step::Finer(_))) {
                let touched = self.touched(&step);
                let before = self.sum(&touched);
                let cost = self.cost(&step);
                let undo = self.carry_out(&step);
                let now = self.sum(&touched);
                self.undo(undo);
                let mut after = total.to_vec();
                after.iter_mut().zip(before.iter().zip(&now)).for_each(|(t, (b, n))| *t -= b - n);
                let gain: f64 = over.iter().map(|&k| total[k] - after[k].max(allowed)).sum();
                if gain > 0.0 && best.as_ref().is_none_or(|b| gain / cost > b.0) {
                    best = Some((gain / cost, step, after));
                }
            }
        }
        best.map(|(_, step, after)| (step, after))
    }

    /// What can be done about a source.
    fn steps(&self, source: HalfSource) -> Vec<Step> {
        match source {
            HalfSource::Value(v) => self.group(v).map(|nodes| Step::Nodes(v, nodes)).into_iter().collect(),
            HalfSource::Constants(n) => {
                let mut steps = vec![Step::Constants(n)];
                if self.can_be_finer(n) {
                    steps.push(Step::Finer(n));
                }
                steps
            }
        }
    }

    /// Whether weights of the node are stored in bfloat16 and could be in float16.
    fn can_be_finer(&self, n: NodeId) -> bool {
        self.weights(n).any(|v| self.finer.contains(&v) && self.stored.get(&v) == Some(&DType::Bfloat16))
    }

    /// The nodes that keep 32 bits when a value does: its maker, its readers, and those that read what these only move.
    fn group(&self, v: ValueId) -> Option<Vec<NodeId>> {
        let model = self.task.model;
        let mut found: Vec<NodeId> = model.producer(v).filter(|n| self.half.contains(n)).into_iter().collect();
        let mut todo = vec![v];
        while let Some(v) = todo.pop() {
            for (n, i) in model.value(v).readers() {
                if self.reads_half(n, i) && !found.contains(&n) {
                    found.push(n);
                    if moves(model, n) {
                        todo.extend(model.node(n).outputs().iter().copied().flatten());
                    }
                }
            }
        }
        (!found.is_empty() && found.len() <= GROUP).then_some(found)
    }

    fn nodes_of(&self, step: &Step) -> Vec<NodeId> {
        match step {
            Step::Nodes(_, nodes) => nodes.clone(),
            Step::Finer(n) | Step::Constants(n) => vec![*n],
        }
    }

    fn touched(&self, step: &Step) -> BTreeSet<HalfSource> {
        self.nodes_of(step).into_iter().flat_map(|n| self.sources_of(n)).collect()
    }

    /// In nodes that no longer compute in 16 bits; a weight in 32 bits costs as much as its share of all nodes.
    fn cost(&self, step: &Step) -> f64 {
        let nodes = self.nodes_of(step).into_iter().filter(|n| self.half.contains(n)).count() as f64;
        match step {
            Step::Nodes(..) => nodes,
            Step::Finer(_) => OTHER_TYPE,
            Step::Constants(n) => {
                let bytes: usize = self.weights(*n).map(|v| size(self.task.model, v)).sum();
                let share = bytes as f64 / self.bytes.max(1) as f64;
                OTHER_TYPE + nodes + share * self.work.nodes.len() as f64
            }
        }
    }

    fn carry_out(&mut self, step: &Step) -> Undo {
        let mut undo = Undo::default();
        for n in self.nodes_of(step) {
            // A node of 32 bits that gets finer weights is none of 16.
            let was_half = self.half.remove(&n);
            undo.nodes.extend(was_half.then_some(n));
            let weights: Vec<ValueId> = self.weights(n).collect();
            for v in weights {
                undo.weights.push((v, self.stored.get(&v).copied()));
                match step {
                    // A node of 32 bits may have its weights stored all the same.
                    Step::Nodes(..) if was_half && self.task.store => drop(self.stored.insert(v, self.task.dtype)),
                    Step::Nodes(..) => {}
                    Step::Finer(_) if self.finer.contains(&v) => drop(self.stored.insert(v, DType::Float16)),
                    Step::Finer(_) => {}
                    Step::Constants(_) => drop(self.stored.remove(&v)),
                }
            }
        }
        undo
    }

    fn undo(&mut self, undo: Undo) {
        self.half.extend(undo.nodes);
        for (v, dtype) in undo.weights.into_iter().rev() {
            match dtype {
                Some(dtype) => drop(self.stored.insert(v, dtype)),
                None => drop(self.stored.remove(&v)),
            }
        }
    }

    /// Does it for good, with the reason.
    fn take(&mut self, step: &Step, freed: f64) {
        let (model, share) = (self.task.model, percent(freed));
        let half = self.task.dtype;
        for n in self.nodes_of(step).into_iter().filter(|n| self.half.contains(n)) {
            let why = match step {
                Step::Nodes(v, _) if model.producer(*v) == Some(n) => "rounding what it makes",
                Step::Nodes(..) => "rounding what it reads",
                _ => "rounding its constants",
            };
            let text = format!("{FOR_THE_ANSWERS}: {why} takes {share} of what they may lose");
            self.changed.nodes.entry(n).or_insert(text);
        }
        let text = format!("costs too much in {half}: {share} of what the answers may lose");
        for n in self.nodes_of(step) {
            let weights: Vec<ValueId> = self.weights(n).collect();
            for v in weights {
                match step {
                    Step::Nodes(..) => {}
                    Step::Finer(_) if !self.finer.contains(&v) => {}
                    Step::Finer(_) => drop(self.changed.weights.insert(v, (Some(DType::Float16), text.clone()))),
                    Step::Constants(_) => {
                        let before = self.changed.weights.insert(v, (None, text.clone()));
                        // The first figure says most.
                        if let (Some((_, first)), Some(now)) = (before, self.changed.weights.get_mut(&v)) {
                            now.1 = first;
                        }
                    }
                }
            }
        }
        self.carry_out(step);
    }

    fn weights(&self, n: NodeId) -> impl Iterator<Item = ValueId> {
        let model = self.task.model;
        model.node(n).inputs().iter().copied().flatten().filter(move |&v| stored::is_weight(model, v))
    }

    fn values_of(&self, n: NodeId) -> BTreeSet<ValueId> {
        let mut all = self.work.inputs(n);
        all.extend(self.work.outputs(n));
        all.into_iter().filter(|&v| self.task.model.value(v).initializer().is_none()).collect()
    }

    /// The sources that a change of the node can change.
    fn sources_of(&self, n: NodeId) -> Vec<HalfSource> {
        let values = self.values_of(n).into_iter().map(HalfSource::Value);
        values.chain([HalfSource::Constants(n)]).collect()
    }

    /// Whether nothing is rounded there, since a node only moves numbers that are rounded already.
    fn is_moved(&self, v: ValueId) -> bool {
        self.task.model.producer(v).is_some_and(|n| moves(self.task.model, n))
    }

    fn sum(&self, sources: &BTreeSet<HalfSource>) -> Vec<f64> {
        let outputs = self.noise.values().map(Vec::len).max().unwrap_or(0);
        let mut sums = vec![0.0; outputs];
        for &source in sources {
            let factor = self.active(source);
            if factor > 0.0 {
                let mut noise = vec![0.0; outputs];
                self.add_noise(source, &mut noise, 0);
                sums.iter_mut().zip(noise).for_each(|(sum, n)| *sum += factor * n);
            }
        }
        sums
    }

    /// What was measured of a source; of what is only moved, what was measured of the numbers before.
    fn add_noise(&self, source: HalfSource, sums: &mut [f64], depth: usize) {
        match (self.noise.get(&source), source) {
            (Some(noise), _) => sums.iter_mut().zip(noise).for_each(|(sum, n)| *sum += n),
            (None, HalfSource::Value(v)) if self.is_moved(v) && depth < GROUP => {
                let maker = self.task.model.producer(v);
                for x in maker.map(|n| self.work.inputs(n)).unwrap_or_default() {
                    self.add_noise(HalfSource::Value(x), sums, depth + 1);
                }
            }
            _ => {}
        }
    }

    /// How much of its noise a source makes now: all of it, or, with finer weights, little of it.
    fn active(&self, source: HalfSource) -> f64 {
        let model = self.task.model;
        match source {
            HalfSource::Value(v) => {
                let most = largest(self.task.dtype);
                let maker = model.producer(v).filter(|n| self.half.contains(n));
                let rounded = match maker {
                    Some(n) => !moves(model, n),
                    None => model.value(v).readers().any(|(n, i)| self.reads_half(n, i)),
                };
                // A mask that is limited is none of its business.
                let mask = || self.work.seen(v).is_some_and(|seen| seen.largest() > most);
                f64::from(u8::from(rounded && !mask()))
            }
            HalfSource::Constants(n) if self.half.contains(&n) => 1.0,
            HalfSource::Constants(n) => {
                let of = |v: ValueId| match self.stored.get(&v) {
                    Some(DType::Float16) if self.task.dtype == DType::Bfloat16 => FINER,
                    Some(_) => 1.0,
                    None => 0.0,
                };
                self.weights(n).map(of).fold(0.0, f64::max)
            }
        }
    }
}

fn moves(model: &Model, n: NodeId) -> bool {
    ops::spec(model, n).is_some_and(|s| matches!(s.class, Class::Movement | Class::Joining))
}

fn size(model: &Model, v: ValueId) -> usize {
    model.value(v).constant().map_or(0, crate::ir::Tensor::byte_len)
}

/// In two digits.
fn percent(share: f64) -> String {
    match share * 100.0 {
        p if p >= 10.0 => format!("{p:.0} %"),
        p if p >= 0.1 => format!("{p:.1} %"),
        _ => "less than 0.1 %".to_owned(),
    }
}
