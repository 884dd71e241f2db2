//! Of equal nodes with equal inputs, one is left, but for DequantizeLinear, of which each reader is to have its own.

use std::collections::HashMap;

use crate::{
    ir::{Attr, AttrValue, DType, Node, NodeId, Tensor, ValueId},
    kernels::scratch::{Fate, Scratch},
};

pub(super) fn run(s: &mut Scratch) {
    let mut seen: HashMap<_, Vec<NodeId>> = HashMap::new();
    for n in s.nodes() {
        let Some(node) = s.m.try_node(n).filter(|_| !s.fates.contains_key(&n) && is_mergeable(s, n)) else { continue };
        let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| input(s, v))).collect();
        let key = (node.graph(), node.op_type.clone(), node.domain.clone(), inputs);
        let alike = seen.entry(key).or_default();
        match alike.iter().find(|&&first| have_equal_attributes(s.m.node(first), node)) {
            None => alike.push(n),
            Some(&first) => replace(s, n, first),
        }
    }
}

/// What a node reads: small constants that are equal are one, which the runtime shares, but not those of few bits.
#[derive(PartialEq, Eq, Hash)]
enum Input {
    Value(ValueId),
    Constant(DType, Vec<usize>, Vec<u8>),
}

/// So many elements a constant may have to be shared.
const SMALL: usize = 8;

fn input(s: &Scratch, v: ValueId) -> Input {
    let shared = |t: &Tensor| {
        let types = [DType::Float, DType::Double, DType::Float16, DType::Int32, DType::Int64];
        types.contains(&t.dtype()) && t.len() <= SMALL
    };
    let constant = s.tensor(v).filter(|t| s.is_constant(v) && shared(t));
    let parts = constant.and_then(|t| Some((t.dtype(), t.dims().to_vec(), t.bytes().ok()?.to_vec())));
    parts.map_or(Input::Value(v), |(dtype, dims, bytes)| Input::Constant(dtype, dims, bytes))
}

/// Whether a node makes one value, the same from the same inputs.
fn is_mergeable(s: &Scratch, n: NodeId) -> bool {
    let node = s.m.node(n);
    let known = node.in_onnx_domain() && !super::fold::is_random(node) || s.is_quantize(n);
    known && !s.is_dequantize(n) && node.outputs().len() == 1 && node.subgraphs().next().is_none()
}

/// As far as they are numbers and words; others are taken to differ.
fn have_equal_attributes(a: &Node, b: &Node) -> bool {
    let is_equal = |(a, b): (&Attr, &Attr)| {
        let values = match (&a.value, &b.value) {
            (AttrValue::Int(a), AttrValue::Int(b)) => a == b,
            (AttrValue::Float(a), AttrValue::Float(b)) => a == b,
            (AttrValue::String(a), AttrValue::String(b)) => a == b,
            (AttrValue::Ints(a), AttrValue::Ints(b)) => a == b,
            (AttrValue::Floats(a), AttrValue::Floats(b)) => a == b,
            _ => false,
        };
        a.name == b.name && values
    };
    a.attributes.len() == b.attributes.len() && a.attributes.iter().zip(&b.attributes).all(is_equal)
}

fn replace(s: &mut Scratch, n: NodeId, first: NodeId) {
    let (Some(out), Some(kept)) = (s.m.node(n).output(0), s.m.node(first).output(0)) else { return };
    if !s.m.value(out).is_graph_output() {
        s.bypass(n, kept, Fate::Gone);
    }
}
