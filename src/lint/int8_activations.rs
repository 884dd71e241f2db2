//! Activations in int8 for kernels that compute on uint8.
//!
//! ONNX Runtime on x86-64 makes int8 pairs uint8 when it loads a file, but not where a value has several readers: a skip connection, a
//! value that two convolutions read. There types meet that no kernel takes together, and convolutions compute in float
//! between conversions: slower than the float model. Integer operators in a file (QLinearConv with int8 data) stay int8, which has slow
//! kernels. uint8 codes with 128 added, to the zero point as well, stand for the same numbers.
//!
//! ```text
//! before: (float[1,1,2,2] x) => (float[1,1,2,2] y, float[1,1,2,2] z) <float s = {0.5}, int8 o = {3}, int8[1,1,1,1] c = {5}, float t = {0.1}, int8 u = {0}> {
//!     q = QuantizeLinear(x, s, o) d = DequantizeLinear(q, s, o) e = DequantizeLinear(q, s, o) w = DequantizeLinear(c, t, u)
//!     a = Conv(d, w) b = Conv(e, w) aq = QuantizeLinear(a, s, o) y = DequantizeLinear(aq, s, o) bq = QuantizeLinear(b, s, o) z = DequantizeLinear(bq, s, o)
//! }
//! after: (float[1,1,2,2] x) => (float[1,1,2,2] y, float[1,1,2,2] z) <int8[1,1,1,1] c = {5}, float t = {0.1}, int8 u = {0}, float x_scale = {0.5}, uint8 x_zero_point = {131}, float a_scale = {0.5}, uint8 a_zero_point = {131}, float b_scale = {0.5}, uint8 b_zero_point = {131}> {
//!     q = QuantizeLinear(x, x_scale, x_zero_point) d = DequantizeLinear(q, x_scale, x_zero_point) e = DequantizeLinear(q, x_scale, x_zero_point)
//!     w = DequantizeLinear(c, t, u) a = Conv(d, w) b = Conv(e, w)
//!     aq = QuantizeLinear(a, a_scale, a_zero_point) y = DequantizeLinear(aq, a_scale, a_zero_point)
//!     bq = QuantizeLinear(b, b_scale, b_zero_point) z = DequantizeLinear(bq, b_scale, b_zero_point)
//! }
//! ```

use std::collections::BTreeSet;

use super::{Changes, Context, Finding, Form, Severity, support::pairs::Pair};
use crate::{
    error::Result,
    ir::{DType, Model, NodeId, ValueId},
    target::{Kernel, Output},
};

pub(super) const WHAT: &str = "activations in int8 where the runtime's kernels take uint8";
pub(super) const CURE: &str = "write them as uint8 with 128 added to codes and zero points: the same numbers";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    if cx.target.activation != DType::Uint8 {
        return Ok(Vec::new());
    }
    let pairs: Vec<Pair> = cx.pairs().into_iter().filter(|p| p.params.dtype == DType::Int8).collect();
    // The nodes around it that could be in integers, and are not.
    let lost = |p: &Pair| -> BTreeSet<NodeId> {
        let maker = cx.model.producer(p.value());
        let around = p.readers(cx.model).into_iter().map(|(n, _)| n).chain(maker);
        around.filter(|&n| cx.is_float(n) && cx.operator(n).is_some_and(|(_, row)| makes_codes(cx, n, row))).collect()
    };
    let all: BTreeSet<NodeId> = pairs.iter().flat_map(lost).collect();
    if all.is_empty() && cx.form != Form::Qoperator {
        return Ok(Vec::new());
    }
    let qs: Vec<NodeId> = pairs.iter().map(|p| p.q.node).collect();
    let mut found = Vec::new();
    for pair in &pairs {
        let around = lost(pair);
        let (severity, fact) = match (cx.form, around.first()) {
            (Form::Qoperator, _) => {
                (Severity::Warning, "its codes are int8: integer operators on those are slow".to_owned())
            }
            (Form::Qdq, Some(&n)) => {
                (Severity::Warning, format!("its codes are int8, and {} beside it computes in float", cx.node(n)))
            }
            (Form::Qdq, None) => {
                (Severity::Note, "its codes are int8, as those around kernels that are lost".to_owned())
            }
        };
        let conversions = cx.times.nodes(pair.nodes());
        let time = if around.is_empty() { 0.0 } else { conversions };
        let qs = qs.clone();
        // Types of neighbours must agree: all of them or none.
        let repair = move |model: &mut Model| {
            let mut any = false;
            for &q in &qs {
                if let Some(pair) = again(model, q).filter(|p| p.params.dtype == DType::Int8) {
                    pair.set(model, pair.params.as_uint8())?;
                    any = true;
                }
            }
            Ok(any)
        };
        let finding = Finding::at(severity, pair.q.node, fact).on(pair.value()).costs(time);
        found.push(finding.mend(Changes::Nothing, repair));
    }
    Ok(found)
}

/// Whether the output of a node is quantized, if its kernel asks for that.
fn makes_codes(cx: &Context<'_>, n: NodeId, row: &Kernel) -> bool {
    let quantized =
        |v: ValueId| cx.model.value(v).readers().any(|(r, i)| i == 0 && cx.model.node(r).op_type == "QuantizeLinear");
    // Clamps may stand between.
    let behind = |v: ValueId| cx.model.sole_reader(v).and_then(|(r, _)| cx.model.node(r).output(0));
    let outputs = || cx.model.node(n).outputs().iter().copied().flatten();
    row.output != Output::Required || outputs().any(|v| quantized(v) || behind(v).is_some_and(quantized))
}

fn again(model: &Model, q: NodeId) -> Option<Pair> {
    model.try_node(q)?;
    Pair::of(model, &Default::default(), q)
}
