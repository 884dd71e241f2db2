//! What differs between two models, whatever form each is in: layers matched by name, weights and neighbours, and what changed
//! in each.
//!
//! Both models are brought into two forms of the same nodes: float operators between Q/DQ pairs, which tells how each layer is
//! quantized, and floats alone, in which layers of all forms look the same.

mod facts;
mod matching;
mod side;
mod weights;

use std::collections::BTreeMap;

use serde::Serialize;

pub use facts::{Layer, Quantizer, Weight, short};
pub use matching::How;
use side::Side;

use crate::{
    error::Result,
    ir::{Model, NodeId},
    target::Target,
};

/// What differs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Difference {
    /// Facts of the models as wholes that differ: what, before, after.
    pub model: Vec<(String, String, String)>,
    /// How each model is quantized, in words.
    pub forms: [String; 2],
    /// Layers that are in both.
    pub layers: Vec<Pair>,
    /// Nodes of the first model without counterpart.
    pub gone: Vec<Lone>,
    /// Nodes of the second.
    pub new: Vec<Lone>,
}

/// A layer in both models.
#[derive(Debug, Clone, Serialize)]
pub struct Pair {
    /// What told that they are the same.
    pub matched_by: How,
    /// In the first model.
    pub before: Layer,
    /// In the second.
    pub after: Layer,
    /// How far the weights are apart, if they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_difference: Option<WeightDifference>,
    /// Attributes that differ, and constants other than the weight: name, before, after.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<(String, String, String)>,
}

/// How far two weights are apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WeightDifference {
    /// Signal to noise of the second beside the first, dB; `None` where the shapes differ.
    pub sqnr: Option<f64>,
    /// The greatest difference of two numbers.
    pub max: Option<f64>,
    /// Whether it was multiplied by something; signal to noise is what is left but for that.
    pub scaled: Scaled,
}

/// What a weight was multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaled {
    /// Nothing.
    No,
    /// One number.
    By(f32),
    /// A number for each channel, as where a batch normalization is folded.
    Channels,
}

/// A node that only one model has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lone {
    /// Its name, or its first output's.
    pub name: String,
    /// Operator.
    pub op: String,
    /// The layer of the other model that does what it did, if that can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
}

impl Pair {
    /// Whether nothing differs.
    pub fn is_same(&self) -> bool {
        let (a, b) = (&self.before, &self.after);
        self.weight_difference.is_none()
            && self.attributes.is_empty()
            && (&a.op, &a.precision, &a.weight, &a.quantizer, &a.kernel)
                == (&b.op, &b.precision, &b.weight, &b.quantizer, &b.kernel)
    }

    /// The relative error of the weight, from 0; 1 and more where it is another weight.
    pub fn weight_error(&self) -> f64 {
        match self.weight_difference {
            None => 0.0,
            Some(WeightDifference { sqnr: Some(sqnr), .. }) => 10f64.powf(-sqnr / 20.0),
            Some(_) => 1.0,
        }
    }
}

impl Difference {
    /// Whether nothing at all differs.
    pub fn is_none(&self) -> bool {
        self.model.is_empty() && self.only_form() && self.forms[0] == self.forms[1]
    }

    /// Whether layers are the same in all, in whatever form.
    pub fn only_form(&self) -> bool {
        self.gone.is_empty() && self.new.is_empty() && self.layers.iter().all(Pair::is_same)
    }

    /// Of two models, on a target whose kernels are told.
    pub fn between(a: &Model, b: &Model, target: &Target) -> Result<Self> {
        let sides = [Side::of(a, target)?, Side::of(b, target)?];
        let [a_side, b_side] = &sides;
        let matched = matching::matched(a_side, b_side)?;
        let mut layers = Vec::new();
        for (&x, &(y, how)) in &matched {
            let (before, after) = (a_side.layer(x), b_side.layer(y));
            layers.push((
                a_side.place(x),
                Pair {
                    matched_by: how,
                    weight_difference: weights::difference(a_side, x, b_side, y)?,
                    attributes: attributes(a_side, x, b_side, y)?,
                    before,
                    after,
                },
            ));
        }
        layers.sort_by_key(|(place, _)| *place);
        let back: BTreeMap<NodeId, NodeId> = matched.iter().map(|(&x, &(y, _))| (y, x)).collect();
        let there: BTreeMap<NodeId, NodeId> = matched.iter().map(|(&x, &(y, _))| (x, y)).collect();
        Ok(Self {
            model: side::whole(a, b).into_iter().chain(inputs(a_side, b_side)).collect(),
            forms: [a_side.form(), b_side.form()],
            layers: layers.into_iter().map(|(_, pair)| pair).collect(),
            gone: lone(a_side, b_side, &there),
            new: lone(b_side, a_side, &back),
        })
    }
}

/// Quantizers of the models' inputs that differ.
fn inputs(a: &Side, b: &Side) -> Vec<(String, String, String)> {
    let (x, y) = (a.original.required_inputs(), b.original.required_inputs());
    let words = |q: Option<Quantizer>| q.map_or_else(|| "float".to_owned(), |q| q.words());
    let both = x.into_iter().zip(y).map(|(x, y)| {
        let [before, after] = [(a, x), (b, y)].map(|(side, v)| words(facts::quantizer(&side.raised, v)));
        (format!("read {}", a.original.value(x).name()), before, after)
    });
    both.filter(|(_, before, after)| before != after).collect()
}

/// The nodes without counterpart, and the layer in front of each that may do what they did.
fn lone(own: &Side, other: &Side, matched: &BTreeMap<NodeId, NodeId>) -> Vec<Lone> {
    let nodes = own.nodes.iter().filter(|n| !matched.contains_key(n));
    let told = |&n: &NodeId| {
        let host = own.producer_matched(n, matched);
        Lone {
            name: own.float.node_label(n),
            op: own.float.node(n).op_type.clone(),
            within: host.map(|h| other.float.node_label(h)),
        }
    };
    nodes.map(told).collect()
}

/// Attributes and small constants that differ, but for attributes that say nothing of what is computed.
fn attributes(a: &Side, x: NodeId, b: &Side, y: NodeId) -> Result<Vec<(String, String, String)>> {
    if a.float.node(x).op_type != b.float.node(y).op_type {
        return Ok(Vec::new());
    }
    let constants = weights::others(a, x, b, y)?;
    let (x, y) = (a.float.node(x), b.float.node(y));
    let words = |n: &crate::ir::Node| -> BTreeMap<String, String> {
        n.attributes.iter().filter_map(|attr| Some((attr.name.clone(), facts::attribute(&attr.value)?))).collect()
    };
    let (x, y) = (words(x), words(y));
    let names: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
    let get =
        |m: &BTreeMap<String, String>, name: &String| m.get(name).cloned().unwrap_or_else(|| "not given".to_owned());
    let differ = |n: &&String| {
        let default = |v: Option<&String>| v.is_none_or(|v| facts::is_default(n, v));
        x.get(*n) != y.get(*n) && !(default(x.get(*n)) && default(y.get(*n)))
    };
    let differing = names.into_iter().filter(differ).map(|n| (n.clone(), get(&x, n), get(&y, n)));
    Ok(differing.chain(constants).collect())
}
