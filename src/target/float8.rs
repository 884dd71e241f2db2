//! What a runtime does with floats of 8 bits.

use serde::Deserialize;

use super::Target;
use crate::ir::{DType, Node};

/// What a runtime does with operators between conversions to and from these floats.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Float8Facts {
    /// Operators to put between conversions.
    pub operators: Vec<String>,
    /// The types that it takes; all of them if there are none here.
    pub types: Vec<DType>,
    /// Whether it has kernels that compute in them; else operators compute in 32 bits, between conversions that run each time.
    pub computes: bool,
}

impl Default for Float8Facts {
    fn default() -> Self {
        let operators = ["Conv", "Gemm", "MatMul"].map(str::to_owned).into();
        Self { operators, types: Vec::new(), computes: true }
    }
}

impl Float8Facts {
    /// Whether conversions stand around such a node.
    pub fn takes(&self, node: &Node) -> bool {
        self.operators.iter().any(|op| node.is(op))
    }

    /// Whether it takes a type.
    pub fn has(&self, dtype: DType) -> bool {
        self.types.is_empty() || self.types.contains(&dtype)
    }
}

impl Target {
    /// Whether it is described for floats of 8 bits alone.
    pub fn is_for_float8(&self) -> bool {
        self.kernels.is_empty() && self.dynamic.is_empty() && self.weight_only.is_empty() && self.float8.computes
    }
}
