//! Numbers as floats of 8 bits: the four types of ONNX, with the rounding of QuantizeLinear.
//!
//! Each is a sign, an exponent and two or three bits of mantissa; the types differ in where the exponent begins and in which
//! codes are no numbers. The types whose name ends in `FNUZ` have one zero and one NaN, which is the code that -0 would have.
//! Rounding is to the nearest number, half to even. What is greater than the greatest number becomes that (`saturate`), or
//! else infinity where the type has it and NaN where it has not.

use crate::{
    error::{Error, Result},
    ir::DType,
};

/// One of the types.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Float8 {
    /// Bits of the mantissa.
    mantissa: u32,
    /// What the exponent's bits are more than the exponent.
    bias: i32,
    /// The greatest finite number.
    largest: f32,
    /// The code of infinity; `None` where there is none.
    infinity: Option<u8>,
    /// The code of NaN.
    nan: u8,
    /// Whether there is a code for -0, and signs of NaN and infinity.
    signed_zero: bool,
}

const E4M3FN: Float8 = Float8 { mantissa: 3, bias: 7, largest: 448.0, infinity: None, nan: 0x7f, signed_zero: true };
const E4M3FNUZ: Float8 = Float8 { mantissa: 3, bias: 8, largest: 240.0, infinity: None, nan: 0x80, signed_zero: false };
const E5M2: Float8 =
    Float8 { mantissa: 2, bias: 15, largest: 57344.0, infinity: Some(0x7c), nan: 0x7f, signed_zero: true };
const E5M2FNUZ: Float8 =
    Float8 { mantissa: 2, bias: 16, largest: 57344.0, infinity: None, nan: 0x80, signed_zero: false };

/// A power of two.
fn power(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127).clamp(1, 254) as u32) << 23)
}

impl Float8 {
    /// The types.
    pub const TYPES: [DType; 4] =
        [DType::Float8E4M3FN, DType::Float8E5M2, DType::Float8E4M3FNUZ, DType::Float8E5M2FNUZ];

    /// What a type is like; `None` where it is none of them.
    pub fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::Float8E4M3FN => Some(E4M3FN),
            DType::Float8E4M3FNUZ => Some(E4M3FNUZ),
            DType::Float8E5M2 => Some(E5M2),
            DType::Float8E5M2FNUZ => Some(E5M2FNUZ),
            _ => None,
        }
    }

    /// The same, where it must be one of them.
    pub fn needed(dtype: DType) -> Result<Self> {
        Self::of(dtype).ok_or_else(|| Error::bug(format!("{dtype} is no float of 8 bits")))
    }

    /// The greatest finite number.
    pub fn largest(&self) -> f32 {
        self.largest
    }

    /// The least number whose neighbours are as far off as its size makes them; those below have the same distance.
    fn least_normal(&self) -> f32 {
        power(1 - self.bias)
    }

    /// The nearest number of the type, saturating. NaN stays.
    #[inline]
    pub fn rounded(&self, x: f32) -> f32 {
        let size = x.abs();
        let size = if size > self.largest { self.largest } else { size };
        let near = self.nearest(size);
        if near == 0.0 && !self.signed_zero { 0.0 } else { near.copysign(x) }
    }

    /// The nearest number to a size that is NaN or at most twice the greatest number; the next power of two is one, too, here.
    #[inline]
    fn nearest(&self, size: f32) -> f32 {
        // Added to one and a half of the power of two whose steps are those of the type at this size, a float of 32 bits is
        // rounded to these steps, half to even.
        let floor = f32::from_bits(size.to_bits() & 0x7f80_0000).max(self.least_normal());
        let pivot = floor * (1.5 * power(23 - self.mantissa as i32));
        (size + pivot) - pivot
    }

    /// The code of the nearest number.
    #[inline]
    pub fn code(&self, x: f32, saturate: bool) -> u8 {
        let size = x.abs();
        let bounded = if size > 2.0 * self.largest { 2.0 * self.largest } else { size };
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        let near = self.nearest(bounded);
        let magnitude = if near.is_nan() {
            self.nan
        } else if near <= self.largest {
            self.magnitude(near)
        } else if saturate {
            self.magnitude(self.largest)
        } else {
            self.infinity.unwrap_or(self.nan)
        };
        match self.signed_zero {
            true => magnitude | sign,
            false if magnitude == 0 || magnitude == self.nan => magnitude,
            false => magnitude | sign,
        }
    }

    /// The code of a number that the type has and that is not negative.
    fn magnitude(&self, x: f32) -> u8 {
        if x < self.least_normal() {
            return (x * power(self.bias - 1) * power(self.mantissa as i32)) as u8;
        }
        let exponent = (x.to_bits() >> 23) as i32 - 127 + self.bias;
        let mantissa = x.to_bits() >> (23 - self.mantissa) & ((1 << self.mantissa) - 1);
        (exponent as u32) as u8 * (1 << self.mantissa) + mantissa as u8
    }

    /// The number that a code stands for.
    pub fn number(&self, code: u8) -> f32 {
        let (size, sign) = (code & 0x7f, if code & 0x80 != 0 { -1.0 } else { 1.0 });
        if !self.signed_zero && code == self.nan {
            return f32::NAN;
        }
        let exponent = i32::from(size >> self.mantissa);
        let mantissa = f32::from(size & ((1 << self.mantissa) - 1)) / power(self.mantissa as i32);
        let number = match exponent {
            0 => mantissa * self.least_normal(),
            e => (1.0 + mantissa) * power(e - self.bias),
        };
        if number <= self.largest {
            return sign * number;
        }
        if self.infinity == Some(size) { sign * f32::INFINITY } else { f32::NAN.copysign(sign) }
    }

    /// The numbers of all codes.
    pub fn numbers(&self) -> [f32; 256] {
        std::array::from_fn(|code| self.number(code as u8))
    }

    /// The scale that spreads numbers up to this size over the type; 1 where there is none.
    pub fn scale(&self, size: f32) -> f32 {
        let scale = f64::from(size.abs()) / f64::from(self.largest);
        if scale < f64::from(f32::MIN_POSITIVE) { 1.0 } else { scale as f32 }
    }

    /// The codes of numbers that share a scale, saturating.
    pub fn quantize(&self, x: &[f32], codes: &mut [u8], scale: f32, saturate: bool) {
        codes.iter_mut().zip(x).for_each(|(code, x)| *code = self.code(x / scale, saturate));
    }

    /// Integral from 0 to `u` of the squared error of rounding, in squares of a number of the type.
    pub fn error_integral(&self, u: f64) -> f64 {
        let size = u.abs();
        let (largest, least) = (f64::from(self.largest), f64::from(self.least_normal()));
        let steps = f64::from(1u32 << self.mantissa);
        let inner = size.min(largest);
        // Below the least normal number there are as many steps as in each power of two above.
        let floor = if inner < least { 0.0 } else { f64::from_bits(inner.to_bits() & 0x7ff0_0000_0000_0000) };
        let step = floor.max(least) / steps;
        // Steps of all powers of two below, each step's cube over 12; from one power to the next, eight times as much.
        let all_below = if floor == 0.0 {
            0.0
        } else {
            let first = steps * (least / steps).powi(3) / 12.0;
            let powers = (floor / least).log2().round() as i32;
            first + first * (8f64.powi(powers) - 1.0) / 7.0
        };
        let whole = ((inner - floor) / step).floor();
        let rest = inner - floor - whole * step;
        let partly = if rest <= step / 2.0 { rest.powi(3) } else { step.powi(3) / 4.0 - (step - rest).powi(3) } / 3.0;
        let sum = all_below + whole * step.powi(3) / 12.0 + partly + (size - inner).powi(3) / 3.0;
        if u < 0.0 { -sum } else { sum }
    }

    /// Mean squared error of a variable spread evenly from `lo` to `hi`, both in numbers of the type; of the point where they
    /// are equal.
    pub fn error_mean(&self, lo: f64, hi: f64) -> f64 {
        if hi - lo > 1e-6 * (f64::from(self.least_normal()) + lo.abs()) {
            return ((self.error_integral(hi) - self.error_integral(lo)) / (hi - lo)).max(0.0);
        }
        let mid = (lo + hi) / 2.0;
        (f64::from(self.rounded(mid as f32)) - mid).powi(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = (DType, Float8)> {
        Float8::TYPES.into_iter().map(|d| (d, Float8::of(d).unwrap()))
    }

    /// The nearest finite number by looking at all of them; of two, the one with the even code.
    fn by_search(f: &Float8, x: f32) -> f32 {
        let finite = (0..=0x7fu8).map(|c| (c, f.number(c))).filter(|(_, n)| n.is_finite());
        let size = f64::from(x.abs().min(2.0 * f.largest()));
        let off = |n: f32| (f64::from(n) - size).abs();
        let best = finite.reduce(|a, b| {
            let nearer = off(b.1) < off(a.1) || off(b.1) == off(a.1) && b.0 % 2 == 0;
            if nearer { b } else { a }
        });
        let best = best.unwrap().1;
        if best == 0.0 && !f.signed_zero { 0.0 } else { best.copysign(x) }
    }

    #[test]
    fn every_code_comes_back() {
        for (dtype, f) in all() {
            let (mut nan, mut infinite) = (0, 0);
            for code in 0..=255u8 {
                let x = f.number(code);
                nan += usize::from(x.is_nan());
                infinite += usize::from(x.is_infinite());
                if x.is_finite() {
                    assert_eq!(f.code(x, true), code, "{dtype} {code:#x} {x}");
                    assert_eq!(f.rounded(x).to_bits(), x.to_bits(), "{dtype} {code:#x}");
                }
                assert_eq!(f.code(x, false), if x.is_nan() && f.signed_zero { code & 0x80 | 0x7f } else { code });
            }
            let want = match dtype {
                DType::Float8E4M3FN => (2, 0),
                DType::Float8E5M2 => (6, 2),
                _ => (1, 0),
            };
            assert_eq!((nan, infinite), want, "{dtype}");
            let largest = f.numbers().into_iter().filter(|n| n.is_finite()).fold(0.0, f32::max);
            assert_eq!(largest, f.largest(), "{dtype}");
        }
        // As ONNX's documentation has them.
        let number = |d, code| Float8::of(d).unwrap().number(code);
        assert_eq!(number(DType::Float8E4M3FN, 0x01), 2f32.powi(-9));
        assert_eq!(number(DType::Float8E4M3FNUZ, 0x01), 2f32.powi(-10));
        assert_eq!(number(DType::Float8E5M2, 0x01), 2f32.powi(-16));
        assert_eq!(number(DType::Float8E5M2FNUZ, 0x01), 2f32.powi(-17));
        assert_eq!([0x7e, 0xfe, 0x38].map(|c| number(DType::Float8E4M3FN, c)), [448.0, -448.0, 1.0]);
        assert_eq!([0x7f, 0x40].map(|c| number(DType::Float8E4M3FNUZ, c)), [240.0, 1.0]);
        assert_eq!([0x7b, 0x7c, 0x3c].map(|c| number(DType::Float8E5M2, c)), [57344.0, f32::INFINITY, 1.0]);
        assert_eq!([0x7f, 0x40].map(|c| number(DType::Float8E5M2FNUZ, c)), [57344.0, 1.0]);
    }

    #[test]
    fn numbers_between_codes_go_to_the_nearest() {
        for (dtype, f) in all() {
            let mut finite: Vec<f32> =
                f.numbers().into_iter().filter(|n| n.is_finite() && n.is_sign_positive()).collect();
            finite.sort_by(f32::total_cmp);
            let mut tried = Vec::new();
            for pair in finite.windows(2) {
                let mid = (pair[0] + pair[1]) / 2.0;
                let quarter = (pair[0] + mid) / 2.0;
                let next = |x: f32, by: i32| f32::from_bits(x.to_bits().wrapping_add_signed(by));
                tried.extend([mid, next(mid, 1), next(mid, -1), quarter, next(pair[1], 1), next(pair[1], -1)]);
            }
            // Far beyond the type, and far below its least number.
            tried.extend([f.largest() * 1.01, f.largest() * 3.0, f32::MAX, f32::MIN_POSITIVE, 1e-30, 1e-40]);
            for x in tried.iter().flat_map(|&x| [x, -x]) {
                let want = by_search(&f, x);
                assert_eq!(f.rounded(x).to_bits(), want.to_bits(), "{dtype} {x:e}");
                assert_eq!(f.number(f.code(x, true)), want, "{dtype} {x:e}");
            }
        }
    }

    #[test]
    fn what_is_beyond_saturates_or_not() {
        let codes = |d, saturate| {
            let f = Float8::of(d).unwrap();
            let l = f.largest();
            [l * 1.01, l * 1.2, -2.0 * l, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, -0.0]
                .map(|x| f.code(x, saturate))
        };
        let hex = codes(DType::Float8E4M3FN, true);
        assert_eq!(hex, [0x7e, 0x7e, 0xfe, 0x7e, 0xfe, 0x7f, 0xff, 0x80]);
        assert_eq!(codes(DType::Float8E4M3FN, false), [0x7e, 0x7f, 0xff, 0x7f, 0xff, 0x7f, 0xff, 0x80]);
        assert_eq!(codes(DType::Float8E4M3FNUZ, true), [0x7f, 0x7f, 0xff, 0x7f, 0xff, 0x80, 0x80, 0]);
        assert_eq!(codes(DType::Float8E4M3FNUZ, false), [0x7f, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0]);
        assert_eq!(codes(DType::Float8E5M2, true), [0x7b, 0x7b, 0xfb, 0x7b, 0xfb, 0x7f, 0xff, 0x80]);
        assert_eq!(codes(DType::Float8E5M2, false), [0x7b, 0x7c, 0xfc, 0x7c, 0xfc, 0x7f, 0xff, 0x80]);
        assert_eq!(codes(DType::Float8E5M2FNUZ, true), [0x7f, 0x7f, 0xff, 0x7f, 0xff, 0x80, 0x80, 0]);
        assert_eq!(codes(DType::Float8E5M2FNUZ, false), [0x7f, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0]);
        assert_eq!([448.0, 464.0, 464.1].map(|x| E4M3FN.code(x, false)), [0x7e, 0x7e, 0x7f]); // half to even
        assert!(Float8::needed(DType::Int8).is_err());
    }

    #[test]
    fn scales_reach_the_greatest_number() {
        for (_, f) in all() {
            assert_eq!(f.scale(f.largest() * 0.125), 0.125);
            assert_eq!([f.scale(0.0), f.scale(1e-44)], [1.0, 1.0]);
        }
    }

    #[test]
    fn the_integral_of_the_error_is_its_sum() {
        for (dtype, f) in all() {
            let l = f64::from(f.largest());
            let n = f64::from(f.least_normal());
            let spans =
                [(0.0, n), (0.3 * n, 5.7 * n), (-3.0, 2.0), (0.9 * l, 1.3 * l), (-1.1 * l, -0.4 * l), (1.0, 1.01)];
            for (lo, hi) in spans {
                const POINTS: u32 = 100_000;
                let at = |i: u32| lo + (hi - lo) * (f64::from(i) + 0.5) / f64::from(POINTS);
                let off = |x: f64| (f64::from(f.rounded(x as f32)) - x).powi(2);
                let want = (0..POINTS).map(|i| off(at(i))).sum::<f64>() / f64::from(POINTS);
                let got = f.error_mean(lo, hi);
                assert!((got - want).abs() <= 2e-3 * want, "{dtype} {lo} to {hi}: {got:e}, not {want:e}");
            }
            assert_eq!(f.error_mean(l, l), 0.0);
            assert!((f.error_mean(l + 3.0, l + 3.0) - 9.0).abs() < 1e-2);
        }
    }
}
