//! `mse`: the range under which quantizing loses least, as expected squared error of rounding and clipping together.

use super::{Needs, Observation, Options, search::Cost};
use crate::{
    error::Result,
    quant::{QuantTarget, Range},
};

/// What must be gathered.
pub const NEEDS: Needs = Needs::Histogram;

/// Searches both ends for the type's own grid: saturation, zero point rounding and all.
pub fn range(seen: &Observation, target: QuantTarget, _: &Options) -> Result<Range> {
    Ok(Cost::new(seen, seen.need_histogram()?, target).best()?.0)
}

#[cfg(test)]
mod tests {
    use super::super::{Observer, by_name};
    use super::*;

    #[test]
    fn cuts_an_outlier_and_keeps_a_plateau() {
        let mut values: Vec<f32> = (0..100_000).map(|i| (i % 1000) as f32 / 1000.0).collect();
        let of = |values: &[f32]| {
            let mut o = Observer::new(by_name("mse").unwrap(), Options::default());
            o.update(0, values);
            o.range(QuantTarget::ACTIVATION).unwrap()
        };
        let even = of(&values);
        assert!((even.hi - 0.999).abs() < 0.01, "{even:?}");
        values.push(3.0); // least for (3 - h)² + 100000 (h / 255)² / 12
        assert!((of(&values).hi - 2.66).abs() < 0.05, "{:?}", of(&values));
        values.extend(vec![0.5; 1_000_000]);
        assert!(of(&values).hi < 2.0);
    }
}
