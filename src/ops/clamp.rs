//! The bounds of clamps.

use crate::ir::{Model, NodeId};

/// Lower and upper bound of a Relu, Clip, or Max/Min with a constant scalar; infinite where there is none. `None` if the
/// node is no such clamp, or its bounds are not constants.
pub fn clamp_bounds(model: &Model, id: NodeId) -> Option<(f32, f32)> {
    let node = model.node(id);
    let constant = |i: usize| match node.input(i) {
        None => Some(None),
        Some(v) => model.value(v).constant().and_then(|t| t.scalar_f32()).map(Some),
    };
    let (none, some) = (f32::NEG_INFINITY, f32::INFINITY);
    if !node.in_onnx_domain() {
        return None;
    }
    let (lo, hi) = match node.op_type.as_str() {
        "Relu" => (0.0, some),
        // Up to opset 10 the bounds are attributes.
        "Clip" if node.float("min").is_some() || node.float("max").is_some() => {
            (node.float("min").unwrap_or(none), node.float("max").unwrap_or(some))
        }
        "Clip" => (constant(1)?.unwrap_or(none), constant(2)?.unwrap_or(some)),
        "Max" if node.inputs().len() == 2 => (constant(1)??, some),
        "Min" if node.inputs().len() == 2 => (none, constant(1)??),
        _ => return None,
    };
    (!lo.is_nan() && !hi.is_nan()).then_some((lo, hi))
}
