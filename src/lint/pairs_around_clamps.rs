//! A Relu or Clip with a Q/DQ pair in front of it and another behind it: values are rounded, dequantized, cut, and rounded again.
//!
//! There is no integer kernel for a clamp by itself. Without the pair in front, the kernel before the clamp saturates where it
//! cuts, and the clamp vanishes.
//!
//! ```text
//! before: (float[1,1,2,2] x) => (float[1,1,2,2] y) <float s = {0.5}, uint8 o = {128}, uint8 p = {0}, int8[1,1,1,1] c = {5}, float t = {0.1}, int8 u = {0}> {
//!     q = QuantizeLinear(x, s, o) d = DequantizeLinear(q, s, o) w = DequantizeLinear(c, t, u)
//!     a = Conv(d, w) aq = QuantizeLinear(a, s, o) ad = DequantizeLinear(aq, s, o) r = Relu(ad) rq = QuantizeLinear(r, s, p) y = DequantizeLinear(rq, s, p)
//! }
//! after: (float[1,1,2,2] x) => (float[1,1,2,2] y) <float s = {0.5}, uint8 o = {128}, uint8 p = {0}, int8[1,1,1,1] c = {5}, float t = {0.1}, int8 u = {0}> {
//!     q = QuantizeLinear(x, s, o) d = DequantizeLinear(q, s, o) w = DequantizeLinear(c, t, u)
//!     a = Conv(d, w) r = Relu(a) rq = QuantizeLinear(r, s, p) y = DequantizeLinear(rq, s, p)
//! }
//! ```

use super::{
    Changes, Context, Finding, Severity,
    support::{clamps::absorbing, pairs::Pair},
    symmetric_clamps::{absorb, codes_like},
};
use crate::{
    error::Result,
    ir::{Model, NodeId},
    ops,
    passes::support::pairs::Linear,
};

pub(super) const WHAT: &str = "clamps between two Q/DQ pairs, which compute in float between conversions";
pub(super) const CURE: &str = "take the pair in front of the clamp out";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        let node = cx.model.node(n);
        if !(node.in_onnx_domain() && cx.target.seen_through.contains(&node.op_type)) {
            continue;
        }
        let (Some(before), Some(after)) = (before(cx, n), after(cx, n)) else { continue };
        // Where its own codes end at its bounds, the clamp is gone, but the conversions stay.
        if !cx.is_float(n) && !cx.converts(after.q.node) {
            continue;
        }
        let Some(bounds) = ops::clamp_bounds(cx.model, n) else { continue };
        let params = match after.saturates_at(bounds) {
            true => Some(after.params),
            false => absorbing(after.params, bounds, codes_like(cx, &after)),
        };
        let time = cx.times.nodes(before.nodes()) + cx.times.nodes(after.nodes()) + cx.times.node(n);
        let fact = "its input is quantized and dequantized, and its output quantized again";
        let finding = Finding::at(Severity::Warning, n, fact).on(before.value()).costs(time);
        let Some(params) = params else {
            found.push(finding);
            continue;
        };
        let (from, to) = (before.q.node, after.q.node);
        let repair = move |model: &mut Model| {
            if model.try_node(n).is_none() || model.try_node(from).is_none() {
                return Ok(false);
            }
            let Some(q) = Linear::of(model, from, "QuantizeLinear") else { return Ok(false) };
            if model.node(n).input(0) == Some(q.input) {
                return Ok(false);
            }
            model.set_input(n, 0, Some(q.input));
            absorb(to, params)(model)?;
            Ok(true)
        };
        found.push(finding.mend(Changes::FewerRoundings, repair));
    }
    Ok(found)
}

/// The pair whose only reader is this node.
fn before(cx: &Context<'_>, n: NodeId) -> Option<Pair> {
    let d = cx.dequantized(n, 0)?;
    let pair = cx.pair(cx.model.producer(d.input)?)?;
    let alone = pair.readers(cx.model) == [(n, 0)] && !pair.is_output(cx.model);
    // Only behind a kernel does the clamp vanish.
    let maker = cx.model.producer(pair.value())?;
    (alone && cx.operator(maker).is_some() && cx.model.sole_reader(pair.value()).is_some()).then_some(pair)
}

fn after(cx: &Context<'_>, n: NodeId) -> Option<Pair> {
    let (q, _) = cx.model.sole_reader(cx.model.node(n).output(0)?)?;
    cx.pair(q)
}
