//! A clamp whose only reader is a QuantizeLinear vanishes where the codes end at its bounds.

use crate::{
    ir::NodeId,
    kernels::scratch::{Fate, Params, Scratch},
    ops,
};

pub(super) fn run(s: &mut Scratch) {
    for n in s.nodes() {
        let node = s.m.node(n);
        if !is_fusible_clamp(s, n) {
            continue;
        }
        let (Some(x), Some(out)) = (node.input(0), node.output(0)) else { continue };
        let Some(q) = s.sole_quantize(out) else { continue };
        if is_redundant(s, n, q) {
            let host = s.m.producer(x);
            s.m.set_input(q, 0, Some(x));
            s.remove(n, host.map_or(Fate::Part(q), Fate::Part));
        }
    }
}

/// The clamps that the runtime looks at: of the target's, those with one data input.
pub(super) fn is_fusible_clamp(s: &Scratch, n: NodeId) -> bool {
    let node = s.m.node(n);
    node.in_onnx_domain() && s.target.seen_through.contains(&node.op_type)
}

/// Whether saturation at the ends of the codes does what the clamp does.
pub(super) fn is_redundant(s: &Scratch, clamp: NodeId, q: NodeId) -> bool {
    let (Some((lo, hi)), Some(p)) = (ops::clamp_bounds(&s.m, clamp), s.params(q)) else { return false };
    let Some((least, most)) = ends(p) else { return false };
    lo <= least && hi >= most
}

/// The least and the greatest number that codes stand for.
fn ends(p: Params) -> Option<(f32, f32)> {
    let bits = p.dtype.bits() as u32;
    if !p.dtype.is_integer() || bits > 16 {
        return None;
    }
    let (least, most) = match p.dtype.name().starts_with('u') {
        true => (0, (1_i64 << bits) - 1),
        false => (-(1_i64 << (bits - 1)), (1_i64 << (bits - 1)) - 1),
    };
    let number = |code: i64| (code - p.zero_point) as f32 * p.scale;
    Some((number(least), number(most)))
}
