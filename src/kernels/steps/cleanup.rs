//! A DequantizeLinear goes with the QuantizeLinear that alone reads it, where both have the same scale, zero point and type:
//! clamps stood between them, or nothing.
//!
//! ```text
//! before: d = DequantizeLinear(q); r = QuantizeLinear(d); y = F(r)
//! after:  y = F(q)
//! ```

use crate::{
    ir::NodeId,
    kernels::scratch::{Fate, Scratch},
};

pub(super) fn run(s: &mut Scratch) {
    for d in s.nodes() {
        if s.m.try_node(d).is_some() && s.is_dequantize(d) {
            remove(s, d);
        }
    }
}

fn remove(s: &mut Scratch, d: NodeId) -> Option<()> {
    let codes = s.m.node(d).input(0)?;
    let q = s.sole_quantize(s.m.node(d).output(0)?).filter(|&q| s.same_params(d, q))?;
    let out = s.m.value(s.m.node(q).output(0)?);
    if out.is_graph_output() && (out.readers().next().is_some() || s.m.producer(codes).is_none()) {
        return None;
    }
    s.m.set_input(q, 0, None);
    s.remove(d, Fate::Gone);
    s.bypass(q, codes, Fate::Gone).then_some(())
}
