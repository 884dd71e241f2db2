//! Permutations of axes.

use crate::{
    error::Result,
    ir::{Model, NodeId, Tensor},
};

/// The permutation that a Transpose carries out on a tensor of this rank, if it is one.
pub fn permutation(perm: Option<&[i64]>, rank: usize) -> Option<Vec<usize>> {
    let Some(perm) = perm else { return Some((0..rank).rev().collect()) };
    let perm: Vec<usize> = perm.iter().map(|&p| usize::try_from(p).ok()).collect::<Option<_>>()?;
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    sorted.into_iter().eq(0..rank).then_some(perm)
}

/// The permutation of a Transpose node that says it itself.
pub fn of_transpose(model: &Model, node: NodeId) -> Option<Vec<usize>> {
    let n = model.node(node);
    let perm = n.ints("perm").filter(|_| n.is("Transpose"))?;
    permutation(Some(perm), perm.len())
}

/// A tensor of a whole-byte type with its axes in another order: axis `i` of the result is axis `perm[i]` of `t`.
pub fn transposed(t: &Tensor, perm: &[usize]) -> Result<Tensor> {
    let old = t.bytes()?;
    let size = t.dtype().bits() / 8;
    let dims: Vec<usize> = perm.iter().map(|&p| t.dims()[p]).collect();
    let mut strides = vec![size; t.rank()];
    for i in (1..t.rank()).rev() {
        strides[i - 1] = strides[i] * t.dims()[i];
    }
    let steps: Vec<usize> = perm.iter().map(|&p| strides[p]).collect();
    let mut index = vec![0; dims.len()];
    let mut at = 0;
    let mut new = Vec::with_capacity(old.len());
    for _ in 0..t.len() {
        new.extend_from_slice(&old[at..at + size]);
        for d in (0..dims.len()).rev() {
            (index[d], at) = (index[d] + 1, at + steps[d]);
            if index[d] < dims[d] {
                break;
            }
            (index[d], at) = (0, at - steps[d] * dims[d]);
        }
    }
    Tensor::new(t.dtype(), dims, new)
}
