//! The runtime quantizes float weights and biases of some operators itself, where these stand between a DequantizeLinear
//! of one scale and a QuantizeLinear: weights with one scale to int8, biases to int32.

use crate::{
    ir::{DType, NodeId},
    kernels::scratch::Scratch,
    ops::{self, Role},
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
        let (clamp, _) = s.sole_reader(out).filter(|&(c, _)| super::clamps::is_fusible_clamp(s, c))?;
        s.sole_quantize(s.m.node(clamp).output(0)?)
    };
    let quantized = s.sole_quantize(out).or_else(behind_clamp).is_some();
    quantized && s.dequantize_at(n, 0).is_some_and(|d| s.params(d).is_some())
}

fn requantize(s: &mut Scratch, n: NodeId) {
    let node = s.m.node(n);
    let name = |i: usize| node.input(i).map(|v| s.m.value(v).name().to_owned());
    let is_float = |i: usize| node.input(i).is_some_and(|v| s.is_constant(v) && s.dtype(v) == Some(DType::Float));
    if let (true, Some(name)) = (is_float(1), name(1)) {
        let v = s.constant_dequantize(&name, DType::Int8, None, n);
        s.m.set_input(n, 1, Some(v));
    }
    let node = s.m.node(n);
    let (bias, float) = (node.input(2).map(|v| s.m.value(v).name().to_owned()), |s: &Scratch| {
        s.m.node(n).input(2).is_some_and(|v| s.is_constant(v) && s.dtype(v) == Some(DType::Float))
    });
    if let (true, Some(name), true) = (float(s), bias, weight_has_channels(s, n)) {
        let v = s.constant_dequantize(&name, DType::Int32, None, n);
        s.m.set_input(n, 2, Some(v));
    }
}

/// Whether the weight's codes are constants with one scale, or with one for each output channel.
fn weight_has_channels(s: &Scratch, n: NodeId) -> bool {
    let Some(d) = s.dequantize_at(n, 1) else { return false };
    let constant = s.m.node(d).inputs().iter().flatten().all(|&v| s.is_constant(v));
    constant
        && (super::groups::has_one_scale(s, d)
            || super::groups::is_per_channel(
                s,
                n,
                d,
                ops::spec(&s.m, n).and_then(|o| o.index_of(Role::Weight)).unwrap_or(1),
            ))
}
