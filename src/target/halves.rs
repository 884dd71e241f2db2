//! What a runtime does with 16-bit floats.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Target;
use crate::ir::{DType, Model, NodeId};

/// How a type is to be written for a runtime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HalfForm {
    /// Values are of that type.
    #[default]
    Computed,
    /// Weights alone are, behind Casts that the runtime folds when it loads the file; it computes in 32-bit floats.
    Stored,
}

/// What a runtime does with one of the types.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HalfFacts {
    /// How it is written.
    pub form: HalfForm,
    /// Products that add more numbers than this into one keep 32-bit floats; `null` where the runtime adds in those itself.
    pub longest_sum: Option<usize>,
    /// Operators that it has in 32-bit floats alone, with the reason.
    pub refused: BTreeMap<String, String>,
    /// How fast it is, in words for the report.
    pub speed: Option<String>,
}

impl Target {
    /// What it does with 16-bit floats of this type. Of types that it does not speak of, all is taken for possible.
    pub fn half(&self, dtype: DType) -> HalfFacts {
        self.halves.get(&dtype).cloned().unwrap_or_default()
    }
}

impl HalfFacts {
    /// Why a node keeps 32-bit floats in this runtime.
    pub fn refuses(&self, model: &Model, node: NodeId) -> Option<&str> {
        let node = model.node(node);
        self.refused.get(&node.op_type).filter(|_| node.in_onnx_domain()).map(String::as_str)
    }
}
