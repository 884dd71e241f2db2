//! Constants that passes read and write.

use crate::{
    analysis::types::Types,
    error::Result,
    ir::{DType, Model, NodeId, Tensor, ValueId},
    passes::Context,
};

/// How many bytes a pass may still add to the model by giving nodes their own copies of shared constants.
#[derive(Debug)]
pub struct Growth {
    left: usize,
    /// Constants of more bytes than this are left as they are: a changed one is in memory, not in the file.
    largest: usize,
}

impl Growth {
    /// What the options allow one run of one pass.
    pub fn new(cx: &Context) -> Self {
        Self { left: cx.options.fold_growth_limit, largest: cx.options.largest_folded }
    }

    /// For changes that were counted before.
    pub fn unlimited() -> Self {
        Self { left: usize::MAX, largest: usize::MAX }
    }

    /// Whether `bytes` more are allowed; if so they are taken.
    pub fn take(&mut self, bytes: usize) -> bool {
        let enough = bytes <= self.left;
        if enough {
            self.left -= bytes;
        }
        enough
    }

    /// Whether a constant is too large to be changed at all.
    pub fn forbids(&self, t: &Tensor) -> bool {
        t.byte_len() > self.largest
    }

    /// Whether input `i` of a node can get another constant in place of the one it reads: freely where nothing else
    /// reads that one, otherwise the old one stays and the new one counts as growth.
    pub fn allows(&mut self, model: &Model, node: NodeId, i: usize) -> bool {
        let Some(v) = model.node(node).input(i) else { return true };
        let value = model.value(v);
        let bytes = value.initializer().map_or(0, Tensor::byte_len);
        bytes <= self.largest && (value.uses().len() == 1 || self.take(bytes))
    }
}

/// Gives input `i` of a node a new constant. Where nothing else reads the old one, it changes in place and keeps its
/// name; otherwise the node gets its own copy, so that the other readers of a shared weight see no change.
/// `name` is the name of a constant where there was none.
pub fn set_constant_input(model: &mut Model, node: NodeId, i: usize, tensor: Tensor, name: &str) -> ValueId {
    let old = model.node(node).input(i).filter(|&v| model.value(v).constant().is_some());
    match old {
        Some(v) if model.value(v).uses().len() == 1 => {
            // A declared type speaks of the old constant.
            model.value_mut(v).ty = None;
            model.set_initializer(v, Some(tensor));
            v
        }
        old => {
            let name = old.map_or_else(|| name.to_owned(), |v| model.value(v).name().to_owned());
            let new = model.add_initializer(model.node(node).graph(), &name, tensor);
            model.set_input(node, i, Some(new));
            new
        }
    }
}

/// The elements of a constant `float` tensor that a node reads, as `f64`.
pub fn floats(model: &Model, node: NodeId, i: usize) -> Result<Option<Vec<f64>>> {
    match model.constant_input(node, i) {
        Some(t) if t.dtype() == DType::Float => Ok(Some(t.to_f32()?.into_iter().map(f64::from).collect())),
        _ => Ok(None),
    }
}

/// The only element of a constant `float` tensor, of any rank.
pub fn scalar(model: &Model, value: ValueId) -> Option<f32> {
    model.value(value).constant().filter(|t| t.dtype() == DType::Float).and_then(Tensor::scalar_f32)
}

/// The only element of a constant `float` tensor, provided that broadcasting with it changes no shape: it is of rank 0,
/// or of no higher rank than `beside`.
pub fn scalar_beside(model: &Model, types: &Types, value: ValueId, beside: ValueId) -> Option<f32> {
    let rank = model.value(value).constant()?.rank();
    (rank == 0 || super::walk::rank(model, types, beside).is_some_and(|r| rank <= r))
        .then(|| scalar(model, value))
        .flatten()
}

/// The two inputs of a binary operator as (value, constant scalar, whether the scalar is the second), if one is such a
/// scalar.
pub fn with_scalar(model: &Model, types: &Types, node: NodeId) -> Option<(ValueId, f32, bool)> {
    let n = model.node(node);
    let (a, b) = (n.input(0)?, n.input(1)?);
    if n.inputs().len() != 2 {
        return None;
    }
    match (scalar_beside(model, types, a, b), scalar_beside(model, types, b, a)) {
        (_, Some(s)) => Some((a, s, true)),
        (Some(s), None) => Some((b, s, false)),
        _ => None,
    }
}
