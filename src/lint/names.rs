//! Places by the names that they have in the file: what rules see of integer operators is not what stands there.

use std::collections::{HashMap, HashSet};

use super::Finding;
use crate::ir::{Model, NodeId, ValueId};

/// The names of a file.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// Operators of nodes, by what nodes are called.
    nodes: HashMap<String, String>,
    values: HashSet<String>,
}

/// Where a finding is, in words of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Spot {
    /// The node's name, or that of its first output.
    pub node: Option<String>,
    /// Its operator.
    pub op: Option<String>,
    /// The value.
    pub value: Option<String>,
}

impl Names {
    /// Of a file.
    pub fn of(file: &Model) -> Self {
        let label = |n: NodeId| (file.node_label(n), file.node(n).op_type.clone());
        let values = file.value_ids().into_iter().map(|v| file.value(v).name().to_owned());
        Self { nodes: file.all_nodes().into_iter().map(label).collect(), values: values.collect() }
    }

    /// Where a finding in a model is, which was made of the file.
    pub fn spot(&self, model: &Model, finding: &Finding) -> Spot {
        let known = |v: ValueId| Some(model.value(v).name().to_owned()).filter(|name| self.values.contains(name));
        let label = finding.node.map(|n| model.node_label(n));
        let node = label.and_then(|label| Some((self.nodes.get(&label)?.clone(), label)));
        let around = || {
            let node = model.node(finding.node?);
            node.outputs().iter().chain(node.inputs()).flatten().find_map(|&v| known(v))
        };
        let value = finding.value.and_then(known);
        match node {
            Some((op, node)) => Spot { node: Some(node), op: Some(op), value },
            None => Spot { value: value.or_else(around), ..Spot::default() },
        }
    }
}

impl Spot {
    /// The place, and what is said of it.
    pub fn sentence(&self, fact: &str) -> String {
        match (&self.node, &self.op, &self.value) {
            (Some(node), Some(op), _) => format!("{op} {node:?}: {fact}"),
            (_, _, Some(value)) => format!("{value:?}: {fact}"),
            _ => fact.to_owned(),
        }
    }
}
