//! Matrix products.

use super::{Cx, Dims, Rule};
use crate::{analysis::types::SymDim, ir::DType};

#[rustfmt::skip]
pub(super) const RULES: &[(&[&str], Rule)] = &[
    (&["MatMul"], |cx| product(cx, 0, 1, cx.dtype(0).or_else(|| cx.dtype(1)))),
    (&["MatMulInteger"], |cx| product(cx, 0, 1, Some(DType::Int32))),
    (&["QLinearMatMul", "com.microsoft.QLinearMatMul"], |cx| product(cx, 0, 3, cx.dtype(7))),
    (&["com.microsoft.MatMulInteger16"], |cx| product(cx, 0, 1, Some(DType::Int32))),
    (&["com.microsoft.MatMulIntegerToFloat"], |cx| product(cx, 0, 1, cx.dtype(2))),
    (&["com.microsoft.DynamicQuantizeMatMul"], |cx| product(cx, 0, 1, cx.dtype(0))),
    (&["com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul", "com.microsoft.FusedMatMulActivation"], fused),
    (&["com.microsoft.MatMulNBits", "com.microsoft.MatMulBnb4", "com.microsoft.MatMulFpQ4"], narrow),
    (&["Gemm", "com.microsoft.FusedGemm", "com.microsoft.GemmFastGelu"], |cx| gemm(cx, 1, cx.dtype(0))),
    (&["com.microsoft.QGemm"], |cx| gemm(cx, 3, cx.dtype(8).or_else(|| cx.dtype(1)))),
    (&["Einsum"], einsum),
    (&["Det"], |cx| { let (d, s) = (cx.dtype(0), cx.shape(0)); let s = s.and_then(|mut s| { s.truncate(s.len().checked_sub(2)?); Some(s) }); cx.set(0, d, s); Some(()) }),
];

/// numpy's matmul of inputs `a` and `b`.
fn product(cx: &mut Cx<'_>, a: usize, b: usize, dtype: Option<DType>) -> Option<()> {
    cx.set(0, dtype, None);
    let (a, b) = (cx.shape(a)?, cx.shape(b)?);
    let dims = matmul(cx, a, b)?;
    cx.set(0, dtype, Some(dims));
    Some(())
}

fn matmul(cx: &mut Cx<'_>, mut a: Dims, mut b: Dims) -> Option<Dims> {
    let (row, column) = (a.len() == 1, b.len() == 1);
    if row {
        a.insert(0, SymDim::Known(1));
    }
    if column {
        b.push(SymDim::Known(1));
    }
    let (_, m) = (a.pop()?, a.pop()?);
    let (n, _) = (b.pop()?, b.pop()?);
    let mut dims = cx.broadcast(&[Some(a), Some(b)])?;
    if !row {
        dims.push(m);
    }
    if !column {
        dims.push(n);
    }
    Some(dims)
}

fn fused(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    if cx.int("transBatchA", 0) != 0 || cx.int("transBatchB", 0) != 0 {
        return None;
    }
    let (mut a, mut b) = (cx.shape(0)?, cx.shape(1)?);
    for (dims, name) in [(&mut a, "transA"), (&mut b, "transB")] {
        let n = dims.len();
        if cx.int(name, 0) != 0 && n >= 2 {
            dims.swap(n - 1, n - 2);
        }
    }
    let dims = matmul(cx, a, b)?;
    cx.set(0, dtype, Some(dims));
    Some(())
}

/// Weights of a few bits: their shape stands in the attributes `K` and `N`.
fn narrow(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let mut dims = cx.shape(0)?;
    *dims.last_mut()? = SymDim::Known(usize::try_from(cx.node().int("N")?).ok()?);
    cx.set(0, dtype, Some(dims));
    Some(())
}

fn gemm(cx: &mut Cx<'_>, b: usize, dtype: Option<DType>) -> Option<()> {
    cx.set(0, dtype, None);
    let (a_rows, b_columns) = (usize::from(cx.int("transA", 0) != 0), usize::from(cx.int("transB", 0) == 0));
    let dim = |shape: Option<Dims>, i: usize| shape.filter(|s| s.len() == 2).map(|s| s[i]);
    let (m, n) = (dim(cx.shape(0), a_rows), dim(cx.shape(b), b_columns));
    cx.set(0, dtype, Some(vec![m.unwrap_or(SymDim::Unknown), n.unwrap_or(SymDim::Unknown)]));
    Some(())
}

/// Each letter is a dim; the letters of the result are given, or those that occur once, in their order.
fn einsum(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let equation: String = cx.node().string("equation")?.chars().filter(|c| !c.is_whitespace()).collect();
    if equation.contains("...") {
        return None;
    }
    let (terms, result) = match equation.split_once("->") {
        Some((terms, result)) => (terms, result.to_owned()),
        None => {
            let mut once: Vec<char> =
                equation.chars().filter(|c| *c != ',' && equation.matches(*c).count() == 1).collect();
            once.sort_unstable();
            (equation.as_str(), once.into_iter().collect())
        }
    };
    let mut dims: Vec<(char, SymDim)> = Vec::new();
    for (i, term) in terms.split(',').enumerate() {
        let shape = cx.shape(i)?;
        if shape.len() != term.chars().count() {
            return None;
        }
        for (letter, dim) in term.chars().zip(shape) {
            match dims.iter_mut().find(|(l, _)| *l == letter) {
                Some((_, known)) => *known = cx.symbols().broadcast(*known, dim),
                None => dims.push((letter, dim)),
            }
        }
    }
    let out = result.chars().map(|c| dims.iter().find(|(l, _)| *l == c).map(|(_, d)| *d)).collect::<Option<_>>()?;
    cx.set(0, dtype, Some(out));
    Some(())
}
