//! One scale for a whole tensor, or one for each index of an axis.

use rayon::prelude::*;

use super::{
    arith::Quantizer,
    float8::Float8,
    pack,
    params::{QParams, QuantTarget, Range},
};
use crate::{
    error::{Error, Result},
    ir::{DType, Tensor},
};

/// How many scales a tensor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// One.
    PerTensor,
    /// One for each index of this axis.
    PerChannel(usize),
}

impl Granularity {
    /// `PerChannel(axis)`, or `PerTensor` where there is none.
    pub fn from_axis(axis: Option<usize>) -> Self {
        axis.map_or(Self::PerTensor, Self::PerChannel)
    }

    /// The axis of the scales, if there are several.
    pub fn axis(self) -> Option<usize> {
        match self {
            Self::PerTensor => None,
            Self::PerChannel(axis) => Some(axis),
        }
    }

    /// How elements in row-major order share scales: `(channels, inner)`, so that element `i` belongs to channel
    /// `i / inner % channels`. The whole tensor is one channel when there is no axis.
    pub fn layout(self, dims: &[usize]) -> Result<(usize, usize)> {
        match self {
            Self::PerTensor => Ok((1, dims.iter().product::<usize>().max(1))),
            Self::PerChannel(axis) => {
                let channels = *dims.get(axis).ok_or_else(|| {
                    Error::malformed(format!("no axis {axis} for scales in a tensor of shape {dims:?}"))
                })?;
                Ok((channels, dims[axis + 1..].iter().product::<usize>().max(1)))
            }
        }
    }

    /// The dims of scale and zero point for this many channels.
    pub fn scale_dims(self, channels: usize) -> Vec<usize> {
        match self {
            Self::PerTensor => vec![],
            Self::PerChannel(_) => vec![channels],
        }
    }
}

/// A weight as the initializers of a `DequantizeLinear`.
#[derive(Debug, Clone)]
pub struct QuantizedWeight {
    /// The codes, in the shape of the weight.
    pub values: Tensor,
    /// float, a scalar or one for each channel.
    pub scale: Tensor,
    /// Of the codes' type, in the shape of `scale`.
    pub zero_point: Tensor,
    /// The axis of the scales.
    pub axis: Option<usize>,
    /// The same numbers as `scale` and `zero_point`.
    pub params: Vec<QParams>,
}

impl QuantizedWeight {
    /// The scales, one for each channel.
    pub fn scales(&self) -> Vec<f32> {
        self.params.iter().map(|p| p.scale).collect()
    }

    /// The real numbers that the codes stand for.
    pub fn dequantized(&self) -> Result<Vec<f32>> {
        let granularity = Granularity::from_axis(self.axis);
        let (channels, inner) = granularity.layout(self.values.dims())?;
        if let Some(float) = Float8::of(self.values.dtype()) {
            let numbers = float.numbers();
            let codes = self.values.bytes()?;
            let real = codes.chunks(inner).enumerate().flat_map(|(row, run)| {
                let scale = self.params[row % channels].scale;
                run.iter().map(move |&code| numbers[usize::from(code)] * scale)
            });
            return Ok(real.collect());
        }
        let codes = pack::unpack(&self.values)?;
        let mut real = vec![0f32; codes.len()];
        for (row, (out, run)) in real.chunks_mut(inner).zip(codes.chunks(inner)).enumerate() {
            let params = self.params[row % channels];
            out.iter_mut().zip(run).for_each(|(out, &code)| *out = super::arith::dequantize_one(code, params));
        }
        Ok(real)
    }
}

/// Rounds a floating point weight of any shape to the nearest codes, one scale for each index of `axis` or one for all.
///
/// Errors: the weight is no floating point tensor or holds NaN or infinities, there is no such axis, or the type is no
/// integer type of up to 16 bits and no float type of 8 bits.
pub fn quantize_weight(
    weight: &Tensor,
    dtype: DType,
    axis: Option<usize>,
    symmetric: bool,
    reduce_range: bool,
) -> Result<QuantizedWeight> {
    let target = QuantTarget { dtype, symmetric, reduce_range };
    let values = weight.to_f32()?;
    let granularity = Granularity::from_axis(axis);
    let params = channel_params(&values, weight.dims(), granularity, target)?;
    quantize_with(&values, weight.dims(), granularity, target, params)
}

/// The least and greatest value of each channel. A channel without elements has the range 0 to 0; NaN and infinities
/// are an error that says where.
pub fn channel_ranges(values: &[f32], dims: &[usize], granularity: Granularity) -> Result<Vec<Range>> {
    let (channels, inner) = granularity.layout(dims)?;
    let mut ranges = vec![Range::new(f32::INFINITY, f32::NEG_INFINITY); channels];
    for (row, run) in values.chunks_exact(inner).enumerate() {
        let (lo, hi, nan) = run.iter().fold((f32::INFINITY, f32::NEG_INFINITY, false), |(lo, hi, nan), &v| {
            (if v < lo { v } else { lo }, if v > hi { v } else { hi }, nan | v.is_nan())
        });
        if nan || !(lo.is_finite() && hi.is_finite()) {
            let at = run.iter().position(|v| !v.is_finite()).unwrap_or(0);
            return Err(Error::data(format!(
                "weight of shape {dims:?} holds {} at index {}",
                run[at],
                row * inner + at
            ))
            .help(
                "keep this node in float, or repair the model: a value like this makes every result NaN or infinite",
            ));
        }
        let range = &mut ranges[row % channels];
        *range = range.union(Range::new(lo, hi));
    }
    let empty = |r: Range| if r.lo > r.hi { Range::new(0.0, 0.0) } else { r };
    Ok(ranges.into_iter().map(empty).collect())
}

/// The parameters of each channel, from its least and greatest value.
pub fn channel_params(
    values: &[f32],
    dims: &[usize],
    granularity: Granularity,
    target: QuantTarget,
) -> Result<Vec<QParams>> {
    channel_ranges(values, dims, granularity)?.into_iter().map(|r| target.params(r)).collect()
}

/// Rounds to the nearest codes under given parameters, one for each channel.
pub fn quantize_with(
    values: &[f32],
    dims: &[usize],
    granularity: Granularity,
    target: QuantTarget,
    params: Vec<QParams>,
) -> Result<QuantizedWeight> {
    let (channels, inner) = granularity.layout(dims)?;
    if params.len() != channels {
        return Err(Error::bug(format!("{} scales for {channels} channels", params.len())));
    }
    if let Some(float) = Float8::of(target.dtype) {
        return as_float8(float, values, dims, granularity, params);
    }
    let codes = target.codes()?;
    let quantizers: Vec<Quantizer> = params.iter().map(|&p| Quantizer::within(p, codes)).collect();
    let mut out = vec![0i32; values.len()];
    out.par_chunks_mut(inner)
        .zip(values.par_chunks(inner))
        .enumerate()
        .with_min_len(4096usize.div_ceil(inner))
        .for_each(|(row, (out, run))| {
            let q = quantizers[row % channels];
            out.iter_mut().zip(run).for_each(|(out, &v)| *out = q.code(v));
        });
    let scale_dims = granularity.scale_dims(channels);
    let scales: Vec<f32> = params.iter().map(|p| p.scale).collect();
    let zero_points: Vec<i32> = params.iter().map(|p| p.zero_point).collect();
    Ok(QuantizedWeight {
        values: pack::pack(target.dtype, dims, &out)?,
        scale: Tensor::from_f32(&scale_dims, &scales),
        zero_point: pack::pack(target.dtype, &scale_dims, &zero_points)?,
        axis: granularity.axis(),
        params,
    })
}

fn as_float8(
    float: Float8,
    values: &[f32],
    dims: &[usize],
    granularity: Granularity,
    params: Vec<QParams>,
) -> Result<QuantizedWeight> {
    let (channels, inner) = granularity.layout(dims)?;
    let Some(dtype) = params.first().map(|p| p.dtype) else {
        return Err(Error::malformed(format!("a weight of shape {dims:?} has no channels")));
    };
    let mut codes = vec![0u8; values.len()];
    codes
        .par_chunks_mut(inner)
        .zip(values.par_chunks(inner))
        .enumerate()
        .with_min_len(4096usize.div_ceil(inner))
        .for_each(|(row, (codes, run))| float.quantize(run, codes, params[row % channels].scale, true));
    let scale_dims = granularity.scale_dims(channels);
    let scales: Vec<f32> = params.iter().map(|p| p.scale).collect();
    Ok(QuantizedWeight {
        values: Tensor::from_u8(dtype, dims, codes),
        scale: Tensor::from_f32(&scale_dims, &scales),
        zero_point: pack::zeros(dtype, &scale_dims)?,
        axis: granularity.axis(),
        params,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn floats_of_8_bits_by_channel() {
        let w = Tensor::from_f32(&[2, 3], &[448.0, -1.0, 0.3, -0.875, 0.4375, 0.0]);
        let q = quantize_weight(&w, DType::Float8E4M3FN, Some(0), true, false).unwrap();
        assert_eq!(q.scales(), [1.0, 0.875 / 448.0]);
        assert_eq!(q.values.bytes().unwrap()[..], [0x7e, 0xb8, 0x2a, 0xfe, 0x76, 0]);
        assert_eq!(q.dequantized().unwrap(), [448.0, -1.0, 0.3125, -0.875, 0.4375, 0.0]);
        assert_eq!((q.zero_point.dtype(), q.zero_point.dims()), (DType::Float8E4M3FN, &[2][..]));
    }

    fn ramp(dims: &[usize]) -> Tensor {
        let n: usize = dims.iter().product();
        let v: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin() * (1.0 + i as f32)).collect();
        Tensor::from_f32(dims, &v)
    }

    #[test]
    fn every_axis_of_a_rank_3_weight() {
        let w = ramp(&[2, 3, 4]);
        let v = w.to_f32().unwrap();
        for axis in 0..3 {
            let q = quantize_weight(&w, DType::Int8, Some(axis), true, false).unwrap();
            let n = w.dims()[axis];
            assert_eq!((q.scale.dims(), q.zero_point.dims()), (&[n][..], &[n][..]));
            for channel in 0..n {
                let of_channel = |i: usize| [i / 12, i / 4 % 3, i % 4][axis] == channel;
                let most = (0..24).filter(|&i| of_channel(i)).map(|i| v[i].abs()).fold(0.0, f32::max);
                assert_eq!(q.params[channel].scale, (f64::from(most) * 2.0 / 254.0) as f32);
            }
            for (i, (a, b)) in v.iter().zip(q.dequantized().unwrap()).enumerate() {
                let channel = [i / 12, i / 4 % 3, i % 4][axis];
                assert!((a - b).abs() <= q.params[channel].scale * 0.5001);
            }
        }
    }

    #[test]
    fn scalars_empty_channels_and_bad_input() {
        let q = quantize_weight(&Tensor::from_f32(&[], &[3.0]), DType::Int8, None, true, false).unwrap();
        assert_eq!((q.values.dims().len(), q.scale.dims().len()), (0, 0));
        assert_eq!(pack::unpack(&q.values).unwrap(), [127]);
        assert!(quantize_weight(&Tensor::from_f32(&[0, 3], &[]), DType::Int8, Some(1), true, false).is_ok());
        assert!(quantize_weight(&Tensor::from_f32(&[3, 0], &[]), DType::Int8, Some(1), true, false).is_ok());
        assert!(quantize_weight(&ramp(&[2, 2]), DType::Int8, Some(2), true, false).is_err());
        let e =
            quantize_weight(&Tensor::from_f32(&[2, 2], &[0.0, 1.0, f32::NAN, 2.0]), DType::Int8, Some(0), true, false);
        assert!(e.unwrap_err().to_string().contains("index 2"));
    }

    proptest! {
        #[test]
        fn quantizing_twice_changes_nothing(v in prop::collection::vec(-10f32..10.0, 12), axis in prop::option::of(0usize..2)) {
            let q = quantize_weight(&Tensor::from_f32(&[4, 3], &v), DType::Int8, axis, true, false).unwrap();
            let again = quantize_with(&q.dequantized().unwrap(), &[4, 3], Granularity::from_axis(axis),
                                      QuantTarget::WEIGHT, q.params.clone()).unwrap();
            prop_assert!(q.values.same_content(&again.values));
        }
    }
}
