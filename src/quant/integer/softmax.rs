//! `QLinearSoftmax`.

use super::{Codes, Computed, Output, Table};
use crate::{
    error::{Error, Result},
    ir::DType,
    quant::params::QParams,
};

/// `QLinearSoftmax` over the axes from `axis` to before `end`: those that add up to 1 together.
///
/// For opset 13 and later `end` is `axis + 1`, before it is the rank. A code `c` counts with
/// `exp(s_x * (c - greatest))`, multiplied by `exp(k)` so that sums use all of `f32`: `k = ln(f32::MAX / count) - 5`,
/// rounded to `f32`; the product is computed in 64 bits and rounded to `f32`. These are added in `f32`, in order. The
/// share times `floor(1 / s_y)` is computed in 64 bits and rounded, then the zero point is added. The zero point of
/// `x` has no effect.
pub fn qlinear_softmax(x: Codes, axis: usize, end: usize, y: QParams) -> Result<Computed<i32>> {
    x.check("x")?;
    let out = Output::new(y)?;
    if axis >= end || end > x.dims.len() {
        return Err(Error::malformed(format!("a softmax over the axes from {axis} to {end} of {:?}", x.dims)));
    }
    let count: usize = x.dims[axis..end].iter().product();
    let inner: usize = x.dims[end..].iter().product();
    let raised = f64::from(((f64::from(f32::MAX) / count as f64).ln() - 5.0) as f32);
    // Of distances from the greatest code, which are 8 bit numbers without a sign.
    let scale = f64::from(x.params.scale);
    let exp = Table::new(DType::Uint8, |d| (raised - scale * f64::from(d)).exp() as f32)?;
    let most = f64::from((1.0 / y.scale).floor());
    let mut values = x.codes.to_vec();
    let rows = if values.is_empty() { 0 } else { values.len() / count };
    for row in 0..rows {
        let first = row / inner * inner * count + row % inner;
        let at = (0..count).map(|i| first + i * inner);
        let greatest = at.clone().map(|i| x.codes[i]).max().unwrap_or(0);
        let part = |i: usize| exp.get(greatest.saturating_sub(x.codes[i]));
        let sum = at.clone().fold(0f32, |sum, i| sum + part(i));
        for i in at {
            values[i] = out.round_then_add((f64::from(part(i)) * most / f64::from(sum)).round_ties_even() as f32);
        }
    }
    Ok(Computed { values, dims: x.dims.to_vec() })
}
