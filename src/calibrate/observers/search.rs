//! The quantization error that a range would cause, from a histogram; and the range that causes least.

use super::{Histogram, Observation};
use crate::{
    error::Result,
    quant::{QuantTarget, Range, error::StepError, float8::Float8, params::type_range},
};

/// Expected squared error of an observed value under any range for one target, perhaps weighted.
///
/// Numbers are taken as evenly spread within their bin. Numbers that equal 0, the least or the greatest number exactly
/// are taken as points: a Relu or Clip puts much of a tensor there.
pub struct Cost {
    target: QuantTarget,
    /// Edges of the bins, ascending; one more than there are bins.
    edges: Vec<f64>,
    /// Count of each bin, times its weight.
    counts: Vec<f64>,
    /// Number and weighted count.
    points: [(f64, f64); 3],
    /// Everything seen, with 0.
    all: Range,
}

/// So many bins on each side of 0 are never merged: most of a tensor may lie in the first of them, and it matters
/// that it is near 0.
const NEAR_ZERO: i64 = 32;

impl Cost {
    /// The cost of an observation's ranges.
    pub fn new(seen: &Observation, histogram: &Histogram, target: QuantTarget) -> Self {
        let (left, counts) = histogram.bins();
        let width = histogram.width();
        let mut counts: Vec<f64> = counts.iter().map(|&n| n as f64).collect();
        let mut take = |at: f32, n: u64| {
            let bin = (((f64::from(at) - left) / width).floor().max(0.0) as usize).min(counts.len() - 1);
            let n = (n as f64).min(counts[bin]);
            counts[bin] -= n;
            (f64::from(at), n)
        };
        let stats = &seen.stats;
        let zeros = take(0.0, stats.zeros);
        let least = if stats.min == 0.0 { (0.0, 0.0) } else { take(stats.min, stats.at_min) };
        let one_end = stats.max == 0.0 || stats.max == stats.min;
        let greatest = if one_end { (0.0, 0.0) } else { take(stats.max, stats.at_max) };
        let edges = (0..=counts.len()).map(|i| left + width * i as f64).collect();
        Self { target, edges, counts, points: [zeros, least, greatest], all: seen.extremes().with_zero() }
    }

    /// The same with each number's error divided by `x² + bound²`: numbers beyond the bound count by their relative error.
    pub fn relative_beyond(mut self, bound: f64) -> Self {
        let weight = |x: f64| 1.0 / (x * x + bound * bound).max(f64::MIN_POSITIVE);
        for (n, edge) in self.counts.iter_mut().zip(self.edges.windows(2)) {
            *n *= weight((edge[0] + edge[1]) / 2.0);
        }
        self.points = self.points.map(|(x, n)| (x, n * weight(x)));
        self
    }

    /// The same with neighbouring bins merged, `by` at a time: faster, and good enough for a first look.
    fn coarse(&self, by: i64) -> Self {
        let zero = self.edges.partition_point(|&e| e < 0.0) as i64;
        let (mut edges, mut counts) = (Vec::new(), Vec::new());
        for (i, (&n, &edge)) in self.counts.iter().zip(&self.edges).enumerate() {
            let from_zero = i as i64 - zero;
            let inner = (-NEAR_ZERO..NEAR_ZERO).contains(&from_zero);
            if inner || edges.is_empty() || from_zero % by == 0 {
                edges.push(edge);
                counts.push(n);
            } else if let Some(last) = counts.last_mut() {
                *last += n;
            }
        }
        edges.extend(self.edges.last());
        Self { edges, counts, ..*self }
    }

    /// The error under the parameters that `range` gives.
    pub fn of(&self, range: Range) -> Result<f64> {
        let params = self.target.params(range)?;
        if let Some(float) = Float8::of(params.dtype) {
            let scale = f64::from(params.scale);
            let point = |x: f64| float.error_mean(x / scale, x / scale) * scale * scale;
            return Ok(self.sum(scale, |u| float.error_integral(u), point));
        }
        let (qmin, qmax) = type_range(params.dtype)?;
        let step = StepError::new(params, qmin, qmax);
        Ok(self.sum(step.scale(), |u| step.integral(u), |x| step.mean(x, x)))
    }

    /// The errors of all bins, by the integral of the error in units of the scale, and those of the points.
    fn sum(&self, scale: f64, integral: impl Fn(f64) -> f64, of_point: impl Fn(f64) -> f64) -> f64 {
        let (mut sum, mut edge) = (0.0, self.edges[0] / scale);
        let mut before = integral(edge);
        for (&n, &next) in self.counts.iter().zip(&self.edges[1..]) {
            let next = next / scale;
            let after = integral(next);
            sum += n * (after - before) / (next - edge);
            (before, edge) = (after, next);
        }
        let points: f64 = self.points.iter().map(|&(x, n)| n * of_point(x)).sum();
        (sum * scale * scale).max(0.0) + points
    }

    /// Everything seen, with 0.
    pub fn all(&self) -> Range {
        self.all
    }

    /// The range that costs least, and its cost.
    ///
    /// Each end in turn is drawn in from the extreme along a geometric grid, then refined around the best; twice, as
    /// the ends depend on each other. A symmetric target has one end only.
    pub fn best(&self) -> Result<(Range, f64)> {
        let all = if self.target.symmetric { self.all.mirrored() } else { self.all };
        let rough = self.coarse(8);
        let mut best = (all, rough.of(all)?);
        let ends: &[Ends] = match (self.target.symmetric, all.lo < 0.0, all.hi > 0.0) {
            (true, ..) => &[Ends::Both],
            (_, true, true) => &[Ends::Hi, Ends::Lo, Ends::Hi, Ends::Lo],
            (_, true, false) => &[Ends::Lo],
            _ => &[Ends::Hi],
        };
        for &end in ends {
            for k in 0..GRID {
                let range = end.drawn_in(best.0, all, RATIO.powi(k));
                best = least(best, (range, rough.of(range)?));
            }
        }
        // Bins so fine that some fit a step of the codes.
        let share = f64::from(best.0.hi - best.0.lo) / f64::from(all.hi - all.lo);
        let fine = if share > 0.3 { rough } else { self.coarse(if share > 0.1 { 2 } else { 1 }) };
        best.1 = fine.of(best.0)?;
        for &end in ends {
            let mut stride = RATIO.sqrt();
            for _ in 0..5 {
                let center = best.0;
                for factor in [stride, 1.0 / stride] {
                    let range = end.scaled(center, all, factor);
                    best = least(best, (range, fine.of(range)?));
                }
                stride = stride.sqrt();
            }
        }
        Ok((best.0, self.of(best.0)?))
    }
}

/// Each candidate is this much of the one before.
const RATIO: f64 = 0.9;
/// Number of candidates of an end: down to 0.9^47 = 0.7 % of the extreme.
const GRID: i32 = 48;

/// The candidate that costs less; the one already there if both cost the same.
fn least(a: (Range, f64), b: (Range, f64)) -> (Range, f64) {
    if b.1 < a.1 { b } else { a }
}

/// The ends of a range that are moved together.
#[derive(Debug, Clone, Copy)]
enum Ends {
    Lo,
    Hi,
    Both,
}

impl Ends {
    /// `range` with this end at a share of the extreme.
    fn drawn_in(self, range: Range, all: Range, share: f64) -> Range {
        let of = |x: f32| (f64::from(x) * share) as f32;
        match self {
            Self::Lo => Range { lo: of(all.lo), ..range },
            Self::Hi => Range { hi: of(all.hi), ..range },
            Self::Both => Range::new(of(all.lo), of(all.hi)),
        }
    }

    /// `range` with this end multiplied, at most to the extreme.
    fn scaled(self, range: Range, all: Range, factor: f64) -> Range {
        let of = |x: f32, most: f32| ((f64::from(x) * factor) as f32).clamp(most.min(0.0), most.max(0.0));
        match self {
            Self::Lo => Range { lo: of(range.lo, all.lo), ..range },
            Self::Hi => Range { hi: of(range.hi, all.hi), ..range },
            Self::Both => Range::new(of(range.lo, all.lo), of(range.hi, all.hi)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Observer, Options, by_name, normal};
    use super::*;
    use crate::{ir::DType, quant::error::squared_error};

    fn observe(values: &[f32]) -> Observer {
        let mut o = Observer::new(by_name("mse").unwrap(), Options::default());
        o.update(0, values);
        o
    }

    #[test]
    fn cost_is_the_error_on_the_data() {
        let bell = normal(200_000);
        let relu: Vec<f32> = bell.iter().map(|v| v.max(0.0)).collect();
        let clip: Vec<f32> = bell.iter().map(|v| v.clamp(-1.0, 2.0)).collect();
        for values in [bell, relu, clip] {
            let o = observe(&values);
            for dtype in [DType::Uint8, DType::Int8, DType::Int4] {
                for symmetric in [false, true] {
                    let target = QuantTarget { dtype, symmetric, reduce_range: false };
                    let cost = Cost::new(o.observation(), o.observation().histogram.as_ref().unwrap(), target);
                    for (lo, hi) in [(-6.0, 6.0), (-2.0, 2.0), (-0.5, 3.0), (-1.0, 2.0)] {
                        let range = Range::new(lo, hi);
                        let want = squared_error(&values, target.params(range).unwrap()).unwrap();
                        let got = cost.of(range).unwrap();
                        assert!((got / want - 1.0).abs() < 0.05, "{target:?} {range:?}: {got} for {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_best_range_of_a_bell_curve() {
        // Known optimum of 4 bit uniform quantization of a normal variable: about 2.7 standard deviations each side.
        let o = observe(&normal(400_000));
        let target = QuantTarget { dtype: DType::Int4, symmetric: false, reduce_range: false };
        let cost = Cost::new(o.observation(), o.observation().histogram.as_ref().unwrap(), target);
        let (range, _) = cost.best().unwrap();
        assert!((2.2..3.0).contains(&range.hi) && (2.2..3.0).contains(&-range.lo), "{range:?}");
    }
}
