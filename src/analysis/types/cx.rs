//! What a rule sees: one node, and what is known of its inputs.

use super::{Info, MOST_DIMS, MOST_INTS, SymDim, SymInt, Types, symbols::Symbols};
use crate::ir::{DType, Model, Node, NodeId, Tensor, TensorData, ValueId, tensor::element_count};

/// The dims of a shape.
pub(super) type Dims = Vec<SymDim>;

/// A rule: sets the outputs of its node; `None` where nothing more can be known.
pub(super) type Rule = fn(&mut Cx<'_>) -> Option<()>;

/// One node and what is known of its inputs.
pub(super) struct Cx<'a> {
    model: &'a Model,
    types: &'a mut Types,
    id: NodeId,
}

impl<'a> Cx<'a> {
    pub(super) fn new(model: &'a Model, types: &'a mut Types, id: NodeId) -> Self {
        Self { model, types, id }
    }

    pub(super) fn node(&self) -> &'a Node {
        self.model.node(self.id)
    }

    /// Version of ai.onnx.
    pub(super) fn opset(&self) -> i64 {
        self.model.opset("").unwrap_or(i64::MAX)
    }

    pub(super) fn symbols(&mut self) -> &mut Symbols {
        &mut self.types.symbols
    }

    pub(super) fn has(&self, i: usize) -> bool {
        self.node().input(i).is_some()
    }

    pub(super) fn dtype(&self, i: usize) -> Option<DType> {
        self.types.dtype(self.node().input(i)?)
    }

    pub(super) fn shape(&self, i: usize) -> Option<Dims> {
        self.types.shape(self.node().input(i)?).map(<[_]>::to_vec)
    }

    /// Dims of the input as numbers that can be computed with.
    pub(super) fn sizes(&self, i: usize) -> Option<Vec<SymInt>> {
        Some(self.shape(i)?.into_iter().map(SymInt::from).collect())
    }

    pub(super) fn rank(&self, i: usize) -> Option<usize> {
        self.types.rank(self.node().input(i)?)
    }

    pub(super) fn known_shape(&self, i: usize) -> Option<Vec<usize>> {
        self.types.known_shape(self.node().input(i)?)
    }

    /// The elements of a small integer input as far as they are known.
    pub(super) fn ints(&self, i: usize) -> Option<Vec<SymInt>> {
        self.types.ints(self.node().input(i)?).map(<[_]>::to_vec)
    }

    pub(super) fn known_ints(&self, i: usize) -> Option<Vec<i64>> {
        self.types.known_ints(self.node().input(i)?)
    }

    /// A constant input with its elements at hand.
    pub(super) fn constant(&self, i: usize) -> Option<&'a Tensor> {
        self.model.constant_input(self.id, i).filter(|t| matches!(t.data(), TensorData::Bytes(_)))
    }

    /// An integer attribute.
    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.node().int(name).unwrap_or(default)
    }

    /// The attribute `axis`, counted from the front of `rank` dims.
    pub(super) fn axis(&self, default: i64, rank: usize) -> Option<usize> {
        resolve_axis(self.int("axis", default), rank)
    }

    /// `axes`, from the attribute or from input `i`: `None` where they are unknown, `Some(None)` where they are not given.
    #[allow(clippy::option_option)]
    pub(super) fn axes(&self, i: usize, rank: usize) -> Option<Option<Vec<usize>>> {
        let axes = match self.node().ints("axes") {
            Some(axes) => axes.to_vec(),
            None if self.has(i) => self.known_ints(i)?,
            None => return Some(None),
        };
        Some(Some(axes.into_iter().map(|a| resolve_axis(a, rank)).collect::<Option<_>>()?))
    }

    /// A dim of which nothing is known.
    pub(super) fn fresh(&mut self) -> SymDim {
        self.types.symbols.fresh()
    }

    /// `rank` dims of which nothing is known.
    pub(super) fn fresh_dims(&mut self, rank: usize) -> Option<Dims> {
        (rank <= MOST_DIMS).then(|| (0..rank).map(|_| self.fresh()).collect())
    }

    /// What shapes broadcast to; `None` where one is unknown.
    pub(super) fn broadcast(&mut self, shapes: &[Option<Dims>]) -> Option<Dims> {
        let mut all: Vec<&Dims> = shapes.iter().map(Option::as_ref).collect::<Option<_>>()?;
        all.sort_by_key(|d| std::cmp::Reverse(d.len()));
        let mut out = all.first()?.to_vec();
        for dims in &all[1..] {
            let from = out.len() - dims.len();
            for (o, &d) in out[from..].iter_mut().zip(dims.iter()) {
                *o = self.types.symbols.broadcast(*o, d);
            }
        }
        Some(out)
    }

    /// Sets what is known of output `i`.
    pub(super) fn set(&mut self, i: usize, dtype: Option<DType>, shape: Option<Dims>) {
        let Some(v) = self.node().output(i) else { return };
        let mut shape = shape.filter(|s| s.len() <= MOST_DIMS);
        for d in shape.iter_mut().flatten() {
            if *d == SymDim::Unknown {
                *d = self.types.symbols.fresh();
            }
        }
        self.types.set(v, Info { dtype, shape, ints: None });
    }

    /// Sets the elements of output `i`, whose shape is set already; without effect where they do not fit it.
    pub(super) fn set_ints(&mut self, i: usize, ints: Option<Vec<SymInt>>) {
        let (Some(v), Some(ints)) = (self.node().output(i), ints) else { return };
        let whole = |d: DType| d == DType::Bool || d.is_integer() && d.bits() >= 8;
        let count = self.types.known_shape(v).and_then(|s| element_count(&s));
        let fits = count == Some(ints.len()) && ints.len() <= MOST_INTS;
        let typed = self.types.dtype(v).is_some_and(whole);
        if fits && typed && ints.iter().any(|i| *i != SymInt::Unknown) {
            let dtype = self.types.dtype(v);
            let kept = ints.into_iter().map(|i| match (i, dtype) {
                (SymInt::Known(n), Some(d)) if !holds(d, n) => SymInt::Unknown,
                _ => i,
            });
            let kept = kept.collect();
            if let Some(info) = self.types.values.get_mut(crate::ir::id::Handle::index(v)) {
                info.ints = Some(kept);
            }
        }
    }

    /// The number of elements of a value whose shape is known, where its content may be followed.
    pub(super) fn count_of(&self, v: ValueId) -> Option<usize> {
        element_count(&self.types.known_shape(v)?).filter(|&n| n <= MOST_INTS)
    }

    /// Output 0 has the type and shape of input 0.
    pub(super) fn same(&mut self) -> Option<()> {
        let (dtype, shape) = (self.dtype(0), self.shape(0));
        self.set(0, dtype, shape);
        Some(())
    }
}

/// Whether a number is one of this integer type (0 and 1 for bool).
fn holds(dtype: DType, n: i64) -> bool {
    use DType::*;
    match dtype {
        Bool => n == 0 || n == 1,
        Uint8 => u8::try_from(n).is_ok(),
        Int8 => i8::try_from(n).is_ok(),
        Uint16 => u16::try_from(n).is_ok(),
        Int16 => i16::try_from(n).is_ok(),
        Uint32 => u32::try_from(n).is_ok(),
        Int32 => i32::try_from(n).is_ok(),
        Uint64 => n >= 0,
        _ => true,
    }
}

/// An axis counted from the front.
pub(super) fn resolve_axis(axis: i64, rank: usize) -> Option<usize> {
    let rank_i = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis.checked_add(rank_i)? } else { axis };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}
