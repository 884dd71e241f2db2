//! What quantization costs: the squared error that parameters cause, on data or on a histogram of it.

use super::{
    arith::Quantizer,
    params::{QParams, type_range},
};
use crate::error::Result;

/// Sum of squared differences between `values` and what is left of them. NaN and infinities are left out.
pub fn squared_error(values: &[f32], params: QParams) -> Result<f64> {
    let q = Quantizer::new(params)?;
    let part = |chunk: &[f32]| -> f32 {
        let one = |&x: &f32| if x.is_finite() { (q.round_trip(x) - x).powi(2) } else { 0.0 };
        chunk.iter().map(one).sum()
    };
    // Short f32 sums that vectorize, added up in f64.
    Ok(values.chunks(256).map(|c| f64::from(part(c))).sum())
}

/// Mean of squared differences between `values` and what is left of them.
pub fn mse(values: &[f32], params: QParams) -> Result<f64> {
    let n = values.iter().filter(|v| v.is_finite()).count().max(1);
    Ok(squared_error(values, params)? / n as f64)
}

/// Signal to quantization noise in dB: `10 log10(sum x² / sum (x - x')²)`; infinite where nothing is lost.
pub fn sqnr_db(signal: f64, noise: f64) -> f64 {
    if noise > 0.0 { 10.0 * (signal / noise).log10() } else { f64::INFINITY }
}

/// Expected squared error of numbers spread evenly over intervals.
///
/// `bins` are `(lo, hi, count)` in any order. Within an interval the error of a uniform variable is integrated exactly:
/// rounding error between the codes and clipping error beyond them, so bins may be narrower or wider than a step.
pub fn expected_error(bins: impl IntoIterator<Item = (f64, f64, u64)>, params: QParams) -> Result<f64> {
    let (qmin, qmax) = type_range(params.dtype)?;
    let e = StepError::new(params, qmin, qmax);
    Ok(bins.into_iter().map(|(lo, hi, count)| count as f64 * e.mean(lo, hi)).sum())
}

/// Adding and subtracting this rounds an `f64` of magnitude up to 2^51 to an integer, half to even; it vectorizes.
const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52

/// Integral of the squared error of uniform quantization, in closed form.
#[derive(Debug, Clone, Copy)]
pub struct StepError {
    scale: f64,
    lo: f64,
    hi: f64,
}

impl StepError {
    /// The error under `params`, saturating to the codes from `qmin` to `qmax`.
    pub fn new(params: QParams, qmin: i32, qmax: i32) -> Self {
        let at = |code: i32| f64::from(code - params.zero_point);
        Self { scale: f64::from(params.scale), lo: at(qmin), hi: at(qmax) }
    }

    /// Integral from 0 to `u`, which is in steps, of the squared error in steps squared.
    #[inline]
    pub fn integral(&self, u: f64) -> f64 {
        // Beyond the last code the error grows from 0 again; before it each step adds 1/12.
        let c = u.max(self.lo).min(self.hi);
        let n = (c + ROUND) - ROUND;
        let (inner, outer) = (c - n, u - c);
        n / 12.0 + (inner * inner * inner + outer * outer * outer) / 3.0
    }

    /// The scale: real numbers per step.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Mean squared error of a variable spread evenly from `lo` to `hi`; of the point where they are equal.
    pub fn mean(&self, lo: f64, hi: f64) -> f64 {
        let (a, b) = (lo / self.scale, hi / self.scale);
        let steps = if b - a > 1e-6 * (1.0 + a.abs()) {
            (self.integral(b) - self.integral(a)) / (b - a)
        } else {
            let mid = (a + b) / 2.0;
            (mid.clamp(self.lo, self.hi).round_ties_even() - mid).powi(2)
        };
        steps.max(0.0) * self.scale * self.scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ir::DType, quant::params::Range};

    #[test]
    fn closed_form_agrees_with_many_points() {
        for (lo, hi, symmetric) in [(-1.0, 3.0, false), (0.0, 2.0, false), (-2.0, 0.5, true)] {
            let p = QParams::from_range(Range::new(lo, hi), DType::Uint8, symmetric, false).unwrap();
            for (a, b) in [(-4.0, 4.0), (0.1, 0.11), (1.9, 7.0), (-0.3, 0.2), (0.5, 0.503)] {
                let points: Vec<f32> =
                    (0..200_000).map(|i| (a + (b - a) * (f64::from(i) + 0.5) / 200_000.0) as f32).collect();
                let (want, got) = (mse(&points, p).unwrap(), expected_error([(a, b, 1)], p).unwrap());
                assert!((want - got).abs() <= 2e-3 * want + 1e-9, "{lo} {hi} {a} {b}: {want} {got}");
            }
        }
    }

    #[test]
    fn points_and_exact_values() {
        let p = QParams { scale: 0.5, zero_point: 10, dtype: DType::Uint8 };
        assert_eq!(expected_error([(1.0, 1.0, 5)], p).unwrap(), 0.0);
        assert_eq!(expected_error([(1.125, 1.125, 4)], p).unwrap(), 4.0 * 0.125 * 0.125);
        assert_eq!(mse(&[1.125, f32::NAN, f32::INFINITY], p).unwrap(), 0.125 * 0.125);
        assert_eq!(sqnr_db(1.0, 0.0), f64::INFINITY);
        assert!((sqnr_db(100.0, 1.0) - 20.0).abs() < 1e-12);
    }
}
