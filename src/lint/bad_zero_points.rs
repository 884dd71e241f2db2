//! Zero points of another type or shape than they must have: runtimes refuse the file.
//!
//! A zero point has the type of the codes and the shape of the scale; that of int32 codes is 0. One zero point beside several scales
//! is spread over them; the rest has to be quantized anew.
//!
//! ```text
//! before: (uint8[1,2] c) => (float[1,2] y) <float[2] s = {0.5, 0.25}, uint8 z = {3}> { y = DequantizeLinear<axis = 1>(c, s, z) }
//! after: (uint8[1,2] c) => (float[1,2] y) <float[2] s = {0.5, 0.25}, uint8[2] z = {3, 3}> { y = DequantizeLinear<axis = 1>(c, s, z) }
//! ```

use super::{Changes, Context, Finding, Severity};
use crate::{
    error::Result,
    ir::{DType, Model, NodeId, Tensor},
    kernels::is_conversion,
    passes::support::constants::set_constant_input,
    quant::pack::{pack, unpack},
};

pub(super) const WHAT: &str = "zero points of the wrong type or shape";
pub(super) const CURE: &str = "give them the type of the codes and the shape of the scale";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        let node = cx.model.node(n);
        if !is_conversion(&node.op_type) || node.input(1).is_none() {
            continue;
        }
        let (Some(z), Some(scale)) = (node.input(2), node.input(1)) else { continue };
        let quantizes = node.op_type == "QuantizeLinear";
        let codes = if quantizes { node.output(0) } else { node.input(0) };
        let types = codes.and_then(|v| cx.dtype(v)).zip(cx.dtype(z));
        if let Some((codes, zero)) = types.filter(|(a, b)| a != b) {
            let fact = format!("its codes are {codes}, its zero point is {zero}");
            found.push(Finding::at(Severity::Error, n, fact).on(z));
            continue;
        }
        let (Some(zeros), Some(scales)) = (cx.model.value(z).constant(), cx.model.value(scale).constant()) else {
            continue;
        };
        if zeros.dims() != scales.dims() && (zeros.len(), scales.len()) != (1, 1) {
            let fact = format!("its scale has shape {:?}, its zero point {:?}", scales.dims(), zeros.dims());
            let finding = Finding::at(Severity::Error, n, fact).on(z);
            found.push(match zeros.len() {
                1 => finding.mend(Changes::Nothing, move |model: &mut Model| spread(model, n)),
                _ => finding,
            });
        } else if zeros.dtype() == DType::Int32 && unpack(zeros)?.iter().any(|&z| z != 0) {
            found.push(Finding::at(Severity::Error, n, "the zero point of its int32 codes is not 0").on(z));
        }
    }
    Ok(found)
}

/// One zero point for each scale.
fn spread(model: &mut Model, n: NodeId) -> Result<bool> {
    if model.try_node(n).is_none() {
        return Ok(false);
    }
    let (Some(scales), Some(zeros)) = (model.constant_input(n, 1), model.constant_input(n, 2)) else {
        return Ok(false);
    };
    let (dims, dtype, zero) =
        (scales.dims().to_vec(), zeros.dtype(), unpack(zeros).unwrap_or_default().first().copied());
    let Some(zero) = zero.filter(|_| zeros.len() == 1 && zeros.dims() != dims) else { return Ok(false) };
    let all: Tensor = pack(dtype, &dims, &vec![zero; dims.iter().product()])?;
    set_constant_input(model, n, 2, all, "zero_point");
    Ok(true)
}
