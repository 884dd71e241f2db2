//! Weights as the plan says: what the rewriting writes, and what its rounding errors are.

use super::{Known, StoredWeight, Weight, learned};
use crate::{
    error::{Error, Result},
    ir::{DType, Tensor},
    quant::{
        bias::weight_scales_for_bias,
        float8::Float8,
        granularity::{Granularity, QuantizedWeight, channel_params, quantize_weight, quantize_with},
        params::{QParams, QuantTarget, Range},
        saturation::{self, Pairs},
    },
    weights::{self, WeightTask},
};

impl Weight {
    /// The codes of a weight of an integer node. Where its scale is so small that the node's `bias` would not fit its 32
    /// bits, next to an input of these parameters, it is raised and the zero point kept: with a bias in float, a Gemm whose
    /// output is not quantized would stay float.
    pub fn quantize(
        &self,
        tensor: &Tensor,
        bias: Option<&[f32]>,
        input: Option<QParams>,
        known: Known<'_>,
    ) -> Result<QuantizedWeight> {
        if self.learned {
            let missing =
                "the plan says that training has chosen the codes of a weight, but the model does not show them";
            let help = "a plan belongs to the model that it was made for";
            let q = known.learned(tensor, self.axis)?.ok_or_else(|| Error::config(missing).help(help))?;
            return learned::with_room_for_bias(q, bias, input);
        }
        let q = quantize_weight(tensor, self.dtype, self.axis, self.symmetric, self.reduce_range)?;
        let q = self.without_saturation(tensor, q)?;
        // Beside floats of 8 bits, biases stay float.
        let bias = bias.filter(|_| Float8::of(self.dtype).is_none());
        // Sums of pairs that just do not saturate could do so with codes that are nearer to a zero point other than 0.
        let free = self.symmetric || self.pair_axes.is_empty();
        let (Some(bias), Some(input), true) = (bias, input, free) else {
            return self.rounded(tensor, q, Vec::new(), known);
        };
        let (scales, raised) = weight_scales_for_bias(bias, input.scale, &q.scales());
        let (least, _) = weight_scales_for_bias(bias, input.scale, &vec![f32::MIN_POSITIVE; q.params.len()]);
        if raised == 0 || scales.len() != q.params.len() {
            return self.rounded(tensor, q, least, known);
        }
        // A coarser scale makes codes smaller, so that what did not saturate does not now.
        let target = self.target();
        let params = q.params.iter().zip(&scales).map(|(p, &scale)| QParams { scale, ..*p }).collect();
        let q = quantize_with(&tensor.to_f32()?, tensor.dims(), Granularity::from_axis(self.axis), target, params)?;
        self.rounded(tensor, q, least, known)
    }

    /// What the plan's algorithm makes of codes that are the nearest.
    fn rounded(
        &self,
        tensor: &Tensor,
        nearest: QuantizedWeight,
        least: Vec<f32>,
        known: Known<'_>,
    ) -> Result<QuantizedWeight> {
        if !known.helps(&self.algorithm) || nearest.values.dims() != tensor.dims() {
            return Ok(nearest);
        }
        let pairs = (!self.pair_axes.is_empty()).then(|| Pairs::along(tensor.dims(), &self.pair_axes)).transpose()?;
        let task = WeightTask {
            weight: tensor,
            target: self.target(),
            granularity: Granularity::from_axis(nearest.axis),
            params: nearest.params,
            least,
            pairs: pairs.as_ref(),
            reads: None,
        };
        known.round(&self.algorithm, task)
    }
}

impl Weight {
    /// What it is quantized to.
    pub fn target(&self) -> QuantTarget {
        QuantTarget { dtype: self.dtype, symmetric: self.symmetric, reduce_range: self.reduce_range }
    }

    /// The weight with channels of fewer codes, where sums of pairs would saturate and the plan does not allow it. The codes
    /// may have another shape than the weight's.
    pub fn without_saturation(&self, tensor: &Tensor, q: QuantizedWeight) -> Result<QuantizedWeight> {
        if self.pair_axes.is_empty() {
            return Ok(q);
        }
        let pairs = Pairs::along(tensor.dims(), &self.pair_axes)?;
        saturation::without_saturation(&tensor.to_f32()?, self.target(), q, &pairs)
    }

    /// The codes of a weight of a node whose data are quantized at run time. Channels of a symmetric weight have one zero
    /// point, also those of zeros; one channel has its scale as the whole weight.
    pub fn quantize_alike(&self, tensor: &Tensor, known: Known<'_>) -> Result<QuantizedWeight> {
        let axis = self.axis.filter(|&a| tensor.dims().get(a) != Some(&1));
        let granularity = Granularity::from_axis(axis);
        let target = self.target();
        let values = tensor.to_f32()?;
        let mut params = channel_params(&values, tensor.dims(), granularity, target)?;
        if self.symmetric {
            let middle = target.params(Range::new(-1.0, 1.0))?.zero_point;
            params.iter_mut().for_each(|p| p.zero_point = middle);
        }
        let q = quantize_with(&values, tensor.dims(), granularity, target, params)?;
        self.rounded(tensor, self.without_saturation(tensor, q)?, Vec::new(), known)
    }
}

impl StoredWeight {
    /// The numbers themselves in 16-bit floats.
    pub(super) fn half(dtype: DType) -> Self {
        Self { dtype, first_axis: 0, last_axis: 0, algorithm: default_algorithm() }
    }

    /// Whether all numbers of a weight are within the range of float16.
    pub fn fits_half(tensor: &Tensor) -> bool {
        tensor.to_f32().is_ok_and(|all| all.iter().all(|v| v.abs() <= half::f16::MAX.to_f32()))
    }

    /// The codes of a float node's weight, in the shape `[before, scales, behind]`.
    pub fn quantize(&self, tensor: &Tensor, known: Known<'_>) -> Result<QuantizedWeight> {
        let dims = tensor.dims();
        let (first, last) = self.axes(dims.len());
        let product = |range: std::ops::Range<usize>| dims.get(range).unwrap_or_default().iter().product::<usize>();
        let folded = vec![product(0..first), product(first..last + 1), product(last + 1..dims.len())];
        let tensor = tensor.reshaped(folded)?;
        let nearest = quantize_weight(&tensor, self.dtype, Some(1), true, false)?;
        if !known.helps(&self.algorithm) {
            return Ok(nearest);
        }
        let task = WeightTask {
            weight: &tensor,
            target: QuantTarget { dtype: self.dtype, symmetric: true, reduce_range: false },
            granularity: Granularity::PerChannel(1),
            params: nearest.params,
            least: Vec::new(),
            pairs: None,
            reads: None,
        };
        known.round(&self.algorithm, task)
    }

    /// The first and last axis of the scales in a tensor of this rank.
    pub fn axes(&self, rank: usize) -> (usize, usize) {
        (self.first_axis, self.last_axis.min(rank.saturating_sub(1)))
    }
}

/// The algorithm that a plan means where it names none.
pub(super) fn default_algorithm() -> String {
    weights::DEFAULT.to_owned()
}

pub(super) fn is_default_algorithm(name: &str) -> bool {
    name == weights::DEFAULT
}
