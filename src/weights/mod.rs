//! How weights are rounded to codes. One file for each algorithm: `round(&WeightTask) -> Result<QuantizedWeight>`.
//!
//! Some algorithms look at what the layer computes rather than at the weight alone. What they need of the layer's inputs is
//! in [`Reads`]; without it they round to nearest.

mod gram;
mod moments;
mod rows;

pub use self::{
    gram::Gram,
    moments::{Layout, Moments, Reads},
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

/// An algorithm.
pub struct Algorithm {
    /// The file's name, which is also its name on the command line and in YAML.
    pub name: &'static str,
    /// Whether it looks at what the layer reads.
    pub reads: bool,
    /// Carries it out.
    pub round: fn(&WeightTask<'_>) -> Result<QuantizedWeight>,
}

macro_rules! weights {
    ($($name:ident),* $(,)?) => {
        $(pub mod $name;)*

        /// Every algorithm.
        pub const ALGORITHMS: &[Algorithm] =
            &[$(Algorithm { name: stringify!($name), reads: $name::READS, round: $name::round }),*];
    };
}

weights! { rtn, mse, adaround }

/// The algorithm that is used where none is named.
pub const DEFAULT: &str = "rtn";

/// The algorithm of this name.
pub fn by_name(name: &str) -> Result<&'static Algorithm> {
    ALGORITHMS.iter().find(|a| a.name == name).ok_or_else(|| {
        let names: Vec<&str> = ALGORITHMS.iter().map(|a| a.name).collect();
        Error::config(format!("no weight algorithm {name:?}")).help(format!("use one of: {}", names.join(", ")))
    })
}
