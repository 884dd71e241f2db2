//! Quantization, and operators on quantized values that follow their float form.

use super::{Cx, Rule};
use crate::ir::DType;

#[rustfmt::skip]
pub(super) const RULES: &[(&[&str], Rule)] = &[
    (&["QuantizeLinear", "com.microsoft.QuantizeLinear"], quantize),
    (&["DequantizeLinear", "com.microsoft.DequantizeLinear"], dequantize),
    (&["DynamicQuantizeLinear"], dynamic),
    (&["com.microsoft.QLinearAdd", "com.microsoft.QLinearMul"], |cx| {
        let shapes = [cx.shape(0), cx.shape(3)];
        let (dtype, shape) = (cx.dtype(0), cx.broadcast(&shapes));
        cx.set(0, dtype, shape);
        Some(())
    }),
    (&["com.microsoft.QLinearWhere"], |cx| {
        let shapes = [cx.shape(0), cx.shape(1), cx.shape(4)];
        let (dtype, shape) = (cx.dtype(1), cx.broadcast(&shapes));
        cx.set(0, dtype, shape);
        Some(())
    }),
    (&["com.microsoft.QLinearSigmoid", "com.microsoft.QLinearLeakyRelu", "com.microsoft.QLinearSoftmax"], |cx| cx.same()),
    (&["com.microsoft.MulInteger"], |cx| {
        let shapes = [cx.shape(0), cx.shape(2)];
        let shape = cx.broadcast(&shapes);
        cx.set(0, Some(DType::Int32), shape);
        Some(())
    }),
];

fn attribute(cx: &Cx<'_>) -> Option<DType> {
    cx.node().int("output_dtype").and_then(|n| i32::try_from(n).ok()).filter(|&n| n != 0).and_then(DType::from_onnx)
}

fn quantize(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = if cx.has(2) { cx.dtype(2) } else { attribute(cx).or(Some(DType::Uint8)) };
    let shape = cx.shape(0);
    cx.set(0, dtype, shape);
    Some(())
}

fn dequantize(cx: &mut Cx<'_>) -> Option<()> {
    let (dtype, shape) = (attribute(cx).or_else(|| cx.dtype(1)), cx.shape(0));
    cx.set(0, dtype, shape);
    Some(())
}

fn dynamic(cx: &mut Cx<'_>) -> Option<()> {
    let shape = cx.shape(0);
    cx.set(0, Some(DType::Uint8), shape);
    cx.set(1, Some(DType::Float), Some(Vec::new()));
    cx.set(2, Some(DType::Uint8), Some(Vec::new()));
    Some(())
}
