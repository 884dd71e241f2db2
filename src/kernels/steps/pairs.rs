//! Two Q/DQ pairs in a row become one.
//!
//! ```text
//! before: q = QuantizeLinear(x); d = DequantizeLinear(q); r = QuantizeLinear(d); y = DequantizeLinear(r)
//! after:  q = QuantizeLinear(x); y = DequantizeLinear(q)
//! ```

use crate::{
    ir::NodeId,
    kernels::scratch::{Fate, Scratch},
};

pub(super) fn run(s: &mut Scratch) {
    for d in s.nodes() {
        if s.m.try_node(d).is_some() && s.is_dequantize(d) {
            shorten(s, d);
        }
    }
}

/// Takes out the pair of a DequantizeLinear and a QuantizeLinear between two others.
fn shorten(s: &mut Scratch, d: NodeId) -> Option<()> {
    let codes = s.m.node(d).input(0)?;
    let first = s.m.producer(codes).filter(|&n| s.is_quantize(n))?;
    let second = s.sole_quantize(s.m.node(d).output(0)?)?;
    let out = s.m.node(second).output(0)?;
    let last: Vec<_> = s.m.value(out).readers().map(|(n, _)| n).collect();
    s.m.sole_reader(codes)?;
    if last.is_empty() || s.m.value(out).is_graph_output() || !last.iter().all(|&n| s.is_dequantize(n)) {
        return None;
    }
    let dtype = s.params(first)?.dtype;
    if [d, second].iter().chain(&last).any(|&n| s.params(n).map(|p| p.dtype) != Some(dtype)) {
        return None;
    }
    for last in last {
        s.m.set_input(last, 0, Some(codes));
    }
    s.remove(second, Fate::Gone);
    s.remove(d, Fate::Gone);
    Some(())
}
