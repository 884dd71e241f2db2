//! `auto`: everything that was seen, unless cutting outliers clearly pays.

use super::{
    Needs, Observation, Options,
    search::{Cost, Parts},
};
use crate::{
    error::Result,
    quant::{QuantTarget, Range},
};

/// What must be gathered.
pub const NEEDS: Needs = Needs::Histogram;

/// How much worse clipping is than rounding of the same squared error: what is cut off are the strongest signals of
/// the network, always in the same direction, while rounding errors cancel out.
const CLIPPING_WEIGHT: f64 = 2.0;

/// Cutting must leave at most this share of the error.
const GAIN: f64 = 0.8;

/// The range of least weighted error if that is a clear gain, else everything.
pub fn range(seen: &Observation, target: QuantTarget, _: &Options) -> Result<Range> {
    let cost = Cost::new(seen, seen.need_histogram()?, target);
    let judge = |p: Parts| p.rounding + CLIPPING_WEIGHT * p.clipping;
    let all = judge(cost.of(cost.all())?);
    let (range, least) = cost.best(judge)?;
    Ok(if least < GAIN * all { range } else { seen.extremes() })
}
