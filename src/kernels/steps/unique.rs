//! Each reader of a DequantizeLinear gets one of its own, so that it can be fused with it alone.
//!
//! ```text
//! before: d = DequantizeLinear(q); a = F(d); b = G(d)
//! after:  d = DequantizeLinear(q); a = F(d); e = DequantizeLinear(q); b = G(e)
//! ```

use std::collections::BTreeMap;

use crate::{
    ir::{GraphId, NodeId},
    kernels::scratch::Scratch,
};

pub(super) fn run(s: &mut Scratch) {
    for n in s.nodes() {
        let node = s.m.node(n);
        let (Some(codes), Some(out)) = (node.input(0), node.output(0)) else { continue };
        if !s.is_dequantize(n) {
            continue;
        }
        let keeps = usize::from(!s.m.value(out).is_graph_output());
        // All that a node's subgraphs read is one input of that node.
        let mut readers: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (reader, i) in s.m.value(out).readers() {
            let holder = holder(s, reader, s.m.node(n).graph());
            readers.entry((holder, (holder == reader).then_some(i))).or_default().push((reader, i));
        }
        for ((holder, _), uses) in readers.into_iter().skip(keeps) {
            let own = s.dequantize_like(n, codes, holder);
            if let Some(copy) = s.m.producer(own) {
                s.copies.push((n, copy));
            }
            for (reader, i) in uses {
                s.m.set_input(reader, i, Some(own));
            }
        }
    }
}

/// The node of a graph in whose subgraphs a node stands; the node itself, if it is of that graph.
fn holder(s: &Scratch, mut n: NodeId, graph: GraphId) -> NodeId {
    while s.m.node(n).graph() != graph {
        match s.m.graph(s.m.node(n).graph()).parent {
            Some(parent) => n = parent,
            None => break,
        }
    }
    n
}
