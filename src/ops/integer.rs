//! Operators that read and make codes, as the float operators that they compute (QOperator format).
//!
//! ONNX's own are specified at <https://onnx.ai/onnx/operators/>, those of ONNX Runtime in its
//! [`ContribOperators.md`](https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).

use super::{OPS, OpSpec};
use crate::ir::Node;

/// The domain of ONNX Runtime's own operators.
pub const MICROSOFT: &str = "com.microsoft";
/// The operator of that domain that gathers rows of a table in blocks of codes.
pub const GATHER_BLOCKS: &str = "GatherBlockQuantized";

/// The operator that computes a float operator with codes, and the order of its inputs.
#[derive(Debug, Clone, Copy)]
pub struct IntegerForm {
    /// `op_type`.
    pub op: &'static str,
    /// Its domain; empty for ai.onnx.
    pub domain: &'static str,
    /// Its inputs in order.
    pub inputs: &'static [Slot],
    /// Attributes of the float operator that it does not have; they must have this value.
    pub fixed: &'static [(&'static str, f32)],
    /// Whether an attribute `opset` tells whose rules for `axis` hold (Softmax changed them in opset 13).
    pub tells_opset: bool,
}

/// One or several inputs of an integer operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The codes of the float operator's input of this number, their scale and their zero point.
    Codes(usize),
    /// The same of each input from this one on.
    EachFrom(usize),
    /// The int32 codes of this input, if it has one: their scale is the product of those of inputs 0 and 1.
    Bias(usize),
    /// Only the codes of this input.
    OnlyCodes(usize),
    /// Only its scale.
    Scale(usize),
    /// Only its zero point.
    ZeroPoint(usize),
    /// The input as it is.
    Plain(usize),
    /// Scale and zero point of the output.
    Output,
    /// The same; where they are left out, the output is float.
    OptionalOutput,
}

impl IntegerForm {
    /// An operator of ai.onnx.
    pub(super) const fn onnx(op: &'static str, inputs: &'static [Slot]) -> Self {
        Self { op, domain: "", inputs, fixed: &[], tells_opset: false }
    }

    /// An operator of ONNX Runtime.
    pub(super) const fn microsoft(op: &'static str, inputs: &'static [Slot]) -> Self {
        Self { domain: MICROSOFT, ..Self::onnx(op, inputs) }
    }

    /// Whether a zero point may be left out.
    pub fn zero_points_are_optional(&self) -> bool {
        self.domain == MICROSOFT && !["QLinearSoftmax", "QLinearConcat"].contains(&self.op)
    }
}

/// The float operator that an integer node computes.
pub fn raised_by(node: &Node) -> Option<(&'static OpSpec, IntegerForm)> {
    let domain = if node.in_onnx_domain() { "" } else { node.domain.as_deref().unwrap_or_default() };
    let specs = OPS.iter().copied().flatten();
    let mut forms = specs.filter_map(|s| s.integer.map(|form| (s, form)));
    forms.find(|(_, form)| form.op == node.op_type && form.domain == domain)
}
