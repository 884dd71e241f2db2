//! How weights are rounded to codes. One file for each algorithm: `round(&WeightTask) -> Result<QuantizedWeight>`.

use crate::{
    error::{Error, Result},
    ir::Tensor,
    quant::{Granularity, QuantTarget, QuantizedWeight},
};

/// A weight to round.
#[derive(Debug, Clone, Copy)]
pub struct WeightTask<'a> {
    /// A floating point tensor of any shape.
    pub weight: &'a Tensor,
    /// What it is to become.
    pub target: QuantTarget,
    /// How many scales it gets.
    pub granularity: Granularity,
    /// Scales that were decided elsewhere (raised so that the bias fits); else the algorithm chooses. One for each
    /// channel; zero points are then those of a symmetric range.
    pub scales: Option<&'a [f32]>,
}

/// An algorithm.
pub struct Algorithm {
    /// The file's name, which is also its name on the command line.
    pub name: &'static str,
    /// Carries it out.
    pub round: fn(&WeightTask<'_>) -> Result<QuantizedWeight>,
}

macro_rules! weights {
    ($($name:ident),* $(,)?) => {
        $(pub mod $name;)*

        /// Every algorithm; the first is the default.
        pub const ALGORITHMS: &[Algorithm] = &[$(Algorithm { name: stringify!($name), round: $name::round }),*];
    };
}

weights! { rtn }

/// The algorithm of this name.
pub fn by_name(name: &str) -> Result<&'static Algorithm> {
    ALGORITHMS.iter().find(|a| a.name == name).ok_or_else(|| {
        let names: Vec<&str> = ALGORITHMS.iter().map(|a| a.name).collect();
        Error::config(format!("no weight algorithm {name:?}")).help(format!("use one of: {}", names.join(", ")))
    })
}
