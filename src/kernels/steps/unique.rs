//! Each reader of a DequantizeLinear gets one of its own, so that it can be fused with it alone.
//!
//! ```text
//! before: d = DequantizeLinear(q); a = F(d); b = G(d)
//! after:  d = DequantizeLinear(q); a = F(d); e = DequantizeLinear(q); b = G(e)
//! ```

use crate::kernels::scratch::Scratch;

pub(super) fn run(s: &mut Scratch) {
    for n in s.nodes() {
        let node = s.m.node(n);
        let (Some(codes), Some(out)) = (node.input(0), node.output(0)) else { continue };
        if !s.is_dequantize(n) {
            continue;
        }
        let keeps = usize::from(!s.m.value(out).is_graph_output());
        let mut readers: Vec<_> = s.m.value(out).readers().collect();
        readers.sort_unstable();
        for (reader, i) in readers.into_iter().skip(keeps) {
            let own = s.dequantize_like(n, codes, reader);
            if let Some(copy) = s.m.producer(own) {
                s.copies.push((n, copy));
            }
            s.m.set_input(reader, i, Some(own));
        }
    }
}
