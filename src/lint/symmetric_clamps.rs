//! Codes with room for numbers that a Relu or Clip in front of them has cut off: the clamp is not absorbed, and the convolution in
//! front of it computes in float.
//!
//! Kernels make codes and saturate; that does a Relu's work only if the codes end at 0. With symmetric activations (int8 with zero point 0,
//! uint8 with 128) they do not, half of them stand for numbers that cannot occur, and the runtime leaves convolution and Relu in
//! float between conversions. uint8 codes from 0 to where the old codes ended have a grid that is twice as fine; an upper bound of a Clip
//! is their end if it is less.
//!
//! ```text
//! before: (float[1,1,2,2] x) => (float[1,1,2,2] y) <float s = {0.5}, int8 o = {0}, int8[1,1,1,1] c = {5}, float t = {0.1}> {
//!     q = QuantizeLinear(x, s, o) d = DequantizeLinear(q, s, o) w = DequantizeLinear(c, t, o)
//!     a = Conv(d, w) r = Relu(a) rq = QuantizeLinear(r, s, o) y = DequantizeLinear(rq, s, o)
//! }
//! after: (float[1,1,2,2] x) => (float[1,1,2,2] y) <float s = {0.5}, int8 o = {0}, int8[1,1,1,1] c = {5}, float t = {0.1}, float r_scale = {0.24901961}, uint8 r_zero_point = {0}> {
//!     q = QuantizeLinear(x, s, o) d = DequantizeLinear(q, s, o) w = DequantizeLinear(c, t, o)
//!     a = Conv(d, w) r = Relu(a) rq = QuantizeLinear(r, r_scale, r_zero_point) y = DequantizeLinear(rq, r_scale, r_zero_point)
//! }
//! ```

use super::{
    Changes, Context, Finding, Severity,
    support::{clamps::absorbing, pairs::Pair},
};
use crate::{
    analysis::types::Types,
    error::Result,
    ir::{DType, Model, NodeId},
    ops,
    quant::params::QParams,
};

pub(super) const WHAT: &str =
    "codes that do not end where the Relu or Clip in front of them cuts, so that its convolution computes in float";
pub(super) const CURE: &str = "let the codes end where the clamp cuts: behind a Relu, uint8 with zero point 0";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        if !cx.is_float(n) || cx.operator(n).is_none() {
            continue;
        }
        let Some((clamp, pair)) = clamp_behind(cx, n) else { continue };
        let Some(bounds) = ops::clamp_bounds(cx.model, clamp) else { continue };
        if pair.saturates_at(bounds) {
            continue;
        }
        let range = pair.range();
        let fact = format!(
            "its codes go from {} to {}, the {} behind it cuts at {}",
            short(range.lo),
            short(range.hi),
            cx.model.node(clamp).op_type,
            ends(bounds)
        );
        let time = cx.times.nodes(pair.nodes()) + cx.times.node(n);
        let finding = Finding::at(Severity::Warning, n, fact).on(pair.value()).costs(time);
        let params = absorbing(pair.params, bounds, codes_like(cx, &pair));
        found.push(match params {
            Some(params) => finding.mend(change(pair.params, params), absorb(pair.q.node, params)),
            None => finding,
        });
    }
    Ok(found)
}

/// The type that the kernels take, of as many bits.
pub(super) fn codes_like(cx: &Context<'_>, pair: &Pair) -> DType {
    if pair.params.dtype.bits() == 8 { cx.target.activation } else { pair.params.dtype }
}

/// The clamp that alone reads a node's output, and the pair that alone reads that.
fn clamp_behind(cx: &Context<'_>, n: NodeId) -> Option<(NodeId, Pair)> {
    let (clamp, _) = cx.model.sole_reader(cx.model.node(n).output(0)?).filter(|&(_, i)| i == 0)?;
    let node = cx.model.node(clamp);
    let seen = node.in_onnx_domain() && cx.target.seen_through.contains(&node.op_type);
    let (q, _) = cx.model.sole_reader(node.output(0)?).filter(|_| seen)?;
    Some((clamp, cx.pair(q)?))
}

/// What other codes do to the numbers.
pub(super) fn change(old: QParams, new: QParams) -> Changes {
    match old.scale == new.scale {
        true => Changes::As("the same grid".to_owned()),
        false => {
            Changes::As("changes numbers: a finer grid, which ends where the clamp or the old codes cut".to_owned())
        }
    }
}

/// Gives a pair, and those behind it that share its scale, these codes.
pub(super) fn absorb(q: NodeId, params: QParams) -> impl Fn(&mut Model) -> Result<bool> + 'static {
    move |model: &mut Model| {
        let there = model.try_node(q).is_some();
        let types = Types::default();
        let Some(pair) = there.then(|| Pair::of(model, &types, q)).flatten() else { return Ok(false) };
        if pair.params == params {
            return Ok(false);
        }
        pair.set_through(model, &types, params)?;
        Ok(true)
    }
}

/// A number with four digits.
pub(super) fn short(x: f32) -> String {
    if x.is_infinite() || x == 0.0 {
        return format!("{x}");
    }
    let digits = (3 - x.abs().log10().floor() as i32).clamp(0, 9) as usize;
    let text = format!("{x:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn ends((lo, hi): (f32, f32)) -> String {
    match (lo.is_finite(), hi.is_finite()) {
        (true, true) => format!("{} and {}", short(lo), short(hi)),
        (true, false) => short(lo),
        (_, _) => short(hi),
    }
}
