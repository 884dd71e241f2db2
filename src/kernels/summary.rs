//! A prediction in numbers.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Becomes, Prediction};

/// How many nodes become what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Integer kernels and how often each stands in the loaded graph.
    pub integer: BTreeMap<String, usize>,
    /// Operators that move codes.
    pub moves: BTreeMap<String, usize>,
    /// Conversions that run at every inference: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear.
    pub conversions: BTreeMap<String, usize>,
    /// Nodes that stay float.
    pub float: usize,
    /// Nodes that another node's kernel does.
    pub parts: usize,
    /// Nodes that are computed when the file is loaded.
    pub folded: usize,
    /// Float nodes beside conversions: operator, reason and number of nodes, the most frequent first.
    pub stays: Vec<Stays>,
}

/// Nodes of one operator that are not in integers for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stays {
    /// Operator.
    pub op: String,
    /// Why.
    pub reason: String,
    /// How many nodes.
    pub nodes: usize,
}

impl Prediction {
    /// The numbers.
    pub fn summary(&self) -> Summary {
        let mut out = Summary::default();
        for n in self.loaded.nodes_below(self.loaded.main()) {
            let op = &self.loaded.node(n).op_type;
            if is_conversion(op) && !self.is_folded(n) {
                *out.conversions.entry(op.clone()).or_default() += 1;
            }
        }
        let mut stays: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for node in &self.nodes {
            let kernel = || node.kernel.clone().unwrap_or_else(|| node.op.clone());
            match node.becomes {
                Becomes::Integer => *out.integer.entry(kernel()).or_default() += 1,
                Becomes::Moves => *out.moves.entry(kernel()).or_default() += 1,
                Becomes::Float => out.float += 1,
                Becomes::Part => out.parts += 1,
                Becomes::Folded => out.folded += 1,
                Becomes::Conversion | Becomes::Gone | Becomes::Other => {}
            }
            if let (Becomes::Float, Some(reason)) = (node.becomes, &node.reason) {
                *stays.entry((&node.op, reason)).or_default() += 1;
            }
        }
        let stay = |((op, reason), nodes): ((&str, &str), usize)| Stays {
            op: op.to_owned(),
            reason: reason.to_owned(),
            nodes,
        };
        out.stays = stays.into_iter().map(stay).collect();
        out.stays.sort_by_key(|s| std::cmp::Reverse(s.nodes)); // stable: then by operator
        out
    }
}

/// Whether an operator converts to or from codes.
pub fn is_conversion(op: &str) -> bool {
    matches!(op, "QuantizeLinear" | "DequantizeLinear" | "DynamicQuantizeLinear")
}
