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
//! after: (float[1,1,2,2] x) => (float[1,1,2,2] y, float[1,1,2,2] z) <float s = {0.5}, uint8 o = {131}, int8[1,1,1,1] c = {5}, float t = {0.1}, int8 u = {0}, float as = {0.5}, uint8 ao = {131}, float bs = {0.5}, uint8 bo = {131}> {
//!     q = QuantizeLinear(x, s, o) d = DequantizeLinear(q, s, o) e = DequantizeLinear(q, s, o) w = DequantizeLinear(c, t, u)
//!     a = Conv(d, w) b = Conv(e, w) aq = QuantizeLinear(a, as, ao) y = DequantizeLinear(aq, as, ao) bq = QuantizeLinear(b, bs, bo) z = DequantizeLinear(bq, bs, bo)
//! }
//! ```

use std::collections::BTreeSet;

use super::{Changes, Context, Finding, Form, Severity, support::pairs::Pair};
use crate::{
    error::Result,
    ir::{DType, Model, NodeId},
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
        around.filter(|&n| cx.is_float(n) && cx.operator(n).is_some()).collect()
    };
    let all: BTreeSet<NodeId> = pairs.iter().flat_map(lost).collect();
    if all.is_empty() && cx.form != Form::Qoperator {
        return Ok(Vec::new());
    }
    let qs: Vec<NodeId> = pairs.iter().map(|p| p.q.node).collect();
    let mut found = Vec::new();
    for pair in &pairs {
        let around = lost(pair);
        let (severity, fact) = match (around.first(), cx.form) {
            (Some(&n), _) => {
                (Severity::Warning, format!("its codes are int8, and {} beside it computes in float", cx.node(n)))
            }
            (None, Form::Qoperator) => {
                (Severity::Warning, "its codes are int8: integer operators on those are slow".to_owned())
            }
            (None, Form::Qdq) => {
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

fn again(model: &Model, q: NodeId) -> Option<Pair> {
    model.try_node(q)?;
    Pair::of(model, &Default::default(), q)
}
