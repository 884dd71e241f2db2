//! What the nodes of a loaded graph take, by the target's cost model: enough to say what a conversion or a lost kernel costs,
//! and whether a repair gains.

use std::collections::HashMap;

use crate::{
    analysis::placement::{self, Shapes},
    ir::{Model, NodeId},
    kernels::{Becomes, Prediction, is_conversion},
    target::Target,
};

/// Nanoseconds of one run.
#[derive(Debug, Clone, Default)]
pub struct Times {
    /// Of the whole model.
    pub total: f64,
    /// Nodes that compute in integers.
    pub integer: usize,
    nodes: HashMap<NodeId, f64>,
}

impl Times {
    /// The times of what a prediction leaves of a model.
    pub fn of(model: &Model, prediction: &Prediction, shapes: &Shapes, target: &Target) -> Self {
        let loaded = &prediction.loaded;
        let becomes: HashMap<NodeId, Becomes> = prediction.nodes.iter().map(|n| (n.id, n.becomes)).collect();
        let mut times = Self::default();
        for n in loaded.nodes_below(loaded.main()) {
            if prediction.is_folded(n) {
                continue;
            }
            let node = loaded.node(n);
            let time = if is_conversion(&node.op_type) {
                let values = node.inputs().iter().take(1).chain(node.outputs().iter().take(1)).flatten();
                let elements = values.map(|&v| shapes.elements(v)).max().unwrap_or(0);
                placement::conversion_time(&target.costs, elements, node.op_type != "DequantizeLinear")
            } else {
                let (float, integer) = placement::node_times(loaded, target, shapes, n);
                match becomes.get(&n) {
                    Some(Becomes::Integer) => integer,
                    _ => float,
                }
            };
            times.total += time;
            times.nodes.insert(n, time);
        }
        let integer = |b: &&Becomes| matches!(b, Becomes::Integer | Becomes::Moves);
        times.integer = becomes.values().filter(integer).count();
        times.nodes.retain(|n, _| model.try_node(*n).is_some());
        times
    }

    /// Of one node; 0 where another does its work.
    pub fn node(&self, n: NodeId) -> f64 {
        self.nodes.get(&n).copied().unwrap_or(0.0)
    }

    /// Of several.
    pub fn nodes(&self, all: impl IntoIterator<Item = NodeId>) -> f64 {
        all.into_iter().map(|n| self.node(n)).sum()
    }
}
