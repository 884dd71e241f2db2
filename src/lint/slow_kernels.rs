//! Integer kernels that take longer than float ones, with nothing around them that would gain by their codes.
//!
//! Softmax has an integer kernel that is many times slower than the float one; small sums and poolings take no less in integers. Where
//! codes are made float again right behind such a node, it is faster in float: it gives its output unrounded.
//!
//! ```text
//! before: (uint8[64,1000] c) => (float[64,1000] y) <float s = {0.5}, uint8 z = {3}, float t = {0.00390625}, uint8 u = {0}> { x = DequantizeLinear(c, s, z) p = Softmax(x) q = QuantizeLinear(p, t, u) y = DequantizeLinear(q, t, u) }
//! after: (uint8[64,1000] c) => (float[64,1000] y) <float s = {0.5}, uint8 z = {3}> { x = DequantizeLinear(c, s, z) y = Softmax(x) }
//! ```

use super::{
    Changes, Context, Finding, Severity,
    support::{clamps::Saturation, pairs::Pair},
};
use crate::{
    analysis::placement,
    error::Result,
    ir::{Model, NodeId},
    kernels::Becomes,
    ops::{self, Class},
};

pub(super) const WHAT: &str = "integer kernels that take longer than float ones";
pub(super) const CURE: &str = "take out the pair behind the node, so that it computes in float";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        let arithmetic = ops::spec(cx.model, n).is_some_and(|s| s.class == Class::Arithmetic);
        if cx.becomes(n) != Some(Becomes::Integer) || !arithmetic {
            continue;
        }
        let Some(v) = cx.model.node(n).output(0) else { continue };
        let Some(pair) = cx.model.sole_reader(v).and_then(|(q, _)| cx.pair(q)) else { continue };
        // All that reads the codes makes them float again.
        if !pair.dq.iter().all(|d| cx.converts(d.node)) || !all_in_float(cx, &pair) {
            continue;
        }
        let (float, integer) = cx.node_times(n);
        let dequantize: f64 = (0..cx.model.node(n).inputs().len())
            .filter_map(|i| cx.dequantized(n, i))
            .filter(|d| !cx.converts(d.node))
            .map(|d| placement::conversion_time(&cx.target.costs, cx.elements(d.output), false))
            .sum();
        let clamp = Saturation::of(cx.model, &cx.types, &pair);
        let clamps = clamp.map_or(0.0, |_| Saturation::time(cx, &pair));
        let gain = integer + cx.times.nodes(pair.dq.iter().map(|d| d.node)) - float - dequantize - clamps;
        // Less is within the error of the cost model.
        if gain < cx.target.costs.uncertainty / 4.0 {
            continue;
        }
        let kernel = cx.kernel(n).and_then(|k| k.kernel.clone()).unwrap_or_default();
        let fact = format!(
            "{kernel} takes {:.1} us by the cost model, in float it would take {:.1} us",
            integer / 1e3,
            float / 1e3
        );
        let old = pair.clone();
        let repair = move |model: &mut Model| take_out(model, &old, clamp);
        found.push(Finding::at(Severity::Warning, n, fact).costs(gain).mend(Changes::FewerRoundings, repair));
    }
    Ok(found)
}

fn all_in_float(cx: &Context<'_>, pair: &Pair) -> bool {
    let on_codes = |n: NodeId| matches!(cx.becomes(n), Some(Becomes::Integer | Becomes::Moves | Becomes::Part));
    !pair.readers(cx.model).into_iter().any(|(n, _)| on_codes(n))
}

/// Takes a pair out of the graph; a clamp that its saturation was stays.
pub(super) fn take_out(model: &mut Model, old: &Pair, clamp: Option<Saturation>) -> Result<bool> {
    let Some(pair) = old.again(model).filter(|p| p.params == old.params) else { return Ok(false) };
    let value = match clamp {
        Some(clamp) => clamp.clamped(model, &pair)?,
        None => pair.value(),
    };
    let mut any = false;
    for d in &pair.dq {
        any |= !model.value(d.output).uses().is_empty() && model.replace_all_uses(d.output, value);
    }
    Ok(any)
}
