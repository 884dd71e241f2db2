//! One of the two models, in the forms that are compared.

use std::collections::{BTreeMap, HashMap};

use super::facts;
use crate::{
    analysis::types::{self, Types},
    error::Result,
    ir::{DType, Dim, Model, NodeId, ValueId},
    kernels::{self, NodeKernel},
    passes::{
        self, Context, Stage, fold_constants, inline_functions, remove_dead,
        remove_quantization::{Clamps, is_quantization},
    },
    target::Target,
};

pub(super) struct Side {
    pub(super) original: Model,
    /// Float operators between Q/DQ pairs.
    pub(super) raised: Model,
    /// Floats alone: the same values, and so the same layers.
    pub(super) float: Model,
    pub(super) types: Types,
    /// Those of the floats, some of whose values are new.
    pub(super) float_types: Types,
    /// The layers, in order.
    pub(super) nodes: Vec<NodeId>,
    places: HashMap<NodeId, usize>,
    kernels: HashMap<NodeId, NodeKernel>,
}

impl Side {
    pub(super) fn of(model: &Model, target: &Target) -> Result<Self> {
        let mut cx = Context::default();
        cx.options.clamps = Clamps::None;
        let mut raised = model.clone();
        inline_functions::run(&mut raised, &mut cx)?;
        passes::raise_training(&mut raised, &mut cx)?;
        passes::raise_in_between(&mut raised, &mut cx)?;
        remove_dead::run(&mut raised, &mut cx)?;
        let types = types::infer(&raised);
        let mut float = raised.clone();
        passes::run_stage(Stage::Float, &mut float, &mut cx)?;
        fold_constants::fold_later(&mut float, fold_constants::unpacks)?;
        remove_dead::run(&mut float, &mut cx)?;
        let nodes: Vec<NodeId> = float.all_nodes().into_iter().filter(|&n| !float.node(n).is("Constant")).collect();
        let places = nodes.iter().enumerate().map(|(i, &n)| (n, i)).collect();
        let kernels = kernels::predict(model, target).nodes.into_iter().map(|k| (k.id, k)).collect();
        let float_types = types::infer(&float);
        Ok(Self { original: model.clone(), raised, float, types, float_types, nodes, places, kernels })
    }

    pub(super) fn place(&self, n: NodeId) -> usize {
        self.places.get(&n).copied().unwrap_or(usize::MAX)
    }

    /// The node of the Q/DQ form that makes what a layer makes.
    pub(super) fn raised_node(&self, n: NodeId) -> Option<NodeId> {
        let out = self.float.node(n).outputs().iter().copied().flatten().next()?;
        self.raised.try_value(out)?.producer().map(|(n, _)| n)
    }

    /// The node of the file that a layer was made of.
    fn origin(&self, n: NodeId) -> Option<NodeId> {
        let out = self.float.node(n).outputs().iter().copied().flatten().next()?;
        let made = |v: ValueId| self.original.try_value(v).and_then(|v| v.producer()).map(|(n, _)| n);
        let codes = || {
            let readers = self.raised.try_value(out)?.readers();
            let quantized = readers.filter(|(r, _)| self.raised.node(*r).op_type == "QuantizeLinear");
            quantized.filter_map(|(r, _)| self.raised.node(r).output(0)).find_map(made)
        };
        made(out).or_else(codes)
    }

    pub(super) fn kernel(&self, n: NodeId) -> Option<&NodeKernel> {
        self.kernels.get(&self.origin(n)?)
    }

    pub(super) fn layer(&self, n: NodeId) -> facts::Layer {
        facts::layer(self, n)
    }

    /// The counterpart of the nearest layer in front of a node that has one.
    pub(super) fn producer_matched(&self, n: NodeId, matched: &BTreeMap<NodeId, NodeId>) -> Option<NodeId> {
        let mut at = n;
        for _ in 0..8 {
            at = self.float.producer(self.float.node(at).input(0)?)?;
            if let Some(&other) = matched.get(&at) {
                return Some(other);
            }
        }
        None
    }

    /// How it is quantized, in words.
    pub(super) fn form(&self) -> String {
        let count = |which: &dyn Fn(&str) -> bool| {
            self.original
                .all_nodes()
                .iter()
                .filter(|&&n| {
                    let node = self.original.node(n);
                    is_quantization(node) && which(&node.op_type)
                })
                .count()
        };
        let half = |v: ValueId| {
            let dtype = self.raised.value(v).dtype().or_else(|| self.types.dtype(v));
            dtype.is_some_and(|t| matches!(t, DType::Float16 | DType::Bfloat16))
        };
        let pairs = |op: &str| op == "QuantizeLinear" || op == "DequantizeLinear";
        let blocks = |op: &str| op.contains("NBits") || op.contains("GatherBlock");
        let run_time = |op: &str| op.contains("Dynamic") || op.contains("Integer");
        let parts = [
            (count(&pairs) > 0, "Q/DQ pairs"),
            (count(&|op| !pairs(op) && !blocks(op) && !run_time(op)) > 0, "integer operators"),
            (count(&run_time) > 0, "quantized at run time"),
            (count(&blocks) > 0, "operators on weights in blocks"),
            (self.raised.value_ids().into_iter().any(half), "16-bit floats"),
        ];
        let parts: Vec<&str> = parts.iter().filter(|(there, _)| *there).map(|(_, words)| *words).collect();
        if parts.is_empty() { "no quantization".to_owned() } else { parts.join(", ") }
    }
}

/// What differs between two models as wholes.
pub(super) fn whole(a: &Model, b: &Model) -> Vec<(String, String, String)> {
    let mut out = Vec::new();
    let mut tell = |what: &str, a: String, b: String| {
        if a != b {
            out.push((what.to_owned(), a, b));
        }
    };
    let imports = |m: &Model| -> BTreeMap<String, i64> {
        let name = |d: &Option<String>| d.clone().filter(|d| !d.is_empty()).unwrap_or_else(|| "ai.onnx".to_owned());
        m.opset_imports.iter().map(|(d, v)| (name(d), *v)).collect()
    };
    let (before, after) = (imports(a), imports(b));
    let domains: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let version =
        |m: &BTreeMap<String, i64>, d: &String| m.get(d).map_or_else(|| "none".to_owned(), ToString::to_string);
    let used = |d: &String| {
        let of = |m: &Model| m.all_nodes().iter().any(|&n| m.node(n).domain.as_deref() == Some(d.as_str()));
        d == "ai.onnx" || of(a) || of(b)
    };
    for d in domains.into_iter().filter(|d| used(d)) {
        tell(&format!("opset {d}"), version(&before, d), version(&after, d));
    }
    tell("IR version", a.ir_version.to_string(), b.ir_version.to_string());
    let none = || "none".to_owned();
    let by = |m: &Model| {
        let version =
            m.info.producer_version.clone().filter(|v| !v.is_empty()).map(|v| format!(" {v}")).unwrap_or_default();
        m.info.producer_name.clone().filter(|p| !p.is_empty()).map(|p| p + &version).unwrap_or_else(none)
    };
    tell("producer", by(a), by(b));
    tell("functions", a.functions.len().to_string(), b.functions.len().to_string());
    let ports = |m: &Model, inputs: bool| -> Vec<(String, String)> {
        let list = if inputs { m.required_inputs() } else { m.graph(m.main()).outputs().to_vec() };
        list.into_iter().map(|v| (m.value(v).name().to_owned(), declared(m, v))).collect()
    };
    for (what, inputs) in [("input", true), ("output", false)] {
        let (x, y) = (ports(a, inputs), ports(b, inputs));
        for i in 0..x.len().max(y.len()) {
            let words = |p: Option<&(String, String)>| p.map_or_else(none, |(name, ty)| format!("{name} {ty}"));
            tell(&format!("{what} {}", i + 1), words(x.get(i)), words(y.get(i)));
        }
    }
    let metadata = |m: &Model| m.info.metadata_props.iter().cloned().collect::<BTreeMap<String, String>>();
    let (x, y) = (metadata(a), metadata(b));
    let keys: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
    for key in keys {
        let short = |v: Option<&String>| v.map_or_else(none, |v| v.chars().take(40).collect());
        if x.get(key) != y.get(key) {
            tell(&format!("metadata {key}"), short(x.get(key)), short(y.get(key)));
        }
    }
    out
}

/// The type that the model declares of a value.
fn declared(m: &Model, v: ValueId) -> String {
    let value = m.value(v);
    let dtype = value.dtype().map_or("", |t| t.name());
    let dim = |d: &Dim| match d {
        Dim::Known(n) => n.to_string(),
        Dim::Named(name) => name.clone(),
        Dim::Unknown => "?".to_owned(),
    };
    match value.shape() {
        Some(shape) => format!("{dtype}[{}]", shape.dims.iter().map(dim).collect::<Vec<_>>().join(",")),
        None => dtype.to_owned(),
    }
}
