//! What preparation of the float model would have taken out: Identity, Dropout, and BatchNormalization behind quantized layers.
//!
//! Runtimes skip Identity and Dropout. A BatchNormalization that was not folded into the weights of the convolution in front
//! of it costs time, and what stands between the two is rounded once more than it needs to be.
//!
//! ```text
//! before: (float[2] x) => (float[2] y) <float s = {0.5}, uint8 z = {3}> { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) i = Identity(d) y = Exp(i) }
//! after: (float[2] x) => (float[2] y) <float s = {0.5}, uint8 z = {3}> { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Exp(d) }
//! ```

use super::{Changes, Context, Finding, Severity};
use crate::{
    error::Result,
    ir::{Model, NodeId},
    ops::{self, Class},
    passes::{
        eliminate_dropout,
        support::{pairs::Linear, replace::bypass},
    },
};

pub(super) const WHAT: &str = "nodes that preparing the float model would have taken out";
pub(super) const CURE: &str = "fold BatchNormalization and drop Identity and Dropout before quantizing";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        let node = cx.model.node(n);
        let idle = node.is("Identity") || (node.is("Dropout") && !eliminate_dropout::trains(cx.model, n));
        if let Some(x) = node.input(0).filter(|_| idle && removable(cx.model, n)) {
            let fact = "does nothing; runtimes skip it";
            let repair = move |model: &mut Model| {
                let there = model.try_node(n).is_some_and(|node| node.input(0) == Some(x));
                Ok(there && bypass(model, n, x))
            };
            found.push(Finding::at(Severity::Note, n, fact).mend(Changes::Nothing, repair));
        } else if node.is("BatchNormalization")
            && let Some(layer) = layer_before(cx, n)
        {
            let fact = format!("stands behind {}, whose weights could have taken it in", cx.node(layer));
            found.push(Finding::at(Severity::Warning, n, fact).costs(cx.times.node(n)));
        }
    }
    Ok(found)
}

/// Whether a node can go without a change of what the model hands out.
fn removable(model: &Model, n: NodeId) -> bool {
    let (Some(x), Some(out)) = (model.node(n).input(0), model.node(n).output(0)) else { return false };
    let x = model.value(x);
    let others = model.node(n).outputs().iter().skip(1).flatten().any(|&o| !model.value(o).uses().is_empty());
    !others && (!model.value(out).is_graph_output() || (x.producer().is_some() && !x.is_graph_output()))
}

/// The layer in front of a BatchNormalization, also where a pair stands between.
fn layer_before(cx: &Context<'_>, n: NodeId) -> Option<NodeId> {
    let mut v = cx.model.node(n).input(0)?;
    if let Some(d) = Linear::dequantized(cx.model, v) {
        v = Linear::of(cx.model, cx.model.producer(d.input)?, "QuantizeLinear")?.input;
    }
    let maker = cx.model.producer(v)?;
    let product = ops::spec(cx.model, maker).is_some_and(|s| s.class == Class::Product);
    (product && cx.dequantized(maker, 1).is_some()).then_some(maker)
}
