//! Integer convolutions whose data are quantized at run time, with weights of a type that their kernel is slow with.
//!
//! ConvInteger with int8 weights takes 5 to 15 times as long as with uint8 ones on x86-64. Codes with 128 added, to the zero point as
//! well, stand for the same numbers.
//!
//! ```text
//! before: (uint8[1,1,2,2] x) => (int32[1,1,2,2] y) <uint8 z = {3}, int8[1,1,1,1] w = {5}, int8 o = {0}> { y = ConvInteger(x, w, z, o) }
//! after: (uint8[1,1,2,2] x) => (int32[1,1,2,2] y) <uint8 z = {3}, uint8[1,1,1,1] w = {133}, uint8 o = {128}> { y = ConvInteger(x, w, z, o) }
//! ```

use super::{Changes, Context, Finding, Severity};
use crate::{
    error::Result,
    ir::{DType, Model, NodeId, Tensor},
    passes::support::constants::set_constant_input,
    quant::pack::{pack, unpack},
};

pub(super) const WHAT: &str = "integer convolutions with weights of a type that their kernel is slow with";
pub(super) const CURE: &str = "write the weights as uint8 with 128 added to codes and zero points: the same numbers";

/// The inputs of ConvInteger that are the weight and its zero point.
const WEIGHT: usize = 1;
const ZERO_POINT: usize = 3;

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        let node = cx.model.node(n);
        let wants = cx.target.dynamic.iter().any(|row| node.is(&row.kernel) && row.weight == Some(DType::Uint8));
        if !wants || !node.is("ConvInteger") || weight(cx.model, n).is_none() {
            continue;
        }
        let repair = move |model: &mut Model| {
            if model.try_node(n).is_none() { Ok(false) } else { as_uint8(model, n) }
        };
        let fact = "its weight is int8: it takes 5 to 15 times as long as with uint8";
        found.push(Finding::at(Severity::Warning, n, fact).mend(Changes::Nothing, repair));
    }
    Ok(found)
}

/// The constant int8 weight of a node, and its zero points.
fn weight(model: &Model, n: NodeId) -> Option<(Tensor, Vec<i32>)> {
    let codes = model.constant_input(n, WEIGHT).filter(|t| t.dtype() == DType::Int8 && !t.is_deferred())?;
    let zeros = match model.node(n).input(ZERO_POINT) {
        None => vec![0],
        Some(_) => unpack(model.constant_input(n, ZERO_POINT)?).ok()?,
    };
    Some((codes.clone(), zeros))
}

fn as_uint8(model: &mut Model, n: NodeId) -> Result<bool> {
    let Some((codes, zeros)) = weight(model, n) else { return Ok(false) };
    let shifted = |codes: Vec<i32>| codes.into_iter().map(|c| c + 128).collect::<Vec<_>>();
    let values = pack(DType::Uint8, codes.dims(), &shifted(unpack(&codes)?))?;
    let zeros = match zeros.first() {
        // The kernel takes one for all, if all are the same.
        Some(&first) if zeros.iter().all(|&z| z == first) => pack(DType::Uint8, &[], &[first + 128])?,
        _ => pack(DType::Uint8, &[zeros.len()], &shifted(zeros))?,
    };
    let name = model.node(n).input(WEIGHT).map_or_else(String::new, |v| model.value(v).name().to_owned());
    set_constant_input(model, n, WEIGHT, values, &name);
    set_constant_input(model, n, ZERO_POINT, zeros, &format!("{name}_zero_point"));
    Ok(true)
}
