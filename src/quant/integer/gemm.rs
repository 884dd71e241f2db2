//! `QGemm`, with codes or real numbers as its output.

use super::{Codes, Computed, Output, Weight, shape};
use crate::{
    error::{Error, Result},
    quant::params::QParams,
};

/// The attributes of `QGemm`.
#[derive(Debug, Clone, Copy)]
pub struct Gemm {
    /// A is stored as `[K, M]`.
    pub trans_a: bool,
    /// B is stored as `[N, K]`.
    pub trans_b: bool,
    /// The factor of the product *and* of the bias.
    pub alpha: f32,
}

/// The bias of `QGemm`: codes of 32 bits under the scale `alpha * s_a * s_b` and zero point 0, whose dims broadcast to
/// `[M, N]`.
#[derive(Debug, Clone, Copy)]
pub struct Bias<'a> {
    /// The codes.
    pub codes: &'a [i32],
    /// The dims.
    pub dims: &'a [usize],
}

/// The sums with their bias, row by row, and M and N.
fn sums(gemm: Gemm, a: &Codes, b: &Weight, bias: Option<Bias>) -> Result<(Vec<i32>, usize, usize)> {
    let (&[a0, a1], &[b0, b1]) = (a.dims, b.dims) else {
        return Err(Error::malformed(format!("QGemm of dims {:?} and {:?}: both must be matrices", a.dims, b.dims)));
    };
    let (m, k) = if gemm.trans_a { (a1, a0) } else { (a0, a1) };
    let (k_b, n) = if gemm.trans_b { (b1, b0) } else { (b0, b1) };
    if k != k_b {
        return Err(Error::malformed(format!("QGemm adds over {k} columns of a and {k_b} rows of b")));
    }
    a.check("a")?;
    b.check(n, "b")?;
    let mut all = vec![0i32; shape::count(&[m, n], "the result")?];
    if let Some(bias) = bias {
        shape::check_len(bias.codes.len(), bias.dims, "bias")?;
        if shape::broadcast(&[bias.dims, &[m, n]])? != [m, n] {
            return Err(Error::malformed(format!("bias of dims {:?} does not broadcast to [{m}, {n}]", bias.dims)));
        }
        all = shape::sources(bias.dims, &[m, n]).into_iter().map(|i| bias.codes[i]).collect();
    }
    let a_steps = a.steps();
    for (at, sum) in all.iter_mut().enumerate() {
        let (row, column) = (at / n, at % n);
        let zero = b.zero_point(column);
        for i in 0..k {
            let x = a_steps[if gemm.trans_a { i * m + row } else { row * k + i }];
            let w = b.codes[if gemm.trans_b { column * k + i } else { i * n + column }];
            *sum = sum.wrapping_add(x.wrapping_mul(w.wrapping_sub(zero)));
        }
    }
    Ok((all, m, n))
}

/// `QGemm` with codes as its output: the sum with its bias times `((alpha * s_a) * s_b) / s_y`, rounded, then the zero
/// point.
///
/// `a` is `[M, K]` or transposed, `b` is `[K, N]` or transposed, with parameters for the whole or for each of N
/// columns.
pub fn qgemm(gemm: Gemm, a: Codes, b: Weight, bias: Option<Bias>, y: QParams) -> Result<Computed<i32>> {
    let out = Output::new(y)?;
    let (sums, m, n) = sums(gemm, &a, &b, bias)?;
    let scale = |column| gemm.alpha * a.params.scale * b.scale(column) / y.scale;
    let values = sums.iter().enumerate().map(|(i, &sum)| out.round_then_add(sum as f32 * scale(i % n))).collect();
    Ok(Computed { values, dims: vec![m, n] })
}

/// `QGemm` without parameters of an output: the sum with its bias as `f32`, times `(alpha * s_a) * s_b`.
pub fn qgemm_float(gemm: Gemm, a: Codes, b: Weight, bias: Option<Bias>) -> Result<Computed<f32>> {
    let (sums, m, n) = sums(gemm, &a, &b, bias)?;
    let scale = |column| gemm.alpha * a.params.scale * b.scale(column);
    let values = sums.iter().enumerate().map(|(i, &sum)| sum as f32 * scale(i % n)).collect();
    Ok(Computed { values, dims: vec![m, n] })
}
