//! Operators that look each code up: `QLinearSigmoid`, `QLinearLeakyRelu`, `QLinearConcat`, `QLinearWhere`.

use super::{Codes, Computed, Table, shape};
use crate::{
    error::{Error, Result},
    quant::{
        arith::{Quantizer, dequantize_one},
        params::QParams,
    },
};

/// Each code dequantized, put through a function, and quantized.
fn through(x: &Codes, y: QParams, function: impl Fn(f32) -> f32) -> Result<Computed<i32>> {
    x.check("x")?;
    let q = Quantizer::new(y)?;
    let table = Table::new(x.params.dtype, |code| q.code(function(dequantize_one(code, x.params))))?;
    Ok(Computed { values: x.codes.iter().map(|&c| table.get(c)).collect(), dims: x.dims.to_vec() })
}

/// `QLinearSigmoid`: DequantizeLinear, the runtime's `f32` sigmoid, QuantizeLinear.
///
/// That sigmoid is `x p(x²) / q(x²) + 1/2`, at most 1.3e-7 off: it differs from an exact one in about one code of ten
/// thousand where the output's steps are 1/256 or finer.
pub fn qlinear_sigmoid(x: Codes, y: QParams) -> Result<Computed<i32>> {
    through(&x, y, logistic)
}

/// `QLinearLeakyRelu`: DequantizeLinear, `x` or `alpha * x`, QuantizeLinear.
pub fn qlinear_leaky_relu(x: Codes, alpha: f32, y: QParams) -> Result<Computed<i32>> {
    through(&x, y, |x| if x >= 0.0 { x } else { x * alpha })
}

/// `QLinearConcat`: each input dequantized and quantized to the output's parameters, then joined along `axis`.
///
/// All inputs have the same dims but for `axis`, and there is at least one.
pub fn qlinear_concat(inputs: &[Codes], axis: usize, y: QParams) -> Result<Computed<i32>> {
    let first = inputs.first().ok_or_else(|| Error::malformed("a concatenation of nothing"))?;
    let mut dims = first.dims.to_vec();
    if axis >= dims.len() {
        return Err(Error::malformed(format!("axis is {axis}, the dims are {dims:?}")));
    }
    let mut parts = Vec::new();
    dims[axis] = 0;
    for x in inputs {
        let same = x.dims.len() == dims.len() && (0..dims.len()).all(|i| i == axis || x.dims[i] == dims[i]);
        if !same {
            return Err(Error::malformed(format!("no concatenation of {:?} and {:?} over {axis}", first.dims, x.dims)));
        }
        parts.push(through(x, y, |x| x)?.values);
        dims[axis] += x.dims[axis];
    }
    shape::count(&dims, "the result")?;
    let outer: usize = dims[..axis].iter().product();
    let mut values = Vec::new();
    for i in 0..outer {
        for part in &parts {
            let each = part.len() / outer;
            values.extend_from_slice(&part[i * each..][..each]);
        }
    }
    Ok(Computed { values, dims })
}

/// `QLinearWhere`: `a` where the condition holds and `b` elsewhere, both dequantized and quantized to the output's
/// parameters. All three broadcast.
pub fn qlinear_where(
    condition: &[bool],
    condition_dims: &[usize],
    a: Codes,
    b: Codes,
    y: QParams,
) -> Result<Computed<i32>> {
    shape::check_len(condition.len(), condition_dims, "condition")?;
    let (of_a, of_b) = (through(&a, y, |x| x)?.values, through(&b, y, |x| x)?.values);
    let dims = shape::broadcast(&[condition_dims, a.dims, b.dims])?;
    let [from, from_a, from_b] = [condition_dims, a.dims, b.dims].map(|d| shape::sources(d, &dims));
    let code = |i: usize| if condition[from[i]] { of_a[from_a[i]] } else { of_b[from_b[i]] };
    Ok(Computed { values: (0..from.len()).map(code).collect(), dims })
}

/// The rational approximation of the runtime's `Sigmoid`: the odd and even parts of a tanh of half the argument, by
/// Horner with fused steps, beyond ±18 as at 18.
fn logistic(x: f32) -> f32 {
    const ODD: [f32; 5] = [4.370_31e-11, 1.156_273_2e-7, 6.085_749e-5, 8.513_771e-3, 2.482_879_5e-1];
    const EVEN: [f32; 6] =
        [6.102_473_7e-13, 5.761_021_4e-9, 6.291_068e-6, 1.701_988_2e-3, 1.168_176_5e-1, 9.931_519e-1];
    let x = x.clamp(-18.0, 18.0);
    let squared = x * x;
    let polynomial = |c: &[f32]| c[1..].iter().fold(c[0], |sum, &c| sum.mul_add(squared, c));
    (polynomial(&ODD) * x / polynomial(&EVEN) + 0.5).clamp(0.0, 1.0)
}
