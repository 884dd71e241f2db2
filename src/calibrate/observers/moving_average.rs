//! `moving_average`: the range of the first sample, pulled towards the range of each later one.

use super::{Needs, Observation, Options};
use crate::{
    error::{Error, Result},
    quant::{QuantTarget, Range},
};

/// What must be gathered.
pub const NEEDS: Needs = Needs::SampleRanges;

/// `old + c * (new - old)` for the least and the greatest number, in the order of the samples.
pub fn range(seen: &Observation, _: QuantTarget, options: &Options) -> Result<Range> {
    let missing = || Error::bug("this value was observed without the range of each sample");
    let ranges = seen.sample_ranges.as_ref().ok_or_else(missing)?;
    let average = |end: fn(&Range) -> f32| {
        let ends = ranges.iter().map(|(_, r)| f64::from(end(r)));
        ends.reduce(|old, new| old + options.averaging * (new - old)).unwrap_or(0.0) as f32
    };
    Ok(Range::new(average(|r| r.lo), average(|r| r.hi)))
}

#[cfg(test)]
mod tests {
    use super::super::{Observer, by_name};
    use super::*;

    #[test]
    fn in_the_order_of_samples() {
        let options = Options { averaging: 0.5, ..Options::default() };
        let mut o = Observer::new(by_name("moving_average").unwrap(), options);
        o.update(2, &[0.0, 8.0]);
        o.update(0, &[-1.0, 1.0]);
        o.update(1, &[-3.0, 3.0]);
        assert_eq!(o.range(QuantTarget::ACTIVATION).unwrap(), Range::new(-1.0, 5.0));
    }
}
