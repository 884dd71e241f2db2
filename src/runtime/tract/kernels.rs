//! The loops of `QuantizeLinear` and `DequantizeLinear`: what ONNX Runtime's CPU kernels compute, bit for bit.
//!
//! `code = saturate(round_half_to_even(x / scale) + zero_point)`, `x' = (code - zero_point) * scale`, all in `f32`.
//! Clamping to the type's range before rounding is the same, since its ends are whole numbers, and leaves numbers so
//! small that adding and subtracting 1.5·2^23 rounds them half to even: additions and a division, which the compiler
//! turns into vector instructions on any machine. NaN becomes the lowest code, as there.

/// A storage type of codes.
pub(super) trait Code: Copy + Send + Sync {
    /// Lowest code.
    const MIN: i32;
    /// Highest code.
    const MAX: i32;
    /// From a number within the range.
    fn from_i32(code: i32) -> Self;
    /// As a number.
    fn to_i32(self) -> i32;
}

macro_rules! codes {
    ($($t:ty),*) => {$(
        impl Code for $t {
            const MIN: i32 = <$t>::MIN as i32;
            const MAX: i32 = <$t>::MAX as i32;
            fn from_i32(code: i32) -> Self {
                code as Self
            }
            fn to_i32(self) -> i32 {
                i32::from(self)
            }
        }
    )*};
}

codes!(u8, i8, u16, i16, i32);

const ROUND: f32 = 12_582_912.0;

/// Steps from the zero point, rounded and saturated.
#[inline(always)]
fn steps(x: f32, scale: f32, lo: f32, hi: f32) -> f32 {
    let v = x / scale;
    let v = if v > lo { v } else { lo };
    let v = if v < hi { v } else { hi };
    v + ROUND
}

fn bounds<T: Code>(zero_point: i32) -> (f32, f32) {
    (T::MIN.wrapping_sub(zero_point) as f32, T::MAX.wrapping_sub(zero_point) as f32)
}

/// Codes of a run of numbers that share scale and zero point.
pub(super) fn quantize<T: Code>(x: &[f32], y: &mut [T], scale: f32, zero_point: i32) {
    let (lo, hi) = bounds::<T>(zero_point);
    let offset = zero_point.wrapping_sub(ROUND.to_bits() as i32);
    for (y, &x) in y.iter_mut().zip(x) {
        *y = T::from_i32((steps(x, scale, lo, hi).to_bits() as i32).wrapping_add(offset));
    }
}

/// Numbers of a run of codes that share scale and zero point.
pub(super) fn dequantize<T: Code>(x: &[T], y: &mut [f32], scale: f32, zero_point: i32) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x.to_i32().wrapping_sub(zero_point) as f32 * scale;
    }
}

/// Both at once: what `QuantizeLinear` and `DequantizeLinear` with the same parameters make of a number.
pub(super) fn round_trip<T: Code>(x: &[f32], y: &mut [f32], scale: f32, zero_point: i32) {
    let (lo, hi) = bounds::<T>(zero_point);
    for (y, &x) in y.iter_mut().zip(x) {
        *y = (steps(x, scale, lo, hi) - ROUND) * scale;
    }
}

/// Scale and zero point of `DynamicQuantizeLinear`: all numbers and 0 over the codes of uint8.
pub(super) fn dynamic_params(x: &[f32]) -> (f32, u8) {
    let (lo, hi) = x.iter().fold((0.0f32, 0.0f32), |(lo, hi), &v| (lo.min(v), hi.max(v)));
    let scale = if hi == lo { 1.0 } else { (hi - lo) / 255.0 };
    let zero_point = (0.0 - lo / scale).clamp(0.0, 255.0).round_ties_even();
    (scale, zero_point as u8)
}

/// How scales lie over a tensor: `outer × axis × inner`, `block` neighbours along the axis share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Runs {
    axis: usize,
    inner: usize,
    block: usize,
}

impl Runs {
    /// One scale for all (`axis` and `block` are ignored), one for each index along `axis`, or one for each block.
    /// `None` if the scales do not fit the shape.
    pub(super) fn new(shape: &[usize], scale_shape: &[usize], axis: i64, block: usize) -> Option<Self> {
        let count: usize = shape.iter().product();
        let scales: usize = scale_shape.iter().product();
        if block == 0 && scales == 1 {
            return Some(Self { axis: 1, inner: count, block: 1 });
        }
        let axis = usize::try_from(if axis < 0 { axis + shape.len() as i64 } else { axis }).ok()?;
        let dim = *shape.get(axis)?;
        let inner = shape[axis + 1..].iter().product();
        if block == 0 {
            return (scales == dim).then_some(Self { axis: dim, inner, block: 1 });
        }
        let mut want = shape.to_vec();
        want[axis] = dim.div_ceil(block);
        (want == scale_shape).then_some(Self { axis: dim, inner, block })
    }

    /// Calls `f(from, to, index of the scale)` for each run of elements that share a scale.
    pub(super) fn each(&self, count: usize, mut f: impl FnMut(usize, usize, usize)) {
        if count == 0 {
            return;
        }
        if self.block == 1 {
            for (run, from) in (0..count).step_by(self.inner).enumerate() {
                f(from, from + self.inner, run % self.axis);
            }
            return;
        }
        // Blocked scales have the shape of the tensor with the axis shortened: each element of a row has its own.
        let blocks = self.axis.div_ceil(self.block);
        for row in 0..count / self.inner {
            let (outer, index) = (row / self.axis, row % self.axis);
            let scale_row = (outer * blocks + index / self.block) * self.inner;
            for i in 0..self.inner {
                let at = row * self.inner + i;
                f(at, at + 1, scale_row + i);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_half_to_even_and_saturates() {
        let x = [0.5, 1.5, 2.5, -0.5, -1.5, 1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0];
        let mut y = [0u8; 11];
        quantize(&x, &mut y, 1.0, 128);
        assert_eq!(y, [128, 130, 130, 128, 126, 255, 0, 255, 0, 0, 128]);
        let mut y = [0i8; 11];
        quantize(&x, &mut y, 1.0, 0);
        assert_eq!(y, [0, 2, 2, 0, -2, 127, -128, 127, -128, -128, 0]);
        let mut y = [0u16; 11];
        quantize(&x, &mut y, 1.0, 32768);
        assert_eq!(y, [32768, 32770, 32770, 32768, 32766, 65535, 0, 65535, 0, 0, 32768]);
    }

    #[test]
    fn divides_by_the_scale() {
        // 4.5 steps exactly; with the reciprocal of 0.1 it would be a little more.
        let (scale, x) = (0.1f32, 0.45f32);
        let mut y = [0u8];
        quantize(&[x], &mut y, scale, 0);
        assert_eq!(f32::from(y[0]), (x / scale).round_ties_even());
    }

    #[test]
    fn round_trip_is_both_steps() {
        let x: Vec<f32> = (-300..300).map(|i| i as f32 * 0.037).collect();
        let (mut codes, mut two, mut one) = (vec![0i8; x.len()], vec![0f32; x.len()], vec![0f32; x.len()]);
        quantize(&x, &mut codes, 0.05, -7);
        dequantize(&codes, &mut two, 0.05, -7);
        round_trip::<i8>(&x, &mut one, 0.05, -7);
        assert_eq!(two, one);
    }

    #[test]
    fn runs_of_scales() {
        let list = |runs: Runs, n| {
            let mut all = Vec::new();
            runs.each(n, |a, b, s| all.push((a, b, s)));
            all
        };
        assert_eq!(list(Runs::new(&[2, 3], &[], 1, 0).expect("per-tensor"), 6), [(0, 6, 0)]);
        assert_eq!(list(Runs::new(&[2, 3], &[2], 0, 0).expect("rows"), 6), [(0, 3, 0), (3, 6, 1)]);
        let columns = list(Runs::new(&[2, 3], &[3], -1, 0).expect("columns"), 6);
        assert_eq!(columns, [(0, 1, 0), (1, 2, 1), (2, 3, 2), (3, 4, 0), (4, 5, 1), (5, 6, 2)]);
        let blocks = list(Runs::new(&[3, 2], &[2, 2], 0, 2).expect("blocks"), 6);
        assert_eq!(blocks.iter().map(|r| r.2).collect::<Vec<_>>(), [0, 1, 0, 1, 2, 3]);
        assert_eq!(Runs::new(&[2, 3], &[4], 1, 0), None);
        assert_eq!(Runs::new(&[2, 3], &[3], 5, 0), None);
    }

    #[test]
    fn the_range_always_holds_zero() {
        assert_eq!(dynamic_params(&[0.0, 0.0]), (1.0, 0));
        assert_eq!(dynamic_params(&[]), (1.0, 0));
        assert_eq!(dynamic_params(&[1.0, 2.55]), (2.55 / 255.0, 0));
        assert_eq!(dynamic_params(&[-1.0, -2.55]), (2.55 / 255.0, 255));
        assert_eq!(dynamic_params(&[-1.0, 1.0]), (2.0 / 255.0, 127)); // in f32, 1 / (2 / 255) is just under 127.5
    }
}
