//! Clamps: `min(max(x, lo), hi)`, in the many ways that exporters spell them.

use super::constants;
use crate::{
    analysis::types::Types,
    error::Result,
    ir::{Model, NodeId, NodeSpec, ValueId},
};

/// A node that clamps a `float` value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clamp {
    /// What it clamps.
    pub x: ValueId,
    /// Lower bound; `-inf` if there is none.
    pub lo: f32,
    /// Upper bound; `inf` if there is none.
    pub hi: f32,
}

impl Clamp {
    /// Recognizes Relu, Clip with constant bounds, and Max or Min with a constant scalar. A Relu may be of another type
    /// than `float`; one of the others with a bound is not.
    pub fn of(model: &Model, types: &Types, node: NodeId) -> Option<Self> {
        let n = model.node(node);
        if !n.in_onnx_domain() {
            return None;
        }
        let x = n.input(0)?;
        let (none, all) = (f32::NEG_INFINITY, f32::INFINITY);
        let clamp = match n.op_type.as_str() {
            "Relu" => Self { x, lo: 0.0, hi: all },
            "Clip" => {
                let bound = |i, name, default| match n.input(i) {
                    Some(v) => constants::scalar(model, v),
                    None => Some(n.float(name).unwrap_or(default)),
                };
                Self { x, lo: bound(1, "min", none)?, hi: bound(2, "max", all)? }
            }
            "Max" => {
                let (x, c, _) = constants::with_scalar(model, types, node)?;
                Self { x, lo: c, hi: all }
            }
            "Min" => {
                let (x, c, _) = constants::with_scalar(model, types, node)?;
                Self { x, lo: none, hi: c }
            }
            _ => return None,
        };
        // Bounds in the wrong order, or none that can be compared: what it means is up to the runtime.
        (clamp.lo <= clamp.hi).then_some(clamp)
    }

    /// What clamping by this and then by `outer` amounts to.
    pub fn then(self, outer: Self) -> Self {
        Self { x: self.x, lo: self.lo.clamp(outer.lo, outer.hi), hi: self.hi.clamp(outer.lo, outer.hi) }
    }
}

/// The operator that clamps a value to these bounds, one of them at least: Relu where that is it, else Clip, whose bounds are attributes
/// up to opset 10, and after that inputs that `constant` makes; it is told which one and the number.
pub fn clamping(
    model: &mut Model,
    x: ValueId,
    (lo, hi): (Option<f32>, Option<f32>),
    mut constant: impl FnMut(&mut Model, &str, f32) -> Result<ValueId>,
) -> Result<NodeSpec> {
    if (lo, hi) == (Some(0.0), None) {
        return Ok(NodeSpec::new("Relu").input(x));
    }
    let clip = NodeSpec::new("Clip").input(x);
    let bounds = [("min", lo), ("max", hi)];
    if model.opset("").unwrap_or(1) < 11 {
        let given = bounds.into_iter().filter_map(|(key, bound)| Some((key, bound?)));
        return Ok(given.fold(clip, |clip, (key, bound)| clip.attr(key, bound)));
    }
    let [lo, hi] = bounds.map(|(key, bound)| bound.map(|b| constant(model, key, b)).transpose());
    Ok(clip.inputs([lo?]).inputs(hi?.map(Some)))
}
