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
        DType::Float16 => f16::from_f32(x).to_f32(),
        DType::Bfloat16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
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
    Ok(tensor.to_f32()?.into_iter().flat_map(half).collect::<Vec<u8>>().into())
}

#[cfg(test)]
mod tests {
    use super::*;

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
