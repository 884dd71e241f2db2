//! Weights that are rounded when they are written, so that no more than one of them is in memory.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    error::{Error, Result},
    ir::{DType, Tensor},
    onnx_file,
    weights::{BlockedWeight, Like},
};

type Make = dyn Fn() -> Result<BlockedWeight> + Send + Sync;

/// A weight in blocks that is made when one of its parts is asked for, and kept until all of them were.
struct Lazy {
    make: Box<Make>,
    kept: Mutex<(Option<BlockedWeight>, [bool; 3])>,
}

impl Lazy {
    fn part(&self, which: usize) -> Result<bytes::Bytes> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (found, given) = &mut *kept;
        let weight = match found {
            Some(weight) => weight,
            None => {
                *given = [false; 3];
                found.insert((self.make)()?)
            }
        };
        let part = match which {
            0 => Some(&weight.codes),
            1 => Some(&weight.scales),
            _ => weight.zeros.as_ref(),
        };
        let bytes = part.ok_or_else(|| Error::bug("a weight has no zero points"))?.bytes()?;
        given[which] = true;
        if given[0] && given[1] && (given[2] || weight.zeros.is_none()) {
            *found = None;
        }
        Ok(bytes)
    }
}

/// Codes, scales and zero points that are computed when they are written; `like` says their types and shapes.
pub fn deferred(
    like: Like,
    make: impl Fn() -> Result<BlockedWeight> + Send + Sync + 'static,
) -> Result<[Option<Tensor>; 3]> {
    let lazy = Arc::new(Lazy { make: Box::new(make), kept: Mutex::default() });
    let mut parts = [None, None, None];
    let like = [Some(like.codes), Some(like.scales), like.zeros];
    for (which, (part, like)) in parts.iter_mut().zip(like).enumerate() {
        let Some((dtype, dims)) = like else { continue };
        let lazy = lazy.clone();
        *part = Some(Tensor::deferred(dtype, dims, Arc::new(move || lazy.part(which)))?);
    }
    Ok(parts)
}

/// What is made of a tensor: at once, or when it is written if the tensor itself is made then.
pub fn followed(
    from: &Tensor,
    dtype: DType,
    dims: Vec<usize>,
    make: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !from.is_deferred() {
        return make(from);
    }
    let from = from.clone();
    Tensor::deferred(dtype, dims, Arc::new(move || make(&from)?.bytes()))
}

/// A tensor that gives the pages of the mapped file back which it was computed from, if it is computed when it is written.
pub fn releasing(made: Tensor, window: &Tensor) -> Result<Tensor> {
    if !made.is_deferred() || window.is_deferred() {
        return Ok(made);
    }
    let (dtype, dims, window) = (made.dtype(), made.dims().to_vec(), window.clone());
    let make = move || {
        let bytes = made.bytes()?;
        onnx_file::release(&window.bytes()?);
        Ok(bytes)
    };
    Tensor::deferred(dtype, dims, Arc::new(make))
}
