//! The copy that the steps work on, and what they remember.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::{
    analysis::{
        constants::constant_tensor,
        types::{self, Types},
    },
    ir::{DType, GraphId, Model, NodeId, NodeSpec, Place, Tensor, Type, ValueId},
    target::Target,
};

/// What became of a node that is no longer there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Another node's kernel does it.
    Part(NodeId),
    /// Its outputs are constants.
    Folded,
    /// It did nothing, or twice what was done already.
    Gone,
}

/// Element types of the values of a scratch copy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dtypes {
    types: Types,
    changed: HashMap<ValueId, DType>,
}

impl Dtypes {
    pub(crate) fn of(&self, model: &Model, v: ValueId) -> Option<DType> {
        let said = || model.try_value(v).and_then(|v| v.dtype());
        self.changed.get(&v).copied().or_else(|| self.types.dtype(v)).or_else(said)
    }

    /// Whether a value holds codes of quantized numbers.
    pub(crate) fn is_codes(&self, model: &Model, v: ValueId) -> bool {
        self.of(model, v).is_some_and(|t| t.is_integer() && t.bits() <= 16)
    }
}

/// Scale and zero point of a conversion that has one of each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Params {
    pub(super) scale: f32,
    pub(super) zero_point: i64,
    pub(super) dtype: DType,
}

/// A copy of the model, and what happened to its nodes.
pub(super) struct Scratch<'a> {
    pub(super) m: Model,
    pub(super) target: &'a Target,
    pub(super) dtypes: Dtypes,
    /// Values that are constants once the file is loaded, besides initializers.
    pub(super) constants: HashSet<ValueId>,
    /// Nodes that are gone.
    pub(super) fates: BTreeMap<NodeId, Fate>,
    /// Kernels of nodes that became one.
    pub(super) kernels: HashMap<NodeId, String>,
    /// Copies of DequantizeLinear nodes for other readers: the original and the copy.
    pub(super) copies: Vec<(NodeId, NodeId)>,
    /// Why nodes beside conversions did not become one.
    pub(super) why: HashMap<NodeId, String>,
}

impl<'a> Scratch<'a> {
    pub(super) fn of(model: &Model, target: &'a Target) -> Self {
        let dtypes = Dtypes { types: types::infer(model), changed: HashMap::new() };
        Self {
            m: model.clone(),
            target,
            dtypes,
            constants: HashSet::new(),
            fates: BTreeMap::new(),
            kernels: HashMap::new(),
            copies: Vec::new(),
            why: HashMap::new(),
        }
    }

    /// The nodes of the main graph and its subgraphs.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.m.nodes_below(self.m.main())
    }

    /// The main graph and its subgraphs.
    pub(super) fn graphs(&self) -> Vec<GraphId> {
        let graphs: BTreeSet<_> = self.nodes().into_iter().map(|n| self.m.node(n).graph()).collect();
        graphs.into_iter().collect()
    }

    pub(super) fn types(&self) -> &Types {
        &self.dtypes.types
    }

    pub(super) fn dtype(&self, v: ValueId) -> Option<DType> {
        self.dtypes.of(&self.m, v)
    }

    pub(super) fn set_dtype(&mut self, v: ValueId, dtype: DType) {
        self.dtypes.changed.insert(v, dtype);
    }

    /// Whether the node converts to codes with a given scale.
    pub(super) fn is_quantize(&self, n: NodeId) -> bool {
        self.m.node(n).op_type == "QuantizeLinear"
    }

    /// Whether the node converts codes back.
    pub(super) fn is_dequantize(&self, n: NodeId) -> bool {
        self.m.node(n).op_type == "DequantizeLinear"
    }

    /// The DequantizeLinear that makes input `i` of a node.
    pub(super) fn dequantize_at(&self, n: NodeId, i: usize) -> Option<NodeId> {
        self.m.node(n).input(i).and_then(|v| self.m.producer(v)).filter(|&p| self.is_dequantize(p))
    }

    /// The QuantizeLinear that alone reads a value.
    pub(super) fn sole_quantize(&self, v: ValueId) -> Option<NodeId> {
        self.m.sole_reader(v).filter(|&(n, i)| i == 0 && self.is_quantize(n)).map(|(n, _)| n)
    }

    /// The initial value, if nobody can override it. Up to IR 3 every initializer was listed as an input, too, and the
    /// runtime takes such models to mean constants.
    fn initial(&self, v: ValueId) -> Option<&Tensor> {
        let value = self.m.value(v);
        value.constant().or_else(|| value.initializer().filter(|_| self.m.ir_version < 4))
    }

    /// Whether the value is the same at every inference.
    pub(super) fn is_constant(&self, v: ValueId) -> bool {
        self.initial(v).is_some() || self.constants.contains(&v)
    }

    /// A constant's elements, where they are known.
    pub(super) fn tensor(&self, v: ValueId) -> Option<Tensor> {
        let made = || self.m.producer(v).and_then(|n| constant_tensor(self.m.node(n)));
        self.initial(v).cloned().or_else(made)
    }

    /// The element type of the codes of a conversion.
    pub(super) fn codes_of(&self, n: NodeId) -> Option<DType> {
        let node = self.m.node(n);
        let v = if self.is_quantize(n) { node.output(0) } else { node.input(0) };
        v.and_then(|v| self.dtype(v))
    }

    /// Scale and zero point, if both are constants and the same for the whole tensor.
    pub(super) fn params(&self, n: NodeId) -> Option<Params> {
        let node = self.m.node(n);
        let scale = self.tensor(node.input(1)?)?.scalar_f32()?;
        let zero_point = match node.input(2) {
            Some(v) => self.tensor(v)?.scalar_i64()?,
            None => 0,
        };
        Some(Params { scale, zero_point: self.shifted(n, zero_point), dtype: self.codes_of(n)? })
    }

    /// The zero point of a conversion whose type was changed from int8 to uint8.
    fn shifted(&self, n: NodeId, zero_point: i64) -> i64 {
        let declared = self.m.node(n).input(2).and_then(|v| self.dtype(v));
        let signed = declared == Some(DType::Int8);
        if signed && self.codes_of(n) == Some(DType::Uint8) { zero_point + 128 } else { zero_point }
    }

    /// Whether two conversions have one and the same scale and zero point.
    pub(super) fn same_params(&self, a: NodeId, b: NodeId) -> bool {
        self.params(a).is_some_and(|p| self.params(b) == Some(p))
    }

    /// Removes a node whose outputs nobody uses.
    pub(super) fn remove(&mut self, n: NodeId, fate: Fate) {
        self.m.remove_node(n);
        self.fates.insert(n, fate);
    }

    /// Removes a node and lets its readers read `v`, which is what its only output was.
    pub(super) fn bypass(&mut self, n: NodeId, v: ValueId, fate: Fate) -> bool {
        let Some(out) = self.m.node(n).output(0) else { return false };
        if !self.m.replace_all_uses(out, v) {
            return false;
        }
        self.remove(n, fate);
        true
    }

    /// Makes a new DequantizeLinear like `like` of a value of codes, in front of `reader`; returns its output.
    pub(super) fn dequantize_like(&mut self, like: NodeId, codes: ValueId, reader: NodeId) -> ValueId {
        let (params, attributes) =
            (self.m.node(like).inputs().get(1..).unwrap_or_default().to_vec(), self.attributes(like));
        let name = format!("{}_dequantized", self.m.value(codes).name());
        let spec = self.conversion(like, "DequantizeLinear").input(codes).inputs(params).output(name).attrs(attributes);
        let n = self.m.insert(spec, Place::Before(reader));
        let out = self.m.node(n).output(0).expect("just made");
        self.set_dtype(out, DType::Float);
        out
    }

    /// A new conversion of the same domain as another.
    fn conversion(&self, like: NodeId, op: &str) -> NodeSpec {
        let spec = NodeSpec::new(op);
        match &self.m.node(like).domain {
            Some(domain) => spec.domain(domain.clone()),
            None => spec,
        }
    }

    /// Makes a QuantizeLinear like `like` (a conversion of either kind) of a value, behind `maker`; returns its output.
    pub(super) fn quantize_like(&mut self, like: NodeId, v: ValueId, place: Place) -> ValueId {
        let params = self.m.node(like).inputs().get(1..).unwrap_or_default().to_vec();
        let dtype = self.codes_of(like);
        let name = format!("{}_quantized", self.m.value(v).name());
        let spec = self.conversion(like, "QuantizeLinear").input(v).inputs(params).output(name);
        let n = self.m.insert(spec, place);
        let out = self.m.node(n).output(0).expect("just made");
        if let Some(dtype) = dtype {
            self.set_dtype(out, dtype);
        }
        out
    }

    /// A DequantizeLinear of codes that are new constants, in front of a node; for what the runtime quantizes by itself.
    pub(super) fn constant_dequantize(&mut self, name: &str, codes: DType, reader: NodeId) -> ValueId {
        let graph = self.m.node(reader).graph();
        let place = Place::Before(reader);
        let [code, scale] = ["quantized", "scale"].map(|what| {
            let v = self.m.add_value(graph, &format!("{name}_{what}"));
            self.constants.insert(v);
            v
        });
        self.set_dtype(code, codes);
        let spec = NodeSpec::new("DequantizeLinear").input(code).input(scale).output(format!("{name}_dequantized"));
        let n = self.m.insert(spec, place);
        let out = self.m.node(n).output(0).expect("just made");
        self.m.value_mut(out).ty = Some(Type::tensor(DType::Float, None));
        out
    }

    fn attributes(&self, n: NodeId) -> Vec<crate::ir::Attr> {
        self.m.node(n).attributes.clone()
    }

    /// Notes why a node does not become an integer kernel.
    pub(super) fn note(&mut self, n: NodeId, why: impl Into<String>) {
        self.why.insert(n, why.into());
    }
}
