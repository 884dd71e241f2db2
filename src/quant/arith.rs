//! `QuantizeLinear` and `DequantizeLinear` on numbers, bit for bit as ONNX Runtime's CPU kernels compute them.
//!
//! A quotient is never replaced by a product with the reciprocal: that is one code off on some half-way points.

use super::params::{QParams, type_range};
use crate::error::Result;

/// Adding and subtracting this rounds an `f32` of magnitude up to 2^22 to an integer, half to even. Unlike
/// `round_ties_even` it needs no instruction beyond those of every x86-64, so loops over it vectorize.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// Parameters with the bounds at hand: the form in which loops use them.
#[derive(Debug, Clone, Copy)]
pub struct Quantizer {
    scale: f32,
    zero_point: i32,
    // Bounds before the zero point is added. At most 2^17 in magnitude, so exact in f32.
    lo: f32,
    hi: f32,
}

impl Quantizer {
    /// Saturates to the codes of the whole type, as `QuantizeLinear` does.
    pub fn new(params: QParams) -> Result<Self> {
        Ok(Self::within(params, type_range(params.dtype)?))
    }

    /// Saturates to the given codes, for weights that leave some out.
    pub fn within(params: QParams, (qmin, qmax): (i32, i32)) -> Self {
        let QParams { scale, zero_point, .. } = params;
        Self { scale, zero_point, lo: (qmin - zero_point) as f32, hi: (qmax - zero_point) as f32 }
    }

    /// The distance from the zero point of the code that `x` gets. NaN gets 0.
    #[inline]
    fn steps(&self, x: f32) -> f32 {
        // The bounds are integers, so it is the same to clamp before as after rounding.
        let y = x / self.scale;
        let y = if y.is_nan() { 0.0 } else { y };
        (y.max(self.lo).min(self.hi) + ROUND) - ROUND
    }

    /// The code of `x`: `saturate(round(x / scale) + zero_point)`.
    #[inline]
    pub fn code(&self, x: f32) -> i32 {
        self.steps(x) as i32 + self.zero_point
    }

    /// The real number that a code stands for.
    #[inline]
    pub fn real(&self, code: i32) -> f32 {
        (code - self.zero_point) as f32 * self.scale
    }

    /// What is left of `x` after quantizing and dequantizing it.
    #[inline]
    pub fn round_trip(&self, x: f32) -> f32 {
        self.steps(x) * self.scale
    }
}

/// The code of one number.
pub fn quantize_one(x: f32, params: QParams) -> Result<i32> {
    Ok(Quantizer::new(params)?.code(x))
}

/// The codes of many numbers.
pub fn quantize_slice(x: &[f32], params: QParams) -> Result<Vec<i32>> {
    let q = Quantizer::new(params)?;
    Ok(x.iter().map(|&x| q.code(x)).collect())
}

/// The real number of one code.
pub fn dequantize_one(code: i32, params: QParams) -> f32 {
    (code - params.zero_point) as f32 * params.scale
}

/// The real numbers of many codes.
pub fn dequantize_slice(codes: &[i32], params: QParams) -> Vec<f32> {
    codes.iter().map(|&c| dequantize_one(c, params)).collect()
}

/// The code under `to` of the real number that `code` stands for under `from` (DequantizeLinear, then QuantizeLinear).
pub fn requantize(code: i32, from: QParams, to: QParams) -> Result<i32> {
    quantize_one(dequantize_one(code, from), to)
}

/// The sum of the products of two slices of one length, in eight sums side by side, which the compiler turns into vector
/// instructions.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ir::DType, quant::params::Range};

    fn any_dtype() -> impl Strategy<Value = DType> {
        use DType::*;
        prop::sample::select(vec![Int8, Uint8, Int16, Uint16, Int4, Uint4, Int2, Uint2])
    }

    prop_compose! {
        fn any_params()(a in -1e4f32..1e4, b in -1e4f32..1e4, shrink in -20i32..5, dtype in any_dtype(),
                        symmetric: bool, reduce: bool) -> (QParams, Range) {
            let s = 2f32.powi(shrink);
            let range = Range::new(a.min(b) * s, a.max(b) * s);
            (QParams::from_range(range, dtype, symmetric, reduce).unwrap(), range)
        }
    }

    /// The definition, in plain words of the standard.
    fn reference(x: f32, p: QParams) -> i32 {
        let (qmin, qmax) = type_range(p.dtype).unwrap();
        let y = f64::from((x / p.scale).round_ties_even()) + f64::from(p.zero_point);
        y.clamp(f64::from(qmin), f64::from(qmax)) as i32
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition((p, _) in any_params(), x in prop::num::f32::ANY) {
            prop_assume!(!x.is_nan());
            prop_assert_eq!(quantize_one(x, p).unwrap(), reference(x, p));
        }

        #[test]
        fn halfway_points_go_to_even((p, _) in any_params(), k in -300i32..300) {
            let p = QParams { scale: 2f32.powi(p.scale.log2() as i32), ..p }; // so that k + 0.5 is exact
            let x = (k as f32 + 0.5) * p.scale;
            prop_assert_eq!(quantize_one(x, p).unwrap(), reference(x, p));
        }

        #[test]
        fn codes_survive_a_round_trip((p, _) in any_params(), at in 0.0f64..1.0) {
            let (qmin, qmax) = type_range(p.dtype).unwrap();
            let code = qmin + (at * f64::from(qmax - qmin)) as i32;
            prop_assert_eq!(quantize_one(dequantize_one(code, p), p).unwrap(), code);
            prop_assert_eq!(requantize(code, p, p).unwrap(), code);
        }

        #[test]
        fn error_is_at_most_half_a_step((p, range) in any_params(), at in 0.0f32..=1.0) {
            let x = range.lo + (range.hi - range.lo) * at;
            let q = Quantizer::new(p).unwrap();
            let e = (q.round_trip(x) - x).abs();
            // Half a step inside; the zero point's own rounding, and int4's and int2's asymmetry, move the ends by
            // up to half a step more.
            prop_assert!(e <= p.scale * 1.0001 + x.abs() * 1e-6, "{x} {p:?} {e}");
            let r = p.representable().unwrap();
            if x >= r.lo && x <= r.hi {
                prop_assert!(e <= p.scale * 0.5001 + x.abs() * 1e-6, "{x} {p:?} {e}");
            }
        }

        #[test]
        fn zero_is_exact((p, _) in any_params()) {
            prop_assert_eq!(quantize_one(0.0, p).unwrap(), p.zero_point);
            prop_assert_eq!(dequantize_one(p.zero_point, p), 0.0);
        }
    }

    #[test]
    fn nan_and_infinities_do_not_wrap() {
        let p = QParams { scale: 0.1, zero_point: 7, dtype: DType::Uint8 };
        assert_eq!(quantize_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY], p).unwrap(), [7, 255, 0]);
    }
}
