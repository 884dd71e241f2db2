//! Makes constants of integer tensors whose content follows from what is known of shapes.
//!
//! ```text
//! before: s = Shape(x); n = Gather(s, 1); y = Mul(z, n)      after: y = Mul(z, 3)      where x is float[batch,3]
//! ```
//!
//! These are small (see [`crate::analysis::types`]); what is computed from them by other operators is left to
//! [`super::fold_constants`].

use super::{
    Context,
    support::replace::{replace_by_constant, replaceable_by_constant},
};
use crate::{
    analysis::types::{self, Types},
    error::Result,
    ir::{DType, Model, Tensor, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let types = types::infer(model);
    let mut folded = 0;
    for n in model.all_nodes() {
        // A node that was folded takes its subgraphs along.
        let Some(node) = model.try_node(n) else { continue };
        let outputs: Vec<ValueId> = node.outputs().iter().copied().flatten().collect();
        for v in outputs {
            if model.try_value(v).is_some()
                && replaceable_by_constant(model, v)
                && let Some(t) = content(&types, v)
            {
                replace_by_constant(model, v, t);
                folded += 1;
            }
        }
    }
    Ok(folded)
}

/// The content of an integer or bool value, if all of it is known.
pub fn content(types: &Types, v: ValueId) -> Option<Tensor> {
    let (ints, dims) = (types.known_ints(v)?, types.known_shape(v)?);
    let dtype = types.dtype(v).filter(|d| *d == DType::Bool || d.is_integer() && d.bits() >= 8)?;
    // Little-endian: the low bytes come first.
    let bytes: Vec<u8> = ints.iter().flat_map(|n| n.to_le_bytes().into_iter().take(dtype.bits() / 8)).collect();
    Tensor::new(dtype, dims, bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::check;

    #[test]
    fn known_dims_become_numbers_and_others_stay() {
        check(
            run,
            "(float[b,3] x) => (y) <int64 zero = {0}, int64 one = {1}> {
                s = Shape(x)
                b = Gather(s, zero)
                n = Gather(s, one)
                y = Mul(b, n)
             }",
            "(float[b,3] x) => (y) <int64 zero = {0}, int64 n = {3}> { s = Shape(x) b = Gather(s, zero) y = Mul(b, n) }",
        );
    }
}
