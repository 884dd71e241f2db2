//! Weights as the plan says: what the rewriting writes, and what its rounding errors are.

use super::{StoredWeight, Weight};
use crate::{
    error::Result,
    ir::Tensor,
    quant::{
        bias::weight_scales_for_bias,
        granularity::{Granularity, QuantizedWeight, channel_params, quantize_weight, quantize_with},
        params::{QParams, QuantTarget, Range},
        saturation::{self, Pairs},
    },
};

impl Weight {
    /// The codes of a weight of an integer node. Where its scale is so small that the node's `bias` would not fit its 32
    /// bits, next to an input of these parameters, it is raised and the zero point kept: with a bias in float, a Gemm whose
    /// output is not quantized would stay float.
    pub fn quantize(&self, tensor: &Tensor, bias: Option<&[f32]>, input: Option<QParams>) -> Result<QuantizedWeight> {
        let q = quantize_weight(tensor, self.dtype, self.axis, self.symmetric, self.reduce_range)?;
        let q = self.without_saturation(tensor, q)?;
        // Sums of pairs that just do not saturate could do so with codes that are nearer to a zero point other than 0.
        let free = self.symmetric || self.pair_axes.is_empty();
        let (Some(bias), Some(input), true) = (bias, input, free) else { return Ok(q) };
        let (scales, raised) = weight_scales_for_bias(bias, input.scale, &q.scales());
        if raised == 0 || scales.len() != q.params.len() {
            return Ok(q);
        }
        // A coarser scale makes codes smaller, so that what did not saturate does not now.
        let target = self.target();
        let params = q.params.iter().zip(&scales).map(|(p, &scale)| QParams { scale, ..*p }).collect();
        quantize_with(&tensor.to_f32()?, tensor.dims(), Granularity::from_axis(self.axis), target, params)
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
    pub fn quantize_alike(&self, tensor: &Tensor) -> Result<QuantizedWeight> {
        let axis = self.axis.filter(|&a| tensor.dims().get(a) != Some(&1));
        let granularity = Granularity::from_axis(axis);
        let target = self.target();
        let values = tensor.to_f32()?;
        let mut params = channel_params(&values, tensor.dims(), granularity, target)?;
        if self.symmetric {
            let middle = target.params(Range::new(-1.0, 1.0))?.zero_point;
            params.iter_mut().for_each(|p| p.zero_point = middle);
        }
        self.without_saturation(tensor, quantize_with(&values, tensor.dims(), granularity, target, params)?)
    }
}

impl StoredWeight {
    /// The codes of a float node's weight, in the shape `[before, scales, behind]`.
    pub fn quantize(&self, tensor: &Tensor) -> Result<QuantizedWeight> {
        let dims = tensor.dims();
        let (first, last) = self.axes(dims.len());
        let product = |range: std::ops::Range<usize>| dims.get(range).unwrap_or_default().iter().product::<usize>();
        let folded = vec![product(0..first), product(first..last + 1), product(last + 1..dims.len())];
        quantize_weight(&tensor.reshaped(folded)?, self.dtype, Some(1), true, false)
    }

    /// The first and last axis of the scales in a tensor of this rank.
    pub fn axes(&self, rank: usize) -> (usize, usize) {
        (self.first_axis, self.last_axis.min(rank.saturating_sub(1)))
    }
}
