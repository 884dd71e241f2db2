//! Between which numbers a value must lie, whatever the model reads: whether a clamp would change anything.

use std::collections::HashMap;

use crate::{
    analysis::types::Types,
    ir::{Model, NodeId, ValueId},
    ops::{self, Class},
    passes::support::clamp::Clamp,
};

/// Deeper than this nothing is known.
const DEPTH: usize = 64;

/// What is known of values; nodes must not change behind its back.
#[derive(Default)]
pub(super) struct Bounds {
    known: HashMap<ValueId, (f32, f32)>,
}

const ALL: (f32, f32) = (f32::NEG_INFINITY, f32::INFINITY);

impl Bounds {
    /// Least and greatest number.
    pub(super) fn of(&mut self, model: &Model, types: &Types, v: ValueId) -> (f32, f32) {
        self.at(model, types, v, 0)
    }

    fn at(&mut self, model: &Model, types: &Types, v: ValueId, depth: usize) -> (f32, f32) {
        if let Some(&known) = self.known.get(&v) {
            return known;
        }
        let Some(n) = model.producer(v).filter(|_| depth < DEPTH) else { return constant(model, v) };
        let found = self.node(model, types, n, depth + 1);
        if depth == 0 || found != ALL {
            self.known.insert(v, found);
        }
        found
    }

    fn node(&mut self, model: &Model, types: &Types, n: NodeId, depth: usize) -> (f32, f32) {
        let node = model.node(n);
        if !node.in_onnx_domain() {
            return ALL;
        }
        let read: Vec<ValueId> = node.inputs().iter().copied().flatten().collect();
        let mut input = |i: usize| read.get(i).map_or(ALL, |&v| self.at(model, types, v, depth));
        if let Some(clamp) = Clamp::of(model, types, n) {
            let (lo, hi) = self.at(model, types, clamp.x, depth);
            return (lo.clamp(clamp.lo, clamp.hi), hi.clamp(clamp.lo, clamp.hi));
        }
        let with_zero = |(lo, hi): (f32, f32)| (lo.min(0.0), hi.max(0.0));
        match node.op_type.as_str() {
            "Sigmoid" | "HardSigmoid" | "Softmax" => (0.0, 1.0),
            "Tanh" | "Erf" | "Softsign" | "Sin" | "Cos" => (-1.0, 1.0),
            "Abs" | "Sqrt" | "Exp" | "Softplus" | "ReduceL1" | "ReduceL2" | "ReduceSumSquare" => (0.0, f32::INFINITY),
            "HardSwish" => (-0.375, input(0).1.max(0.0)),
            "Identity" | "Dropout" | "GlobalMaxPool" | "GlobalAveragePool" | "ReduceMean" => input(0),
            "AveragePool" | "Pad" => with_zero(input(0)),
            "Resize" if node.string("mode") == Some("linear") => input(0),
            "Concat" | "Max" | "Min" => {
                let all: Vec<_> = (0..read.len()).map(input).collect();
                all.into_iter().reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or(ALL)
            }
            "Where" => {
                let (a, b) = (input(1), input(2));
                (a.0.min(b.0), a.1.max(b.1))
            }
            "Add" => {
                let (a, b) = (input(0), input(1));
                (a.0 + b.0, a.1 + b.1)
            }
            "Mul" if read.len() == 2 && read[0] == read[1] => (0.0, f32::INFINITY),
            "Mul" => {
                let (a, b) = (input(0), input(1));
                if a.0 >= 0.0 && b.0 >= 0.0 {
                    (0.0, if a.1 * b.1 > 0.0 { a.1 * b.1 } else { f32::INFINITY })
                } else {
                    ALL
                }
            }
            _ if moves(model, n) => input(0),
            _ => ALL,
        }
    }
}

/// Whether a node makes numbers of what it reads as input 0 without computing new ones.
fn moves(model: &Model, n: NodeId) -> bool {
    let between = model.node(n).is("Resize") && model.node(n).string("mode").is_some_and(|m| m != "nearest");
    !between && ops::spec(model, n).is_some_and(|s| s.class == Class::Movement)
}

fn constant(model: &Model, v: ValueId) -> (f32, f32) {
    /// Larger constants are not looked through.
    const MOST: usize = 1 << 16;
    let small = model.value(v).constant().filter(|t| t.len() <= MOST && !t.is_empty() && !t.is_deferred());
    let Some(numbers) = small.and_then(|t| t.to_f32().ok()) else { return ALL };
    numbers.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &x| (lo.min(x), hi.max(x)))
}

/// Whether a value is an input of the model, or one of which elements were only moved or averaged: no clamp was ever in front.
pub(super) fn is_input(model: &Model, mut v: ValueId) -> bool {
    for _ in 0..DEPTH {
        let Some(n) = model.producer(v) else { return model.value(v).is_input() };
        let same = moves(model, n) || ["Identity", "Cast", "Dropout"].iter().any(|op| model.node(n).is(op));
        match model.node(n).input(0).filter(|_| same) {
            Some(from) => v = from,
            None => return false,
        }
    }
    false
}
