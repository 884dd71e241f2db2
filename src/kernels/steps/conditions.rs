//! A constant scalar beside a dequantized operand of Where is quantized, so that Where can compute on codes.

use crate::{ir::NodeId, kernels::scratch::Scratch};

pub(super) fn run(s: &mut Scratch) {
    for n in s.nodes() {
        if s.m.node(n).is("Where") {
            quantize_scalar(s, n);
        }
    }
}

fn quantize_scalar(s: &mut Scratch, n: NodeId) -> Option<()> {
    s.sole_quantize(s.m.node(n).output(0)?)?;
    let (at, beside) = match (s.dequantize_at(n, 1), s.dequantize_at(n, 2)) {
        (Some(d), None) => (2, d),
        (None, Some(d)) => (1, d),
        _ => return None,
    };
    let v = s.m.node(n).input(at)?;
    let scalar = s.tensor(v).is_some_and(|t| t.len() == 1) && s.is_constant(v);
    let (dtype, name) = (s.codes_of(beside).filter(|_| scalar)?, s.m.value(v).name().to_owned());
    let made = s.constant_dequantize(&name, dtype, n);
    s.m.set_input(n, at, Some(made));
    Some(())
}
