//! Whole models in 16-bit floats.

use serde::{Deserialize, Serialize};

use crate::ir::DType;

/// The numbers that a model is to compute in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Numbers {
    /// Integers of 8 bits, where they gain.
    #[default]
    Int8,
    /// IEEE floats of 16 bits, wherever the values allow it.
    Fp16,
    /// The upper halves of 32-bit floats.
    Bf16,
}

impl Numbers {
    /// The type of its tensors, for 16-bit floats.
    pub fn half(self) -> Option<DType> {
        match self {
            Self::Int8 => None,
            Self::Fp16 => Some(DType::Float16),
            Self::Bf16 => Some(DType::Bfloat16),
        }
    }

    /// What the answers may lose where nothing else is said.
    pub fn usual_loss(self) -> f64 {
        match self {
            Self::Int8 => 0.01,
            Self::Fp16 => 0.001,
            // Other data may lose more than those that it is judged on: this is to stay below half a percent.
            Self::Bf16 => 0.003,
        }
    }

    /// Its name in YAML and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
        }
    }
}

/// The types of the inputs and outputs of a model in 16-bit floats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IoTypes {
    /// Those of the original.
    #[default]
    Keep,
    /// 16-bit floats where they were 32-bit floats.
    Half,
}
