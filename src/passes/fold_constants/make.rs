//! Tensors from shapes and numbers.

use super::{
    Eval,
    args::{Args, room, tensor, to_dims},
};
use crate::ir::{DType, Tensor};

pub(super) const EVALS: &[(&[&str], Eval)] = &[
    (&["Shape"], shape),
    (&["Size"], |a| Some(vec![Tensor::from_i64(&[], &[i64::try_from(a.tensor(0)?.len()).ok()?])])),
    (&["ConstantOfShape"], constant_of_shape),
    (&["Range"], range),
];

fn shape(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let dims: Vec<i64> = a.tensor(0)?.dims().iter().map(|&d| d as i64).collect();
    let rank = dims.len() as i64;
    let place = |n: i64| (if n < 0 { n.saturating_add(rank) } else { n }).clamp(0, rank) as usize;
    let (start, end) = (place(a.int("start", 0)), place(a.int("end", rank)));
    let part = dims.get(start..end.max(start))?;
    Some(vec![Tensor::from_i64(&[part.len()], part)])
}

fn constant_of_shape(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let dims = to_dims(&a.ints(0)?)?;
    let zero = Tensor::from_f32(&[1], &[0.0]);
    let value = match a.node.attr("value") {
        Some(_) => a.node.tensor("value").filter(|t| t.len() == 1 && super::args::readable(t))?,
        None => &zero,
    };
    let count = room(value.dtype(), &dims)?;
    Some(vec![tensor(value.dtype(), &dims, value.bytes().ok()?.repeat(count))?])
}

/// Each element is the one before plus the step, as runtimes add them up.
fn range(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let dtype = a.tensor(0)?.dtype();
    if (1..3).any(|i| a.tensor(i).map(Tensor::dtype) != Some(dtype)) {
        return None;
    }
    match dtype {
        DType::Int64 | DType::Int32 => {
            let (start, limit, step) = (a.scalar(0)?, a.scalar(1)?, a.scalar(2)?);
            let span = limit.checked_sub(start)?;
            let whole = span.checked_div(step)?.checked_add(i64::from(span % step != 0 && (span < 0) == (step < 0)))?;
            let count = room(dtype, &[usize::try_from(whole.max(0)).ok()?])?;
            let at = |i: usize| start + i as i64 * step;
            let bytes = (0..count).flat_map(|i| at(i).to_le_bytes()[..dtype.bits() / 8].to_vec()).collect();
            Some(vec![tensor(dtype, &[count], bytes)?])
        }
        DType::Float => {
            let one = |i| a.tensor(i).and_then(Tensor::scalar_f32);
            let (start, limit, step) = (one(0)?, one(1)?, one(2)?);
            let count = (f64::from(limit - start) / f64::from(step)).ceil();
            if !(0.0..1e8).contains(&count) {
                return None;
            }
            let mut at = start;
            let mut values = Vec::with_capacity(count as usize);
            for _ in 0..count as usize {
                values.push(at);
                at += step;
            }
            Some(vec![Tensor::from_f32(&[values.len()], &values)])
        }
        _ => None,
    }
}
