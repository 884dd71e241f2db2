//! Pairs in int8 become pairs in uint8 where the target's kernels want those: QuantizeLinear together with the
//! DequantizeLinear that alone reads it. Constants and the graph's inputs and outputs stay as they are.

use crate::{
    ir::{DType, Use},
    kernels::scratch::Scratch,
};

pub(super) fn run(s: &mut Scratch) {
    if s.target.activation != DType::Uint8 {
        return;
    }
    for q in s.nodes() {
        if !s.is_quantize(q) || s.codes_of(q) != Some(DType::Int8) {
            continue;
        }
        let Some(codes) = s.m.node(q).output(0).filter(|&v| !s.is_constant(v)) else { continue };
        let uses = s.m.value(codes).uses();
        let pair = |u: &Use| matches!(u, Use::Input(d, 0) if s.is_dequantize(*d));
        if uses.len() == 1 && uses.iter().all(pair) {
            s.set_dtype(codes, DType::Uint8);
        }
    }
}
