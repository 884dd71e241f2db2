//! What training has chosen: the grids that values are rounded to, and the codes and scales of weights.
//!
//! It comes out of the file (`passes::fold_learned_weights`, `passes::lift_quantizers`), never out of data. Weights stand in
//! the prepared model as the numbers that their codes stand for. Batch normalization and other factors of channels may since have
//! been folded into them: the codes are then what they were, and the scales have taken the factors in, so they are found again by
//! the ratio of number and code.

use std::collections::BTreeMap;

use crate::{
    error::Result,
    ir::{DType, Model, NodeId, Tensor, ValueId},
    ops::{self, Role},
    quant::{Granularity, Grid, QParams, QuantizedWeight, bias::weight_scales_for_bias, pack},
};

/// How far a number may be from scale times code, as a share of it: the roundings of some products.
const NEAR: f64 = 1e-5;
/// How far a scale may be from the learned one and still be the same.
const SAME: f64 = 1e-6;

/// All that was found in a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Learned {
    /// Grids of values of the prepared model; several where readers had quantizers of their own, or one stood behind another.
    pub values: BTreeMap<ValueId, Vec<Grid>>,
    /// Weights and biases.
    pub weights: Vec<LearnedWeight>,
}

/// A weight as training left it.
#[derive(Debug, Clone, PartialEq)]
pub struct LearnedWeight {
    /// The value that it was made of.
    pub name: String,
    /// Its shape.
    pub dims: Vec<usize>,
    /// Codes without their zero points.
    pub steps: Vec<i32>,
    /// One scale, or one for each index of the axis.
    pub scales: Vec<f32>,
    /// The zero points, as many.
    pub zero_points: Vec<i32>,
    /// The type of the codes.
    pub dtype: DType,
    /// The axis of the scales.
    pub axis: Option<usize>,
}

impl Learned {
    /// Whether nothing was found that values are rounded to.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The codes that training gave the constant weight of a node, with scales along its output channels or one for all.
    pub fn weight_of(&self, model: &Model, id: NodeId) -> Result<Option<QuantizedWeight>> {
        let weight = ops::spec(model, id).and_then(|spec| {
            let tensor = model.constant_input(id, spec.index_of(Role::Weight)?)?;
            Some((tensor, spec.weight_axis(model.node(id), tensor.rank())))
        });
        weight.map_or(Ok(None), |(tensor, axis)| self.weight(tensor, axis))
    }

    /// The codes that training gave a tensor, with scales along this axis or one for all. `None` where it gave none, or
    /// where no type of 8 bits holds them with one zero point.
    pub fn weight(&self, tensor: &Tensor, axis: Option<usize>) -> Result<Option<QuantizedWeight>> {
        if self.weights.iter().all(|w| w.steps.len() != tensor.len()) || tensor.dtype() != DType::Float {
            return Ok(None);
        }
        let numbers = tensor.to_f32()?;
        for learned in self.weights.iter().filter(|w| w.steps.len() == numbers.len()) {
            let mut found = learned.fit(&numbers, tensor.dims(), &learned.steps, axis)?;
            if found.is_none()
                && let Some(steps) = learned.turned(tensor.dims())
            {
                found = learned.fit(&numbers, tensor.dims(), &steps, axis)?;
            }
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

impl LearnedWeight {
    /// Of codes with their scales.
    pub fn of(name: String, q: &QuantizedWeight) -> Result<Self> {
        let (channels, inner) = Granularity::from_axis(q.axis).layout(q.values.dims())?;
        let zero_points: Vec<i32> = q.params.iter().map(|p| p.zero_point).collect();
        let codes = pack::unpack(&q.values)?.into_iter().enumerate();
        let steps = codes.map(|(i, code)| code - zero_points[i / inner % channels]).collect();
        let (dims, scales, dtype) = (q.values.dims().to_vec(), q.scales(), q.values.dtype());
        Ok(Self { name, dims, steps, scales, zero_points, dtype, axis: q.axis })
    }

    /// The steps in the order of a tensor of this shape, if that is a matrix turned.
    fn turned(&self, dims: &[usize]) -> Option<Vec<i32>> {
        let (&[rows, columns], &[a, b]) = (&self.dims[..], dims) else { return None };
        let turned = (0..columns).flat_map(|c| (0..rows).map(move |r| self.steps[r * columns + c]));
        ((a, b) == (columns, rows)).then(|| turned.collect())
    }

    /// The steps with the scales by which they make these numbers, if there are such scales.
    fn fit(
        &self,
        numbers: &[f32],
        dims: &[usize],
        steps: &[i32],
        axis: Option<usize>,
    ) -> Result<Option<QuantizedWeight>> {
        let alike = self.dims == dims;
        // One scale for all, where there was one and nothing was folded in.
        let per_tensor = self.scales.len() == 1 && ratios(numbers, steps, 1, numbers.len().max(1)).is_some();
        let axis = axis.filter(|_| !per_tensor);
        let granularity = Granularity::from_axis(axis);
        let (channels, inner) = granularity.layout(dims)?;
        let Some(mut ratios) = ratios(numbers, steps, channels, inner) else { return Ok(None) };
        // The scale itself where nothing changed it; zeros have no ratio.
        let own = |c: usize| match self.scales.len() {
            1 => self.scales.first(),
            n if n == channels && (!alike || self.axis == axis) => self.scales.get(c),
            _ => None,
        };
        for (c, ratio) in ratios.iter_mut().enumerate() {
            match own(c) {
                Some(&s) if ratio.is_none_or(|r| (r.abs() / f64::from(s) - 1.0).abs() < SAME) => {
                    *ratio = Some(f64::from(s) * ratio.map_or(1.0, f64::signum));
                }
                Some(_) | None => {}
            }
        }
        let scales: Vec<f64> = ratios.into_iter().map(|r| r.unwrap_or(1.0)).collect();
        let signed = steps.iter().enumerate().map(|(i, &step)| match scales[i / inner % channels] < 0.0 {
            true => -step,
            false => step,
        });
        let signed: Vec<i32> = signed.collect();
        let Some((dtype, zero_point)) = self.held(&signed) else { return Ok(None) };
        let codes: Vec<i32> = signed.iter().map(|step| step + zero_point).collect();
        let params: Vec<QParams> =
            scales.iter().map(|s| QParams { scale: s.abs() as f32, zero_point, dtype }).collect();
        let scale_dims = granularity.scale_dims(channels);
        let scale: Vec<f32> = params.iter().map(|p| p.scale).collect();
        Ok(Some(QuantizedWeight {
            values: pack::pack(dtype, dims, &codes)?,
            scale: Tensor::from_f32(&scale_dims, &scale),
            zero_point: pack::pack(dtype, &scale_dims, &vec![zero_point; channels])?,
            axis,
            params,
        }))
    }

    /// The type of 8 bits and the zero point that hold all steps; kernels want one zero point for all channels.
    fn held(&self, steps: &[i32]) -> Option<(DType, i32)> {
        let (least, most) = steps.iter().fold((0, 0), |(a, b), &s| (a.min(s), b.max(s)));
        let own = self.zero_points.first().filter(|z| self.zero_points.iter().all(|other| other == *z));
        let fits = |(dtype, low, high, zero): (DType, i32, i32, i32)| {
            (low <= least + zero && most + zero <= high).then_some((dtype, zero))
        };
        let with_own = own.and_then(|&z| match self.dtype {
            DType::Int8 => fits((DType::Int8, -128, 127, z)),
            DType::Uint8 => fits((DType::Uint8, 0, 255, z)),
            _ => None,
        });
        with_own
            .or_else(|| fits((DType::Int8, -128, 127, 0)))
            .or_else(|| fits((DType::Uint8, 0, 255, (-least).clamp(0, 255))))
    }
}

/// Codes up to this are safe from saturating on every processor: two products of them with codes of uint8 fit 16 bits.
const SAFE: i32 = 64;

/// Codes of channels so small beside their bias that this would not fit 32 bits, with a scale as large as that takes; runtimes would
/// let it overflow.
fn coarser_for_bias(q: QuantizedWeight, bias: &[f32], input: QParams) -> Result<QuantizedWeight> {
    let (scales, raised) = weight_scales_for_bias(bias, input.scale, &q.scales());
    if raised == 0 || scales.len() != q.params.len() {
        return Ok(q);
    }
    let (channels, inner) = Granularity::from_axis(q.axis).layout(q.values.dims())?;
    let code = |(i, code): (usize, i32)| {
        let (old, new) = (q.params[i / inner % channels], scales[i / inner % channels]);
        let step = f64::from(code - old.zero_point) * f64::from(old.scale) / f64::from(new);
        step.round_ties_even() as i32 + old.zero_point
    };
    let codes: Vec<i32> = pack::unpack(&q.values)?.into_iter().enumerate().map(code).collect();
    let params = q.params.iter().zip(&scales).map(|(p, &scale)| QParams { scale, ..*p }).collect();
    let values = pack::pack(q.values.dtype(), q.values.dims(), &codes)?;
    Ok(QuantizedWeight { values, scale: Tensor::from_f32(q.scale.dims(), &scales), params, ..q })
}

/// Codes of few bits times a power of two, their scales divided by it, so that a bias is rounded in finer steps: it is added in
/// steps of the input's scale times the weight's, and with codes of a few bits these are coarse beside those of the output. The
/// numbers are the same to the bit.
pub(super) fn with_room_for_bias(
    q: QuantizedWeight,
    bias: Option<&[f32]>,
    input: Option<QParams>,
) -> Result<QuantizedWeight> {
    let (Some(bias), Some(input)) = (bias, input) else { return Ok(q) };
    if q.params.len() != 1 && q.params.len() != bias.len() {
        return Ok(q);
    }
    let q = coarser_for_bias(q, bias, input)?;
    if q.params.iter().any(|p| p.zero_point != 0) {
        return Ok(q);
    }
    let codes = pack::unpack(&q.values)?;
    let most = codes.iter().map(|c| c.abs()).max().unwrap_or(0).max(1);
    let whole = |(i, b): (usize, &f32)| {
        let steps = f64::from(*b) / f64::from(input.scale) / f64::from(q.params[i % q.params.len()].scale);
        (steps - steps.round()).abs() < 1e-3
    };
    // The bias takes as many steps more, and must still fit its 32 bits.
    let fits = |f: i32| {
        let scales: Vec<f32> = q.params.iter().map(|p| p.scale / f as f32).collect();
        weight_scales_for_bias(bias, input.scale, &scales).1 == 0
    };
    let factors = std::iter::successors(Some(1), |f| Some(f * 2));
    let factor = factors.take_while(|&f| f * most <= SAFE && (f == 1 || fits(f))).last().unwrap_or(1);
    if factor == 1 || bias.iter().enumerate().all(whole) {
        return Ok(q);
    }
    let params: Vec<QParams> = q.params.iter().map(|p| QParams { scale: p.scale / factor as f32, ..*p }).collect();
    let scale: Vec<f32> = params.iter().map(|p| p.scale).collect();
    let codes: Vec<i32> = codes.iter().map(|c| c * factor).collect();
    let values = pack::pack(q.values.dtype(), q.values.dims(), &codes)?;
    Ok(QuantizedWeight { values, scale: Tensor::from_f32(q.scale.dims(), &scale), params, ..q })
}

/// For each channel the number by which its steps make its numbers, `None` where all are 0; nothing where there is no such number.
fn ratios(numbers: &[f32], steps: &[i32], channels: usize, inner: usize) -> Option<Vec<Option<f64>>> {
    // Another weight differs in where it is 0 among its first numbers, which spares the sums over all of it.
    if numbers.iter().zip(steps).any(|(&x, &step)| (x == 0.0) != (step == 0)) {
        return None;
    }
    let (mut products, mut squares) = (vec![0.0; channels], vec![0.0; channels]);
    let channel = |i: usize| i / inner % channels;
    for (i, (&x, &step)) in numbers.iter().zip(steps).enumerate() {
        products[channel(i)] += f64::from(x) * f64::from(step);
        squares[channel(i)] += f64::from(step).powi(2);
    }
    let ratios: Vec<Option<f64>> = products.iter().zip(&squares).map(|(p, q)| (*q > 0.0).then(|| p / q)).collect();
    let holds = |(i, (&x, &step)): (usize, (&f32, &i32))| {
        let made = ratios[channel(i)].unwrap_or(0.0) * f64::from(step);
        let alive = step == 0 || ratios[channel(i)].is_some_and(|r| r.abs() >= f64::from(f32::MIN_POSITIVE));
        alive && (f64::from(x) - made).abs() <= NEAR * made.abs()
    };
    numbers.iter().zip(steps).enumerate().all(holds).then_some(ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(dims: &[usize], steps: &[i32], scales: &[f32], axis: Option<usize>) -> Learned {
        let weight = LearnedWeight {
            name: "w".into(),
            dims: dims.to_vec(),
            steps: steps.to_vec(),
            scales: scales.to_vec(),
            zero_points: vec![0; scales.len()],
            dtype: DType::Int8,
            axis,
        };
        Learned { weights: vec![weight], ..Learned::default() }
    }

    fn codes(q: &QuantizedWeight) -> Vec<i32> {
        pack::unpack(&q.values).unwrap()
    }

    #[test]
    fn untouched_weights_have_their_scales_to_the_bit() {
        let l = learned(&[2, 3], &[1, -2, 127, 0, 4, -128], &[0.1, 0.037], Some(0));
        let numbers = [0.1, -0.2, 12.7, 0.0, 0.148, -4.736];
        let q = l.weight(&Tensor::from_f32(&[2, 3], &numbers), Some(0)).unwrap().unwrap();
        assert_eq!((codes(&q), q.scales()), (vec![1, -2, 127, 0, 4, -128], vec![0.1, 0.037]));
        // Another weight of that size has no learned codes.
        let other = Tensor::from_f32(&[2, 3], &[0.1, -0.21, 12.7, 0.0, 0.148, -4.736]);
        assert!(l.weight(&other, Some(0)).unwrap().is_none());
    }

    #[test]
    fn factors_of_channels_go_into_the_scales() {
        // One scale for all before, one for each channel after; the second factor is negative, the third channel is 0.
        let l = learned(&[3, 2], &[3, -128, 5, 6, 0, 0], &[0.25], None);
        let numbers = [0.75 * 3.0, -32.0 * 3.0, 1.25 * -2.0, 1.5 * -2.0, 0.0, 0.0];
        let q = l.weight(&Tensor::from_f32(&[3, 2], &numbers), Some(0)).unwrap().unwrap();
        assert_eq!((codes(&q), q.scales()), (vec![3, -128, -5, -6, 0, 0], vec![0.75, 0.5, 0.25]));
        assert_eq!(q.dequantized().unwrap(), numbers);
    }

    #[test]
    fn channels_that_are_nothing_beside_their_bias() {
        let l = learned(&[2, 1], &[100, 100], &[1e-9, 0.1], Some(0));
        let weight = Tensor::from_f32(&[2, 1], &[1e-7, 10.0]);
        let q = l.weight(&weight, Some(0)).unwrap().unwrap();
        let input = Some(QParams { scale: 0.01, zero_point: 0, dtype: DType::Uint8 });
        let q = with_room_for_bias(q, Some(&[5.0, 0.0]), input).unwrap();
        assert!(5.0 / (0.01 * f64::from(q.scales()[0])) < f64::from(i32::MAX));
        assert_eq!((codes(&q), q.scales()[1]), (vec![0, 100], 0.1));
    }

    #[test]
    fn few_bits_leave_room_for_the_bias() {
        let l = learned(&[2, 2], &[1, -7, 5, 3], &[0.5], None);
        let weight = Tensor::from_f32(&[2, 2], &[0.5, -3.5, 2.5, 1.5]);
        let input = Some(QParams { scale: 0.25, zero_point: 0, dtype: DType::Uint8 });
        let with = |bias: [f32; 2]| {
            let q = l.weight(&weight, None).unwrap().unwrap();
            with_room_for_bias(q, Some(&bias), input).unwrap()
        };
        // Multiples of 0.125 need no more room.
        assert_eq!(codes(&with([0.375, -1.0])), [1, -7, 5, 3]);
        let finer = with([0.3, 0.0]);
        assert_eq!((codes(&finer), finer.scales()), (vec![8, -56, 40, 24], vec![0.0625]));
        assert_eq!(finer.dequantized().unwrap(), weight.to_f32().unwrap());
        // 8e8 steps, of which twice as many fit 32 bits.
        assert_eq!(codes(&with([1e8, 0.3])), [2, -14, 10, 6]);
    }

    #[test]
    fn turned_matrices_and_codes_that_turning_the_sign_takes_out_of_int8() {
        let l = learned(&[2, 3], &[1, 2, 3, 4, 5, -128], &[0.5], None);
        let turned = Tensor::from_f32(&[3, 2], &[0.5, 2.0, 1.0, 2.5, 1.5, -64.0]);
        let q = l.weight(&turned, Some(1)).unwrap().unwrap();
        assert_eq!((codes(&q), q.axis), (vec![1, 4, 2, 5, 3, -128], None));
        let negative = Tensor::from_f32(&[2, 3], &[-0.5, -1.0, -1.5, -2.0, -2.5, 64.0]);
        let q = l.weight(&negative, Some(0)).unwrap().unwrap();
        assert_eq!((q.values.dtype(), q.dequantized().unwrap()), (DType::Uint8, negative.to_f32().unwrap()));
    }
}
