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

/// Whether a QuantizeLinear alone reads the output, if need be behind clamps, and the data come from one scale.
fn is_between(s: &Scratch, n: NodeId) -> bool {
    let mut last = n;
    let quantized = loop {
        // That a value is an output of the graph, too, does not count here.
        let Some(out) = s.m.node(last).output(0) else { break false };
        let mut readers = s.m.value(out).readers().map(|(reader, _)| reader);
        match (readers.next(), readers.next()) {
            (Some(reader), None) if s.is_quantize(reader) => break true,
            (Some(reader), None) if super::clamps::is_fusible_clamp(s, reader) => last = reader,
            _ => break false,
        }
    };
    quantized && s.dequantize_at(n, 0).is_some_and(|d| s.params(d).is_some())
}

fn requantize(s: &mut Scratch, n: NodeId) {
    let bias = s.m.node(n).input(2);
    let length = bias.and_then(|v| match s.types().known_shape(v).as_deref() {
        Some(&[length]) if s.is_constant(v) => Some(length),
        _ => None,
    });
    // A bias of another form keeps the weight as it is, too.
    if bias.is_some() && length.is_none() {
        return;
    }
    if s.dequantize_at(n, 1).is_none() {
        quantize_input(s, n, 1, DType::Int8);
    }
    let Some(d) = s.dequantize_at(n, 1) else { return };
    if length.is_some_and(|length| groups::has_one_scale(s, d) || has_channels(s, n, d, length)) {
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

/// Whether a weight has as many scales as the bias has elements, along the axis of the output channels.
fn has_channels(s: &Scratch, n: NodeId, d: NodeId, length: usize) -> bool {
    let scales = s.m.node(d).input(1).and_then(|v| s.types().known_shape(v));
    let blocks = s.m.node(d).int("block_size").unwrap_or(0) != 0;
    scales.as_deref() == Some(&[length]) && !blocks && groups::is_per_channel(s, n, d, 1)
}
