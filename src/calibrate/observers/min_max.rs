//! `min_max`: everything that was seen. Right for narrow distributions, poor where single outliers stretch the range.

use super::{Needs, Observation, Options};
use crate::{
    error::Result,
    quant::{QuantTarget, Range},
};

/// What must be gathered.
pub const NEEDS: Needs = Needs::Stats;

/// The range from the least to the greatest number.
pub fn range(seen: &Observation, _: QuantTarget, _: &Options) -> Result<Range> {
    Ok(seen.extremes())
}
