//! What cannot be compared with a runtime: words, and models that no runtime takes.

use super::{Becomes, predict};
use crate::{ir::text, target::Target};

fn told(nodes: &str, constants: &str) -> Vec<(String, Becomes, String)> {
    let text = format!(
        "<ir_version: 10, opset_import: [\"\" : 21]>\nagraph (float[N,8] x) => (float y)\n<{constants}>\n{{\n{nodes}\n}}"
    );
    let model = text::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let before = text::print(&model);
    let prediction = predict(&model, &Target::load("onnxruntime-cpu").unwrap());
    assert_eq!(text::print(&model), before);
    prediction.loaded.verify().unwrap();
    prediction.nodes.iter().map(|n| (n.name.clone(), n.becomes, n.words())).collect()
}

const PAIR: &str = "q = QuantizeLinear(x, s, z)\nd = DequantizeLinear(q, s, z)\n";
const SCALES: &str = "float s = {0.1}, uint8 z = {0}, float s2 = {0.2}, uint8 z2 = {128}";

#[test]
fn words_tell_why() {
    let words = |nodes: &str| -> Vec<String> {
        told(&format!("{PAIR}{nodes}"), SCALES).into_iter().map(|(n, _, w)| format!("{n}: {w}")).collect()
    };
    assert_eq!(
        words("t = Sigmoid(d)\nr = QuantizeLinear(t, s2, z)\ny = DequantizeLinear(r, s2, z)"),
        [
            "q: conversion: it converts an input of the model",
            "d: part of QLinearSigmoid \"t\"",
            "t: QLinearSigmoid",
            "r: part of QLinearSigmoid \"t\"",
            "y: conversion: it makes an output of the model",
        ]
    );
    let moved = words("t = Flatten(d)\nr = QuantizeLinear(t, s2, z)\ny = DequantizeLinear(r, s2, z)");
    assert_eq!(moved[2], "t: float: its output has another scale than its input");
    let moved = words(
        "t = Reshape(d, a)\nr = QuantizeLinear(t, s, z)\ny = DequantizeLinear(r, s, z)\na = Constant <value_ints: ints = [-1]> ()",
    );
    assert!(moved.iter().any(|w| w == "t: Reshape on codes"), "{moved:?}");
    let clamp = words("t = Sigmoid(d)\nu = Relu(t)\nr = QuantizeLinear(u, s, z2)\ny = DequantizeLinear(r, s, z2)");
    assert_eq!(clamp[2], "t: float: the codes of its output do not end where the Relu behind it cuts");
    assert_eq!(words("y = Tanh(d)")[2], "y: float: no integer kernel");
}

#[test]
fn malformed_nodes_are_no_panic() {
    for nodes in [
        "y = QuantizeLinear()",
        "y = DequantizeLinear()",
        "q = QuantizeLinear(x)\ny = DequantizeLinear(q)",
        "a = DynamicQuantizeLinear(x)\ny = MatMulInteger(a)",
        "y = Conv()",
        "d = DequantizeLinear(x, s)\nt = MatMul(d)\ny = Add(t)",
        "d = DequantizeLinear(x, s, z)\nt = Gemm(d, d, d, d)\ny = QuantizeLinear(t, s, z)",
        "t = MatMul(x, x)\ny = Add(t, t)",
        "i = MatMulInteger(x, x)\nc = Cast <to: int = 1> (i)\ny = Mul(c, c)",
        "d = DequantizeLinear <axis: int = -9, block_size: int = -4> (x, s)\ny = MatMul(x, d)",
        "y = Identity()",
        "y = Slice(x, s, s, s, s)",
    ] {
        told(nodes, SCALES);
    }
}
