//! What a runtime makes of graphs when it loads them, besides kernels between conversions.

use serde::Deserialize;

use super::Target;
use crate::ir::{DType, Node};

/// Along which axis the scales of a kernel's weight may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightAxis {
    /// Any.
    #[default]
    Any,
    /// That of the output channels.
    Channels,
}

/// A kernel for float data and a weight in few bits.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightOnly {
    /// `op_type` in ai.onnx.
    pub op: String,
    /// The kernel.
    pub kernel: String,
    /// Bits that the weight's codes may have.
    pub bits: Vec<usize>,
    /// The least block of input channels with a scale of its own; blocks are powers of two.
    pub least_block: usize,
}

/// An integer product that the file spells out, with the conversions around it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    /// The product's `op_type` in ai.onnx.
    pub product: String,
    /// The kernel of the product with the Cast and Mul behind it; none if they stay as they are.
    #[serde(default)]
    pub kernel: Option<String>,
    /// The kernel that has the DynamicQuantizeLinear in front of it as well.
    #[serde(default)]
    pub whole: Option<String>,
}

/// What Transposes move past.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Layout {
    /// Float poolings of so many channels, or a multiple, compute on blocks of them, and nothing moves past; 0 where none do.
    pub channel_block: usize,
    /// Operators that compute element by element.
    pub elementwise: Vec<String>,
    /// The same, with operands that may have fewer dims.
    pub broadcast: Vec<String>,
    /// Operators that reduce along axes.
    pub reductions: Vec<String>,
}

impl Layout {
    /// Whether an operator computes element by element.
    pub fn is_elementwise(&self, node: &Node) -> bool {
        self.elementwise.iter().any(|op| node.is(op))
    }

    /// Whether it does so with operands that may have fewer dims.
    pub fn is_broadcast(&self, node: &Node) -> bool {
        self.broadcast.iter().any(|op| node.is(op))
    }

    /// Whether it reduces along axes.
    pub fn is_reduction(&self, node: &Node) -> bool {
        self.reductions.iter().any(|op| node.is(op))
    }
}

/// The types of codes that kernels take if their row says nothing.
pub(super) fn eight_bits() -> Vec<DType> {
    vec![DType::Uint8, DType::Int8]
}

impl Target {
    /// Whether a node computes in integers as it stands in the file.
    pub fn is_integer(&self, node: &Node) -> bool {
        let domain = node.domain.as_deref().unwrap_or_default();
        let name = |op: &str| match op.rsplit_once('.') {
            Some((of, name)) => of == domain && name == node.op_type,
            None => node.is(op),
        };
        self.integer.iter().any(|op| name(op))
    }
}
