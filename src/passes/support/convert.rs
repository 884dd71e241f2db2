//! Turning a node into one of another operator.

use crate::ir::{Attr, Model, NodeId, ValueId};

/// Makes a node compute its outputs by another operator of ai.onnx. It keeps its name, its place and its output values,
/// so that what speaks of them by name still holds. Inputs that are left out at the end are not written.
pub fn convert(model: &mut Model, node: NodeId, op: &str, inputs: &[Option<ValueId>], attributes: Vec<Attr>) {
    let n = model.node_mut(node);
    op.clone_into(&mut n.op_type);
    n.attributes = attributes;
    let last = inputs.iter().rposition(Option::is_some);
    let inputs = &inputs[..last.map_or(0, |i| i + 1)];
    for (i, &v) in inputs.iter().enumerate() {
        model.set_input(node, i, v);
    }
    model.truncate_inputs(node, inputs.len());
}
