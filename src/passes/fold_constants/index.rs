//! Operators that pick or place elements.

use super::{
    Eval,
    args::{Args, resolve_axis, room, tensor, width},
    strided::{Walk, steps},
};
use crate::ir::{DType, Tensor};

pub(super) const EVALS: &[(&[&str], Eval)] = &[
    (&["Slice"], slice),
    (&["Gather"], gather),
    (&["GatherElements"], gather_elements),
    (&["GatherND"], gather_nd),
    (&["ScatterND"], scatter_nd),
    (&["Trilu"], trilu),
    (&["NonZero"], non_zero),
];

fn slice(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let x = a.tensor(0)?;
    let (starts, ends) = (a.list("starts", 1)??, a.list("ends", 2)??);
    let axes = a.list("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let strides = if a.has(4) { a.ints(4)? } else { vec![1; starts.len()] };
    if [ends.len(), axes.len(), strides.len()] != [starts.len(); 3] {
        return None;
    }
    let mut walk = Walk::of(x.dims());
    for k in 0..starts.len() {
        let axis = resolve_axis(axes[k], x.rank())?;
        let dim = i64::try_from(x.dims()[axis]).ok()?;
        let place = |i: i64| if i < 0 { i.saturating_add(dim) } else { i };
        let (step, span, first);
        if strides[k] > 0 {
            (step, first) = (strides[k], place(starts[k]).clamp(0, dim));
            span = place(ends[k]).clamp(0, dim) - first;
        } else {
            (step, first) = (strides[k].checked_neg().filter(|&s| s > 0)?, place(starts[k]).clamp(0, (dim - 1).max(0)));
            span = if dim == 0 { 0 } else { first - place(ends[k]).clamp(-1, dim - 1) };
        }
        let count = if span <= 0 { 0 } else { (span - 1) / step + 1 };
        walk.dims[axis] = usize::try_from(count).ok()?;
        walk.start += walk.steps[axis] * first as isize;
        // A step beyond the axis is taken at most once, that is never.
        walk.steps[axis] *= if count <= 1 { 1 } else { strides[k] as isize };
    }
    Some(vec![walk.copy(x)?])
}

fn index(i: i64, dim: usize) -> Option<usize> {
    let i = if i < 0 { i.checked_add(i64::try_from(dim).ok()?)? } else { i };
    usize::try_from(i).ok().filter(|&i| i < dim)
}

fn gather(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let (x, at) = (a.tensor(0)?, a.tensor(1)?);
    let axis = a.axis(0, x.rank())?;
    let dims = [&x.dims()[..axis], at.dims(), &x.dims()[axis + 1..]].concat();
    room(x.dtype(), &dims)?;
    let run = x.dims()[axis + 1..].iter().product::<usize>() * width(x.dtype())?;
    let dim = x.dims()[axis];
    let picks: Vec<usize> = a.ints(1)?.into_iter().map(|i| index(i, dim)).collect::<Option<_>>()?;
    let bytes = x.bytes().ok()?;
    let mut out = Vec::new();
    for outer in 0..x.dims()[..axis].iter().product::<usize>() {
        for &i in &picks {
            let from = (outer * dim + i) * run;
            out.extend_from_slice(bytes.get(from..from + run)?);
        }
    }
    Some(vec![tensor(x.dtype(), &dims, out)?])
}

fn gather_elements(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let (x, at) = (a.tensor(0)?, a.tensor(1)?);
    let axis = a.axis(0, x.rank())?;
    if at.rank() != x.rank() || at.dims().iter().zip(x.dims()).enumerate().any(|(k, (i, d))| k != axis && i > d) {
        return None;
    }
    let (width, bytes, own) = (width(x.dtype())?, x.bytes().ok()?, steps(x.dims()));
    let mut out = Vec::new();
    for (flat, i) in a.ints(1)?.into_iter().enumerate() {
        let (mut rest, mut from) = (flat, 0usize);
        for k in (0..at.rank()).rev() {
            let here = if k == axis { index(i, x.dims()[k])? } else { rest % at.dims()[k] };
            rest /= at.dims()[k];
            from += here * own[k] as usize;
        }
        out.extend_from_slice(bytes.get(from * width..(from + 1) * width)?);
    }
    Some(vec![tensor(x.dtype(), at.dims(), out)?])
}

/// For each index tuple the place of its run of elements.
fn places(x: &Tensor, at: &Tensor) -> Option<(Vec<usize>, usize)> {
    let depth = *at.dims().last()?;
    let rest: usize = x.dims().get(depth..)?.iter().product();
    if depth == 0 {
        return None;
    }
    let own = steps(x.dims());
    let place = |tuple: &[i64]| {
        tuple.iter().enumerate().map(|(k, &i)| Some(index(i, x.dims()[k])? * own[k] as usize)).sum::<Option<usize>>()
    };
    Some((at.to_i64().ok()?.chunks_exact(depth).map(place).collect::<Option<_>>()?, rest))
}

fn gather_nd(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let (x, at) = (a.tensor(0)?, a.tensor(1)?);
    if a.int("batch_dims", 0) != 0 {
        return None;
    }
    let (places, rest) = places(x, at)?;
    let depth = *at.dims().last()?;
    let dims = [&at.dims()[..at.rank() - 1], &x.dims()[depth..]].concat();
    room(x.dtype(), &dims)?;
    let (width, bytes) = (width(x.dtype())?, x.bytes().ok()?);
    let mut out = Vec::new();
    for p in places {
        out.extend_from_slice(bytes.get(p * width..(p + rest) * width)?);
    }
    Some(vec![tensor(x.dtype(), &dims, out)?])
}

fn scatter_nd(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let (x, at, updates) = (a.tensor(0)?, a.tensor(1)?, a.tensor(2)?);
    if a.node.string("reduction").is_some_and(|r| r != "none") || updates.dtype() != x.dtype() {
        return None;
    }
    let (places, rest) = places(x, at)?;
    let run = rest * width(x.dtype())?;
    let mut out = x.bytes().ok()?.to_vec();
    let new = updates.bytes().ok()?;
    if new.len() != places.len() * run {
        return None;
    }
    for (k, p) in places.into_iter().enumerate() {
        let to = p * width(x.dtype())?;
        out.get_mut(to..to + run)?.copy_from_slice(&new[k * run..(k + 1) * run]);
    }
    Some(vec![tensor(x.dtype(), x.dims(), out)?])
}

fn trilu(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let x = a.tensor(0)?;
    let [.., rows, columns] = *x.dims() else { return None };
    let k = if a.has(1) { a.scalar(1)? } else { 0 };
    let upper = a.int("upper", 1) != 0;
    let width = width(x.dtype())?;
    let mut out = x.bytes().ok()?.to_vec();
    for (flat, element) in out.chunks_exact_mut(width).enumerate() {
        let (row, column) = ((flat / columns % rows) as i64, (flat % columns) as i64);
        let beyond = column - row;
        if upper && beyond < k || !upper && beyond > k {
            element.fill(0);
        }
    }
    Some(vec![tensor(x.dtype(), x.dims(), out)?])
}

fn non_zero(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let x = a.tensor(0)?;
    let found: Vec<usize> = if x.dtype().is_float() {
        x.to_f32().ok()?.iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(i, _)| i).collect()
    } else {
        x.to_i64().ok()?.iter().enumerate().filter(|(_, v)| **v != 0).map(|(i, _)| i).collect()
    };
    let own = steps(x.dims());
    let mut out = Vec::new();
    for (k, &d) in x.dims().iter().enumerate() {
        out.extend(found.iter().flat_map(|&i| ((i / own[k] as usize % d) as i64).to_le_bytes()));
    }
    Some(vec![tensor(DType::Int64, &[x.rank(), found.len()], out)?])
}
