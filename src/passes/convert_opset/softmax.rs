//! Softmax, LogSoftmax and Hardmax: up to version 11 they saw a matrix, from 13 on they work along one axis.

use super::step::Step;
use crate::{
    error::Result,
    ir::{Attr, Tensor, ValueId},
};

/// 11 → 13: all axes from `axis` (default 1) on were one.
///
/// ```text
/// before: y = Softmax<axis = 1>(x)       # x has unknown rank, or more axes behind `axis`
/// after:  y = Reshape(Softmax<axis = -1>(Flatten<axis = 1>(x)), Shape(x))
/// ```
///
/// Where at most one of those axes is longer than 1, that axis alone says the same.
pub(super) fn one_axis(step: &mut Step<'_>) -> Result<()> {
    let axis = step.take_int("axis")?.unwrap_or(1);
    let x = step.input(0)?;
    if let Some(only) = only_axis(step, x, axis) {
        step.set("axis", only);
        return Ok(());
    }
    let shape = match step.types.known_shape(x) {
        Some(dims) if !dims.contains(&0) => {
            let dims: Vec<i64> = dims.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
            step.constant("shape", Tensor::from_i64(&[dims.len()], &dims))
        }
        _ => step.before("Shape", &[x], vec![]),
    };
    let matrix = step.before("Flatten", &[x], vec![Attr::new("axis", axis)]);
    let op = step.node().op_type.clone();
    let rows = step.before(&op, &[matrix], vec![Attr::new("axis", -1i64)]);
    step.become_op("Reshape", &[rows, shape], vec![]);
    Ok(())
}

fn only_axis(step: &Step<'_>, x: ValueId, axis: i64) -> Option<i64> {
    if axis == -1 {
        return Some(-1);
    }
    let dims = step.types.shape(x)?;
    let first = usize::try_from(if axis < 0 { axis + i64::try_from(dims.len()).ok()? } else { axis }).ok()?;
    let longer: Vec<usize> = (first..dims.len()).filter(|&i| dims[i].known() != Some(1)).collect();
    match *longer.as_slice() {
        _ if first + 1 == dims.len() => Some(-1),
        [] => Some(i64::try_from(first).ok()?).filter(|_| first < dims.len()),
        [one] if one + 1 == dims.len() => Some(-1),
        [one] => i64::try_from(one).ok(),
        _ => None,
    }
}
