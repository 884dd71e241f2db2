//! `QLinearAdd` and `QLinearMul`.

use super::{Codes, Computed, Output, shape};
use crate::{error::Result, quant::params::QParams};

/// `QLinearAdd`: `round(a * r_a + (b * r_b + fixed))` with `r_a = s_a / s_y`, `r_b = s_b / s_y` and
/// `fixed = zero_point - (z_a * r_a + z_b * r_b)`.
///
/// Dims broadcast. In each line the first product is fused with the addition after it, and `z_b * r_b` is rounded
/// first; both additions of the sum are fused. Where one number of `a` meets many neighbours of `b`, the kernel
/// exchanges the two, which shows in the last bit: the innermost dim
/// that is not 1 in both decides. Two single numbers are exchanged, too.
pub fn qlinear_add(a: Codes, b: Codes, y: QParams) -> Result<Computed<i32>> {
    let out = Output::new(y)?;
    let (dims, pairs) = pairs(&a, &b)?;
    let exchanged = repeats_a(a.dims, b.dims);
    let (one, other) = if exchanged { (b.params, a.params) } else { (a.params, b.params) };
    let (r_one, r_other) = (one.scale / y.scale, other.scale / y.scale);
    let (z_one, z_other) = (one.zero_point as f32, other.zero_point as f32);
    let fixed = y.zero_point as f32 - r_one.mul_add(z_one, r_other * z_other);
    let code = |(a, b): (i32, i32)| {
        let (one, other) = if exchanged { (b, a) } else { (a, b) };
        out.round((one as f32).mul_add(r_one, (other as f32).mul_add(r_other, fixed)))
    };
    Ok(Computed { values: pairs.map(code).collect(), dims })
}

/// `QLinearMul`: `(a - z_a) (b - z_b)` as an exact integer, times `(s_a * s_b) / s_y`, plus the zero point, rounded.
///
/// Dims broadcast.
pub fn qlinear_mul(a: Codes, b: Codes, y: QParams) -> Result<Computed<i32>> {
    let out = Output::new(y)?;
    let (dims, pairs) = pairs(&a, &b)?;
    let scale = a.params.scale * b.params.scale / y.scale;
    let (z_a, z_b) = (a.params.zero_point, b.params.zero_point);
    let code = |(a, b): (i32, i32)| {
        let product = a.wrapping_sub(z_a).wrapping_mul(b.wrapping_sub(z_b));
        out.add_then_round(product as f32 * scale)
    };
    Ok(Computed { values: pairs.map(code).collect(), dims })
}

/// The dims of the result and, for each of its elements, the two that meet there.
fn pairs<'a>(a: &Codes<'a>, b: &Codes<'a>) -> Result<(Vec<usize>, impl Iterator<Item = (i32, i32)> + 'a)> {
    a.check("a")?;
    b.check("b")?;
    let dims = shape::broadcast(&[a.dims, b.dims])?;
    let (from_a, from_b) = (shape::sources(a.dims, &dims), shape::sources(b.dims, &dims));
    let (a, b) = (a.codes, b.codes);
    Ok((dims, from_a.into_iter().zip(from_b).map(|(i, j)| (a[i], b[j]))))
}

/// Whether neighbours in the result share an element of `a` but not of `b`, or there are no neighbours.
fn repeats_a(a: &[usize], b: &[usize]) -> bool {
    let at = |dims: &[usize], i: usize| dims.len().checked_sub(i).map_or(1, |i| dims[i]);
    let innermost = (1..=a.len().max(b.len())).map(|i| (at(a, i), at(b, i))).find(|&d| d != (1, 1));
    innermost.is_none_or(|(a, _)| a == 1)
}
