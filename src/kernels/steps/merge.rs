//! Of equal QuantizeLinear nodes of one value, one is left.

use std::collections::HashMap;

use crate::kernels::scratch::{Fate, Scratch};

pub(super) fn run(s: &mut Scratch) {
    let mut seen = HashMap::new();
    for n in s.nodes() {
        let node = s.m.node(n);
        if !s.is_quantize(n) || s.fates.contains_key(&n) {
            continue;
        }
        let (Some(v), Some(out)) = (node.input(0), node.output(0)) else { continue };
        // Constants that are equal are shared before, but 8-bit ones are not.
        let Some(p) = s.params(n) else { continue };
        let key = (v, node.graph(), p.scale.to_bits(), node.input(2), p.dtype);
        match seen.get(&key) {
            None => {
                seen.insert(key, out);
            }
            Some(&first) => {
                if !s.m.value(out).is_graph_output() {
                    s.bypass(n, first, Fate::Gone);
                }
            }
        }
    }
}
