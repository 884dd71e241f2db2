//! Whole models in floats of 16 or 8 bits.

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
    /// Floats of 8 bits (float8e4m3fn) between QuantizeLinear and DequantizeLinear, for accelerators.
    Fp8,
    /// The same with two bits of mantissa (float8e5m2).
    #[serde(rename = "fp8-e5m2")]
    Fp8E5m2,
    /// As `fp8`, for accelerators whose floats have no -0 (float8e4m3fnuz).
    #[serde(rename = "fp8-fnuz")]
    Fp8Fnuz,
    /// As `fp8-e5m2`, for those (float8e5m2fnuz).
    #[serde(rename = "fp8-e5m2-fnuz")]
    Fp8E5m2Fnuz,
}

impl Numbers {
    /// All of them.
    pub const ALL: &[Self] =
        &[Self::Int8, Self::Fp16, Self::Bf16, Self::Fp8, Self::Fp8E5m2, Self::Fp8Fnuz, Self::Fp8E5m2Fnuz];

    /// The type of its tensors, for 16-bit floats.
    pub fn half(self) -> Option<DType> {
        match self {
            Self::Fp16 => Some(DType::Float16),
            Self::Bf16 => Some(DType::Bfloat16),
            _ => None,
        }
    }

    /// The type of the codes, for floats of 8 bits.
    pub fn float8(self) -> Option<DType> {
        match self {
            Self::Fp8 => Some(DType::Float8E4M3FN),
            Self::Fp8E5m2 => Some(DType::Float8E5M2),
            Self::Fp8Fnuz => Some(DType::Float8E4M3FNUZ),
            Self::Fp8E5m2Fnuz => Some(DType::Float8E5M2FNUZ),
            _ => None,
        }
    }

    /// What the answers may lose where nothing else is said.
    pub fn usual_loss(self) -> f64 {
        match self {
            Self::Int8 | Self::Fp8 | Self::Fp8E5m2 | Self::Fp8Fnuz | Self::Fp8E5m2Fnuz => 0.01,
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
            Self::Fp8 => "fp8",
            Self::Fp8E5m2 => "fp8-e5m2",
            Self::Fp8Fnuz => "fp8-fnuz",
            Self::Fp8E5m2Fnuz => "fp8-e5m2-fnuz",
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
