//! Weights in codes that are dequantized at every run because they lie the wrong way round: a Transpose behind the
//! DequantizeLinear, or a Gemm with `transB`.
//!
//! A kernel that multiplies by the codes themselves takes them with one row for each input channel, and blocks along those. Moved once, in
//! the file, the codes stand for the same numbers. The kernel for float data and weights in few bits rounds its data to 8 bits
//! while it computes, which a float product does not.
//!
//! ```text
//! before: <ir_version: 10, opset_import: ["" : 21]> (float[1,16] x) => (float[1,2] y) <int4[2,16] c = {1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, -1, -2, -3, -4, -5, -6, -7, 0, -1, -2, -3, -4, -5, -6, -7, 0}, float[2,1] s = {0.5, 0.25}> {
//!     w = DequantizeLinear<axis = 1, block_size = 16>(c, s) t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)
//! }
//! after: <ir_version: 10, opset_import: ["" : 21]> (float[1,16] x) => (float[1,2] y) <int4[16,2] c = {1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7, -7, 0, 0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7, -7, 0, 0}, float[1,2] s = {0.5, 0.25}> {
//!     w = DequantizeLinear<block_size = 16, axis = 0>(c, s) y = MatMul(x, w)
//! }
//! ```

use super::{Changes, Context, Finding, Severity};
use crate::{
    error::Result,
    ir::{Attr, DType, Model, NodeId, Tensor},
    passes::support::{
        constants::set_constant_input,
        permute::{permutation, transposed},
        replace::bypass,
    },
    quant::pack::{pack, unpack},
};

pub(super) const WHAT: &str = "weights in codes that lie the wrong way round, and are dequantized at every run";
pub(super) const CURE: &str = "store their codes with one row for each input channel, and drop the Transpose or transB";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for dq in cx.nodes() {
        let node = cx.model.node(dq);
        let (Some(codes), Some(out)) = (node.input(0), node.output(0)) else { continue };
        let constants =
            node.inputs().iter().flatten().all(|&v| cx.model.value(v).constant().is_some_and(|t| !t.is_deferred()));
        if !(node.is("DequantizeLinear") && cx.converts(dq) && constants) {
            continue;
        }
        let Some((reader, at)) = cx.model.sole_reader(out) else { continue };
        if at != usize::from(cx.model.node(reader).is("Gemm")) {
            continue;
        }
        let Some(tensor) = cx.model.value(codes).constant() else { continue };
        let Some(perm) = perm_of(cx.model, reader, tensor) else { continue };
        let what = cx.model.node(reader);
        let how = if what.is("Gemm") { "transB" } else { "a Transpose" };
        let fact = format!(
            "{} bytes of {} codes, behind {how}, become numbers at every run",
            tensor.byte_len(),
            tensor.dtype()
        );
        let few = tensor.dtype().bits() < 8;
        let changes = match few {
            true => Changes::As("the same weights; their kernel rounds its data to 8 bits".to_owned()),
            false => Changes::Nothing,
        };
        let time = cx.times.node(dq) + if how == "transB" { 0.0 } else { cx.times.node(reader) };
        // Of 8 bits a Gemm's weight is as well stored so that the runtime folds it; that is another rule's.
        if what.is("Gemm") && !few {
            continue;
        }
        let repair = move |model: &mut Model| turn(model, dq, reader, &perm);
        found.push(Finding::at(Severity::Warning, dq, fact).on(codes).costs(time).mend(changes, repair));
    }
    Ok(found)
}

/// The order of axes that a reader of a weight makes of its codes.
fn perm_of(model: &Model, reader: NodeId, codes: &Tensor) -> Option<Vec<usize>> {
    let node = model.node(reader);
    if node.is("Gemm") {
        return (codes.rank() == 2 && node.int("transB").unwrap_or(0) != 0).then(|| vec![1, 0]);
    }
    let out = node.output(0).filter(|_| node.is("Transpose"))?;
    let product = |(n, i): (NodeId, usize)| i == 1 && (model.node(n).is("MatMul") || model.node(n).is("Gemm"));
    let products = !model.value(out).is_graph_output() && model.value(out).readers().all(product);
    permutation(node.ints("perm"), codes.rank()).filter(|_| products)
}

fn turn(model: &mut Model, dq: NodeId, reader: NodeId, perm: &[usize]) -> Result<bool> {
    if model.try_node(dq).is_none() || model.try_node(reader).is_none() {
        return Ok(false);
    }
    let Some(codes) = model.constant_input(dq, 0).cloned() else { return Ok(false) };
    if perm_of(model, reader, &codes).as_deref() != Some(perm) {
        return Ok(false);
    }
    for i in 0..3 {
        // Scales lie along one axis, or in blocks beside the codes.
        let Some(t) = model.constant_input(dq, i).filter(|t| t.rank() == codes.rank()).cloned() else { continue };
        let name = model.node(dq).input(i).map(|v| model.value(v).name().to_owned()).unwrap_or_default();
        set_constant_input(model, dq, i, turned(&t, perm)?, &name);
    }
    let axis = model.node(dq).int("axis").unwrap_or(1);
    let axis = if axis < 0 { axis + codes.rank() as i64 } else { axis };
    let now = perm.iter().position(|&p| p as i64 == axis).map_or(axis, |p| p as i64);
    let attributes = &mut model.node_mut(dq).attributes;
    attributes.retain(|a| a.name != "axis");
    attributes.push(Attr::new("axis", now));
    let Some(out) = model.node(dq).output(0) else { return Ok(false) };
    model.value_mut(out).ty = None;
    if model.node(reader).is("Gemm") {
        model.node_mut(reader).attributes.retain(|a| a.name != "transB");
    } else {
        bypass(model, reader, out);
    }
    Ok(true)
}

/// A tensor of any type with its axes in another order.
fn turned(t: &Tensor, perm: &[usize]) -> Result<Tensor> {
    if t.dtype().bits() >= 8 {
        return transposed(t, perm);
    }
    let wide = transposed(&pack(DType::Int32, t.dims(), &unpack(t)?)?, perm)?;
    pack(t.dtype(), wide.dims(), &unpack(&wide)?)
}
