//! The same elements in another shape or order.

use super::{
    Eval,
    args::{Args, resolve_axis, to_dims},
    strided::{Walk, broadcast_dims, steps},
};
use crate::ir::{Tensor, tensor::element_count};

pub(super) const EVALS: &[(&[&str], Eval)] = &[
    (&["Identity"], |a| Some(vec![a.tensor(0)?.clone()])),
    (&["Reshape"], reshape),
    (&["Flatten"], flatten),
    (&["Squeeze"], squeeze),
    (&["Unsqueeze"], unsqueeze),
    (&["Transpose"], transpose),
    (&["Expand"], expand),
    (&["Tile"], tile),
];

fn shaped(t: &Tensor, dims: Vec<usize>) -> Option<Vec<Tensor>> {
    Some(vec![t.reshaped(dims).ok()?])
}

fn reshape(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let (x, target) = (a.tensor(0)?, a.list("shape", 1)??);
    let copy = a.int("allowzero", 0) == 0;
    let mut open = None;
    let mut dims = Vec::with_capacity(target.len());
    for (i, n) in target.into_iter().enumerate() {
        dims.push(match n {
            0 if copy => *x.dims().get(i)?,
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            n => usize::try_from(n).ok()?,
        });
    }
    if let Some(i) = open {
        let others = element_count(&dims).filter(|&n| n > 0)?;
        dims[i] = x.len() / others;
    }
    shaped(x, dims)
}

fn flatten(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let x = a.tensor(0)?;
    let axis = a.int("axis", 1);
    let axis = if axis < 0 { axis + x.rank() as i64 } else { axis };
    let axis = usize::try_from(axis).ok().filter(|&n| n <= x.rank())?;
    shaped(x, vec![x.dims()[..axis].iter().product(), x.dims()[axis..].iter().product()])
}

fn squeeze(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let x = a.tensor(0)?;
    let axes: Option<Vec<usize>> = match a.list("axes", 1)? {
        Some(axes) => Some(axes.into_iter().map(|n| resolve_axis(n, x.rank())).collect::<Option<_>>()?),
        None => None,
    };
    let goes = |i: usize, d: usize| axes.as_ref().map_or(d == 1, |axes| axes.contains(&i));
    let dims = x.dims().iter().enumerate().filter(|&(i, &d)| !goes(i, d)).map(|(_, &d)| d).collect();
    shaped(x, dims)
}

fn unsqueeze(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let x = a.tensor(0)?;
    let axes = a.list("axes", 1)??;
    let rank = x.rank() + axes.len();
    let axes: Vec<usize> = axes.into_iter().map(|n| resolve_axis(n, rank)).collect::<Option<_>>()?;
    let mut old = x.dims().iter().copied();
    let dims = (0..rank).map(|i| if axes.contains(&i) { Some(1) } else { old.next() }).collect::<Option<_>>()?;
    shaped(x, dims)
}

fn transpose(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let x = a.tensor(0)?;
    let perm = match a.node.ints("perm") {
        Some(perm) => to_dims(perm)?,
        None => (0..x.rank()).rev().collect(),
    };
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    if sorted != (0..x.rank()).collect::<Vec<_>>() {
        return None;
    }
    let own = steps(x.dims());
    let walk = Walk {
        dims: perm.iter().map(|&p| x.dims()[p]).collect(),
        steps: perm.iter().map(|&p| own[p]).collect(),
        start: 0,
    };
    Some(vec![walk.copy(x)?])
}

fn expand(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let x = a.tensor(0)?;
    let dims = broadcast_dims(x.dims(), &to_dims(&a.ints(1)?)?)?;
    Some(vec![Walk::broadcast(x.dims(), &dims)?.copy(x)?])
}

/// Each axis becomes two: how often, and the axis itself.
fn tile(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let (x, times) = (a.tensor(0)?, to_dims(&a.ints(1)?)?);
    if times.len() != x.rank() {
        return None;
    }
    let mut walk = Walk { dims: Vec::new(), steps: Vec::new(), start: 0 };
    for ((&n, &d), step) in times.iter().zip(x.dims()).zip(steps(x.dims())) {
        walk.dims.extend([n, d]);
        walk.steps.extend([0, step]);
    }
    let dims = times.iter().zip(x.dims()).map(|(&n, &d)| n.checked_mul(d)).collect::<Option<_>>()?;
    shaped(&walk.copy(x)?, dims)
}
