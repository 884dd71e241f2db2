//! Dims: counting, broadcasting, and products of matrices in batches.

use crate::{
    error::{Error, Result},
    ir::tensor::element_count,
};

/// The number of elements of `dims`, which must be countable.
pub(super) fn count(dims: &[usize], what: &str) -> Result<usize> {
    element_count(dims).ok_or_else(|| Error::malformed(format!("{what} has dims {dims:?}, too many to count")))
}

/// Whether a tensor has as many elements as its dims say.
pub(super) fn check_len(len: usize, dims: &[usize], what: &str) -> Result<()> {
    if count(dims, what)? == len {
        return Ok(());
    }
    Err(Error::malformed(format!("{what} has dims {dims:?} and {len} elements")))
}

/// The dims that all of these broadcast to, as numpy has it.
pub(super) fn broadcast(all: &[&[usize]]) -> Result<Vec<usize>> {
    let rank = all.iter().map(|d| d.len()).max().unwrap_or(0);
    let mut out = vec![1; rank];
    for dims in all {
        for (o, &d) in out[rank - dims.len()..].iter_mut().zip(*dims) {
            if *o == 1 {
                *o = d;
            } else if d != 1 && d != *o {
                return Err(Error::malformed(format!("dims {} do not broadcast", list(all))));
            }
        }
    }
    count(&out, "the result")?;
    Ok(out)
}

fn list(all: &[&[usize]]) -> String {
    all.iter().map(|d| format!("{d:?}")).collect::<Vec<_>>().join(" and ")
}

/// For each element of `out`, in order, which element of a tensor of `dims` it reads. `dims` broadcast to `out`.
pub(super) fn sources(dims: &[usize], out: &[usize]) -> Vec<usize> {
    let mut strides = vec![0; out.len()];
    let mut step = 1;
    for (i, &d) in dims.iter().enumerate().rev() {
        strides[out.len() - dims.len() + i] = if d == 1 { 0 } else { step };
        step *= d;
    }
    let mut all = vec![0];
    for (&d, &stride) in out.iter().zip(&strides) {
        all = all.iter().flat_map(|&base| (0..d).map(move |i| base + i * stride)).collect();
    }
    all
}

/// A product of matrices, in batches that broadcast.
pub(super) struct Product {
    pub m: usize,
    pub k: usize,
    pub n: usize,
    /// For each product, which matrix of `a` and which of `b` it takes.
    pub pairs: Vec<(usize, usize)>,
    /// How many matrices `b` holds.
    pub batches_of_b: usize,
    pub dims: Vec<usize>,
}

impl Product {
    /// The product of tensors of dims `a` (`[…, M, K]` or `[K]`) and `b` (`[…, K, N]` or `[K]`).
    pub fn new(a: &[usize], b: &[usize]) -> Result<Self> {
        let wrong = || Error::malformed(format!("no product of matrices of dims {a:?} and {b:?}"));
        let (batch_a, m, k) = match a {
            [k] => (&a[..0], 1, *k),
            [batch @ .., m, k] => (batch, *m, *k),
            [] => return Err(wrong()),
        };
        let (batch_b, k_b, n) = match b {
            [k] => (&b[..0], *k, 1),
            [batch @ .., k, n] => (batch, *k, *n),
            [] => return Err(wrong()),
        };
        if k != k_b {
            return Err(wrong());
        }
        let batch = broadcast(&[batch_a, batch_b])?;
        let pairs = sources(batch_a, &batch).into_iter().zip(sources(batch_b, &batch)).collect();
        let mut dims = batch;
        dims.extend((a.len() > 1).then_some(m));
        dims.extend((b.len() > 1).then_some(n));
        count(&dims, "the product")?;
        Ok(Self { m, k, n, pairs, batches_of_b: count(batch_b, "b")?, dims })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting() {
        assert_eq!(broadcast(&[&[2, 1], &[3], &[]]).unwrap(), [2, 3]);
        assert_eq!(broadcast(&[&[0], &[1]]).unwrap(), [0]);
        assert!(broadcast(&[&[2], &[3]]).is_err());
        assert!(broadcast(&[&[usize::MAX, 1], &[1, 2]]).is_err());
        assert_eq!(sources(&[2, 1], &[2, 3]), [0, 0, 0, 1, 1, 1]);
        assert_eq!(sources(&[3], &[2, 3]), [0, 1, 2, 0, 1, 2]);
        assert_eq!(sources(&[], &[2]), [0, 0]);
        assert!(sources(&[0], &[0]).is_empty());
    }

    #[test]
    fn products() {
        let p = Product::new(&[2, 1, 3, 4], &[5, 4, 6]).unwrap();
        assert_eq!((p.m, p.k, p.n, p.pairs.len(), p.batches_of_b), (3, 4, 6, 10, 5));
        assert_eq!(p.dims, [2, 5, 3, 6]);
        assert_eq!(Product::new(&[4], &[4, 6]).unwrap().dims, [6]);
        assert_eq!(Product::new(&[3, 4], &[4]).unwrap().dims, [3]);
        assert!(Product::new(&[3, 4], &[5, 6]).is_err());
        assert!(Product::new(&[], &[5, 6]).is_err());
    }
}
