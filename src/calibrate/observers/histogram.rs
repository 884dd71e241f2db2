//! A histogram of fixed size over a range that is not known before: the shared ground of the observers that search.
//!
//! The width of the bins is a power of two and their edges are multiples of it. When a number does not fit, the width
//! doubles and neighbours merge: `floor(floor(x / w) / 2) = floor(x / 2w)`, so the final counts depend on the numbers
//! only, neither on the order of the samples nor on how threads shared them.

use crate::quant::Range;

/// Number of bins. A range on one side of 0 is spread over more than half of them.
pub const BINS: usize = 8192;

/// The least exponent of a bin's width; narrower ranges share few bins, and quantize to 0 anyway.
const LEAST_EXPONENT: i32 = -126;

/// Adding and subtracting this rounds an `f32` of magnitude up to 2^22 to an integer; its low bits are then the integer.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// Counts of numbers in bins of equal width.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    exponent: i32,
    first: i32,
    counts: Vec<u64>,
    lo: OrderedZero,
    hi: OrderedZero,
}

/// A finite number that is compared by value, for `Eq`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct OrderedZero(f32);

impl Eq for OrderedZero {}

impl Default for Histogram {
    fn default() -> Self {
        let zero = OrderedZero(0.0);
        Self { exponent: LEAST_EXPONENT, first: 0, counts: vec![0; BINS], lo: zero, hi: zero }
    }
}

/// 2 to the power of `e`, exactly; `e` from -126 to 127.
fn power(e: i32) -> f32 {
    f32::from_bits(((127 + e) as u32) << 23)
}

/// The least exponent under which the bins from `lo <= 0` to `hi >= 0` fit.
fn exponent_for(lo: f32, hi: f32) -> i32 {
    let most = lo.abs().max(hi);
    let fits = |e: i32| {
        let bin = |x: f32| (f64::from(x) * 2f64.powi(-e)).floor();
        bin(hi) - bin(lo) < BINS as f64
    };
    // One below the exponent at which a single side fills all bins; then at most two steps up.
    let start = (f64::from(most).log2().floor() as i32).saturating_sub(13).max(LEAST_EXPONENT);
    (start..).find(|&e| fits(e)).unwrap_or(start)
}

impl Histogram {
    /// Width of a bin.
    pub fn width(&self) -> f64 {
        2f64.powi(self.exponent)
    }

    /// The range that was covered, with 0.
    pub fn range(&self) -> Range {
        Range::new(self.lo.0, self.hi.0)
    }

    /// The bins up to the last that may hold something: `(left edge of the first, counts)`.
    pub fn bins(&self) -> (f64, &[u64]) {
        let last = (f64::from(self.hi.0) / self.width()).floor() as i32 - self.first;
        (f64::from(self.first) * self.width(), &self.counts[..=last as usize])
    }

    /// Makes room for numbers in this range.
    fn cover(&mut self, range: Range) {
        let lo = self.lo.0.min(range.lo);
        let hi = self.hi.0.max(range.hi);
        if lo == self.lo.0 && hi == self.hi.0 {
            return;
        }
        (self.lo, self.hi) = (OrderedZero(lo), OrderedZero(hi));
        self.regrid(exponent_for(lo, hi));
    }

    /// Moves the counts to the grid of `exponent`, which is at least the present one, with the first bin at `lo`.
    fn regrid(&mut self, exponent: i32) {
        let shift = (exponent - self.exponent) as u32;
        let first = (f64::from(self.lo.0) * 2f64.powi(-exponent)).floor() as i32;
        if shift == 0 && first == self.first {
            return;
        }
        let mut counts = vec![0; BINS];
        for (i, &n) in self.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            let bin =
                (self.first + i as i32).checked_shr(shift).unwrap_or(if self.first + (i as i32) < 0 { -1 } else { 0 });
            counts[(bin - first) as usize] += n;
        }
        (self.exponent, self.first, self.counts) = (exponent, first, counts);
    }

    /// Counts numbers, all finite and within `range`.
    pub fn update(&mut self, values: &[f32], range: Range) {
        self.cover(range);
        let grid = Grid { inverse: power(-self.exponent), first: self.first };
        let counts: &mut [u64; BINS] = self.counts.as_mut_slice().try_into().expect("made with BINS bins");
        if values.len() < 4 * BINS {
            grid.each_block(values, |bins| bins.iter().for_each(|&bin| counts[usize::from(bin) & (BINS - 1)] += 1));
            return;
        }
        // u32 counters cannot overflow in a slice of this length.
        for part in values.chunks(1 << 31) {
            // Several tables in turn, so that runs of one number (the zeros of a Relu) do not wait for each other.
            let mut tables = vec![[0u32; BINS]; 4];
            let [a, b, c, d] = tables.as_mut_slice() else { unreachable!("four tables") };
            grid.each_block(part, |bins| {
                let (groups, rest) = bins.as_chunks::<4>();
                for &[i, j, k, l] in groups {
                    // The masks do nothing but spare the bounds checks.
                    a[usize::from(i) & (BINS - 1)] += 1;
                    b[usize::from(j) & (BINS - 1)] += 1;
                    c[usize::from(k) & (BINS - 1)] += 1;
                    d[usize::from(l) & (BINS - 1)] += 1;
                }
                rest.iter().for_each(|&bin| a[usize::from(bin) & (BINS - 1)] += 1);
            });
            for table in &tables {
                counts.iter_mut().zip(table).for_each(|(sum, &n)| *sum += u64::from(n));
            }
        }
    }

    /// Takes in what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        self.cover(other.range());
        let mut other = other.clone();
        other.cover(self.range());
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
    }
}

/// Where a number's bin is.
struct Grid {
    inverse: f32,
    first: i32,
}

impl Grid {
    /// Calls `take` with the bins of a block of values after the other.
    fn each_block(&self, values: &[f32], mut take: impl FnMut(&[u16])) {
        const BLOCK: usize = 1024;
        let mut bins = [0u16; BLOCK];
        for block in values.chunks(BLOCK) {
            for (bin, &v) in bins.iter_mut().zip(block) {
                let y = v * self.inverse; // exact: a power of two
                let rounded = y + ROUND;
                let nearest = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
                let floor = nearest - i32::from(rounded - ROUND > y);
                *bin = floor.wrapping_sub(self.first) as u16;
            }
            take(&bins[..block.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[f32]) -> Histogram {
        let mut h = Histogram::default();
        add(&mut h, values);
        h
    }

    fn add(h: &mut Histogram, values: &[f32]) {
        let lo = values.iter().copied().fold(f32::INFINITY, f32::min);
        let hi = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !values.is_empty() {
            h.update(values, Range::new(lo, hi));
        }
    }

    fn check(h: &Histogram, values: &[f32]) {
        let (left, counts) = h.bins();
        let mut want = vec![0u64; counts.len()];
        for &v in values {
            want[((f64::from(v) / h.width()).floor() - left / h.width()) as usize] += 1;
        }
        assert!(counts == want);
        assert_eq!(h.counts.iter().sum::<u64>() as usize, values.len());
    }

    #[test]
    fn counts_are_right_and_fine() {
        let wave: Vec<f32> = (0..100_000).map(|i| (i as f32).sin() * (i as f32 * 0.37).cos() * 3.0).collect();
        check(&of(&wave), &wave);
        check(&of(&wave[..1000]), &wave[..1000]);
        let positive: Vec<f32> = wave.iter().map(|v| v.max(0.0)).collect();
        let h = of(&positive);
        check(&h, &positive);
        assert!(h.bins().1.len() > BINS / 2);
        for v in [[0.0, 0.0], [1e-44, -1e-44], [f32::MAX, -f32::MAX], [f32::MIN_POSITIVE, 3.0], [-1.0, -8192.0]] {
            check(&of(&v), &v);
        }
    }

    proptest! {
        #[test]
        fn order_does_not_matter(mut parts in prop::collection::vec((prop::collection::vec(-1f32..1.0, 1..20), -30i32..30), 1..6)) {
            let parts: Vec<Vec<f32>> = parts.drain(..).map(|(v, e)| v.iter().map(|x| x * 2f32.powi(e)).collect()).collect();
            let all = parts.concat();
            let whole = of(&all);
            check(&whole, &all);
            let mut backwards = Histogram::default();
            parts.iter().rev().for_each(|p| add(&mut backwards, p));
            prop_assert!(whole == backwards);
            let mut merged = Histogram::default();
            parts.iter().for_each(|p| merged.merge(&of(p)));
            prop_assert!(whole == merged);
        }
    }
}
