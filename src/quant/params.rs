//! Scale and zero point from a range of real numbers, as ONNX Runtime's tools compute them.

use serde::{Deserialize, Serialize};

use super::float8::Float8;
use crate::{
    error::{Error, Result},
    ir::DType,
};

/// An interval of real numbers, in the units of the value that it describes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// The least value.
    pub lo: f32,
    /// The greatest value.
    pub hi: f32,
}

impl Range {
    /// The interval from `lo` to `hi`.
    pub fn new(lo: f32, hi: f32) -> Self {
        Self { lo, hi }
    }

    /// The least interval that holds both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi) }
    }

    /// The least interval that holds this one and 0, which every integer form must represent exactly (padding, ReLU).
    #[must_use]
    pub fn with_zero(self) -> Self {
        Self { lo: self.lo.min(0.0), hi: self.hi.max(0.0) }
    }

    /// The interval that holds this one, 0, and is its own mirror image.
    #[must_use]
    pub fn mirrored(self) -> Self {
        let a = self.lo.abs().max(self.hi.abs());
        Self { lo: -a, hi: a }
    }

    /// Whether both ends are numbers and in order.
    pub fn is_valid(self) -> bool {
        self.lo.is_finite() && self.hi.is_finite() && self.lo <= self.hi
    }
}

/// What a value is to be quantized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuantTarget {
    /// An integer type of 2, 4, 8 or 16 bits, or a float type of 8 bits, whose zero is always its 0.
    pub dtype: DType,
    /// The range mirrored around 0 (signed types then have zero point 0).
    pub symmetric: bool,
    /// Half the codes only, for kernels that add pairs of products in 16 bits and would saturate.
    pub reduce_range: bool,
}

impl QuantTarget {
    /// Activations by default: uint8, asymmetric.
    pub const ACTIVATION: Self = Self { dtype: DType::Uint8, symmetric: false, reduce_range: false };
    /// Weights by default: int8, symmetric, codes -127 to 127.
    pub const WEIGHT: Self = Self { dtype: DType::Int8, symmetric: true, reduce_range: false };

    /// The parameters for a range.
    pub fn params(self, range: Range) -> Result<QParams> {
        QParams::from_range(range, self.dtype, self.symmetric, self.reduce_range)
    }

    /// The least and greatest code that parameters are computed for; see [`code_range`].
    pub fn codes(self) -> Result<(i32, i32)> {
        code_range(self.dtype, self.symmetric, self.reduce_range)
    }
}

/// Least and greatest code of a type, to which `QuantizeLinear` saturates.
pub fn type_range(dtype: DType) -> Result<(i32, i32)> {
    Ok(match dtype {
        DType::Int8 => (-128, 127),
        DType::Uint8 => (0, 255),
        DType::Int16 => (-32768, 32767),
        DType::Uint16 => (0, 65535),
        DType::Int4 => (-8, 7),
        DType::Uint4 => (0, 15),
        DType::Int2 => (-2, 1),
        DType::Uint2 => (0, 3),
        other => {
            return Err(Error::config(format!("cannot quantize to {other}"))
                .help("use one of int8, uint8, int16, uint16, int4, uint4, int2, uint2"));
        }
    })
}

/// Least and greatest code that a range is spread over. `reduce_range` wins over `symmetric`; 2 bit types have no
/// reduced form, and only int8 and int16 leave out their least code when symmetric.
pub fn code_range(dtype: DType, symmetric: bool, reduce_range: bool) -> Result<(i32, i32)> {
    let full = type_range(dtype)?;
    Ok(match (dtype, reduce_range) {
        (DType::Int8, true) => (-64, 64),
        (DType::Uint8, true) => (0, 127),
        (DType::Int16, true) => (-16384, 16384),
        (DType::Uint16, true) => (0, 32767),
        (DType::Int4, true) => (-4, 3),
        (DType::Uint4, true) => (0, 7),
        (DType::Int8 | DType::Int16, false) if symmetric => (full.0 + 1, full.1),
        _ => full,
    })
}

/// Affine quantization of one tensor or channel: `real = scale * (code - zero_point)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QParams {
    /// Distance of two neighbouring codes; positive and normal.
    pub scale: f32,
    /// The code of 0.
    pub zero_point: i32,
    /// The type of the codes.
    pub dtype: DType,
}

impl QParams {
    /// The parameters whose uint8 codes stand for the same numbers as these int8 codes.
    pub fn as_uint8(self) -> Self {
        Self { zero_point: self.zero_point + 128, dtype: DType::Uint8, ..self }
    }

    /// The parameters that spread `range` over the codes of `dtype`.
    ///
    /// The range is widened to hold 0; all is computed in 64 bits and the scale rounded at the end; the zero point is
    /// rounded half to even. A range too narrow for a normal scale gives scale 1 and zero point 0, which maps its
    /// values to exact 0. Of floats of 8 bits the greatest number stands for the end that is farther from 0. Errors: the type
    /// is none of them and no integer type of up to 16 bits, or the range is not finite and in order.
    pub fn from_range(range: Range, dtype: DType, symmetric: bool, reduce_range: bool) -> Result<Self> {
        if !range.is_valid() {
            return Err(Error::data(format!("cannot quantize over the range from {} to {}", range.lo, range.hi)));
        }
        if let Some(float) = Float8::of(dtype) {
            return Ok(Self { scale: float.scale(range.mirrored().hi), zero_point: 0, dtype });
        }
        let (qmin, qmax) = code_range(dtype, symmetric, reduce_range)?;
        let range = if symmetric { range.mirrored() } else { range.with_zero() };
        let (lo, hi) = (f64::from(range.lo), f64::from(range.hi));
        let scale = (hi - lo) / f64::from(qmax - qmin);
        if scale < f64::from(f32::MIN_POSITIVE) {
            return Ok(Self { scale: 1.0, zero_point: 0, dtype });
        }
        let zero_point = if symmetric { f64::from(qmin + qmax) / 2.0 } else { f64::from(qmin) - lo / scale };
        Ok(Self { scale: scale as f32, zero_point: zero_point.round_ties_even() as i32, dtype })
    }

    /// The real numbers that the codes of the whole type stand for, least and greatest.
    pub fn representable(&self) -> Result<Range> {
        if let Some(float) = Float8::of(self.dtype) {
            let most = self.scale * float.largest();
            return Ok(Range::new(-most, most));
        }
        let (qmin, qmax) = type_range(self.dtype)?;
        let real = |code: i32| self.scale * (code - self.zero_point) as f32;
        Ok(Range::new(real(qmin), real(qmax)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(lo: f32, hi: f32, dtype: DType, symmetric: bool, reduce: bool) -> (f32, i32) {
        let p = QParams::from_range(Range::new(lo, hi), dtype, symmetric, reduce).unwrap();
        (p.scale, p.zero_point)
    }

    #[test]
    fn asymmetric_ranges_hold_zero() {
        assert_eq!(params(2.0, 5.1, DType::Uint8, false, false), (0.02, 0));
        assert_eq!(params(-5.1, -2.0, DType::Uint8, false, false), (0.02, 255));
        assert_eq!(params(-1.0, 1.0, DType::Uint8, false, false), ((2.0 / 255.0) as f32, 128)); // 127.5 to even
        assert_eq!(params(-1.0, 1.0, DType::Int8, false, false), ((2.0 / 255.0) as f32, 0)); // -0.5 to even
    }

    #[test]
    fn symmetric_zero_points() {
        use DType::*;
        let zero_point = |d, reduce| params(-3.0, 1.0, d, true, reduce).1;
        for (d, full, reduced) in [
            (Int8, 0, 0),
            (Uint8, 128, 64),
            (Int16, 0, 0),
            (Uint16, 32768, 16384),
            (Int4, 0, 0),
            (Uint4, 8, 4),
            (Int2, 0, 0),
            (Uint2, 2, 2),
        ] {
            assert_eq!((zero_point(d, false), zero_point(d, true)), (full, reduced), "{d}");
        }
    }

    #[test]
    fn reduce_range_wins_over_symmetric() {
        assert_eq!(params(-1.28, 1.28, DType::Int8, true, true), (0.02, 0));
        assert_eq!(params(-1.27, 1.27, DType::Int8, true, false), (0.01, 0));
        assert_eq!(params(0.0, 12.7, DType::Uint8, false, true), (0.1, 0));
    }

    #[test]
    fn tiny_ranges_give_scale_one() {
        assert_eq!(params(0.0, 0.0, DType::Uint8, false, false), (1.0, 0));
        assert_eq!(params(-1e-38, 1e-38, DType::Uint8, true, false), (1.0, 0));
        assert_eq!(params(-f32::MAX, f32::MAX, DType::Uint2, false, false).1, 2); // no overflow
    }

    #[test]
    fn refuses_what_it_cannot_do() {
        let target = |dtype| QuantTarget { dtype, symmetric: false, reduce_range: false };
        assert!(target(DType::Float).params(Range::new(0.0, 1.0)).is_err());
        assert!(target(DType::Int8).params(Range::new(0.0, f32::INFINITY)).is_err());
        assert!(target(DType::Int8).params(Range::new(f32::NAN, 1.0)).is_err());
        assert!(target(DType::Int8).params(Range::new(1.0, 0.0)).is_err());
    }
}
