//! Kernels that quantize their data at run time.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Scalar, Target, check_form};
use crate::ir::{DType, Model, NodeId};

/// One row: an operator, the kernel that its form with data quantized at run time becomes, and the conditions.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicKernel {
    /// `op_type` in ai.onnx.
    pub op: String,
    /// The kernel.
    pub kernel: String,
    /// The kernel where several nodes read the same quantized data.
    #[serde(default)]
    pub shared_kernel: Option<String>,
    /// The type of the weight's codes, where the kernel is slow with others.
    #[serde(default)]
    pub weight: Option<DType>,
    /// The kernel is slower with a scale for each channel: a weight has one, or one for each direction.
    #[serde(default)]
    pub per_tensor: bool,
    /// What the weight's zero points may be.
    #[serde(default)]
    pub zero_points: ZeroPoints,
    /// The first operator set whose form of the operator has the kernel.
    #[serde(default)]
    pub min_opset: i64,
    /// Attributes that must have this value, where they are present.
    #[serde(default)]
    pub attributes: BTreeMap<String, Scalar>,
}

/// Zero points of a weight with a scale per channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZeroPoints {
    /// Each channel has its own.
    #[default]
    PerChannel,
    /// One for all, in the middle of the codes.
    PerWeight,
}

impl Target {
    /// The kernel that quantizes a node's data at run time, or why there is none; `None` where no row names its operator.
    pub fn dynamic_kernel(&self, model: &Model, id: NodeId) -> Option<Result<&DynamicKernel, String>> {
        let row = self.dynamic.iter().find(|k| model.node(id).is(&k.op))?;
        Some(check_form(model, id, row.min_opset, &row.attributes).map(|()| row))
    }
}
