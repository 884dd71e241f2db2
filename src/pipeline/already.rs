//! What a file that is quantized already has in integers, and keeps: the plan leaves those nodes as they are, which is not to
//! say that they stay float.

use std::collections::{BTreeMap, HashMap};

use crate::{
    ir::{Model, NodeId},
    kernels::{Becomes, Prediction, is_conversion},
    plan::{Form, Plan, named_values},
    report::Already,
    target::Target,
};

/// A node that the plan leaves as it is, in a file that has conversions or integer operators.
pub(super) struct Left {
    node: NodeId,
    /// Its key in the plan.
    output: String,
    op: String,
}

/// The nodes that the plan leaves; none where the file is float. `model` is the one that the plan speaks of.
pub(super) fn left(model: &Model, plan: &Plan, target: &Target) -> Vec<Left> {
    let quantized = |&n: &NodeId| is_conversion(&model.node(n).op_type) || target.is_integer(model.node(n));
    if !model.all_nodes().iter().any(quantized) {
        return Vec::new();
    }
    let names = named_values(model);
    let left = plan.nodes.iter().filter(|(_, entry)| entry.becomes == Form::Float).filter_map(|(output, entry)| {
        let node = names.get(output).and_then(|&v| model.producer(v))?;
        Some(Left { node, output: output.clone(), op: entry.op.clone() })
    });
    left.collect()
}

/// Those of them that convert or compute in integers in the written file.
pub(super) fn already(left: &[Left], predicted: &Prediction) -> BTreeMap<String, Already> {
    let becomes: HashMap<NodeId, Becomes> = predicted.nodes.iter().map(|n| (n.id, n.becomes)).collect();
    let found = left.iter().filter_map(|l| {
        let how = match becomes.get(&l.node) {
            _ if is_conversion(&l.op) => Already::Converts,
            Some(Becomes::Integer | Becomes::Moves) => Already::Integer,
            Some(Becomes::Part) => Already::Absorbed,
            // An integer operator was made of it.
            None => Already::Integer,
            Some(_) => return None,
        };
        Some((l.output.clone(), how))
    });
    found.collect()
}
