//! Clamps: `min(max(x, lo), hi)`, in the many ways that exporters spell them.

use super::constants;
use crate::{
    analysis::types::Types,
    ir::{Model, NodeId, ValueId},
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
