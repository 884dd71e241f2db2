//! Products of matrices: `MatMulInteger`, `QLinearMatMul`, `MatMulIntegerToFloat`.

use super::{Codes, Computed, Output, Weight, shape::Product};
use crate::{
    error::{Error, Result},
    quant::params::QParams,
};

/// For each element of `MatMulInteger`'s result, in order: the sum of products, and its column among all columns of `b`
/// (for parameters of each column).
fn sums(a: &Codes, b: &Weight) -> Result<(Vec<(i32, usize)>, Product)> {
    let p = Product::new(a.dims, b.dims)?;
    a.check("a")?;
    // Parameters of a batched `b` are for each column of each of its matrices.
    b.check(p.batches_of_b * p.n, "b")?;
    let a_steps = a.steps();
    let mut all = Vec::with_capacity(p.pairs.len() * p.m * p.n);
    for &(in_a, in_b) in &p.pairs {
        for row in 0..p.m {
            let row = &a_steps[(in_a * p.m + row) * p.k..][..p.k];
            for column in 0..p.n {
                let channel = in_b * p.n + column;
                let zero = b.zero_point(channel);
                let column = b.codes[in_b * p.k * p.n..].iter().skip(column).step_by(p.n.max(1));
                let term = |(x, w): (&i32, &i32)| x.wrapping_mul(w.wrapping_sub(zero));
                all.push((row.iter().zip(column).map(term).fold(0, i32::wrapping_add), channel));
            }
        }
    }
    Ok((all, p))
}

/// `MatMulInteger`: `sum (a - a_zero_point) (b - b_zero_point)`. Scales have no effect.
///
/// `a` is `[…, M, K]` or `[K]`, `b` is `[…, K, N]` or `[K]`; batches broadcast. Zero points of `b` are one, N, or N
/// for each of its matrices.
pub fn matmul_integer(a: Codes, b: Weight) -> Result<Computed<i32>> {
    let (sums, p) = sums(&a, &b)?;
    Ok(Computed { values: sums.into_iter().map(|(sum, _)| sum).collect(), dims: p.dims })
}

/// `QLinearMatMul`: the sum of [`matmul_integer`] times `(s_a * s_b) / s_y`, rounded, then the zero point.
pub fn qlinear_matmul(a: Codes, b: Weight, y: QParams) -> Result<Computed<i32>> {
    let out = Output::new(y)?;
    let (sums, p) = sums(&a, &b)?;
    let code = |(sum, channel)| out.round_then_add(sum as f32 * (a.params.scale * b.scale(channel) / y.scale));
    Ok(Computed { values: sums.into_iter().map(code).collect(), dims: p.dims })
}

/// `MatMulIntegerToFloat`: the sum of [`matmul_integer`] as `f32`, times `s_a * s_b`, plus the bias. Both products and
/// the sum are rounded on their own.
///
/// The bias, if there is one, has N elements.
pub fn matmul_integer_to_float(a: Codes, b: Weight, bias: Option<&[f32]>) -> Result<Computed<f32>> {
    let (sums, p) = sums(&a, &b)?;
    if let Some(bias) = bias.filter(|b| b.len() != p.n) {
        return Err(Error::malformed(format!("bias has {} elements, b has {} columns", bias.len(), p.n)));
    }
    let real = |(sum, channel)| {
        let product = sum as f32 * (a.params.scale * b.scale(channel));
        bias.map_or(product, |bias| product + bias[channel % p.n])
    };
    Ok(Computed { values: sums.into_iter().map(real).collect(), dims: p.dims })
}
