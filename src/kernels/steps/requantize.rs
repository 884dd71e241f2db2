//! The runtime quantizes float weights and biases of some operators itself, where these stand between a DequantizeLinear
//! of one scale and a QuantizeLinear: weights with one scale to int8, biases to int32.

use super::groups;
use crate::{
    ir::{DType, NodeId, ValueId},
    kernels::scratch::Scratch,
};

pub(super) fn run(s: &mut Scratch) {
    for n in s.nodes() {
        let node = s.m.node(n);
        if node.in_onnx_domain() && s.target.requantizes(&node.op_type) && is_between(s, n) {
            requantize(s, n);
        }
    }
}

/// Whether a QuantizeLinear alone reads the output, if need be behind a clamp, and the data come from one scale.
fn is_between(s: &Scratch, n: NodeId) -> bool {
    let Some(out) = s.m.node(n).output(0) else { return false };
    let behind_clamp = || {
        let (clamp, _) = s.m.sole_reader(out).filter(|&(c, _)| super::clamps::is_fusible_clamp(s, c))?;
        s.sole_quantize(s.m.node(clamp).output(0)?)
    };
    let quantized = s.sole_quantize(out).or_else(behind_clamp).is_some();
    quantized && s.dequantize_at(n, 0).is_some_and(|d| s.params(d).is_some())
}

fn requantize(s: &mut Scratch, n: NodeId) {
    quantize_input(s, n, 1, DType::Int8);
    if weight_has_channels(s, n) {
        quantize_input(s, n, 2, DType::Int32);
    }
}

/// Puts a DequantizeLinear of new codes in the place of a float constant.
fn quantize_input(s: &mut Scratch, n: NodeId, i: usize, codes: DType) {
    let float = |&v: &ValueId| s.is_constant(v) && s.dtype(v) == Some(DType::Float);
    let Some(v) = s.m.node(n).input(i).filter(float) else { return };
    let name = s.m.value(v).name().to_owned();
    let made = s.constant_dequantize(&name, codes, n);
    s.m.set_input(n, i, Some(made));
}

/// Whether the weight's codes are constants with one scale, or with one for each output channel.
fn weight_has_channels(s: &Scratch, n: NodeId) -> bool {
    let Some(d) = s.dequantize_at(n, 1) else { return false };
    let constant = s.m.node(d).inputs().iter().flatten().all(|&v| s.is_constant(v));
    constant && (groups::has_one_scale(s, d) || groups::is_per_channel(s, n, d, 1))
}
