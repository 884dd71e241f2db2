//! `percentile`: leaves out a small share of the numbers at the ends.

use super::{Histogram, Needs, Observation, Options};
use crate::{
    error::Result,
    quant::{QuantTarget, Range},
};

/// What must be gathered.
pub const NEEDS: Needs = Needs::Histogram;

/// Cuts `100 - percentile` percent of the numbers: half at each end; all at one end if the numbers are all on one side
/// of 0, and by their distance from 0 if the target is symmetric. Inside a bin the numbers are taken as evenly spread.
pub fn range(seen: &Observation, target: QuantTarget, options: &Options) -> Result<Range> {
    let histogram = seen.need_histogram()?;
    let all = seen.extremes();
    let cut = (100.0 - options.percentile) / 100.0 * seen.stats.finite() as f64;
    if cut <= 0.0 {
        return Ok(all);
    }
    let (lo, hi) = if target.symmetric {
        let a = upper_edge(&mirrored(histogram), histogram.width(), 0.0, cut);
        (-a, a)
    } else {
        let two_sided = all.lo < 0.0 && all.hi > 0.0;
        let each = if two_sided { cut / 2.0 } else { cut };
        let (left, counts) = histogram.bins();
        let backwards: Vec<u64> = counts.iter().rev().copied().collect();
        let right = left + counts.len() as f64 * histogram.width();
        let lo = if all.lo < 0.0 { -upper_edge(&backwards, histogram.width(), -right, each) } else { 0.0 };
        let hi = if all.hi > 0.0 { upper_edge(counts, histogram.width(), left, each) } else { 0.0 };
        (lo, hi)
    };
    Ok(Range::new(lo.min(0.0) as f32, hi.max(0.0) as f32))
}

/// The point right of which `cut` numbers lie.
fn upper_edge(counts: &[u64], width: f64, left: f64, cut: f64) -> f64 {
    let mut above = 0.0;
    for (i, &n) in counts.iter().enumerate().rev() {
        let n = n as f64;
        if above + n > cut {
            return left + width * (i as f64 + 1.0 - (cut - above) / n);
        }
        above += n;
    }
    left
}

/// Counts of distances from 0.
fn mirrored(histogram: &Histogram) -> Vec<u64> {
    let (left, counts) = histogram.bins();
    let first = (left / histogram.width()) as i64;
    let mut out = Vec::new();
    for (i, &n) in counts.iter().enumerate() {
        let bin = first + i as i64;
        let distance = if bin < 0 { -1 - bin } else { bin } as usize;
        if distance >= out.len() {
            out.resize(distance + 1, 0);
        }
        out[distance] += n;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Observer, by_name};
    use super::*;
    use crate::ir::DType;

    fn of(values: &[f32], percentile: f64, symmetric: bool) -> Range {
        let mut o = Observer::new(by_name("percentile").unwrap(), Options { percentile, ..Options::default() });
        o.update(0, values);
        o.range(QuantTarget { dtype: DType::Int8, symmetric, reduce_range: false }).unwrap()
    }

    #[test]
    fn cuts_the_share_that_was_asked_for() {
        let two_sided: Vec<f32> = (0..100_001).map(|i| i as f32 / 50_000.0 - 1.0).collect();
        let near = |r: Range, lo: f32, hi: f32| (r.lo - lo).abs() < 2e-3 && (r.hi - hi).abs() < 2e-3;
        assert!(near(of(&two_sided, 98.0, false), -0.98, 0.98));
        assert!(near(of(&two_sided, 98.0, true), -0.98, 0.98));
        let positive: Vec<f32> = two_sided.iter().map(|v| v + 1.0).collect();
        assert!(near(of(&positive, 98.0, false), 0.0, 1.96));
        let negative: Vec<f32> = positive.iter().map(|v| -v).collect();
        assert!(near(of(&negative, 98.0, false), -1.96, 0.0));
        assert_eq!(of(&two_sided, 100.0, false), Range::new(-1.0, 1.0));
    }

    #[test]
    fn resolves_the_bulk_next_to_an_outlier() {
        let mut v: Vec<f32> = (0..100_000).map(|i| i as f32 / 100_000.0).collect();
        v.push(100.0);
        let r = of(&v, 99.99, false);
        assert!(r.hi > 0.98 && r.hi < 1.02, "{r:?}");
    }
}
