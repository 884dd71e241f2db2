//! Data with a scale for each channel: no integer kernel takes more than one scale for what the model computes or reads.
//!
//! The runtime makes an integer kernel of a Conv between such pairs all the same, and fails when it runs: there, one scale that
//! holds the ranges of all channels takes their place. Elsewhere the node computes in float, and nothing is changed, since channels would
//! get wider steps.
//!
//! ```text
//! before: (float[1,2,2,2] x) => (float[1,2,2,2] y) <float[2] s = {0.5, 0.25}, uint8[2] z = {10, 20}, float r = {0.5}, uint8 p = {9}, int8[2,1,1,1] c = {5, 6}, float t = {0.1}> {
//!     q = QuantizeLinear<axis = 1>(x, s, z) d = DequantizeLinear<axis = 1>(q, s, z) w = DequantizeLinear(c, t) a = Conv<group = 2>(d, w)
//!     aq = QuantizeLinear(a, r, p) y = DequantizeLinear(aq, r, p)
//! }
//! after: (float[1,2,2,2] x) => (float[1,2,2,2] y) <float x_scale = {0.5}, uint8 x_zero_point = {10}, float r = {0.5}, uint8 p = {9}, int8[2,1,1,1] c = {5, 6}, float t = {0.1}> {
//!     q = QuantizeLinear<axis = 1>(x, x_scale, x_zero_point) d = DequantizeLinear<axis = 1>(q, x_scale, x_zero_point) w = DequantizeLinear(c, t)
//!     a = Conv<group = 2>(d, w) aq = QuantizeLinear(a, r, p) y = DequantizeLinear(aq, r, p)
//! }
//! ```

use std::collections::BTreeMap;

use super::{Changes, Context, Finding, Severity};
use crate::{
    analysis::types,
    error::Result,
    ir::{Model, NodeId, Tensor},
    ops::{self, Class},
    passes::support::{pairs::Linear, quantizer::FakeQuantizer},
    quant::pack::pack,
};

pub(super) const WHAT: &str = "data with a scale for each channel, which no integer kernel takes";
pub(super) const CURE: &str =
    "quantize data with one scale, and weights alone by channel; `qonvert quantize` writes the file so";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut all: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    for n in cx.nodes() {
        let found = FakeQuantizer::ending_with(cx.model, &cx.types, n).filter(|f| f.scales.len() > 1);
        if found.is_none_or(|f| cx.model.value(f.input).constant().is_some()) {
            continue;
        }
        let codes = cx.model.node(n).input(0);
        // Codes that something clamps or moves are left as they are.
        if let Some(q) =
            codes.and_then(|v| cx.model.producer(v)).filter(|&q| Linear::of(cx.model, q, QUANTIZE).is_some())
        {
            all.entry(q).or_default().push(n);
        }
    }
    let mut found = Vec::new();
    for (q, dequantized) in all {
        let (node, scales) = (cx.model.node(q), cx.model.constant_input(q, 1).map_or(0, Tensor::len));
        let out = node.output(0);
        let only = out.is_some_and(|v| cx.model.value(v).uses().len() == dequantized.len());
        let fails = dequantized.iter().find_map(|&d| reader_that_fails(cx, d));
        let (severity, so) = match fails {
            Some(n) => (Severity::Error, format!("; the runtime fails when it runs {}", cx.node(n))),
            None => (Severity::Warning, String::new()),
        };
        let mut finding = Finding::at(severity, q, format!("its data have {scales} scales{so}"));
        if let Some(v) = node.input(0) {
            finding = finding.on(v);
        }
        if only && severity == Severity::Error {
            let changes = Changes::As("changes numbers: some channels get wider steps".to_owned());
            finding = finding.mend(changes, move |model: &mut Model| with_one_scale(model, q, &dequantized));
        }
        found.push(finding);
    }
    Ok(found)
}

const QUANTIZE: &str = "QuantizeLinear";

/// A layer that becomes an integer kernel although it reads this.
fn reader_that_fails(cx: &Context<'_>, dequantize: NodeId) -> Option<NodeId> {
    let out = cx.model.node(dequantize).output(0)?;
    let quantized = |n: NodeId| {
        let to = cx.model.node(n).output(0).and_then(|v| cx.model.sole_reader(v));
        to.is_some_and(|(q, _)| Linear::of(cx.model, q, QUANTIZE).is_some())
    };
    let product = |n: NodeId| ops::spec(cx.model, n).is_some_and(|s| s.class == Class::Product);
    cx.model.value(out).readers().map(|(n, _)| n).find(|&n| product(n) && cx.operator(n).is_some() && quantized(n))
}

fn with_one_scale(model: &mut Model, q: NodeId, dequantized: &[NodeId]) -> Result<bool> {
    if model.try_node(q).is_none() || dequantized.iter().any(|&d| model.try_node(d).is_none()) {
        return Ok(false);
    }
    let types = types::infer(model);
    let found = dequantized.first().and_then(|&d| FakeQuantizer::ending_with(model, &types, d));
    let Some(found) = found.filter(|f| f.scales.len() > 1) else { return Ok(false) };
    let params = found.grid_of(found.dtype)?.params;
    let (graph, name) = (model.node(q).graph(), model.value(found.input).name().to_owned());
    let scale = Tensor::from_f32(&[], &[params.scale]);
    let scale = model.add_initializer(graph, &format!("{name}_scale"), scale);
    let zero = pack(params.dtype, &[], &[params.zero_point])?;
    let zero = model.add_initializer(graph, &format!("{name}_zero_point"), zero);
    for &n in std::iter::once(&q).chain(dequantized) {
        model.set_input(n, 1, Some(scale));
        model.set_input(n, 2, Some(zero));
    }
    Ok(true)
}
