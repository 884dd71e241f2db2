//! Numbers as 16-bit floats.

use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};

use crate::{
    error::{Error, Result},
    ir::{DType, Tensor},
};

/// From so many elements on, a tensor is converted when it is written, so that it is not in memory twice.
const LARGE: usize = 1 << 16;

/// The nearest number that the type has; the number itself for other types.
pub fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::Float16 => to_float16(x),
        DType::Bfloat16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// In the registers of a 32-bit float: ten times as fast as there and back, and every value of a model goes through it.
fn to_float16(x: f32) -> f32 {
    /// The least normal number; below, steps are 2^-24, as those of floats from 0.5 to 1.
    const NORMAL: f32 = 6.103_515_6e-5;
    let size = x.abs();
    let bits = size.to_bits();
    let normal = f32::from_bits((bits.wrapping_add(0xfff + (bits >> 13 & 1))) & !0x1fff);
    let tiny = (size + 0.75) - 0.75;
    let rounded = if size < NORMAL { tiny } else { normal };
    let finite = if rounded > 65504.0 { f32::INFINITY } else { rounded };
    if x.is_nan() { x } else { finite.copysign(x) }
}

/// The greatest finite number of the type.
pub fn largest(dtype: DType) -> f32 {
    match dtype {
        DType::Float16 => f16::MAX.to_f32(),
        DType::Bfloat16 => bf16::MAX.to_f32(),
        _ => f32::MAX,
    }
}

/// A tensor of floats as one of 16-bit floats, each the nearest. Finite numbers are limited to `bound` before that.
pub fn converted(tensor: &Tensor, dtype: DType, bound: Option<f32>) -> Result<Tensor> {
    if !matches!(dtype, DType::Float16 | DType::Bfloat16) {
        return Err(Error::bug(format!("{dtype} is no type of 16-bit floats")));
    }
    if tensor.len() < LARGE {
        return Tensor::new(dtype, tensor.dims().to_vec(), bytes_of(tensor, dtype, bound)?);
    }
    let whole = tensor.clone();
    let make = move || bytes_of(&whole, dtype, bound);
    Tensor::deferred(dtype, tensor.dims().to_vec(), Arc::new(make))
}

fn bytes_of(tensor: &Tensor, dtype: DType, bound: Option<f32>) -> Result<Bytes> {
    let within = |x: f32| bound.filter(|_| !x.is_nan()).map_or(x, |b| x.clamp(-b, b));
    let half = |x: f32| match dtype {
        DType::Float16 => f16::from_f32(within(x)).to_le_bytes(),
        _ => bf16::from_f32(within(x)).to_le_bytes(),
    };
    let mut made = Vec::with_capacity(2 * tensor.len());
    if tensor.dtype() == DType::Float {
        // Not all of it in memory once more.
        let numbers = tensor.bytes()?;
        let all = numbers.chunks_exact(4).filter_map(|c| <[u8; 4]>::try_from(c).ok());
        all.for_each(|c| made.extend(half(f32::from_le_bytes(c))));
    } else {
        tensor.to_f32()?.into_iter().for_each(|x| made.extend(half(x)));
    }
    Ok(made.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_if_there_and_back() {
        let odd =
            [0.0, -0.0, f32::INFINITY, f32::MIN, f32::MIN_POSITIVE, 65519.9, 65520.0, -65504.0, 6.1e-5, 6.103_515_6e-5];
        // Numbers of every exponent, of all mantissas near and on the middle between two halves.
        let all = (0..=u32::from(u16::MAX)).flat_map(|high| {
            [0u32, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0xffff]
                .map(|low| f32::from_bits(high << 16 | low))
        });
        for x in odd.into_iter().chain(all) {
            let want = f16::from_f32(x).to_f32();
            let got = rounded(DType::Float16, x);
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{x:e}: {got:e}, not {want:e}");
        }
    }

    #[test]
    fn to_the_nearest() {
        let x = [1.0 + 1.0 / 4096.0, -70000.0, 1e-9, f32::NEG_INFINITY];
        assert_eq!(x.map(|x| rounded(DType::Float16, x)), [1.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY]);
        assert_eq!(rounded(DType::Bfloat16, 1.0 + 1.0 / 512.0), 1.0);
        let all = |dtype, bound| converted(&Tensor::from_f32(&[4], &x), dtype, bound).unwrap().to_f32().unwrap();
        assert_eq!(all(DType::Float16, Some(16384.0)), [1.0, -16384.0, 0.0, -16384.0]);
        assert_eq!(all(DType::Bfloat16, None)[1], -70144.0);
        let large = vec![0.1f32; LARGE];
        let made = converted(&Tensor::from_f32(&[LARGE], &large), DType::Float16, None).unwrap();
        assert_eq!(made.byte_len(), 2 * LARGE);
        assert_eq!(made.to_f32().unwrap()[LARGE - 1], rounded(DType::Float16, 0.1));
        assert!(converted(&made, DType::Float, None).is_err());
    }
}
