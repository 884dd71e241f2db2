//! `entropy`: the threshold at which the quantized distribution tells most of the original one (Kullback-Leibler).

use super::{Needs, Observation, Options};
use crate::{
    error::Result,
    quant::{QuantTarget, Range},
};

/// What must be gathered.
pub const NEEDS: Needs = Needs::Histogram;

/// Thresholds that are tried, evenly spaced in the logarithm.
const CANDIDATES: i32 = 96;

/// A bin that quantization leaves empty has this probability, so that the divergence stays finite.
const FLOOR: f64 = 1e-7;

/// The divergence hardly minds long tails; so at most this share of the numbers is cut.
const MOST_CUT: f64 = 1e-3;

/// Tries thresholds `t` between the codes' number in bins and everything, each as the range from `-t` to `t` cut to
/// what was seen. Exact zeros do not count: they are coded exactly under every range, and there may be so many that
/// nothing else would weigh. Types with more codes than the histogram resolves get everything.
pub fn range(seen: &Observation, target: QuantTarget, _: &Options) -> Result<Range> {
    let histogram = seen.need_histogram()?;
    let all = if target.symmetric { seen.extremes().mirrored() } else { seen.extremes().with_zero() };
    let (qmin, qmax) = target.codes()?;
    let levels = (qmax - qmin + 1) as usize;
    let (left, counts) = histogram.bins();
    let mut counts: Vec<f64> = counts.iter().map(|&n| n as f64).collect();
    let zero = (-left / histogram.width()).round() as usize;
    counts[zero] = (counts[zero] - seen.stats.zeros as f64).max(0.0);
    let grid = Grid { left, width: histogram.width(), counts };

    let most = f64::from(all.lo.abs().max(all.hi));
    // One bin for each code at least.
    let span = if all.lo < 0.0 && all.hi > 0.0 { 2.0 } else { 1.0 };
    let start = (levels as f64 * grid.width / span).max(grid.distance_of(1.0 - MOST_CUT));
    if start >= most {
        return Ok(seen.extremes());
    }
    let ratio = (start / most).powf(1.0 / f64::from(CANDIDATES));
    let mut best = (f64::INFINITY, all);
    for k in 0..=CANDIDATES {
        let t = (most * ratio.powi(k)) as f32;
        let range = Range::new(all.lo.max(-t), all.hi.min(t));
        let divergence = grid.divergence(range, levels);
        if divergence < best.0 {
            best = (divergence, range);
        }
    }
    Ok(best.1)
}

struct Grid {
    left: f64,
    width: f64,
    counts: Vec<f64>,
}

impl Grid {
    /// The distance from 0 within which this share of the numbers lies.
    fn distance_of(&self, share: f64) -> f64 {
        let distance = |i: usize| (self.left + self.width * (i as f64 + 0.5)).abs();
        let mut bins: Vec<usize> = (0..self.counts.len()).filter(|&i| self.counts[i] > 0.0).collect();
        bins.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)));
        let mut left = share * self.counts.iter().sum::<f64>();
        let last = bins.into_iter().find(|&i| {
            left -= self.counts[i];
            left <= 0.0
        });
        last.map_or(0.0, |i| distance(i) + self.width / 2.0)
    }

    /// Divergence of the distribution cut to `range` and quantized to `levels` from the one that is only cut.
    fn divergence(&self, range: Range, levels: usize) -> f64 {
        let bin = |x: f32| ((f64::from(x) - self.left) / self.width).max(0.0);
        let first = (bin(range.lo).floor() as usize).min(self.counts.len() - 1);
        let last = (bin(range.hi).ceil() as usize).clamp(first + 1, self.counts.len());
        let inside = &self.counts[first..last];
        let (below, above): (f64, f64) = (self.counts[..first].iter().sum(), self.counts[last..].iter().sum());
        let kept: f64 = inside.iter().sum();
        if kept <= 0.0 {
            return f64::INFINITY;
        }
        let total = below + kept + above;
        let per_level = inside.len() as f64 / levels as f64;
        let mut sum = 0.0;
        let mut from = 0;
        for level in 0..levels {
            let to = (((level + 1) as f64 * per_level).round() as usize).min(inside.len());
            let part = &inside[from..to];
            let filled = part.iter().filter(|&&n| n > 0.0).count();
            let q = if filled > 0 { part.iter().sum::<f64>() / filled as f64 / kept } else { 0.0 };
            for (i, &n) in part.iter().enumerate() {
                // What was cut off is at the ends of the original, and nowhere in the quantized one.
                let tail =
                    if from + i == 0 { below } else { 0.0 } + if from + i + 1 == inside.len() { above } else { 0.0 };
                let p = (n + tail) / total;
                if p > 0.0 {
                    sum += p * (p / if n > 0.0 { q } else { FLOOR }).ln();
                }
            }
            from = to;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Observer, by_name, normal};
    use super::*;
    use crate::ir::DType;

    fn of(values: &[f32], target: QuantTarget) -> Range {
        let mut o = Observer::new(by_name("entropy").unwrap(), Options::default());
        o.update(0, values);
        o.range(target).unwrap()
    }

    #[test]
    fn finds_a_planted_outlier() {
        let mut values = normal(200_000);
        let symmetric = QuantTarget { dtype: DType::Int8, symmetric: true, reduce_range: false };
        for target in [QuantTarget::ACTIVATION, symmetric] {
            let clean = of(&values, target);
            assert!(clean.hi > 2.5, "{clean:?}");
        }
        values.push(40.0);
        for target in [QuantTarget::ACTIVATION, symmetric] {
            let r = of(&values, target);
            assert!(r.hi > 2.5 && r.hi < 8.0, "{r:?}");
        }
        // With zeros of a Relu in front, the same.
        values.iter_mut().for_each(|v| *v = v.max(0.0));
        let r = of(&values, QuantTarget::ACTIVATION);
        assert!(r.lo == 0.0 && r.hi > 2.5 && r.hi < 8.0, "{r:?}");
    }
}
