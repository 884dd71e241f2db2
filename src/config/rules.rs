//! Rules for single nodes and values.

use serde::{Deserialize, Serialize};

use super::{FloatWeights, RuleWeightOnly, one_or_many};
use crate::ir::DType;

/// Patterns of a selector that messages name.
const NAMED: usize = 4;

/// What some nodes or values shall have otherwise.
///
/// Each selector narrows the choice: a node must fit all that are given. Within a list, one fit is enough.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Selects nodes by name: `*` and `?` globs, or `/regular expression/`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_many::strings")]
    pub nodes: Vec<String>,
    /// Selects nodes by operator type.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_many::strings")]
    pub ops: Vec<String>,
    /// Selects the nodes on all ways from one value or node to another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub between: Option<Span>,
    /// Selects values instead of nodes, by name as `nodes` does (graph inputs have no node of their own).
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_many::strings")]
    pub values: Vec<String>,

    /// Float; int8 with ranges from calibration, or from run time (`int8-dynamic`); float with weights in few bits
    /// (`weight-only`); or 16-bit floats (`fp16`, `bf16`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Quantize wherever there is a kernel, even where that does not pay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
    /// How the outputs of the nodes, or the values, are quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<RuleActivation>,
    /// How the weights of the nodes are quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<RuleWeight>,
    /// How their weights are stored, with `precision: weight-only` or in that mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_only: Option<RuleWeightOnly>,
    /// What becomes of their weights where they stay float. Without it those that a rule keeps in float are left as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub float_weights: Option<FloatWeights>,
}

/// From where to where: names of values or nodes, written `[from, to]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span(pub String, pub String);

/// Whether nodes compute in integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// They stay float.
    Float,
    /// They compute in integers where that pays, on data quantized with ranges from calibration.
    Int8,
    /// They compute in integers where that pays, on data that are quantized at run time.
    Int8Dynamic,
    /// They compute on float data, with weights in few bits where there is a kernel that reads the codes.
    WeightOnly,
    /// They compute in IEEE floats of 16 bits, as far as their values allow it.
    Fp16,
    /// The same in the upper halves of 32-bit floats.
    Bf16,
}

impl Precision {
    /// The type of 16-bit floats.
    pub fn half(self) -> Option<DType> {
        match self {
            Self::Fp16 => Some(DType::Float16),
            Self::Bf16 => Some(DType::Bfloat16),
            Self::Float | Self::Int8 | Self::Int8Dynamic | Self::WeightOnly => None,
        }
    }
}

/// What differs from [`super::Activation`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleActivation {
    /// Type of the codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DType>,
    /// The range mirrored around 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<bool>,
    /// Half the codes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduce_range: Option<bool>,
    /// The calibration method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observer: Option<String>,
    /// Observer `percentile`: how much of the numbers the range keeps, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentile: Option<f64>,
    /// Fixed range instead of a calibrated one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<[f32; 2]>,
}

/// What differs from [`super::Weight`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleWeight {
    /// Type of the codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DType>,
    /// Zero is the middle code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<bool>,
    /// A scale for each output channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_channel: Option<bool>,
    /// Half the codes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduce_range: Option<bool>,
    /// How they are rounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<String>,
}

impl Rule {
    /// The rule that keeps nodes in float, as `--keep-float` makes it.
    pub fn keep_float(pattern: impl Into<String>) -> Self {
        Self::keep_all_float(vec![pattern.into()])
    }

    /// The same for several patterns.
    pub fn keep_all_float(nodes: Vec<String>) -> Self {
        Self { nodes, precision: Some(Precision::Float), ..Self::default() }
    }

    /// What the rule at this place is called in messages: its number, from 1, and its selectors.
    pub fn called(&self, i: usize) -> String {
        match self.selectors() {
            none if none.is_empty() => format!("rule {}", i + 1),
            some => format!("rule {} ({some})", i + 1),
        }
    }

    /// Its selectors, for messages.
    pub fn selectors(&self) -> String {
        let mut parts = Vec::new();
        for (name, list) in [("nodes", &self.nodes), ("ops", &self.ops), ("values", &self.values)] {
            if !list.is_empty() {
                let named = &list[..list.len().min(NAMED)];
                let more = list.len() - named.len();
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                parts.push(format!("{name}: {}{more}", named.join(", ")));
            }
        }
        if let Some(Span(from, to)) = &self.between {
            parts.push(format!("between: {from}, {to}"));
        }
        parts.join("; ")
    }
}
