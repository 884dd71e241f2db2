//! Weights of operators that compute in float, and the axes along which they are scaled when they are stored in fewer bits.

use crate::ir::{Model, NodeId};

/// The axes (contiguous) of the constant input `i` of a node along which a scale makes sense, or `None` if the input is no
/// weight: Conv, ConvTranspose, Gemm, MatMul, recurrent layers, and tables of Gather.
pub fn weight_axes(model: &Model, id: NodeId, i: usize, rank: usize) -> Option<std::ops::RangeInclusive<usize>> {
    let node = model.node(id);
    if !node.in_onnx_domain() {
        return None;
    }
    let axis = match (node.op_type.as_str(), i, rank) {
        ("Conv", 1, 3..) => 0,
        ("ConvTranspose", 1, 3..) => 1,
        ("Gemm", 1, 2) => usize::from(node.int("transB").unwrap_or(0) == 0),
        ("MatMul", 1, 2..) => rank - 1,
        ("MatMul", 0, 2..) => rank - 2,
        ("Gather", 0, 2..) if node.int("axis").unwrap_or(0) == 0 => 0,
        // Directions, then gates times hidden units.
        ("LSTM" | "GRU" | "RNN", 1 | 2, 3) => return Some(0..=1),
        _ => return None,
    };
    Some(axis..=axis)
}
