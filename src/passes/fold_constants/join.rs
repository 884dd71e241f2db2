//! Putting tensors together and apart.

use super::{
    Eval,
    args::{Args, resolve_axis, room, tensor, width},
    strided::{Walk, steps},
};
use crate::ir::Tensor;

pub(super) const EVALS: &[(&[&str], Eval)] = &[(&["Concat"], concat), (&["Split"], split), (&["Pad"], pad)];

fn concat(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let parts: Vec<&Tensor> = a.inputs.iter().map(Option::as_ref).collect::<Option<_>>()?;
    let first = parts.first()?;
    let axis = a.axis(1, first.rank())?;
    let mut dims = first.dims().to_vec();
    dims[axis] = 0;
    for p in &parts {
        let alike = p.rank() == dims.len() && (0..dims.len()).all(|i| i == axis || p.dims()[i] == dims[i]);
        if !alike || p.dtype() != first.dtype() {
            return None;
        }
        dims[axis] = dims[axis].checked_add(p.dims()[axis])?;
    }
    room(first.dtype(), &dims)?;
    let width = width(first.dtype())?;
    let blocks = parts.iter().map(|p| Some((p.bytes().ok()?, p.dims()[axis..].iter().product::<usize>() * width)));
    let blocks: Vec<_> = blocks.collect::<Option<_>>()?;
    let mut out = Vec::new();
    for outer in 0..dims[..axis].iter().product::<usize>() {
        for (bytes, run) in &blocks {
            out.extend_from_slice(bytes.get(outer * run..(outer + 1) * run)?);
        }
    }
    Some(vec![tensor(first.dtype(), &dims, out)?])
}

fn split(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let x = a.tensor(0)?;
    let axis = a.axis(0, x.rank())?;
    let (dim, count) = (x.dims()[axis], a.node.outputs().len());
    let parts: Vec<usize> = match a.list("split", 1)? {
        Some(parts) => super::args::to_dims(&parts)?,
        None => {
            let each = dim.div_ceil(count.max(1));
            (0..count).map(|i| each.min(dim.saturating_sub(i * each))).collect()
        }
    };
    if parts.len() != count || parts.iter().try_fold(0usize, |n, &p| n.checked_add(p)) != Some(dim) {
        return None;
    }
    let own = steps(x.dims());
    let mut from = 0isize;
    let mut out = Vec::with_capacity(count);
    for n in parts {
        let mut walk = Walk::of(x.dims());
        walk.dims[axis] = n;
        walk.start = from * own[axis];
        from += n as isize;
        out.push(walk.copy(x)?);
    }
    Some(out)
}

/// Constant padding; negative pads cut.
fn pad(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let x = a.tensor(0)?;
    if a.node.string("mode").is_some_and(|m| m != "constant") {
        return None;
    }
    let pads = a.list("pads", 1)??;
    let axes = if a.has(3) { a.ints(3)? } else { (0..x.rank() as i64).collect() };
    if pads.len() != 2 * axes.len() {
        return None;
    }
    let width = width(x.dtype())?;
    let filler = match (a.tensor(2), a.node.float("value")) {
        (Some(t), _) if t.len() == 1 && t.dtype() == x.dtype() => t.bytes().ok()?.to_vec(),
        (None, None | Some(0.0)) => vec![0; width],
        _ => return None,
    };
    // What is kept of the source, and where it goes.
    let mut kept = Walk::of(x.dims());
    let (mut dims, mut to) = (x.dims().to_vec(), vec![0usize; x.rank()]);
    for (k, &axis) in axes.iter().enumerate() {
        let axis = resolve_axis(axis, x.rank())?;
        let (before, after) = (pads[k], pads[k + axes.len()]);
        let dim = i64::try_from(x.dims()[axis]).ok()?;
        let left = dim.checked_add(before.min(0))?.checked_add(after.min(0))?;
        kept.dims[axis] = usize::try_from(left).ok()?;
        kept.start += kept.steps[axis] * before.min(0).unsigned_abs() as isize;
        dims[axis] = usize::try_from(dim.checked_add(before)?.checked_add(after)?).ok()?;
        to[axis] = usize::try_from(before.max(0)).ok()?;
    }
    let count = room(x.dtype(), &dims)?;
    let kept = kept.copy(x)?;
    let mut out = filler.repeat(count);
    let own = steps(&dims);
    for (flat, element) in kept.bytes().ok()?.chunks_exact(width).enumerate() {
        let (mut rest, mut at) = (flat, 0usize);
        for k in (0..dims.len()).rev() {
            at += (rest % kept.dims()[k] + to[k]) * own[k] as usize;
            rest /= kept.dims()[k];
        }
        out.get_mut(at * width..(at + 1) * width)?.copy_from_slice(element);
    }
    Some(vec![tensor(x.dtype(), &dims, out)?])
}
