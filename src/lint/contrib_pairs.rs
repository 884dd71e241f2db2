//! Conversions of ONNX Runtime's own domain where ONNX has the same.
//!
//! `com.microsoft.QuantizeLinear` and `DequantizeLinear` are there for types that older operator sets lack. With 8-bit codes, or with
//! an operator set that has the type, ONNX's own do the same, and other runtimes and tools can read the file.
//!
//! ```text
//! before: <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> (float[2] x) => (float[2] y) <float s = {0.5}, uint8 z = {3}> { q = com.microsoft.QuantizeLinear(x, s, z) y = com.microsoft.DequantizeLinear(q, s, z) }
//! after: <ir_version: 8, opset_import: ["" : 17]> (float[2] x) => (float[2] y) <float s = {0.5}, uint8 z = {3}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }
//! ```

use super::{Changes, Context, Finding, Severity};
use crate::{
    error::Result,
    ir::{DType, Model, Tensor},
    ops::MICROSOFT,
    passes::support::pairs::forget_import,
};

pub(super) const WHAT: &str = "conversions of ONNX Runtime's own domain that ONNX has, too";
pub(super) const CURE: &str = "write them in ONNX's domain";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let opset = cx.model.opset("").unwrap_or(1);
    let mut found = Vec::new();
    for n in cx.nodes() {
        let node = cx.model.node(n);
        let quantizes = node.op_type == "QuantizeLinear";
        if node.domain.as_deref() != Some(MICROSOFT) || !(quantizes || node.op_type == "DequantizeLinear") {
            continue;
        }
        let codes = if quantizes { node.output(0) } else { node.input(0) };
        let dtype = node.input(2).and_then(|v| cx.dtype(v)).or_else(|| codes.and_then(|v| cx.dtype(v)));
        let first = match dtype {
            Some(DType::Uint8 | DType::Int8 | DType::Int32) => 10,
            Some(DType::Uint16 | DType::Int16 | DType::Uint4 | DType::Int4) => 21,
            _ => continue,
        };
        let scales = node.input(1).and_then(|v| cx.model.value(v).constant()).map(Tensor::len);
        // Without a zero point, the domains differ in what they take the type to be.
        if node.input(2).is_none() || opset < first || scales.is_none_or(|n| n > 1 && opset < 13) {
            continue;
        }
        let fact = format!("ONNX's {} has {} codes, too", node.op_type, dtype.map_or("such", DType::name));
        let repair = move |model: &mut Model| {
            if model.try_node(n).is_none_or(|node| node.in_onnx_domain()) {
                return Ok(false);
            }
            model.node_mut(n).domain = None;
            forget_import(model, MICROSOFT);
            Ok(true)
        };
        found.push(Finding::at(Severity::Note, n, fact).mend(Changes::Nothing, repair));
    }
    Ok(found)
}
