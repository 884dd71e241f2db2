//! Conversions that the operator set which the file names does not have: scales per channel came with version 13, codes of 16
//! and 4 bits and blocks with 21, codes of 2 bits with 25, floats of 8 bits with 19. With opset 10 the runtime does not load a layer in
//! codes whose bias is float, either.
//!
//! Runtimes refuse such files, or ignore what they do not know. Operators are upgraded one version after the other, none
//! changes what it computes.
//!
//! ```text
//! before: <ir_version: 7, opset_import: ["" : 12]> (uint8[1,2] c) => (float[1,2] y) <float[2] s = {0.5, 0.25}, uint8[2] z = {1, 2}> { y = DequantizeLinear<axis = 1>(c, s, z) }
//! after: <ir_version: 7, opset_import: ["" : 13]> (uint8[1,2] c) => (float[1,2] y) <float[2] s = {0.5, 0.25}, uint8[2] z = {1, 2}> { y = DequantizeLinear<axis = 1>(c, s, z) }
//! ```

use super::{Changes, Context, Finding, Severity};
use crate::{
    error::Result,
    ir::{DType, Model, NodeId, Tensor},
    passes::{self, convert_opset},
};

pub(super) const WHAT: &str = "conversions that the file's operator set does not have";
pub(super) const CURE: &str = "upgrade the operators to the version that has them";

/// Whether a node has a constant float bias beside data and weight in codes: the runtime quantizes it, with a Round of opset 11.
fn float_bias(cx: &Context<'_>, n: NodeId) -> bool {
    let node = cx.model.node(n);
    let bias =
        (node.is("Conv") || node.is("Gemm")) && cx.model.constant_input(n, 2).is_some_and(|b| b.dtype().is_float());
    bias && cx.dequantized(n, 0).is_some() && cx.dequantized(n, 1).is_some()
}

/// The first operator set that has a conversion like this one, and what of it is new there.
fn needed(cx: &Context<'_>, n: NodeId) -> Option<(i64, String)> {
    let node = cx.model.node(n);
    if float_bias(cx, n) {
        return Some((11, "float biases beside codes".to_owned()));
    }
    let quantizes = node.is("QuantizeLinear");
    if !(quantizes || node.is("DequantizeLinear")) {
        return None;
    }
    let codes = if quantizes { node.output(0) } else { node.input(0) }?;
    let dtype = node.input(2).and_then(|v| cx.dtype(v)).or_else(|| cx.dtype(codes));
    let of_type = match dtype {
        Some(DType::Uint16 | DType::Int16 | DType::Uint4 | DType::Int4) => 21,
        Some(DType::Uint2 | DType::Int2) => 25,
        Some(t) if !t.is_integer() && !t.is_float() && t.bits() == 8 => 19,
        _ => 10,
    };
    let scales = node.input(1).and_then(|v| cx.model.value(v).constant()).map_or(1, Tensor::len);
    let (of_shape, shape) = match node.int("block_size").unwrap_or(0) {
        0 if scales > 1 => (13, format!("{scales} scales")),
        0 => (10, String::new()),
        size => (21, format!("blocks of {size}")),
    };
    match of_type >= of_shape {
        true => Some((of_type, format!("codes of type {}", dtype.map_or("?", DType::name)))),
        false => Some((of_shape, shape)),
    }
}

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let opset = cx.model.opset("").unwrap_or(1);
    let mut found = Vec::new();
    let all: Vec<_> = cx.nodes().into_iter().filter_map(|n| Some((n, needed(cx, n)?))).collect();
    let most = all.iter().map(|(_, (first, _))| *first).max().unwrap_or(0);
    for (n, (first, what)) in all.into_iter().filter(|(_, (first, _))| *first > opset) {
        let fact = format!("{what} need opset {first}, the file says {opset}");
        let repair = move |model: &mut Model| {
            let old = model.opset("").is_some_and(|v| v < most);
            let done = old.then(|| convert_opset::convert_to(model, most, &mut passes::Context::default()));
            // What cannot be upgraded stays as it is, and the finding stays.
            Ok(done.is_some_and(|d| d.is_ok_and(|n| n > 0)))
        };
        found.push(Finding::at(Severity::Error, n, fact).mend(Changes::Nothing, repair));
    }
    Ok(found)
}
