//! What codes stand for, of any form that `DequantizeLinear` has: one scale, one for each channel, or blocks; integers of 2 to
//! 32 bits and small floats. Bit for bit what the operator makes.

use std::sync::Arc;

use bytes::Bytes;
use rayon::prelude::*;

use super::{arith::Quantizer, float8::Float8, pack, params::QParams, params::type_range};
use crate::{
    error::{Error, Result},
    ir::{DType, Tensor},
};

/// From so many elements on, numbers are computed when they are written, so that no more than one tensor of them is in memory.
const LARGE: usize = 1 << 16;

/// The sixteen numbers of `float4e2m1`.
const FLOAT4: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Scales and zero points as `QuantizeLinear` and `DequantizeLinear` have them.
#[derive(Debug, Clone)]
pub struct Coding {
    /// One, one for each channel, or one for each block.
    pub scale: Tensor,
    /// Of the same shape; zero if there are none.
    pub zero_point: Option<Tensor>,
    /// The axis of the channels or blocks; negative ones count from the end.
    pub axis: i64,
    /// Elements of a block; 0 where there are no blocks.
    pub block: usize,
}

/// Which scale an element has.
enum Places {
    One,
    /// `i / inner % channels`.
    Channels {
        channels: usize,
        inner: usize,
    },
    /// Axis of `length`, in blocks, with `inner` elements behind each index.
    Blocks {
        length: usize,
        inner: usize,
        block: usize,
        blocks: usize,
    },
}

impl Places {
    fn of(&self, i: usize) -> usize {
        match *self {
            Self::One => 0,
            Self::Channels { channels, inner } => i / inner % channels,
            Self::Blocks { length, inner, block, blocks } => {
                let (outer, at) = (i / (length * inner), i / inner % length);
                (outer * blocks + at / block) * inner + i % inner
            }
        }
    }
}

impl Coding {
    /// Where the scale of each element of a tensor stands among the scales. An error where they do not fit.
    fn places(&self, dims: &[usize]) -> Result<Places> {
        let scales = self.scale.dims();
        if self.scale.len() == 1 && self.block == 0 {
            return Ok(Places::One);
        }
        let misfit = || Error::malformed(format!("scales of shape {scales:?} do not fit codes of shape {dims:?}"));
        let axis = if self.axis < 0 { self.axis + dims.len() as i64 } else { self.axis };
        let axis = usize::try_from(axis).ok().filter(|&a| a < dims.len()).ok_or_else(misfit)?;
        let inner: usize = dims[axis + 1..].iter().product::<usize>().max(1);
        if self.block == 0 {
            let fits = scales.len() == 1 && scales[0] == dims[axis];
            return if fits { Ok(Places::Channels { channels: dims[axis], inner }) } else { Err(misfit()) };
        }
        let blocks = dims[axis].div_ceil(self.block);
        let mut want = dims.to_vec();
        want[axis] = blocks;
        if want != scales {
            return Err(misfit());
        }
        Ok(Places::Blocks { length: dims[axis].max(1), inner, block: self.block, blocks })
    }

    /// Whether the scales fit codes of a shape.
    pub fn fits(&self, dims: &[usize]) -> bool {
        let zeros =
            self.zero_point.as_ref().is_none_or(|z| z.dims() == self.scale.dims() || z.len() == self.scale.len());
        zeros && self.places(dims).is_ok()
    }

    fn scales(&self) -> Result<Vec<f32>> {
        if self.scale.dtype() == DType::Float8E8M0 {
            let power = |b: &u8| if *b == 255 { f32::NAN } else { (2f64.powi(i32::from(*b) - 127)) as f32 };
            return Ok(self.scale.bytes()?.iter().map(power).collect());
        }
        self.scale.to_f32()
    }

    fn zeros(&self) -> Result<Option<Vec<i32>>> {
        match &self.zero_point {
            None => Ok(None),
            // Those of floats must be 0.
            Some(z) if Float8::of(z.dtype()).is_some() || z.dtype() == DType::Float4E2M1 => Ok(None),
            Some(z) => pack::unpack(z).map(Some),
        }
    }

    /// What the codes stand for, as a tensor of type `out`: at once if it is small, else when it is asked for.
    pub fn numbers(&self, codes: &Tensor, out: DType) -> Result<Tensor> {
        if !self.fits(codes.dims()) {
            self.places(codes.dims())?;
            return Err(Error::malformed("zero points do not have the shape of the scales"));
        }
        later(codes, self, out, codes.dims().to_vec(), |coding, codes| coding.compute(codes))
    }

    fn compute(&self, codes: &Tensor) -> Result<Vec<f32>> {
        let (places, scales, zeros) = (self.places(codes.dims())?, self.scales()?, self.zeros()?);
        let zero = |at: usize| zeros.as_ref().map_or(0, |z| z[at]);
        let small = |i: usize, number: f32| number * scales[places.of(i)];
        if let Some(float8) = Float8::of(codes.dtype()) {
            let (numbers, bytes) = (float8.numbers(), codes.bytes()?);
            return Ok(bytes.par_iter().enumerate().map(|(i, &b)| small(i, numbers[usize::from(b)])).collect());
        }
        if codes.dtype() == DType::Float4E2M1 {
            let bytes = codes.bytes()?;
            let number = |i: usize| FLOAT4[usize::from(bytes[i / 2] >> (i % 2 * 4) & 15)];
            return Ok((0..codes.len()).map(|i| small(i, number(i))).collect());
        }
        let codes = pack::unpack(codes)?;
        let number = |(i, &code): (usize, &i32)| {
            let at = places.of(i);
            code.wrapping_sub(zero(at)) as f32 * scales[at]
        };
        Ok(codes.par_iter().enumerate().map(number).collect())
    }

    /// What is left of constant numbers that are quantized to codes of a type and back.
    pub fn rounded(&self, numbers: &Tensor, codes: DType, saturate: bool) -> Result<Tensor> {
        if !self.fits(numbers.dims()) || (Float8::of(codes).is_none() && type_range(codes).is_err()) {
            return Err(Error::malformed(format!("numbers of shape {:?} have no codes of {codes} so", numbers.dims())));
        }
        later(numbers, self, numbers.dtype(), numbers.dims().to_vec(), move |coding, numbers| {
            let (places, scales, zeros) = (coding.places(numbers.dims())?, coding.scales()?, coding.zeros()?);
            let numbers = numbers.to_f32()?;
            if let Some(float8) = Float8::of(codes) {
                let real = |(i, x): (usize, &f32)| {
                    let scale = scales[places.of(i)];
                    float8.number(float8.code(x / scale, saturate)) * scale
                };
                return Ok(numbers.iter().enumerate().map(real).collect());
            }
            let zero = |at: usize| zeros.as_ref().map_or(0, |z| z[at]);
            let rounder = |at: usize| Quantizer::new(QParams { scale: scales[at], zero_point: zero(at), dtype: codes });
            let rounders: Vec<Quantizer> = (0..scales.len()).map(rounder).collect::<Result<_>>()?;
            Ok(numbers.iter().enumerate().map(|(i, &x)| rounders[places.of(i)].round_trip(x)).collect())
        })
    }
}

/// Numbers of a type from a tensor: now if they are few.
pub fn later<T: Clone + Send + Sync + 'static>(
    from: &Tensor,
    with: &T,
    out: DType,
    dims: Vec<usize>,
    make: impl Fn(&T, &Tensor) -> Result<Vec<f32>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let (from, with) = (from.clone(), with.clone());
    let small = dims.iter().product::<usize>() < LARGE && !from.is_deferred();
    let bytes = move || Ok(as_bytes(make(&with, &from)?, out));
    if small { Tensor::new(out, dims, bytes()?) } else { Tensor::deferred(out, dims, Arc::new(bytes)) }
}

/// 32-bit floats as the bytes of floats of a type, each the nearest.
fn as_bytes(numbers: Vec<f32>, out: DType) -> Bytes {
    match out {
        DType::Float16 => numbers.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
        DType::Bfloat16 => numbers.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        DType::Double => numbers.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect(),
        _ => {
            let mut bytes = Vec::with_capacity(numbers.len() * 4);
            numbers.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
            bytes.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::pack::pack;

    fn coding(dims: &[usize], scales: &[f32], zeros: Option<(DType, &[i32])>, axis: i64, block: usize) -> Coding {
        let zero_point = zeros.map(|(t, z)| pack(t, dims, z).unwrap());
        Coding { scale: Tensor::from_f32(dims, scales), zero_point, axis, block }
    }

    fn numbers(c: &Coding, codes: &Tensor) -> Vec<f32> {
        c.numbers(codes, DType::Float).unwrap().to_f32().unwrap()
    }

    #[test]
    fn one_scale_channels_and_blocks() {
        let codes = pack(DType::Int4, &[2, 3], &[-8, 7, 1, 2, 3, -1]).unwrap();
        assert_eq!(numbers(&coding(&[], &[0.5], None, 1, 0), &codes), [-4.0, 3.5, 0.5, 1.0, 1.5, -0.5]);
        let zeros = Some((DType::Int4, &[1, -1][..]));
        assert_eq!(numbers(&coding(&[2], &[0.5, 2.0], zeros, 0, 0), &codes), [-4.5, 3.0, 0.0, 6.0, 8.0, 0.0]);
        // Blocks of two along the last axis; the last block is cut short.
        let blocks = coding(&[2, 2], &[1.0, 10.0, 2.0, 20.0], None, -1, 2);
        assert_eq!(numbers(&blocks, &codes), [-8.0, 7.0, 10.0, 4.0, 6.0, -20.0]);
        let blocks = coding(&[1, 3], &[1.0, 10.0, 100.0], None, 0, 2);
        assert_eq!(numbers(&blocks, &codes), [-8.0, 70.0, 100.0, 2.0, 30.0, -100.0]);
        for odd in [coding(&[3], &[1.0; 3], None, 0, 0), coding(&[2, 2], &[1.0; 4], None, 0, 2)] {
            assert!(odd.numbers(&codes, DType::Float).is_err());
        }
    }

    #[test]
    fn small_floats_and_large_integers() {
        let one = coding(&[], &[0.5], None, 1, 0);
        assert_eq!(numbers(&one, &Tensor::from_u8(DType::Float8E4M3FN, &[2], vec![0x38, 0xc0])), [0.5, -1.0]);
        let four = Tensor::new(DType::Float4E2M1, vec![3], vec![0x7fu8, 0x01]).unwrap();
        assert_eq!(numbers(&one, &four), [-3.0, 3.0, 0.25]);
        assert_eq!(numbers(&one, &Tensor::from_i32(&[1], &[(1 << 24) + 1])), [8_388_608.0]);
        let power = Coding { scale: Tensor::from_u8(DType::Float8E8M0, &[], vec![128]), ..one };
        assert_eq!(numbers(&power, &Tensor::from_i32(&[1], &[3])), [6.0]);
    }

    #[test]
    fn large_ones_are_made_later_and_halves_are_rounded() {
        let codes = pack(DType::Int8, &[1 << 16], &vec![3; 1 << 16]).unwrap();
        let c = coding(&[], &[0.1], None, 1, 0);
        let made = c.numbers(&codes, DType::Float16).unwrap();
        assert!(made.is_deferred());
        assert_eq!(made.to_f32().unwrap()[7], half::f16::from_f32(3.0 * 0.1).to_f32());
    }

    #[test]
    fn there_and_back() {
        let x = Tensor::from_f32(&[2, 2], &[0.26, -9.0, 0.26, 9.0]);
        let c = coding(&[2], &[0.5, 0.1], None, 1, 0);
        let back = c.rounded(&x, DType::Int4, true).unwrap();
        assert_eq!(back.to_f32().unwrap(), [0.5, -8.0 * 0.1, 0.5, 7.0 * 0.1]);
        let back = c.rounded(&x, DType::Float8E5M2, true).unwrap();
        assert_eq!(back.to_f32().unwrap()[0], 0.25);
    }
}
