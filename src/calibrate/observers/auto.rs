//! `auto`: the range that loses least, where no number counts by more than its own size. The default.
//!
//! Plain squared error is ruled by the largest numbers. Two kinds of networks suffer from that: transformers with a few
//! huge activations, and Relu outputs with long tails, where most channels are small and the next layer needs them as
//! much as the large ones. Here a number beyond [`BOUND`] times the root mean square counts by its *relative* error, so
//! an outlier weighs at most like any other number that is lost, and everything else weighs as in `mse`.
//!
//! Of the measures tried (squared, absolute and cubed error, relative error from 0.1 to 40 times the root mean square,
//! clipping weighed differently from rounding, fixed percentiles) this one kept most of the float model's output on
//! samples held out from calibration, over convolutional and transformer models together.

use super::{Needs, Observation, Options, search::Cost};
use crate::{
    error::Result,
    quant::{QuantTarget, Range},
};

/// What must be gathered.
pub const NEEDS: Needs = Needs::Histogram;

/// From this many times the root mean square on, errors count relatively. Zeros are part of the mean: the more of them
/// a Relu makes, the more of the rest counts as outliers.
const BOUND: f64 = 16.0;

/// Cutting must leave at most this share of the error, else everything is kept.
const GAIN: f64 = 0.95;

/// The range of least error if that is a gain, else everything seen.
pub fn range(seen: &Observation, target: QuantTarget, _: &Options) -> Result<Range> {
    let mean_square = seen.stats.sum_of_squares() / seen.stats.finite().max(1) as f64;
    let cost = Cost::new(seen, seen.need_histogram()?, target).relative_beyond(BOUND * mean_square.sqrt());
    let (range, least) = cost.best()?;
    Ok(if least < GAIN * cost.of(cost.all())? { range } else { seen.extremes() })
}

#[cfg(test)]
mod tests {
    use super::super::{Observer, by_name, normal};
    use super::*;

    fn of(values: &[f32], method: &str) -> Range {
        let mut o = Observer::new(by_name(method).unwrap(), Options::default());
        o.update(0, values);
        o.range(QuantTarget::ACTIVATION).unwrap()
    }

    #[test]
    fn outliers_do_not_rule() {
        let mut values = normal(100_000);
        let plain = of(&values, "auto");
        assert!(plain.hi > 3.0 && plain.lo < -3.0, "{plain:?}");
        // A few numbers so large that squared error would rather lose all the others.
        values.extend([500.0; 5]);
        let (auto, mse) = (of(&values, "auto"), of(&values, "mse"));
        assert!(mse.hi > 400.0 && auto.hi < 0.5 * mse.hi, "{auto:?} {mse:?}");
    }

    #[test]
    fn even_distributions_are_kept_whole() {
        let even: Vec<f32> = (0..100_000).map(|i| (i % 1000) as f32 / 999.0).collect();
        assert_eq!(of(&even, "auto"), Range::new(0.0, 1.0));
    }
}
