//! What an operator's evaluation sees: its node and constant inputs.

use crate::{
    analysis::constants::constant_tensor,
    ir::{DType, Model, Node, NodeId, Tensor, TensorData, tensor::element_count},
};

/// Larger tensors are not computed, not even on the way to something smaller.
const MOST_BYTES: usize = 1 << 28;

/// A node and its constant inputs.
pub(super) struct Args<'a> {
    pub(super) node: &'a Node,
    pub(super) inputs: Vec<Option<Tensor>>,
}

impl<'a> Args<'a> {
    pub(super) fn new(model: &'a Model, node: NodeId, inputs: Vec<Option<Tensor>>) -> Self {
        Self { node: model.node(node), inputs }
    }

    pub(super) fn has(&self, i: usize) -> bool {
        self.inputs.get(i).is_some_and(Option::is_some)
    }

    /// Input `i`.
    pub(super) fn tensor(&self, i: usize) -> Option<&Tensor> {
        self.inputs.get(i)?.as_ref()
    }

    /// The elements of an integer input.
    pub(super) fn ints(&self, i: usize) -> Option<Vec<i64>> {
        self.tensor(i)?.to_i64().ok()
    }

    /// The only element of an integer input.
    pub(super) fn scalar(&self, i: usize) -> Option<i64> {
        self.tensor(i)?.scalar_i64()
    }

    /// An integer list that is an attribute in old opsets and input `i` in new ones; `Some(None)` where it is not given.
    #[allow(clippy::option_option)]
    pub(super) fn list(&self, name: &str, i: usize) -> Option<Option<Vec<i64>>> {
        match self.node.ints(name) {
            Some(v) => Some(Some(v.to_vec())),
            None if self.has(i) => Some(Some(self.ints(i)?)),
            None => Some(None),
        }
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.node.int(name).unwrap_or(default)
    }

    /// The attribute `axis` counted from the front.
    pub(super) fn axis(&self, default: i64, rank: usize) -> Option<usize> {
        resolve_axis(self.int("axis", default), rank)
    }
}

/// An axis counted from the front.
pub(super) fn resolve_axis(axis: i64, rank: usize) -> Option<usize> {
    let rank_i = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis.checked_add(rank_i)? } else { axis };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

/// Dims from integers, none negative.
pub(super) fn to_dims(ints: &[i64]) -> Option<Vec<usize>> {
    ints.iter().map(|&n| usize::try_from(n).ok()).collect()
}

/// Bytes of an element, for types of whole bytes.
pub(super) fn width(dtype: DType) -> Option<usize> {
    (dtype.bits() > 0 && dtype.bits().is_multiple_of(8)).then(|| dtype.bits() / 8)
}

/// Elements of a tensor of this type and shape, if it is small enough to be computed.
pub(super) fn room(dtype: DType, dims: &[usize]) -> Option<usize> {
    let count = element_count(dims)?;
    (count.checked_mul(width(dtype)?)? <= MOST_BYTES).then_some(count)
}

/// A tensor of these elements.
pub(super) fn tensor(dtype: DType, dims: &[usize], bytes: Vec<u8>) -> Option<Tensor> {
    Tensor::new(dtype, dims.to_vec(), bytes).ok()
}

/// Whether the elements of a constant are at hand and of whole bytes.
pub(super) fn readable(t: &Tensor) -> bool {
    matches!(t.data(), TensorData::Bytes(_)) && width(t.dtype()).is_some()
}

/// The constant that a value is: an initializer that nobody can override, or what a Constant node makes.
pub(super) fn constant(model: &Model, v: crate::ir::ValueId) -> Option<Tensor> {
    let value = model.value(v);
    let made = || value.producer().and_then(|(n, _)| constant_tensor(model.node(n)));
    value.constant().cloned().or_else(made).filter(readable)
}
