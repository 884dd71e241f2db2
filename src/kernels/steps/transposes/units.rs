//! Conversions that moving Transposes left alone: a Transpose beside a single conversion gets a pair of its own, and a
//! DequantizeLinear right in front of an equal QuantizeLinear goes with it.
//!
//! ```text
//! before: d = DequantizeLinear(q); t = Transpose(d); y = F(t)
//! after:  d = DequantizeLinear(q); t = Transpose(d); r = QuantizeLinear(t); e = DequantizeLinear(r); y = F(e)
//! ```

use super::Mover;
use crate::{
    ir::{GraphId, NodeId},
    kernels::{scratch::Fate, steps::propagate},
};

pub(super) fn mend(m: &mut Mover, graph: GraphId) {
    for n in m.s.m.nodes(graph) {
        let Some(node) = m.s.m.try_node(n) else { continue };
        if node.is("Transpose") {
            let _ = quantized_behind(m, n) || dequantized_before(m, n);
        } else if m.s.is_quantize(n) {
            remove_empty(m, n);
        }
    }
}

/// A DequantizeLinear and an equal QuantizeLinear that alone reads it do nothing.
fn remove_empty(m: &mut Mover, q: NodeId) -> Option<()> {
    let (d, codes) = m.s.dequantize_at(q, 0).and_then(|d| Some((d, m.s.m.node(d).input(0)?)))?;
    let (between, out) = (m.s.m.node(d).output(0)?, m.s.m.node(q).output(0)?);
    (m.sole_reader(between) == Some(q) && are_equal(m, d, q)).then_some(())?;
    let value = m.s.m.value(out);
    let handed_out = value.is_graph_output();
    if !handed_out {
        m.sole_reader(out)?;
    } else if value.readers().next().is_some() || m.s.m.producer(codes).is_none() || m.sole_reader(codes) != Some(d) {
        return None;
    }
    m.s.m.set_input(q, 0, None);
    m.s.remove(d, Fate::Gone);
    m.s.bypass(q, codes, Fate::Gone).then_some(())
}

/// Whether scale, zero point and type of two conversions are the same.
fn are_equal(m: &Mover, d: NodeId, q: NodeId) -> bool {
    let (a, b) = (m.s.m.node(d), m.s.m.node(q));
    let ids = a.input(1) == b.input(1) && a.input(2) == b.input(2) && m.s.codes_of(d) == m.s.codes_of(q);
    a.domain == b.domain && (ids || m.s.same_params(d, q))
}

/// A Transpose of dequantized numbers that no QuantizeLinear reads gets one, with the way back.
fn quantized_behind(m: &mut Mover, t: NodeId) -> bool {
    let (Some(d), Some(out)) = (m.s.dequantize_at(t, 0), m.s.m.node(t).output(0)) else { return false };
    let mut readers: Vec<_> = m.s.m.value(out).readers().map(|(n, _)| n).collect();
    readers.dedup();
    match readers[..] {
        [] => m.pair_behind(d, t),
        [reader] if !m.s.is_quantize(reader) => m.pair_behind(d, t),
        _ => false,
    }
}

/// A Transpose of float numbers that a QuantizeLinear alone reads gets numbers that went through the same conversion.
fn dequantized_before(m: &mut Mover, t: NodeId) -> bool {
    let (Some(x), Some(out)) = (m.s.m.node(t).input(0), m.s.m.node(t).output(0)) else { return false };
    let Some(q) = m.sole_reader(out).filter(|&q| m.s.is_quantize(q) && m.is_supported(q)) else { return false };
    let maker = m.s.m.producer(x).filter(|&p| !m.s.is_dequantize(p) && !m.s.is_constant(x));
    let Some(maker) = maker.filter(|_| m.s.m.value(x).readers().all(|(n, _)| n == t)) else { return false };
    // If it is an output of the graph, too, that is converted as well.
    propagate::pair_behind(m.s, q, maker, x);
    true
}
