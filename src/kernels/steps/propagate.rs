//! Conversions move past operators that only move elements: a pair of the same scale is inserted on their other side, and
//! what then stands between two pairs is fused later.
//!
//! ```text
//! before: d = DequantizeLinear(q); y = MaxPool(d)
//! after:  d = DequantizeLinear(q); m = MaxPool(d); r = QuantizeLinear(m); y = DequantizeLinear(r)
//! ```

use crate::{
    ir::{NodeId, Place, Use, ValueId},
    kernels::scratch::Scratch,
};

pub(super) fn run(s: &mut Scratch) {
    let (dequantize, quantize): (Vec<_>, Vec<_>) =
        s.nodes().into_iter().filter(|&n| s.is_dequantize(n) || s.is_quantize(n)).partition(|&n| s.is_dequantize(n));
    for d in dequantize {
        forward(s, d);
    }
    for q in quantize.into_iter().rev() {
        backward(s, q);
    }
}

fn passes(s: &Scratch, n: NodeId) -> bool {
    let node = s.m.node(n);
    let old = node.op_type == "MaxPool" && s.m.opset("").unwrap_or(1) < 12;
    node.in_onnx_domain() && s.target.passes_through(&node.op_type) && !old
}

/// The nodes that read a value as their data and that conversions move past.
fn next(s: &Scratch, v: ValueId) -> Vec<NodeId> {
    let graph = s.m.value(v).graph();
    let readers = s.m.value(v).readers().filter(|&(n, i)| i == 0 && s.m.node(n).graph() == graph && passes(s, n));
    let mut nodes: Vec<_> = readers.map(|(n, _)| n).collect();
    nodes.sort_unstable();
    nodes
}

fn forward(s: &mut Scratch, d: NodeId) {
    let mut stack: Vec<_> = s.m.node(d).output(0).filter(|_| s.params(d).is_some()).into_iter().collect();
    while let Some(v) = stack.pop() {
        for n in next(s, v) {
            let Some(out) = s.m.node(n).output(0) else { continue };
            let uses = s.m.value(out).uses();
            let quantized = |u: &Use| matches!(u, Use::Input(q, 0) if s.is_quantize(*q));
            if !uses.is_empty() && !uses.iter().any(quantized) {
                stack.push(pair_behind(s, d, n, out));
            }
        }
    }
}

/// Inserts a pair behind a node, for all uses of its output; returns what they read then.
pub(super) fn pair_behind(s: &mut Scratch, like: NodeId, n: NodeId, out: ValueId) -> ValueId {
    let uses = s.m.value(out).uses().to_vec();
    let codes = s.quantize_like(like, out, Place::After(n));
    let q = s.m.producer(codes).unwrap_or(n);
    let back = s.dequantize_like(like, codes, q);
    if let Some(d) = s.m.producer(back) {
        s.m.move_node(d, Place::After(q));
    }
    for u in uses {
        if matches!(u, Use::Output(..)) && !s.m.value(back).is_graph_output() {
            s.m.take_output_name(out, back);
        }
        s.m.redirect(u, back);
    }
    back
}

fn backward(s: &mut Scratch, q: NodeId) {
    if s.params(q).is_none() {
        return;
    }
    let mut q = q;
    while let Some(v) = s.m.node(q).input(0) {
        let Some(n) = s.m.producer(v).filter(|&n| passes(s, n) && s.m.sole_reader(v).is_some()) else { return };
        let Some(x) = s.m.node(n).input(0) else { return };
        let made_by = s.m.producer(x);
        // A node that stands behind a conversion already, a constant, and what a node makes for others too, stop it.
        let shared = made_by.is_some() && s.m.sole_reader(x).is_none();
        if made_by.is_some_and(|p| s.is_dequantize(p)) || s.is_constant(x) || shared {
            return;
        }
        let codes = s.quantize_like(q, x, Place::Before(n));
        let back = s.dequantize_like(q, codes, n);
        s.m.set_input(n, 0, Some(back));
        let Some(moved) = s.m.producer(codes) else { return };
        q = moved;
    }
}
