//! Walking along values.

use crate::{
    analysis::types::Types,
    ir::{Model, NodeId, Tensor, Use, ValueId},
};

/// The rank of a value, where it is certain. A constant may have changed since the types were inferred.
pub fn rank(model: &Model, types: &Types, value: ValueId) -> Option<usize> {
    model.value(value).initializer().map(Tensor::rank).or_else(|| types.rank(value))
}

/// The node that makes a value that nothing reads but one node of the same graph.
pub fn sole_producer(model: &Model, value: ValueId) -> Option<NodeId> {
    model.sole_reader(value).and(model.producer(value))
}

/// As [`Model::sole_reader`], whatever nodes ask for the value's shape besides.
pub fn sole_element_reader(model: &Model, value: ValueId) -> Option<(NodeId, usize)> {
    let asks_shape = |u: &Use| matches!(*u, Use::Input(n, 0) if model.node(n).is("Shape") || model.node(n).is("Size"));
    let mut uses = model.value(value).uses().iter().filter(|u| !asks_shape(u));
    match (uses.next(), uses.next()) {
        (Some(&Use::Input(n, i)), None) if model.node(n).graph() == model.value(value).graph() => Some((n, i)),
        _ => None,
    }
}

/// Whether a node moves the elements of its input 0 without changing them, so that any elementwise function with one
/// scalar for all elements may as well come before it.
pub fn moves_elements(model: &Model, node: NodeId) -> bool {
    let n = model.node(node);
    let op = n.op_type.as_str();
    n.in_onnx_domain()
        && matches!(
            op,
            "Reshape"
                | "Transpose"
                | "Squeeze"
                | "Unsqueeze"
                | "Flatten"
                | "Identity"
                | "Slice"
                | "Expand"
                | "Tile"
                | "Gather"
                | "DepthToSpace"
                | "SpaceToDepth"
        )
}

/// Puts `new` where `old` was and removes the node that made `old`. The caller has seen that `new` is an output of a
/// node of the same graph whose only use was by that node, or that `old` is no graph output.
pub fn replace_and_remove(model: &mut Model, node: NodeId, old: ValueId, new: ValueId) {
    let whole = model.replace_all_uses(old, new);
    if whole {
        model.remove_node(node);
    }
}
