//! From what the steps left to words about each node.

use std::collections::HashMap;

use super::{
    Becomes, NodeKernel, Prediction,
    scratch::{Fate, Scratch},
};
use crate::ir::{Model, NodeId, Use, ValueId};

/// What became of every node of `model`, whose copy the scratch is.
pub(super) fn tell(model: &Model, s: Scratch) -> Prediction {
    let copies: HashMap<NodeId, Vec<NodeId>> = s.copies.iter().fold(HashMap::new(), |mut all, &(original, copy)| {
        all.entry(original).or_insert_with(Vec::new).push(copy);
        all
    });
    let nodes = model.nodes_below(model.main());
    let nodes = nodes.into_iter().map(|id| tell_node(model, &s, &copies, id)).collect();
    let folded = s.fates.iter().filter(|(_, f)| **f == Fate::Folded).map(|(&n, _)| n).collect();
    Prediction { nodes, loaded: s.m, types: s.dtypes, folded }
}

fn tell_node(model: &Model, s: &Scratch, copies: &HashMap<NodeId, Vec<NodeId>>, id: NodeId) -> NodeKernel {
    let node = model.node(id);
    let op = match node.domain.as_deref() {
        Some(domain) if !node.in_onnx_domain() => format!("{domain}.{}", node.op_type),
        _ => node.op_type.clone(),
    };
    let mut told = NodeKernel {
        id,
        name: model.node_label(id),
        op,
        inner: node.graph() != model.main(),
        becomes: Becomes::Gone,
        kernel: None,
        within: None,
        reason: None,
    };
    // A DequantizeLinear is what one of its copies is, if itself it is gone.
    let alive = |n: NodeId| s.m.try_node(n).is_some();
    let stays = std::iter::once(id).chain(copies.get(&id).into_iter().flatten().copied()).find(|&n| alive(n));
    match (s.fates.get(&id), stays) {
        (Some(Fate::Folded), _) => told.becomes = Becomes::Folded,
        (_, Some(n)) => tell_living(s, n, &mut told),
        (Some(&Fate::Part(host)), None) => {
            told.becomes = Becomes::Part;
            let host = last_host(s, host);
            told.kernel =
                s.m.try_node(host).map(|n| s.kernels.get(&host).cloned().unwrap_or_else(|| n.op_type.clone()));
            told.within = model.try_node(host).map(|_| model.node_label(host));
        }
        (Some(Fate::Gone) | None, None) => {}
    }
    told
}

/// The node that does it in the end: a host may have become part of another.
fn last_host(s: &Scratch, mut host: NodeId) -> NodeId {
    // Each step leads to a node that vanished later.
    for _ in 0..8 {
        match s.fates.get(&host) {
            Some(&Fate::Part(next)) => host = next,
            _ => break,
        }
    }
    host
}

fn tell_living(s: &Scratch, n: NodeId, told: &mut NodeKernel) {
    let node = s.m.node(n);
    let outputs = || node.outputs().iter().flatten();
    let float = |v: &ValueId| s.dtype(*v).is_some_and(|t| t.is_float());
    let codes = |v: ValueId| s.dtypes.is_codes(&s.m, v);
    if let Some(kernel) = s.kernels.get(&n) {
        told.becomes = if *kernel == node.op_type { Becomes::Moves } else { Becomes::Integer };
        told.kernel = Some(kernel.clone());
        told.reason = s.why.get(&n).cloned();
    } else if s.is_quantize(n) || s.is_dequantize(n) || node.is("DynamicQuantizeLinear") {
        told.becomes = Becomes::Conversion;
        told.kernel = Some(node.op_type.clone());
        told.reason = Some(why_converts(s, n));
    } else if s.target.is_integer(node) {
        told.becomes = Becomes::Integer;
        told.kernel = Some(node.op_type.clone());
        told.reason = s.why.get(&n).cloned();
    } else if node.input(0).is_some_and(codes) && outputs().any(|&v| codes(v)) {
        told.becomes = Becomes::Moves;
        told.kernel = Some(node.op_type.clone());
    } else if outputs().any(float) {
        told.becomes = Becomes::Float;
        told.reason = s.why.get(&n).cloned();
    } else {
        told.becomes = Becomes::Other;
    }
}

/// Why a conversion runs at every inference.
fn why_converts(s: &Scratch, n: NodeId) -> String {
    let node = s.m.node(n);
    if s.is_dequantize(n) {
        let out = node.output(0).map(|v| s.m.value(v));
        let constant = node.input(0).is_some_and(|v| s.is_constant(v));
        let what = if constant { "a constant, but " } else { "" };
        return match out.and_then(|v| v.uses().first()) {
            Some(Use::Output(..)) => "it makes an output of the model".to_owned(),
            Some(Use::Input(r, _)) => format!("{what}{} is not an integer kernel", label(s, *r)),
            None => "nobody reads it".to_owned(),
        };
    }
    let made = node.input(0).and_then(|v| s.m.producer(v));
    match made {
        None => "it converts an input of the model".to_owned(),
        Some(p) if s.kernels.contains_key(&p) => format!("{} has a float output", label(s, p)),
        Some(p) if s.is_dequantize(p) => "it changes the scale".to_owned(),
        Some(p) => format!("{} is not an integer kernel", label(s, p)),
    }
}

fn label(s: &Scratch, n: NodeId) -> String {
    format!("{} {:?}", s.m.node(n).op_type, s.m.node_label(n))
}
