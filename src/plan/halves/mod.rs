//! Which nodes compute in 16-bit floats, and why the others keep 32 bits.
//!
//! 1. What has no form in 16 bits: by ONNX's schemas, by the target, by a rule of the user.
//! 2. [`constants`]: constants that 16 bits cannot hold. Those that only push logits away from a Softmax ([`masks`]) are limited.
//! 3. [`values`]: what data show of the other values, or, without data, what is known to be dangerous.
//! 4. [`exact`]: numbers that count or turn, whose rounding moves indices or angles.
//! 5. [`islands`]: what would be between so many Casts that it gains nothing.
//! 6. [`stored`]: weights of the others that 16 bits can hold are stored in them all the same.
//!
//! What the model's answers ask for beside that is chosen in [`answers`], once it is measured. A value that needs 32 bits keeps them where it is made and wherever it is read.

mod answers;
mod constants;
mod exact;
mod islands;
mod masks;
mod stored;
mod values;

pub use answers::{Answers, FREE, HalfNoise, HalfSource};
pub use stored::ForAnswers;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::{Form, NodePlan, Plan, named_values};
use crate::{
    analysis::{
        placement::Wishes,
        types::{self, Types},
    },
    calibrate::halves::Rounding,
    error::Result,
    ir::{DType, Model, NodeId, ValueId},
    ops,
    target::{HalfForm, Target},
};

/// What a plan says of 16-bit floats, besides the nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halves {
    /// float16 or bfloat16.
    pub dtype: DType,
    /// Inputs and outputs of the model have this type, too.
    #[serde(default)]
    pub io: bool,
    /// Constants whose numbers are limited to a magnitude before they are rounded; by their name, or that of what a
    /// ConstantOfShape makes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limited: BTreeMap<String, f32>,
}

/// What the plan rests on.
pub struct HalfTask<'a> {
    /// The prepared model.
    pub model: &'a Model,
    /// What runs it.
    pub target: &'a Target,
    /// float16 or bfloat16.
    pub dtype: DType,
    /// Inputs and outputs, too.
    pub io: bool,
    /// Nodes that are to stay as they are.
    pub wishes: &'a Wishes,
    /// What data show of [`half_values`]; empty without data.
    pub seen: &'a BTreeMap<ValueId, Rounding>,
    /// Weights of nodes that keep 32 bits may be stored in 16.
    pub store: bool,
    /// What the answers ask for.
    pub for_answers: &'a ForAnswers,
    /// The nodes that it is about, where that is not all of them: they are brought into 16 bits even if Casts cost more than that
    /// gains, and the plan speaks of no others.
    pub only: Option<&'a BTreeSet<NodeId>>,
}

impl HalfTask<'_> {
    fn is_about(&self, n: NodeId) -> bool {
        self.only.is_none_or(|only| only.contains(&n))
    }
}

/// What is known so far of which node keeps 32 bits.
struct Work<'a> {
    task: &'a HalfTask<'a>,
    types: Types,
    /// Nodes that have to do with floats, in order.
    nodes: Vec<NodeId>,
    /// Those that keep 32 bits, with the reason: a class of reasons, and the numbers behind a colon.
    float: BTreeMap<NodeId, String>,
    /// Constants, and ConstantOfShapes, that are limited.
    limited: BTreeMap<ValueId, f32>,
    /// Values that limited constants are part of.
    masked: BTreeSet<ValueId>,
    /// Nodes whose numbers must not be rounded at all, weights neither.
    exact: BTreeSet<NodeId>,
}

/// A magnitude in words.
fn short(x: f32) -> String {
    match x.abs() {
        a if a == 0.0 || (0.01..1e5).contains(&a) => format!("{}", (x * 100.0).round() / 100.0),
        _ => format!("{x:.1e}"),
    }
}

/// The values of a model to look at: floats of the main graph that no constant holds. Nodes that only move numbers have those
/// of their input.
pub fn half_values(model: &Model) -> Vec<ValueId> {
    let types = types::infer(model);
    let inputs = model.required_inputs().into_iter();
    let made = model.nodes(model.main()).into_iter().flat_map(|n| model.node(n).outputs().to_vec()).flatten();
    let looked_at = |v: &ValueId| types.dtype(*v) == Some(DType::Float) && moved_from(model, *v).is_none();
    inputs.chain(made).filter(looked_at).collect()
}

/// The value whose numbers a value has some of, where its node only moves them.
fn moved_from(model: &Model, v: ValueId) -> Option<ValueId> {
    const COPIES: &[&str] = &[
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Identity",
        "Slice",
        "Gather",
        "Expand",
        "Split",
        "Tile",
    ];
    let n = model.producer(v)?;
    let copies = model.node(n).graph() == model.main() && COPIES.iter().any(|op| model.node(n).is(op));
    model.node(n).input(0).filter(|&x| copies && model.value(x).initializer().is_none())
}

/// Makes the plan.
pub fn decide_halves(task: &HalfTask<'_>) -> Result<Plan> {
    if task.target.half(task.dtype).form == HalfForm::Stored {
        return in_files(task);
    }
    let mut work = Work::new(task);
    work.forms();
    masks::limit(&mut work)?;
    constants::look(&mut work)?;
    exact::look(&mut work);
    match task.seen.is_empty() {
        true => values::suspect(&mut work),
        false => values::look(&mut work),
    }
    for (&n, reason) in &task.for_answers.nodes {
        work.keep(n, reason);
    }
    if task.only.is_some() {
        return Ok(work.plan());
    }
    islands::merge(&mut work);
    let mut plan = work.plan();
    stored::beside(&work, &mut plan)?;
    Ok(plan)
}

/// The plan for a runtime that has the type in files alone: weights are of that type.
fn in_files(task: &HalfTask<'_>) -> Result<Plan> {
    let model = task.model;
    let mut plan = empty(task);
    let names = named_values(model);
    let why = "the runtime computes in 32-bit floats; its weights alone are stored in 16 bits";
    let mut others: BTreeMap<NodeId, String> = BTreeMap::new();
    for v in model.value_ids().into_iter().filter(|&v| stored::is_weight(model, v)) {
        let value = model.value(v);
        let named = names.get(value.name()) == Some(&v);
        let kept = value.readers().any(|(n, _)| task.wishes.keeps_float(model, n).is_some());
        let about = value.readers().all(|(n, _)| task.is_about(n));
        if !named || kept || !task.store || !about {
            continue;
        }
        let refused = stored::store(task, &mut plan, v)?;
        let other = plan.stored_weights.get(value.name()).filter(|s| s.dtype != task.dtype).map(|s| s.dtype);
        let text = match (refused, other, task.for_answers.weights.get(&v)) {
            (Some(why), ..) => format!("the runtime computes in 32-bit floats, and its weight keeps them, which {why}"),
            (_, Some(dtype), Some((_, why))) => {
                format!("the runtime computes in 32-bit floats; its weight is stored in {dtype}, since it {why}")
            }
            _ => continue,
        };
        others.extend(value.readers().map(|(n, _)| (n, text.clone())));
    }
    let types = types::infer(model);
    for n in model.all_nodes().into_iter().filter(|&n| task.is_about(n) && touches_floats(model, &types, n)) {
        let other = others.get(&n).map_or(why, String::as_str);
        let reason = task.wishes.keeps_float(model, n).unwrap_or(other);
        insert(&mut plan, model, &names, n, Form::Float, Some(reason.to_owned()));
    }
    Ok(plan)
}

fn empty(task: &HalfTask<'_>) -> Plan {
    let halves = Halves { dtype: task.dtype, io: task.io, limited: BTreeMap::new() };
    let cpu = task.target.other_cpu().map(str::to_owned);
    Plan { target: task.target.name.clone(), cpu, halves: Some(halves), ..Plan::default() }
}

fn touches_floats(model: &Model, types: &Types, n: NodeId) -> bool {
    let node = model.node(n);
    let all = node.inputs().iter().chain(node.outputs()).copied().flatten();
    all.into_iter().any(|v| types.dtype(v) == Some(DType::Float))
}

fn insert(
    plan: &mut Plan,
    model: &Model,
    names: &HashMap<String, ValueId>,
    n: NodeId,
    becomes: Form,
    reason: Option<String>,
) {
    let node = model.node(n);
    let Some(out) = node.outputs().iter().copied().flatten().next() else { return };
    let key = model.value(out).name();
    if names.get(key) != Some(&out) {
        return;
    }
    let name = node.name.clone().filter(|n| !n.is_empty());
    let entry = NodePlan { reason, ..NodePlan::new(name, &node.op_type, becomes) };
    plan.nodes.insert(key.to_owned(), entry);
}

impl<'a> Work<'a> {
    fn new(task: &'a HalfTask<'a>) -> Self {
        let types = types::infer(task.model);
        let nodes = task.model.all_nodes().into_iter().filter(|&n| touches_floats(task.model, &types, n)).collect();
        let (float, limited, masked) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { task, types, nodes, float, limited, masked, exact: BTreeSet::new() }
    }

    fn model(&self) -> &'a Model {
        self.task.model
    }

    /// What data show of a value.
    fn seen(&self, mut v: ValueId) -> Option<&'a Rounding> {
        while let Some(x) = moved_from(self.model(), v) {
            v = x;
        }
        self.task.seen.get(&v)
    }

    fn is_float(&self, v: ValueId) -> bool {
        self.types.dtype(v) == Some(DType::Float)
    }

    /// The node keeps 32 bits; the first reason stays.
    fn keep(&mut self, n: NodeId, reason: impl Into<String>) {
        self.float.entry(n).or_insert_with(|| reason.into());
    }

    /// The value keeps 32 bits where it is made and read.
    fn keep_value(&mut self, v: ValueId, reason: &str) {
        let model = self.model();
        if let Some(n) = model.producer(v) {
            self.keep(n, format!("what it makes {reason}"));
        }
        let readers: Vec<_> = model.value(v).readers().collect();
        for (n, i) in readers {
            if !ops::always_float(model, n, i) {
                self.keep(n, format!("what it reads {reason}"));
            }
        }
    }

    /// The floats that a node reads and that would be in 16 bits with it.
    fn inputs(&self, n: NodeId) -> Vec<ValueId> {
        let inputs = self.model().node(n).inputs().iter().copied().enumerate();
        let own = inputs.filter(|(i, _)| !ops::always_float(self.model(), n, *i)).filter_map(|(_, v)| v);
        own.filter(|&v| self.is_float(v)).collect()
    }

    /// The floats that it makes.
    fn outputs(&self, n: NodeId) -> Vec<ValueId> {
        self.model().node(n).outputs().iter().copied().flatten().filter(|&v| self.is_float(v)).collect()
    }

    /// Nodes that cannot be in 16 bits, whatever their numbers are.
    fn forms(&mut self) {
        let (model, names) = (self.model(), named_values(self.model()));
        let facts = self.task.target.half(self.task.dtype);
        for n in self.nodes.clone() {
            let node = model.node(n);
            let first = node.outputs().iter().copied().flatten().next();
            let other = |v: &ValueId| {
                let value = model.value(*v);
                self.types.dtype(*v).is_none() && value.dtype().is_none()
            };
            let reason = if !self.task.is_about(n) {
                Some("it is not asked for".to_owned())
            } else if let Some(rule) = self.task.wishes.keeps_float(model, n) {
                Some(rule.to_owned())
            } else if first.is_some_and(|v| names.get(model.value(v).name()) != Some(&v)) {
                Some("another value of the model has the name of its output, so no plan can speak of it".to_owned())
            } else if node.subgraphs().next().is_some() {
                Some("it hands values to and from subgraphs, which have 32 bits there".to_owned())
            } else if node.is("Constant") && node.tensor("value").is_none() {
                Some("a Constant that is no tensor".to_owned())
            } else if node.is("QuantizeLinear") || node.is("DequantizeLinear") {
                Some("it converts to or from integers, with scales of 32 bits".to_owned())
            } else if node.inputs().iter().chain(node.outputs()).flatten().any(other) {
                Some("the type of a value is not known, so 32 bits are".to_owned())
            } else if node.is("LayerNormalization") && node.outputs().iter().skip(1).any(Option::is_some) {
                Some("its mean and deviation are handed out in 32 bits".to_owned())
            } else {
                ops::half_refused(model, n).or_else(|| facts.refuses(model, n).map(str::to_owned))
            };
            if let Some(reason) = reason {
                self.keep(n, reason);
            }
        }
    }

    fn plan(&self) -> Plan {
        let (model, mut plan) = (self.model(), empty(self.task));
        let names = named_values(model);
        for &n in self.nodes.iter().filter(|&&n| self.task.is_about(n)) {
            let reason = self.float.get(&n).cloned();
            let form = if reason.is_some() { Form::Float } else { Form::Half };
            insert(&mut plan, model, &names, n, form, reason);
        }
        if let Some(halves) = &mut plan.halves {
            let limited = self.limited.iter().map(|(&v, &bound)| (model.value(v).name().to_owned(), bound));
            halves.limited = limited.collect();
        }
        plan
    }
}

#[cfg(test)]
mod tests;
