//! Weights in few bits, for kernels that read the codes.

use serde::{Deserialize, Serialize};

use super::{FloatWeights, Size, suggest};
use crate::{
    error::{Error, Result},
    ir::DType,
    plan::{BLOCK_SIZES, FewBits, PackedWeight},
    weights,
};

/// The algorithm that suits the data: see [`WeightOnly::few_bits`].
pub const AUTO: &str = "auto";
/// Factors for channels that carry large numbers, then scales that cost least: see [`crate::plan::awq`].
pub const AWQ: &str = "awq";
/// Bits that kernels take.
const BITS: &[usize] = &[1, 2, 4, 8];
/// Bits of tables.
const TABLE_BITS: &[usize] = &[2, 4, 8];
/// Bits of a weight on average, from all in 2 bits to all in 16.
const TARGETS: std::ops::RangeInclusive<f64> = 2.0..=16.0;

/// How weights are stored of nodes that compute on float data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WeightOnly {
    /// Bits of a code: 8, 4, 2, or 1 for a sign times a scale (which kernels read as codes of 2 bits).
    pub bits: usize,
    /// Codes of 2 bits are -1, 0 and 1 only, by the rule of ternary networks.
    pub ternary: bool,
    /// The same of tables that rows are gathered from. They are a small part of most models, and no kernel gets faster by less:
    /// two language models lose 2 to 10 % less with 8 bits than with 4.
    pub table_bits: usize,
    /// Weights along the depth that share a scale: 16, 32, 64, 128 or 256.
    pub block_size: usize,
    /// Zero is the middle code of all blocks, and needs no place. With zero points of their own, blocks of 32 take 3 % more, and
    /// lose a sixth less on these models.
    pub symmetric: bool,
    /// How they are rounded: rtn, mse, hqq, awq, adaround, gptq, or auto.
    pub algorithm: String,
    /// What becomes of weights whose codes no kernel reads, of convolutions for example: they become float again when the runtime
    /// loads the file. In mode weight-only this stands for `float_weights`, unless that is `keep`.
    pub others: Others,
    /// In the place of `bits` and `table_bits`: bits that a weight shall have on average, those that kernels read and those of
    /// tables, scales and zero points counted. Each layer gets 2, 4, 8 or 16, and blocks of `block_size` or of two or four
    /// times that, so that the answers suffer least.
    pub target_bits: Option<f64>,
    /// The same, with the size that the written model shall have at most: 40MB, or 20% of the original.
    pub target_size: Option<Size>,
}

/// What becomes of weights whose codes no kernel reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Others {
    /// They stay float.
    Keep,
    /// Stored as float16.
    #[default]
    Float16,
    /// Stored as int8.
    Int8,
    /// Stored in as many bits as those that kernels read.
    Bits,
}

impl Others {
    /// The same, as it is for weights of float nodes in other modes.
    pub fn float_weights(self) -> FloatWeights {
        match self {
            Self::Keep => FloatWeights::Keep,
            Self::Float16 => FloatWeights::Float16,
            Self::Int8 | Self::Bits => FloatWeights::Int8,
        }
    }
}

impl Default for WeightOnly {
    fn default() -> Self {
        Self {
            bits: 4,
            ternary: false,
            table_bits: 8,
            block_size: 32,
            symmetric: false,
            algorithm: AUTO.to_owned(),
            others: Others::Float16,
            target_bits: None,
            target_size: None,
        }
    }
}

/// What differs from [`WeightOnly`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleWeightOnly {
    /// Bits of a code, in tables, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<usize>,
    /// Weights along the depth that share a scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<usize>,
    /// Zero is the middle code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<bool>,
    /// How they are rounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<String>,
}

impl WeightOnly {
    /// The same with what differs.
    #[must_use]
    pub fn with(&self, rule: &RuleWeightOnly) -> Self {
        Self {
            bits: rule.bits.unwrap_or(self.bits),
            ternary: self.ternary && rule.bits.is_none_or(|bits| bits == 2),
            table_bits: rule.bits.map_or(self.table_bits, |bits| bits.max(2)),
            block_size: rule.block_size.unwrap_or(self.block_size),
            symmetric: rule.symmetric.unwrap_or(self.symmetric),
            algorithm: rule.algorithm.clone().unwrap_or_else(|| self.algorithm.clone()),
            others: self.others,
            target_bits: self.target_bits.filter(|_| rule.bits.is_none()),
            target_size: self.target_size.filter(|_| rule.bits.is_none()),
        }
    }

    /// Whether each layer gets the bits that it needs.
    pub fn is_spread(&self) -> bool {
        self.target_bits.is_some() || self.target_size.is_some()
    }

    /// As the plan says it. Algorithm `auto` is `gptq` where there are data and `mse` where there are none.
    pub fn few_bits(&self, table: bool, data: bool) -> FewBits {
        let bits = if table { self.table_bits } else { self.bits };
        if let Some(algorithm) = self.signs().filter(|_| !table) {
            let (dtype, algorithm) = (DType::Int2, algorithm.to_owned());
            return FewBits { dtype, block_size: self.block_size, symmetric: true, algorithm };
        }
        let dtype = match (bits, self.symmetric) {
            (2, true) => DType::Int2,
            (2, false) => DType::Uint2,
            (8, true) => DType::Int8,
            (8, false) => DType::Uint8,
            (_, true) => DType::Int4,
            (_, false) => DType::Uint4,
        };
        let best = if data { weights::GPTQ } else { weights::MSE };
        let algorithm = match self.algorithm.as_str() {
            AUTO => best,
            AWQ => weights::MSE,
            name => name,
        };
        let algorithm = algorithm.to_owned();
        FewBits { dtype, block_size: self.block_size, symmetric: self.symmetric, algorithm }
    }

    /// The algorithm that makes signs of weights, or signs and zeros.
    fn signs(&self) -> Option<&'static str> {
        match self.ternary {
            true => Some("ternary"),
            false => (self.bits == 1).then_some("binary"),
        }
    }

    /// How a weight of so many elements is packed that no kernel reads; `None` where it is stored otherwise.
    pub fn packed(&self, elements: usize, rows: usize) -> Option<PackedWeight> {
        if self.others != Others::Bits || self.bits == 8 {
            return None;
        }
        let depth = elements.checked_div(rows)?;
        let block_size = if depth.is_multiple_of(self.block_size) { self.block_size } else { depth };
        let algorithm = self.signs().unwrap_or(weights::MSE).to_owned();
        Some(PackedWeight { bits: if self.ternary { 2 } else { self.bits }, block_size, algorithm })
    }

    /// Refuses what no kernel takes.
    pub(super) fn check(&self) -> Result<()> {
        if self.ternary && ![2, WeightOnly::default().bits].contains(&self.bits) {
            let text = format!("weight_only.ternary is set beside {} bits", self.bits);
            return Err(Error::config(text).help("ternary weights have 2 bits: leave bits out"));
        }
        if self.is_spread() {
            self.check_target()?;
        }
        if !TABLE_BITS.contains(&self.table_bits) {
            return Err(Error::config(format!("weight_only.table_bits is {}, must be 2, 4 or 8", self.table_bits)));
        }
        RuleWeightOnly {
            bits: Some(self.bits),
            block_size: Some(self.block_size),
            symmetric: None,
            algorithm: Some(self.algorithm.clone()),
        }
        .check()
    }
}

impl WeightOnly {
    /// Refuses what says the bits twice.
    fn check_target(&self) -> Result<()> {
        if let (Some(bits), Some(size)) = (self.target_bits, self.target_size) {
            let text = format!("weight_only.target_bits is {bits} beside target_size: {size}");
            return Err(Error::config(text).help("give one of them: either says how small the weights shall be"));
        }
        let (name, default) = (if self.target_bits.is_some() { "target_bits" } else { "target_size" }, Self::default());
        let fixed = [
            (self.bits != default.bits, "bits", self.bits.to_string()),
            (self.table_bits != default.table_bits, "table_bits", self.table_bits.to_string()),
            (self.ternary, "ternary", "true".to_owned()),
        ];
        if let Some((_, other, value)) = fixed.into_iter().find(|(set, ..)| *set) {
            let text = format!("weight_only.{other} is {value} beside {name}");
            let help = format!(
                "leave {other} out, and give single layers their bits by a rule: {{nodes: …, weight_only: {{bits: 8}}}}"
            );
            return Err(Error::config(text).help(help));
        }
        match self.target_bits.filter(|bits| !TARGETS.contains(bits)) {
            None => Ok(()),
            Some(bits) => {
                let (least, most) = (TARGETS.start(), TARGETS.end());
                Err(Error::config(format!("weight_only.target_bits is {bits}, must be from {least} to {most}"))
                    .help("scales and zero points are counted: 4 bits in blocks of 32 are 5.125"))
            }
        }
    }
}

impl RuleWeightOnly {
    /// Refuses what no kernel takes.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(bits) = self.bits.filter(|b| !BITS.contains(b)) {
            return Err(Error::config(format!("weight_only.bits is {bits}, must be 8, 4, 2 or 1")));
        }
        if let Some(size) = self.block_size.filter(|s| !BLOCK_SIZES.contains(s)) {
            let sizes: Vec<String> = BLOCK_SIZES.iter().map(ToString::to_string).collect();
            let text = format!("weight_only.block_size is {size}, must be one of {}", sizes.join(", "));
            return Err(Error::config(text));
        }
        let Some(name) = self.algorithm.as_deref() else { return Ok(()) };
        let signs = ["binary", "ternary"];
        let all = weights::ALGORITHMS.iter().filter(|a| a.blocks.is_some() && !signs.contains(&a.name)).map(|a| a.name);
        let names: Vec<&str> = [AUTO, AWQ].into_iter().chain(all).collect();
        if names.contains(&name) {
            return Ok(());
        }
        let close = suggest::closest(name, names.iter().copied());
        let hint = close.first().map(|c| format!("did you mean {c:?}? ")).unwrap_or_default();
        Err(Error::config(format!("weight_only.algorithm: no algorithm for few bits is called {name:?}"))
            .help(format!("{hint}algorithms: {}", names.join(", "))))
    }
}
