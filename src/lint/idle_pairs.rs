//! Q/DQ pairs around which nothing computes in integers: values are rounded and made float again, and nothing is gained.
//!
//! The runtime has no integer kernel for what stands on either side, or it has one only for other readers of the value. Where
//! saturation may cut something off, a clamp takes its place. Where a layer with a quantized weight reads the pair, it is told and
//! stays: biases may make up for the rounding.
//!
//! ```text
//! before: (float[2,2] x) => (float[2,2] y) <float s = {0.3}, uint8 z = {3}> { e = Sigmoid(x) q = QuantizeLinear(e, s, z) d = DequantizeLinear(q, s, z) y = Sqrt(d) }
//! after: (float[2,2] x) => (float[2,2] y) { e = Sigmoid(x) y = Sqrt(e) }
//! ```

use std::collections::BTreeSet;

use super::{
    Changes, Context, Finding, Severity,
    support::{clamps::Saturation, pairs::Pair},
};
use crate::{
    error::Result,
    ir::{Model, NodeId, ValueId},
    kernels::Becomes,
    ops::{self, Class, Role},
    passes::support::pairs::Linear,
};

pub(super) const WHAT: &str = "Q/DQ pairs around which nothing computes in integers";
pub(super) const CURE: &str = "take them out, or quantize only what the runtime has kernels for";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for pair in cx.pairs() {
        if !cx.converts(pair.q.node) {
            continue;
        }
        let readers: BTreeSet<NodeId> = pair.readers(cx.model).into_iter().map(|(n, _)| n).collect();
        let on_codes = |n: &NodeId| matches!(cx.becomes(*n), Some(Becomes::Integer | Becomes::Moves | Becomes::Part));
        let float: BTreeSet<NodeId> = readers.iter().copied().filter(|n| !on_codes(n)).collect();
        let idle = float.len() == readers.len();
        // A value that a subgraph reads may not be read at all.
        let graph = cx.model.node(pair.q.node).graph();
        let here = float.iter().all(|&n| cx.model.node(n).graph() == graph);
        let handed_out = pair.is_output(cx.model) && idle;
        if (float.is_empty() && !handed_out) || !here {
            continue;
        }
        let clamp = Saturation::of(cx.model, &cx.types, &pair);
        let time = match idle {
            true => cx.times.nodes(pair.nodes()),
            false => cx.times.nodes(pair.dq.iter().map(|d| d.node)),
        };
        // A DequantizeLinear for others may be part of their kernels.
        let time = time - clamp.map_or(0.0, |_| Saturation::time(cx, &pair));
        if time <= 0.0 {
            continue;
        }
        let between = between(cx, &pair, &float);
        let fact = match idle {
            true => {
                format!("{} elements are rounded and made float again, between {between}", cx.elements(pair.value()))
            }
            false => format!(
                "{} of its {} readers compute in float, as its maker does: {between}",
                float.len(),
                readers.len()
            ),
        };
        if float.iter().any(|&n| has_quantized_weight(cx.model, n)) {
            let fact = format!("{fact}; it stays, since that layer's bias may make up for the rounding ({HINT})");
            found.push(Finding::at(Severity::Warning, pair.q.node, fact).on(pair.value()).costs(time));
            continue;
        }
        let (q, old) = (pair.q.node, pair.clone());
        let repair = move |model: &mut Model| take_out(model, q, &old, clamp, &float, handed_out);
        found.push(
            Finding::at(Severity::Warning, q, fact).on(pair.value()).costs(time).mend(Changes::FewerRoundings, repair),
        );
    }
    Ok(found)
}

/// What brings such layers to integers.
const HINT: &str = "`qonvert quantize` with calibration data finds what its integer kernel lacks";

/// Whether a node is a product of data with a weight in codes. Tools correct biases of such layers for what rounding data and
/// weight shifts on average: without the one rounding, its correction would be an error. (MobileNet v1 by NNCF loses 9 points.)
fn has_quantized_weight(model: &Model, id: NodeId) -> bool {
    let spec = ops::spec(model, id).filter(|s| s.class == Class::Product);
    let weight = spec.and_then(|s| s.index_of(Role::Weight)).and_then(|i| model.node(id).input(i));
    let codes = weight.and_then(|w| Linear::dequantized(model, w)).map(|d| d.input);
    let rounded = |v: ValueId| model.producer(v).and_then(|q| Linear::of(model, q, "QuantizeLinear")).map(|q| q.input);
    let constant = |v: ValueId| model.value(v).constant().is_some();
    codes.is_some_and(|v| constant(v) || rounded(v).is_some_and(constant))
}

/// What stands on either side, in words.
fn between(cx: &Context<'_>, pair: &Pair, readers: &BTreeSet<NodeId>) -> String {
    let maker = match cx.model.producer(pair.value()) {
        Some(n) => cx.node(n),
        None => "an input of the model".to_owned(),
    };
    let reader = match readers.first() {
        Some(&n) => cx.node(n),
        None => "an output of the model".to_owned(),
    };
    format!("{maker} and {reader}")
}

fn take_out(
    model: &mut Model,
    q: NodeId,
    old: &Pair,
    clamp: Option<Saturation>,
    float: &BTreeSet<NodeId>,
    handed_out: bool,
) -> Result<bool> {
    if model.try_node(q).is_none() || !old.dq.iter().all(|d| model.try_node(d.node).is_some()) {
        return Ok(false);
    }
    let Some(pair) = Pair::of(model, &Default::default(), q) else { return Ok(false) };
    if pair.params != old.params {
        return Ok(false);
    }
    let value = match clamp {
        Some(clamp) => clamp.clamped(model, &pair)?,
        None => pair.value(),
    };
    let mut any = pair.redirect(model, value, |_, n| float.contains(&n));
    if handed_out {
        for d in &pair.dq {
            any |= !model.value(d.output).uses().is_empty() && model.replace_all_uses(d.output, value);
        }
    }
    Ok(any)
}
