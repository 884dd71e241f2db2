//! The numbers that a quantizer lets through: those of a scale and a zero point, between two codes.
//!
//! Quantizers of training often use fewer codes than their type has (7 bits of uint8, 4 bits). Rounding to codes never changes
//! the order of numbers, so a clamp in front of a quantizer, or behind it, is the same as narrower bounds of its codes; and codes
//! that are all shifted by one number, with their zero point, stand for the same numbers.

use super::{
    arith::Quantizer,
    params::{QParams, Range, type_range},
};
use crate::{
    error::{Error, Result},
    ir::DType,
};

/// Scale and zero point, and the least and greatest code that is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// What codes stand for.
    pub params: QParams,
    /// The least code, at most the greatest.
    pub low: i32,
    /// The greatest code.
    pub high: i32,
}

impl Grid {
    /// All codes of the type.
    pub fn of(params: QParams) -> Result<Self> {
        let (low, high) = type_range(params.dtype)?;
        Ok(Self { params, low, high })
    }

    /// The codes of the type from `low` to `high`.
    ///
    /// Errors: there are none, or the scale is no positive number.
    pub fn between(params: QParams, low: i32, high: i32) -> Result<Self> {
        let all = Self::of(params)?;
        let (low, high) = (low.max(all.low), high.min(all.high));
        if low > high {
            return Err(Error::malformed(format!("a quantizer's greatest code is {high}, its least one {low}")));
        }
        if !(params.scale.is_finite() && params.scale > 0.0) {
            return Err(Error::malformed(format!("a quantizer's scale is {}, it must be above 0", params.scale)));
        }
        Ok(Self { low, high, ..all })
    }

    /// The least and greatest number.
    pub fn range(&self) -> Range {
        let codes = Quantizer::within(self.params, (self.low, self.high));
        Range::new(codes.real(self.low), codes.real(self.high))
    }

    /// How many codes there are.
    pub fn codes(&self) -> i64 {
        i64::from(self.high) - i64::from(self.low) + 1
    }

    /// What is let through with a clamp to `lo` and `hi` in front of the quantizer.
    #[must_use]
    pub fn clamped(self, lo: f32, hi: f32) -> Self {
        let codes = Quantizer::within(self.params, (self.low, self.high));
        Self { low: codes.code(lo), high: codes.code(hi), ..self }
    }

    /// The same numbers as uint8, their least one as code 0; `None` where 0.0 would have no code or there are more than 256.
    pub fn as_uint8(self) -> Option<Self> {
        let zero_point = self.params.zero_point - self.low;
        let fits = self.codes() <= 256 && (0..=255).contains(&zero_point);
        let params = QParams { zero_point, dtype: DType::Uint8, ..self.params };
        fits.then_some(Self { params, low: 0, high: self.high - self.low })
    }

    /// The same numbers as codes of the type that kernels compute with, where that is uint8 and holds them.
    #[must_use]
    pub fn in_codes_of(self, activation: DType) -> Self {
        self.as_uint8().filter(|_| activation == DType::Uint8).unwrap_or(self)
    }

    /// The bounds of the codes where they are not those of the type.
    pub fn clip(&self) -> Option<[i32; 2]> {
        let (low, high) = type_range(self.params.dtype).ok()?;
        (self.low > low || self.high < high).then_some([self.low, self.high])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(scale: f32, zero_point: i32, dtype: DType) -> QParams {
        QParams { scale, zero_point, dtype }
    }

    #[test]
    fn clamps_become_bounds_of_codes() {
        let grid = Grid::of(params(0.5, 0, DType::Int8)).unwrap();
        let relu = grid.clamped(0.0, f32::INFINITY);
        assert_eq!((relu.low, relu.high, relu.clip()), (0, 127, Some([0, 127])));
        let shifted = relu.as_uint8().unwrap();
        assert_eq!((shifted.params.zero_point, shifted.low, shifted.high), (0, 0, 127));
        assert_eq!((shifted.clip(), shifted.range()), (Some([0, 127]), relu.range()));
        // The bound is where the quantizer puts it.
        let six = Grid::of(params(0.04, 0, DType::Uint8)).unwrap().clamped(0.0, 6.0);
        assert_eq!((six.low, six.high), (0, 150));
    }

    #[test]
    fn codes_of_int8_as_uint8() {
        let all = Grid::of(params(0.1, 3, DType::Int8)).unwrap().as_uint8().unwrap();
        assert_eq!((all.params.zero_point, all.high, all.clip()), (131, 255, None));
        // -127 to 127.
        let narrow = Grid::between(params(0.1, 0, DType::Int8), -127, 127).unwrap().as_uint8().unwrap();
        assert_eq!((narrow.params.zero_point, narrow.high, narrow.clip()), (127, 254, Some([0, 254])));
        // 0.0 lies outside.
        assert!(Grid::between(params(0.1, 0, DType::Int8), 5, 100).unwrap().as_uint8().is_none());
        assert!(Grid::of(params(0.1, 0, DType::Int16)).unwrap().as_uint8().is_none());
    }

    #[test]
    fn impossible_grids() {
        assert!(Grid::between(params(0.1, 0, DType::Int8), 5, 4).is_err());
        assert!(Grid::between(params(-0.1, 0, DType::Int8), 0, 4).is_err());
        assert!(Grid::of(params(0.1, 0, DType::Float)).is_err());
    }
}
