//! What is always gathered of an observed value: exact extremes, counts, moments.

use super::exact_sum::ExactSum;
use crate::{diagnostics::Diagnostic, quant::Range};

/// Statistics of all numbers that a value took. They do not depend on the order of the samples.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorStats {
    /// Samples seen.
    pub samples: u64,
    /// Numbers seen, NaN and infinities included.
    pub count: u64,
    /// NaNs among them.
    pub nan: u64,
    /// Infinities among them, of both signs.
    pub infinite: u64,
    /// Exact zeros among them.
    pub zeros: u64,
    /// The least finite number; infinity where there is none.
    pub min: f32,
    /// The greatest finite number; minus infinity where there is none.
    pub max: f32,
    /// How many equal `min`.
    pub at_min: u64,
    /// How many equal `max`.
    pub at_max: u64,
    /// Numbers with a fractional part among the first 1024 of each sample.
    pub fractional: u64,
    sum: ExactSum,
    squares: ExactSum,
}

impl Default for TensorStats {
    fn default() -> Self {
        Self {
            samples: 0,
            count: 0,
            nan: 0,
            infinite: 0,
            zeros: 0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            at_min: 0,
            at_max: 0,
            fractional: 0,
            sum: ExactSum::default(),
            squares: ExactSum::default(),
        }
    }
}

/// Numbers handled at a time: they stay in the first cache for the second look at them.
const BLOCK: usize = 4096;
const LANES: usize = 32;

/// What one block holds, if it is all finite.
struct Block {
    min: f32,
    max: f32,
    zeros: u64,
    at_min: u64,
    at_max: u64,
    sum: f64,
    squares: f64,
}

/// Everything of one block, with the widest vectors that the processor has. A NaN or infinity anywhere makes `sum` or the
/// extremes not finite. Lanes are added in one order, so that the result is the same on every processor.
#[inline(always)]
fn scan(block: &[f32]) -> Block {
    let (mut lo, mut hi) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let (mut sum, mut squares, mut zeros) = ([0f32; LANES], [0f32; LANES], [0u32; LANES]);
    let (chunks, rest) = block.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            let v = chunk[i];
            lo[i] = if v < lo[i] { v } else { lo[i] };
            hi[i] = if v > hi[i] { v } else { hi[i] };
            sum[i] += v;
            squares[i] += v * v;
            zeros[i] += u32::from(v == 0.0);
        }
    }
    for (i, &v) in rest.iter().enumerate() {
        lo[i] = if v < lo[i] { v } else { lo[i] };
        hi[i] = if v > hi[i] { v } else { hi[i] };
        sum[i] += v;
        squares[i] += v * v;
        zeros[i] += u32::from(v == 0.0);
    }
    let min = lo.iter().fold(f32::INFINITY, |a, &b| if b < a { b } else { a });
    let max = hi.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    let (mut at_min, mut at_max) = ([0u32; LANES], [0u32; LANES]);
    for chunk in chunks {
        for i in 0..LANES {
            at_min[i] += u32::from(chunk[i] == min);
            at_max[i] += u32::from(chunk[i] == max);
        }
    }
    for (i, &v) in rest.iter().enumerate() {
        at_min[i] += u32::from(v == min);
        at_max[i] += u32::from(v == max);
    }
    let count = |lanes: [u32; LANES]| lanes.iter().map(|&n| u64::from(n)).sum();
    let total = |lanes: [f32; LANES]| lanes.iter().map(|&v| f64::from(v)).sum();
    Block {
        min,
        max,
        zeros: count(zeros),
        at_min: count(at_min),
        at_max: count(at_max),
        sum: total(sum),
        squares: total(squares),
    }
}

/// [`scan`] as something that the processor's own instructions can be chosen for.
struct Scan<'a>(&'a [f32]);

impl pulp::NullaryFnOnce for Scan<'_> {
    type Output = Block;

    #[inline(always)]
    fn call(self) -> Block {
        scan(self.0)
    }
}

impl TensorStats {
    /// Takes in one sample. Returns the finite range of this sample, and whether all of its numbers are finite.
    pub fn update(&mut self, values: &[f32]) -> (Option<Range>, bool) {
        let mut sample = Self { samples: 1, count: values.len() as u64, ..Self::default() };
        let (mut sum, mut squares) = (0f64, 0f64);
        let processor = pulp::Arch::new();
        for block in values.chunks(BLOCK) {
            let b = processor.dispatch(Scan(block));
            if b.sum.is_finite() && b.squares.is_finite() && b.min.is_finite() && b.max.is_finite() {
                sample.zeros += b.zeros;
                sample.extremes(b.min, b.at_min, b.max, b.at_max);
                sum += b.sum;
                squares += b.squares;
            } else {
                // Not finite, or sums beyond f32: one by one, in f64.
                for &v in block {
                    sample.nan += u64::from(v.is_nan());
                    sample.infinite += u64::from(v.is_infinite());
                    if v.is_finite() {
                        sample.zeros += u64::from(v == 0.0);
                        sample.extremes(v, 1, v, 1);
                        sum += f64::from(v);
                        squares += f64::from(v) * f64::from(v);
                    }
                }
            }
        }
        sample.fractional = values.iter().take(1024).filter(|v| v.is_finite() && v.fract() != 0.0).count() as u64;
        sample.sum.add(sum);
        sample.squares.add(squares);
        self.merge(&sample);
        (sample.range(), sample.nan + sample.infinite == 0)
    }

    fn extremes(&mut self, min: f32, at_min: u64, max: f32, at_max: u64) {
        if min < self.min {
            (self.min, self.at_min) = (min, 0);
        }
        if max > self.max {
            (self.max, self.at_max) = (max, 0);
        }
        self.at_min += if min == self.min { at_min } else { 0 };
        self.at_max += if max == self.max { at_max } else { 0 };
    }

    /// Takes in what was gathered elsewhere.
    pub fn merge(&mut self, other: &Self) {
        self.samples += other.samples;
        self.count += other.count;
        self.nan += other.nan;
        self.infinite += other.infinite;
        self.zeros += other.zeros;
        self.fractional += other.fractional;
        self.extremes(other.min, other.at_min, other.max, other.at_max);
        self.sum.merge(&other.sum);
        self.squares.merge(&other.squares);
    }

    /// The finite range; `None` if nothing finite was seen.
    pub fn range(&self) -> Option<Range> {
        (self.min <= self.max).then(|| Range::new(self.min, self.max))
    }

    /// Finite numbers seen.
    pub fn finite(&self) -> u64 {
        self.count - self.nan - self.infinite
    }

    /// Mean of the finite numbers; 0 where there is none.
    pub fn mean(&self) -> f64 {
        self.sum.value() / self.finite().max(1) as f64
    }

    /// Sum of the squares of the finite numbers.
    pub fn sum_of_squares(&self) -> f64 {
        self.squares.value()
    }

    /// Standard deviation of the finite numbers; 0 where there is none.
    pub fn std(&self) -> f64 {
        (self.squares.value() / self.finite().max(1) as f64 - self.mean().powi(2)).max(0.0).sqrt()
    }

    /// What looks wrong in a value of this name.
    pub fn diagnose(&self, name: &str) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        if self.nan > 0 {
            let text = format!("{} of {} numbers are NaN in calibration", self.nan, self.count);
            found.push(Diagnostic::warning("nan_values", text).on(name).help(
                "the float model itself computes NaN on this data: check the data and the model before quantizing",
            ));
        }
        if self.infinite > 0 {
            let text = format!("{} of {} numbers are infinite in calibration", self.infinite, self.count);
            found.push(Diagnostic::warning("infinite_values", text).on(name).help(
                "ranges leave them out; if they are a mask (-inf before Softmax), keep the nodes around it in float",
            ));
        }
        let Some(Range { lo, hi }) = self.range() else {
            if self.count == 0 && self.samples > 0 {
                let text = format!("it had no elements in any of {} samples", self.samples);
                found.push(Diagnostic::warning("no_values", text).on(name));
            }
            return found;
        };
        if lo == 0.0 && hi == 0.0 {
            let text = format!("all {} numbers were 0 in calibration", self.finite());
            found.push(Diagnostic::warning("dead_tensor", text).on(name).help(
                "its range is unknown: if other data brings it to life it will be cut off; add samples that use this part",
            ));
        } else if lo == hi && self.finite() > 1 {
            let text = format!("all {} numbers were {lo} in calibration", self.finite());
            found.push(Diagnostic::note("constant_tensor", text).on(name));
        } else {
            let share = |n: u64| n as f64 / self.finite() as f64;
            for (end, at, what) in [(lo, self.at_min, "least"), (hi, self.at_max, "greatest")] {
                if end != 0.0 && at >= 16 && share(at) >= 0.01 {
                    let percent = 100.0 * share(at);
                    let text =
                        format!("{percent:.1} % of its numbers equal its {what} value {end}: it saturates there");
                    found.push(Diagnostic::note("saturating", text).on(name));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[f32]) -> TensorStats {
        let mut s = TensorStats::default();
        s.update(values);
        s
    }

    fn codes(s: &TensorStats) -> Vec<&'static str> {
        s.diagnose("x").iter().map(|d| d.code).collect()
    }

    #[test]
    fn exact_figures() {
        let s = of(&[1.0, -2.0, 0.0, 5.0, 5.0, f32::NAN, f32::INFINITY, -0.0, 0.5]);
        assert_eq!((s.count, s.nan, s.infinite, s.zeros, s.finite()), (9, 1, 1, 2, 7));
        assert_eq!((s.min, s.max, s.at_min, s.at_max, s.fractional), (-2.0, 5.0, 1, 2, 1));
        assert_eq!((s.mean(), s.sum_of_squares()), (9.5 / 7.0, 55.25));
        assert_eq!(codes(&s), ["nan_values", "infinite_values"]);
    }

    #[test]
    fn odd_lengths_and_large_numbers() {
        for n in [1usize, 7, 8, 9, 4095, 4096, 4097, 10_000] {
            let v: Vec<f32> = (0..n).map(|i| (i % 10) as f32).collect();
            let s = of(&v);
            let want: f64 = v.iter().map(|&x| f64::from(x)).sum();
            assert_eq!(s.zeros as usize, n.div_ceil(10), "{n}");
            assert!((s.mean() * n as f64 - want).abs() < 1e-6 * (1.0 + want), "{n}");
            assert_eq!(s.at_min as usize, n.div_ceil(10));
        }
        let s = of(&[3e38, 3e38, -1e38]);
        assert!((s.mean() - 5e38f64 / 3.0).abs() < 1e32);
        assert_eq!(s.max, 3e38);
    }

    #[test]
    fn diagnostics() {
        assert_eq!(codes(&of(&[0.0; 5])), ["dead_tensor"]);
        assert_eq!(codes(&of(&[2.0; 5])), ["constant_tensor"]);
        assert_eq!(codes(&of(&[])), ["no_values"]);
        let mut v: Vec<f32> = (0..1000).map(|i| i as f32 / 200.0).collect();
        assert!(codes(&of(&v)).is_empty());
        v.extend([6.0; 100]);
        assert_eq!(codes(&of(&v)), ["saturating"]);
    }

    proptest! {
        #[test]
        fn order_does_not_matter(a in prop::collection::vec(-9f32..9.0, 0..40), b in prop::collection::vec(prop::num::f32::ANY, 0..40)) {
            let (mut x, mut y) = (of(&a), of(&b));
            x.merge(&of(&b));
            y.update(&a);
            prop_assert_eq!(x, y);
        }
    }
}
