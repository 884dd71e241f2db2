//! Numbers quantized with parameters from themselves: `DynamicQuantizeLinear`, `DynamicQuantizeMatMul`.

use super::{Codes, Computed, Weight, matmul_integer_to_float, shape};
use crate::{
    error::Result,
    ir::DType,
    quant::{arith::Quantizer, params::QParams},
};

/// `DynamicQuantizeLinear`: uint8 codes of numbers, and the parameters that it chose.
///
/// The range is from the least to the greatest number and holds 0; `scale = (hi - lo) / 255` and
/// `zero_point = round(-lo / scale)`, all in `f32` (the parameters of `QParams::from_range` are computed in 64 bits
/// and can differ). No numbers, or only zeros, give scale 1 and zero point 0.
pub fn dynamic_quantize_linear(x: &[f32]) -> Result<(Vec<i32>, QParams)> {
    let lo = x.iter().fold(0f32, |m, &x| m.min(x));
    let hi = x.iter().fold(0f32, |m, &x| m.max(x));
    let scale = if lo == hi { 1.0 } else { (hi - lo) / 255.0 };
    let zero_point = (0.0 - lo / scale).round_ties_even().clamp(0.0, 255.0) as i32;
    let params = QParams { scale, zero_point, dtype: DType::Uint8 };
    let q = Quantizer::new(params)?;
    Ok((x.iter().map(|&x| q.code(x)).collect(), params))
}

/// `DynamicQuantizeMatMul`: [`dynamic_quantize_linear`], then [`matmul_integer_to_float`].
///
/// `a` is `[…, M, K]`, of which all is quantized with one scale; the rest is as there.
pub fn dynamic_quantize_matmul(a: &[f32], a_dims: &[usize], b: Weight, bias: Option<&[f32]>) -> Result<Computed<f32>> {
    shape::check_len(a.len(), a_dims, "a")?;
    let (codes, params) = dynamic_quantize_linear(a)?;
    matmul_integer_to_float(Codes { codes: &codes, dims: a_dims, params }, b, bias)
}
