//! Biases of Conv and Gemm: int32, zero point 0, scale = input scale times weight scale.

use crate::{
    error::{Error, Result},
    ir::{DType, Tensor},
};

use super::pack;

/// A bias as the initializers of a `DequantizeLinear`.
#[derive(Debug, Clone)]
pub struct QuantizedBias {
    /// int32 codes, one for each output channel.
    pub values: Tensor,
    /// float: a scalar, or one for each output channel.
    pub scale: Tensor,
    /// int32 zeros in the shape of `scale`.
    pub zero_point: Tensor,
    /// How many codes did not fit 32 bits and were saturated.
    pub saturated: usize,
}

/// Weight scales under which the bias fits its 32 bits.
///
/// Where a weight's scale is so small that `s_x * s_w` cannot express the bias in 31 bits, the weight's scale is raised
/// (its codes get coarser: it hardly matters next to such a bias). `s_w` holds one scale or one for each element of
/// `bias`. Returns the scales to quantize the weight with, its zero points kept, and how many of them were raised.
pub fn weight_scales_for_bias(bias: &[f32], s_x: f32, s_w: &[f32]) -> (Vec<f32>, usize) {
    let absmax = |b: &[f32]| b.iter().fold(0f64, |m, &b| m.max(f64::from(b).abs()));
    let mut raised = 0;
    let mut raise = |s: f32, most: f64| {
        let product = f64::from(s_x) * f64::from(s);
        // The span of int32 without its least code; 1.0001 leaves room for the rounding of the scales.
        let least = 1.0001 * 2.0 * most / (2.0 * f64::from(i32::MAX));
        if product > 0.0 && product < least {
            raised += 1;
            (f64::from(s) * (least / product)) as f32
        } else {
            s
        }
    };
    let scales = match s_w {
        [one] => vec![raise(*one, absmax(bias))],
        many => many.iter().zip(bias).map(|(&s, b)| raise(s, f64::from(*b).abs())).collect(),
    };
    (scales, raised)
}

/// Rounds a bias to int32 under the scale `s_x * s_w`. `s_w` holds one scale or one for each element of `bias`: pass
/// the result of [`weight_scales_for_bias`]. NaN and infinities, or another count of scales, are errors.
pub fn quantize_bias(bias: &[f32], s_x: f32, s_w: &[f32]) -> Result<QuantizedBias> {
    if s_w.len() != 1 && s_w.len() != bias.len() {
        return Err(Error::malformed(format!("bias has {} elements, weight has {} scales", bias.len(), s_w.len())));
    }
    if let Some(at) = bias.iter().position(|b| !b.is_finite()) {
        return Err(Error::data(format!("bias holds {} at index {at}", bias[at])).help(
            "repair the model, or keep this node in float: a value like this makes every result NaN or infinite",
        ));
    }
    let scales: Vec<f32> = s_w.iter().map(|s| s_x * s).collect();
    let mut saturated = 0;
    let mut code = |(i, &b): (usize, &f32)| {
        let scale = f64::from(scales[i % scales.len()]);
        // A product below the least f32 is 0; only a bias of 0 has a code then.
        let c = if b == 0.0 { 0.0 } else { (f64::from(b) / scale).round_ties_even() };
        saturated += usize::from(c.abs() > f64::from(i32::MAX));
        c as i32 // saturates
    };
    let codes: Vec<i32> = bias.iter().enumerate().map(&mut code).collect();
    let dims: Vec<usize> = if s_w.len() == 1 && bias.len() != 1 { vec![] } else { vec![scales.len()] };
    Ok(QuantizedBias {
        values: pack::pack(DType::Int32, &[bias.len()], &codes)?,
        scale: Tensor::from_f32(&dims, &scales),
        zero_point: Tensor::from_i32(&dims, &vec![0; scales.len()]),
        saturated,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_bias() {
        let q = quantize_bias(&[1.0, -0.25], 0.5, &[0.1, 0.2]).unwrap();
        assert_eq!(q.values.to_i64().unwrap(), [20, -2]); // -2.5 to even
        assert_eq!(q.scale.to_f32().unwrap(), [0.05, 0.1]);
        assert_eq!(q.saturated, 0);
        let (scales, raised) = weight_scales_for_bias(&[1.0, -0.25], 0.5, &[0.1, 0.2]);
        assert_eq!((scales, raised), (vec![0.1, 0.2], 0));
    }

    #[test]
    fn a_tiny_weight_scale_is_raised_so_that_the_bias_fits() {
        let (bias, s_x, s_w) = ([5.0f32, 5.0, 0.0], 1e-3f32, [1e-9f32, 0.1, 1e-9]);
        assert_eq!(quantize_bias(&bias, s_x, &s_w).unwrap().saturated, 1);
        let (scales, raised) = weight_scales_for_bias(&bias, s_x, &s_w);
        assert_eq!((raised, scales[1], scales[2]), (1, 0.1, 1e-9));
        let q = quantize_bias(&bias, s_x, &scales).unwrap();
        assert_eq!(q.saturated, 0);
        let code = q.values.to_i64().unwrap()[0];
        assert!((f64::from(q.scale.to_f32().unwrap()[0]) * code as f64 - 5.0).abs() < 1e-6);
        // One scale for all follows the largest bias.
        let (scales, _) = weight_scales_for_bias(&bias, s_x, &s_w[..1]);
        assert_eq!(quantize_bias(&bias, s_x, &scales).unwrap().saturated, 0);
    }

    #[test]
    fn refuses_bad_input() {
        assert!(quantize_bias(&[1.0, 2.0, 3.0], 1.0, &[1.0, 2.0]).is_err());
        assert!(quantize_bias(&[f32::NAN], 1.0, &[1.0]).is_err());
        assert_eq!(quantize_bias(&[0.0], 1e-30, &[1e-30]).unwrap().values.to_i64().unwrap(), [0]);
    }
}
