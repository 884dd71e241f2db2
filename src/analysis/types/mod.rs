//! The element type and shape of every value, by our own inference.
//!
//! What the model declares counts for its inputs, and for operators that have no rule here; elsewhere only what follows
//! from the inputs counts, for declarations are often stale. Nothing here fails: what cannot be known is left open.

mod control;
mod cx;
mod rules;
mod symbols;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

pub use symbols::{SymDim, SymInt};

use crate::{
    analysis::constants::constant_tensor,
    ir::{DType, Dim, GraphId, Model, NodeId, Shape, Tensor, TensorData, Type, ValueId, id::Handle},
};
use cx::Cx;
use symbols::Symbols;

/// Integer tensors of at most this many elements are followed by content.
const MOST_INTS: usize = 256;
/// Larger ranks than any runtime takes are not followed.
const MOST_DIMS: usize = 64;

/// What is known of the values of a model at the moment of [`infer`]; nothing of values made later.
#[derive(Debug, Clone, Default)]
pub struct Types {
    values: Vec<Info>,
    symbols: Symbols,
}

#[derive(Debug, Clone, Default)]
struct Info {
    dtype: Option<DType>,
    shape: Option<Vec<SymDim>>,
    ints: Option<Vec<SymInt>>,
}

impl Types {
    fn info(&self, v: ValueId) -> Option<&Info> {
        self.values.get(v.index())
    }

    /// Element type.
    pub fn dtype(&self, v: ValueId) -> Option<DType> {
        self.info(v)?.dtype
    }

    /// Shape; `None` is unknown rank.
    pub fn shape(&self, v: ValueId) -> Option<&[SymDim]> {
        self.info(v)?.shape.as_deref()
    }

    /// Number of dims.
    pub fn rank(&self, v: ValueId) -> Option<usize> {
        self.shape(v).map(<[_]>::len)
    }

    /// The shape if every dim is a known number.
    pub fn known_shape(&self, v: ValueId) -> Option<Vec<usize>> {
        self.shape(v)?.iter().map(|d| d.known()).collect()
    }

    /// The elements of a small integer or bool tensor, row-major, as far as they are known; `None` where nothing is.
    pub fn ints(&self, v: ValueId) -> Option<&[SymInt]> {
        self.info(v)?.ints.as_deref()
    }

    /// The elements of a small integer or bool tensor if all are known numbers.
    pub fn known_ints(&self, v: ValueId) -> Option<Vec<i64>> {
        self.ints(v)?.iter().map(|i| i.known()).collect()
    }

    /// The number of elements, known or as a symbol.
    pub fn element_count(&mut self, v: ValueId) -> SymInt {
        match self.info(v).and_then(|i| i.shape.clone()) {
            Some(dims) => self.symbols.product(dims.into_iter().map(SymInt::from)),
            None => SymInt::Unknown,
        }
    }

    /// `a / b` where it is certain to be whole.
    pub fn quotient(&mut self, a: SymInt, b: SymInt) -> Option<SymInt> {
        self.symbols.exact_div(a, b)
    }

    /// The product of some dims.
    pub fn product(&mut self, dims: &[SymDim]) -> SymInt {
        self.symbols.product(dims.iter().map(|&d| SymInt::from(d)))
    }

    /// A dim in words: `3`, `batch`, `12*batch`.
    pub fn dim_text(&self, dim: SymDim) -> String {
        self.symbols.text(dim.into())
    }

    /// An integer in words.
    pub fn int_text(&self, int: SymInt) -> String {
        self.symbols.text(int)
    }

    /// The type in ONNX's textual syntax, `float[batch,3,?7]`; parts that are unknown are left out.
    pub fn text(&self, v: ValueId) -> String {
        let dtype = self.dtype(v).map_or("?", DType::name);
        match self.shape(v) {
            Some(dims) => {
                let dims: Vec<_> = dims.iter().map(|&d| self.dim_text(d)).collect();
                format!("{dtype}[{}]", dims.join(","))
            }
            None => dtype.to_owned(),
        }
    }

    fn set(&mut self, v: ValueId, info: Info) {
        if let Some(slot) = self.values.get_mut(v.index()) {
            *slot = info;
        }
    }

    /// Takes in what `ty` declares. Dims without number get symbols: of their name, or of their own.
    fn declared(&mut self, ty: Option<&Type>) -> Info {
        let dim = |symbols: &mut Symbols, d: &Dim| match d {
            Dim::Known(n) if *n > 0 => SymInt::Known(*n).dim(),
            Dim::Named(name) if is_a_name(name) => symbols.named(name),
            _ => symbols.fresh(),
        };
        let dims = |shape: &Shape| shape.dims.iter().map(|d| dim(&mut self.symbols, d)).collect();
        Info { dtype: ty.and_then(Type::dtype), shape: ty.and_then(Type::shape).map(dims), ints: None }
    }

    fn of_tensor(t: &Tensor) -> Info {
        let follow = (t.dtype().is_integer() || t.dtype() == DType::Bool)
            && t.len() <= MOST_INTS
            && matches!(t.data(), TensorData::Bytes(_));
        let ints = follow.then(|| t.to_i64().ok()).flatten();
        Info {
            dtype: Some(t.dtype()),
            shape: Some(t.dims().iter().map(|&d| SymDim::Known(d)).collect()),
            ints: ints.map(|v| v.into_iter().map(SymInt::Known).collect()),
        }
    }
}

/// Infers the types of all values of the main graph and its subgraphs. In function bodies only constants are known.
pub fn infer(model: &Model) -> Types {
    let mut types = Types::default();
    let ids = model.value_ids();
    types.values = vec![Info::default(); ids.last().map_or(0, |v| v.index() + 1)];
    for v in ids {
        let value = model.value(v);
        let known = match (value.initializer(), value.is_input()) {
            (Some(t), false) => Types::of_tensor(t),
            // A caller may feed other elements, of the same type.
            (Some(t), true) => {
                let declared = types.declared(value.ty.as_ref());
                let own = Types::of_tensor(t);
                Info { dtype: own.dtype, shape: declared.shape.or(own.shape), ints: None }
            }
            (None, true) if value.graph() == model.main() => types.declared(value.ty.as_ref()),
            (None, _) => continue,
        };
        types.set(v, known);
    }
    let functions = model.functions.iter().map(|f| {
        let words = |s: &Option<String>| s.clone().unwrap_or_default();
        (words(&f.domain), words(&f.name))
    });
    let mut engine = Engine { model, types, functions: functions.collect(), depth: 0 };
    engine.graph(model.main());
    engine.types
}

/// Some exporters write `?` or `None` for every dim that they do not know; that says nothing of their being equal.
fn is_a_name(dim: &str) -> bool {
    let empty = ["none", "null", "nan", "unk", "unknown", "dyn", "dynamic"];
    dim.contains(|c: char| c.is_alphabetic()) && !empty.contains(&dim.to_lowercase().as_str())
}

struct Engine<'a> {
    model: &'a Model,
    types: Types,
    functions: HashSet<(String, String)>,
    depth: usize,
}

/// Deeper nesting than any exporter writes is left open (loops are walked several times a level).
const DEEPEST: usize = 12;

impl Engine<'_> {
    /// Infers the values of a graph whose inputs are set.
    fn graph(&mut self, g: GraphId) {
        if self.depth > DEEPEST {
            return;
        }
        self.depth += 1;
        for n in order(self.model, g) {
            self.node(n);
        }
        self.depth -= 1;
    }

    fn node(&mut self, n: NodeId) {
        let model = self.model;
        let node = model.node(n);
        for v in node.outputs().iter().flatten() {
            self.types.set(*v, Info::default());
        }
        let domain = node.domain.clone().unwrap_or_default();
        if let Some(t) = constant_tensor(node) {
            if let Some(v) = node.output(0) {
                self.types.set(v, Types::of_tensor(&t));
            }
        } else if !self.functions.is_empty() && self.functions.contains(&(domain, node.op_type.clone())) {
            // Its types are what is declared.
        } else if !self.control(n)
            && let Some(rule) = rules::find(node)
        {
            // A rule stops (`None`) where nothing more can be known.
            let _ = rule(&mut Cx::new(model, &mut self.types, n));
        }
        for &v in node.outputs().iter().flatten() {
            let declared = model.value(v).ty.as_ref();
            let Some(info) = self.types.info(v) else { continue };
            let (no_dtype, no_shape) = (info.dtype.is_none(), info.shape.is_none());
            if declared.is_some() && (no_dtype || no_shape) {
                let declared = self.types.declared(declared);
                let info = &mut self.types.values[v.index()];
                info.dtype = info.dtype.or(declared.dtype);
                info.shape = info.shape.take().or(declared.shape);
            }
        }
    }
}

/// The nodes of a graph, each behind those that it depends on (but for cycles, which no sound model has).
fn order(model: &Model, g: GraphId) -> Vec<NodeId> {
    let nodes = model.nodes(g);
    if model.is_sorted(g) {
        return nodes;
    }
    let (mut seen, mut sorted) = (HashSet::new(), Vec::with_capacity(nodes.len()));
    let mut stack: Vec<(NodeId, bool)> = nodes.into_iter().rev().map(|n| (n, false)).collect();
    while let Some((n, ready)) = stack.pop() {
        if ready {
            sorted.push(n);
        } else if seen.insert(n) {
            stack.push((n, true));
            stack.extend(model.dependencies(n).into_iter().rev().map(|d| (d, false)));
        }
    }
    sorted
}
