//! How weights are rounded to codes. One file for each algorithm: `ROUND`, a function that rounds whole weights and channels,
//! for integer kernels, and `BLOCKS`, one that rounds [`blocks`] of few bits; it has one of them or both.
//!
//! Some algorithms look at what the layer computes rather than at the weight alone. What they need of the layer's inputs is
//! in [`Reads`]; without it they round to nearest.

pub mod blocks;
mod factor;
mod gram;
mod moments;
mod noise;
mod rows;

pub use self::{
    blocks::{BlockedWeight, Blocks, Grid, Layer, Like, Part},
    gram::Gram,
    moments::{Layout, Moments, Reads},
    noise::SomeOutputs,
};
use crate::{
    error::{Error, Result},
    ir::Tensor,
    quant::{Granularity, QParams, QuantTarget, QuantizedWeight, saturation::Pairs},
};

/// A weight to round.
#[derive(Debug, Clone)]
pub struct WeightTask<'a> {
    /// A floating point tensor of any shape.
    pub weight: &'a Tensor,
    /// What it is to become.
    pub target: QuantTarget,
    /// How many scales it gets.
    pub granularity: Granularity,
    /// Scales and zero points to begin with, one for each channel. Algorithms that choose scales make them smaller.
    pub params: Vec<QParams>,
    /// No scale may be less than this, one for each channel; empty where any may be.
    pub least: Vec<f32>,
    /// Neighbours whose products must not saturate together.
    pub pairs: Option<&'a Pairs>,
    /// What the layer reads, if that is known.
    pub reads: Option<&'a Reads>,
}

/// Rounds whole weights or channels.
pub type Round = fn(&WeightTask<'_>) -> Result<QuantizedWeight>;
/// Rounds blocks.
#[derive(Debug, Clone, Copy)]
pub struct RoundBlocks {
    /// Rounds some outputs of a layer.
    pub part: fn(&Part<'_>) -> Result<Blocks>,
    /// Whether it asks for the second moments in solved form.
    pub solves: bool,
}

/// An algorithm.
pub struct Algorithm {
    /// The file's name, which is also its name on the command line and in YAML.
    pub name: &'static str,
    /// Whether it looks at what the layer reads.
    pub reads: bool,
    /// Rounds weights for integer kernels, if it does.
    pub round: Option<Round>,
    /// Rounds blocks of few bits, if it does.
    pub blocks: Option<RoundBlocks>,
}

impl Algorithm {
    /// Rounds a weight for an integer kernel.
    pub fn round(&self, task: &WeightTask<'_>) -> Result<QuantizedWeight> {
        (self.round.unwrap_or(rtn::round))(task)
    }
}

macro_rules! weights {
    ($($name:ident),* $(,)?) => {
        $(pub mod $name;)*

        /// Every algorithm.
        pub const ALGORITHMS: &[Algorithm] = &[$(
            Algorithm { name: stringify!($name), reads: $name::READS, round: $name::ROUND, blocks: $name::BLOCKS },
        )*];
    };
}

weights! { rtn, mse, adaround, hqq, gptq, binary, ternary }

/// The algorithm that is used where none is named.
pub const DEFAULT: &str = "rtn";
/// The one that needs no data and is best then, for blocks.
pub const MSE: &str = "mse";
/// The one that is best for blocks where there are data.
pub const GPTQ: &str = "gptq";

/// Whether an algorithm that looks at what layers read, in blocks, does what it is there for without knowing that, too.
pub fn needs_no_data(name: &str) -> bool {
    [MSE, "hqq"].contains(&name)
}

/// The algorithm of this name.
pub fn by_name(name: &str) -> Result<&'static Algorithm> {
    ALGORITHMS.iter().find(|a| a.name == name).ok_or_else(|| {
        let names: Vec<&str> = ALGORITHMS.iter().map(|a| a.name).collect();
        Error::config(format!("no weight algorithm {name:?}")).help(format!("use one of: {}", names.join(", ")))
    })
}
