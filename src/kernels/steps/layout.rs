//! Integer convolutions of images compute in another layout. The change back to the file's layout moves past what it can
//! move past, but not past a float pooling: where another such convolution follows that, it stops between
//! DequantizeLinear and pooling, and the runtime puts a pair of conversions behind it.

use crate::{
    ir::{NodeId, Place, ValueId},
    kernels::scratch::Scratch,
};

pub(super) fn run(s: &mut Scratch) {
    for d in s.nodes() {
        if s.is_dequantize(d) && stops_behind(s, d) {
            wrap(s, d);
        }
    }
}

/// Whether a change of layout comes to stand behind this DequantizeLinear.
fn stops_behind(s: &Scratch, d: NodeId) -> bool {
    let node = s.m.node(d);
    let (Some(codes), Some(out)) = (node.input(0), node.output(0)) else { return false };
    let Some((pool, 0)) = s.m.sole_reader(out).filter(|&(n, _)| s.m.node(n).is("MaxPool")) else { return false };
    let behind = s.m.node(pool).output(0).and_then(|v| s.sole_quantize(v)).and_then(|q| s.m.node(q).output(0));
    let Some(behind) = behind.map(|v| s.m.value(v)).filter(|v| !v.is_graph_output()) else { return false };
    let next = behind.readers().all(|(n, i)| i == 0 && is_convolution(s, n)) && behind.readers().next().is_some();
    next && s.m.sole_reader(codes).is_some() && made_by_convolution(s, codes)
}

fn is_convolution(s: &Scratch, n: NodeId) -> bool {
    let name = s.kernels.get(&n).map_or(s.m.node(n).op_type.as_str(), String::as_str);
    name == "QLinearConv"
}

/// Whether a convolution makes the value, directly or through sums with constants.
fn made_by_convolution(s: &Scratch, mut v: ValueId) -> bool {
    while let Some(n) = s.m.producer(v) {
        if is_convolution(s, n) {
            return true;
        }
        if s.m.node(n).op_type != "QLinearAdd" {
            return false;
        }
        let Some(x) = s.m.node(n).input(0).filter(|&x| s.m.sole_reader(x).is_some()) else { return false };
        v = x;
    }
    false
}

fn wrap(s: &mut Scratch, d: NodeId) {
    let Some(out) = s.m.node(d).output(0) else { return };
    let Some((reader, i)) = s.m.sole_reader(out) else { return };
    let codes = s.quantize_like(d, out, Place::After(d));
    let back = s.dequantize_like(d, codes, reader);
    s.m.set_input(reader, i, Some(back));
}
