//! Copies of elements under another order: what Transpose, Slice, Expand and Tile have in common.

use super::args::{room, tensor, width};
use crate::ir::Tensor;

/// How to walk a tensor: for each axis of the result its length and its step in elements of the source.
pub(super) struct Walk {
    pub(super) dims: Vec<usize>,
    pub(super) steps: Vec<isize>,
    pub(super) start: isize,
}

/// The steps of a tensor's own axes.
pub(super) fn steps(dims: &[usize]) -> Vec<isize> {
    let mut steps = vec![1isize; dims.len()];
    for i in (1..dims.len()).rev() {
        steps[i - 1] = steps[i].wrapping_mul(dims[i] as isize);
    }
    steps
}

impl Walk {
    /// The source as it is.
    pub(super) fn of(dims: &[usize]) -> Self {
        Self { dims: dims.to_vec(), steps: steps(dims), start: 0 }
    }

    /// The source stretched to a shape that it broadcasts to.
    pub(super) fn broadcast(from: &[usize], to: &[usize]) -> Option<Self> {
        let missing = to.len().checked_sub(from.len())?;
        let own = steps(from);
        let mut walk = Self { dims: to.to_vec(), steps: vec![0; to.len()], start: 0 };
        for (i, &d) in from.iter().enumerate() {
            if d == to[i + missing] {
                walk.steps[i + missing] = own[i];
            } else if d != 1 {
                return None;
            }
        }
        Some(walk)
    }

    /// The elements in the walk's order. Every index must lie in the source; `None` where one does not.
    pub(super) fn copy(&self, source: &Tensor) -> Option<Tensor> {
        let (width, count) = (width(source.dtype())?, room(source.dtype(), &self.dims)?);
        let bytes = source.bytes().ok()?;
        let mut out = Vec::with_capacity(count * width);
        if count > 0 {
            // The innermost axis is a run where its elements are neighbours.
            let (inner, step) = match (self.dims.last(), self.steps.last()) {
                (Some(&d), Some(&s)) => (d, s),
                _ => (1, 1),
            };
            let outer = self.dims.len().saturating_sub(1);
            let mut index = vec![0usize; outer];
            let mut at = self.start;
            for _ in 0..count / inner {
                if step == 1 {
                    let from = usize::try_from(at).ok()?.checked_mul(width)?;
                    out.extend_from_slice(bytes.get(from..from.checked_add(inner * width)?)?);
                } else {
                    for k in 0..inner {
                        let from = usize::try_from(at.checked_add(step.checked_mul(k as isize)?)?).ok()? * width;
                        out.extend_from_slice(bytes.get(from..from + width)?);
                    }
                }
                for axis in (0..outer).rev() {
                    index[axis] += 1;
                    at += self.steps[axis];
                    if index[axis] < self.dims[axis] {
                        break;
                    }
                    at -= self.steps[axis] * self.dims[axis] as isize;
                    index[axis] = 0;
                }
            }
        }
        tensor(source.dtype(), &self.dims, out)
    }
}

/// The shape that two shapes broadcast to.
pub(super) fn broadcast_dims(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    let dim = |i| match (at(a, i), at(b, i)) {
        (x, y) if x == y => Some(x),
        (1, d) | (d, 1) => Some(d),
        _ => None,
    };
    (0..rank).map(dim).collect()
}

/// A tensor stretched to `dims`.
pub(super) fn stretch(t: &Tensor, dims: &[usize]) -> Option<Tensor> {
    if t.dims() == dims { Some(t.clone()) } else { Walk::broadcast(t.dims(), dims)?.copy(t) }
}
