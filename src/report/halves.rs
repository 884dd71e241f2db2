//! What is in 16-bit floats.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{FloatReason, terminal::count};
use crate::{
    ir::DType,
    plan::{Form, Plan},
};

/// What a model has in 16-bit floats.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Halves {
    /// float16 or bfloat16.
    pub dtype: DType,
    /// Nodes that compute in them.
    pub nodes: usize,
    /// Nodes that have to do with floats and keep 32 bits.
    pub float: usize,
    /// Weights that are stored in them and computed with in 32 bits.
    pub stored_weights: usize,
    /// Beside bfloat16: weights that are stored in float16, whose steps are finer.
    pub in_float16: usize,
    /// Constants that are limited, since they would overflow.
    pub limited: usize,
    /// Whether inputs and outputs of the model are, too.
    pub io: bool,
}

impl Halves {
    /// What a plan says of them; `None` where it brings nothing into them.
    pub fn of(plan: &Plan) -> Option<Self> {
        let halves = plan.halves.as_ref()?;
        let count = |form: Form| plan.nodes.values().filter(|n| n.becomes == form).count();
        let stored = |dtype| plan.stored_weights.values().filter(|s| s.dtype == dtype).count();
        Some(Self {
            dtype: halves.dtype,
            nodes: count(Form::Half),
            float: count(Form::Float),
            stored_weights: stored(halves.dtype),
            in_float16: if halves.dtype == DType::Float16 { 0 } else { stored(DType::Float16) },
            limited: halves.limited.len(),
            io: halves.io,
        })
    }

    /// In words.
    pub fn text(&self) -> String {
        let total = self.nodes + self.float;
        let stored = match (self.stored_weights, self.in_float16) {
            (0, 0) => None,
            (0, finer) => Some(format!("{} stored in float16", count(finer, "weight"))),
            (n, 0) => Some(format!("{} stored in {}", count(n, "weight"), self.dtype)),
            (n, finer) => Some(format!("{} stored in {} and {finer} in float16", count(n, "weight"), self.dtype)),
        };
        let computed =
            || format!("{} of {total} nodes compute in {}, {} in 32 bits", self.nodes, self.dtype, self.float);
        let mut text = match stored {
            Some(stored) if self.nodes == 0 => format!("{stored}, computed with in 32 bits"),
            Some(stored) => format!("{} (with {stored})", computed()),
            None => computed(),
        };
        if self.limited > 0 {
            text += &format!("; {} of masks limited", count(self.limited, "constant"));
        }
        text
    }

    /// The reasons of nodes that keep 32 bits, those of one class together: a reason is a class and, behind a colon, numbers.
    pub fn reasons(all: &[FloatReason]) -> Vec<String> {
        let mut classes: BTreeMap<(&str, &str), (usize, &str)> = BTreeMap::new();
        for r in all {
            let (class, numbers) = r.reason.split_once(": ").unwrap_or((&r.reason, ""));
            let entry = classes.entry((class, &r.op)).or_insert((0, numbers));
            entry.0 += r.nodes.len();
        }
        let mut sorted: Vec<_> = classes.into_iter().collect();
        sorted.sort_by_key(|(_, (n, _))| std::cmp::Reverse(*n));
        let line = |((class, op), (n, numbers)): ((&str, &str), (usize, &str))| {
            let such = if n > 1 { "such as " } else { "" };
            let numbers = if numbers.is_empty() { String::new() } else { format!(" ({such}{numbers})") };
            format!("{n} × {op}: {class}{numbers}")
        };
        sorted.into_iter().map(line).collect()
    }
}
