//! Takes the quantizers of training out of the way of data, and notes what they let through.
//!
//! ```text
//! before: x' = DequantizeLinear(QuantizeLinear(x, s, z), s, z); y = Conv(x', w)
//! after:  y = Conv(x, w)          where the grid of x stands in the context
//! ```
//!
//! Quantizers saturate, and tools take clamps out that this stands in for. So a Clip stays in the place of a quantizer, unless what comes
//! in is known to lie within; the plan takes it out where codes saturate at the same numbers.
//!
//! The plan puts them in again where kernels want them ([`crate::plan::Learned`]): moved past what only moves data, once for several
//! readers, not where nothing computes with codes. Only where the import of quantizers is asked for, and behind all passes that
//! change the model, since a grid is that of a value.

use super::{
    Context,
    support::{pairs::moves_codes, quantizer::FakeQuantizer},
};
use crate::{
    analysis::types,
    diagnostics::{Diagnostic, count},
    error::Result,
    ir::{Model, NodeSpec, Place, Tensor, ValueId},
    ops,
    quant::Grid,
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    if !cx.options.import_quantizers {
        return Ok(0);
    }
    let types = types::infer(model);
    let (mut changes, mut by_channel) = (0, Vec::new());
    for id in model.nodes(model.main()) {
        let Some(found) = FakeQuantizer::ending_with(model, &types, id) else { continue };
        let label = model.node_label(id);
        if model.value(found.input).constant().is_some() {
            continue;
        }
        let grid = found.grid().map_err(|e| e.node(label.clone(), "QuantizeLinear"))?;
        if found.scales.len() > 1 {
            by_channel.push(label);
        }
        let rounded = if cuts(model, cx, found.input, &grid) {
            let (graph, output) = (model.node(id).graph(), model.take_outputs(id));
            let name = model.value(found.output).name().to_owned();
            let mut bound = |end: &str, to: f32| {
                model.add_initializer(graph, &format!("{name}_{end}"), Tensor::from_f32(&[], &[to]))
            };
            let (lo, hi) = (bound("least", grid.range().lo), bound("greatest", grid.range().hi));
            let clamp = NodeSpec::new("Clip").inputs([Some(found.input), Some(lo), Some(hi)]);
            model.insert(clamp.output_value(output.first().copied().flatten()), Place::Before(id));
            found.output
        } else if model.replace_all_uses(found.output, found.input) {
            found.input
        } else {
            continue;
        };
        let grids = cx.learned.values.entry(rounded).or_default();
        if !grids.contains(&grid) {
            grids.push(grid);
        }
        model.remove_node(id);
        changes += 1;
    }
    if let Some(first) = by_channel.first() {
        let text = format!(
            "{} of data with a scale for each channel, which no kernel takes: one scale that holds all of them stands for these",
            count(by_channel.len(), "quantizer")
        );
        let help = "look at the comparison; train with one scale for data, and several for weights";
        cx.diagnostics.push(Diagnostic::warning("quantizer_per_channel", text).on(first).help(help));
    }
    Ok(changes)
}

/// Whether a quantizer may cut something off.
fn cuts(model: &Model, cx: &Context, v: ValueId, grid: &Grid) -> bool {
    let Some(maker) = model.producer(v) else { return false };
    let range = grid.range();
    let negative = range.lo == 0.0 && !is_never_below_zero(model, cx, v, DEPTH);
    let within = |lo: f32, hi: f32| range.lo <= lo && hi <= range.hi + grid.params.scale;
    match model.node(maker).op_type.as_str() {
        "Sigmoid" | "HardSigmoid" | "Softmax" => !within(0.0, 1.0),
        "Tanh" | "Sin" | "Cos" => !within(-1.0, 1.0),
        // Clamps would stand in the way of kernels that only move codes, and keep other readers from reading the same codes.
        _ if moves_codes(model, maker) || model.value(v).uses().len() > 1 => negative,
        _ if ops::clamp_bounds(model, maker).is_some_and(|(lo, hi)| within(lo, hi)) => false,
        _ => true,
    }
}

/// How far back is looked.
const DEPTH: usize = 16;

/// Whether all numbers of a value are at least 0, by what makes it.
fn is_never_below_zero(model: &Model, cx: &Context, v: ValueId, depth: usize) -> bool {
    let rounded = |grids: &Vec<Grid>| grids.iter().any(|g| g.range().lo >= 0.0);
    if cx.learned.values.get(&v).is_some_and(rounded) {
        return true;
    }
    let Some(id) = model.producer(v).filter(|_| depth > 0) else { return false };
    let node = model.node(id);
    let of = |i: usize| node.input(i).is_some_and(|x| is_never_below_zero(model, cx, x, depth - 1));
    if moves_codes(model, id) {
        return of(0);
    }
    if let Some((lo, _)) = ops::clamp_bounds(model, id) {
        return lo >= 0.0 || lo == f32::NEG_INFINITY && of(0);
    }
    match node.op_type.as_str() {
        "Sigmoid" | "HardSigmoid" | "Softmax" | "Exp" | "Abs" | "Softplus" | "Sqrt" => true,
        "Mul" if node.input(0) == node.input(1) => true,
        "Pow" => model.constant_input(id, 1).and_then(Tensor::scalar_f32).is_some_and(|p| p % 2.0 == 0.0) || of(0),
        // Padded with 0, unless something else is said.
        "Pad" => {
            node.input(2).is_none_or(|_| model.constant_input(id, 2).and_then(Tensor::scalar_f32) == Some(0.0)) && of(0)
        }
        "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" | "ReduceMean" | "ReduceMax" => of(0),
        "Add" | "Mul" | "Div" | "Concat" => (0..node.inputs().len()).all(of),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check_skipped, check_with};

    #[test]
    fn several_readers_and_chains() {
        let mut cx = Context::default();
        cx.options.import_quantizers = true;
        check_with(
            run,
            &mut cx,
            "(float[2] x) => (y) <float s = {0.5}, uint8 z = {3}, uint8 hi = {127}, float t = {0.25}> {
                q = QuantizeLinear(x, s, z) c = Clip(q, , hi) d = DequantizeLinear(c, s, z)
                q2 = QuantizeLinear(d, s, z) c2 = Clip(q2, , hi) d2 = DequantizeLinear(c2, s, z)
                q3 = QuantizeLinear(x, t, z) d3 = DequantizeLinear(q3, t, z)
                a = Abs(d2) b = Neg(d3) y = Add(a, b) }",
            "(float[2] x) => (y) { a = Abs(x) b = Neg(x) y = Add(a, b) }",
        );
        let grids: Vec<_> = cx.learned.values.values().flatten().map(|g| (g.params.scale, g.low, g.high)).collect();
        assert_eq!(grids, [(0.5, 0, 127), (0.25, 0, 255)]);
    }

    #[test]
    fn scales_of_channels_become_one() {
        let mut cx = Context::default();
        cx.options.import_quantizers = true;
        check_with(
            run,
            &mut cx,
            "(float[1,2] x) => (y) <float[2] s = {0.5, 0.1}, uint8[2] z = {10, 20}> {
                q = QuantizeLinear <axis = 1> (x, s, z) d = DequantizeLinear <axis = 1> (q, s, z) y = Neg(d) }",
            "(float[1,2] x) => (y) { y = Neg(x) }",
        );
        let ranges: Vec<_> = cx.learned.values.values().flatten().map(|g| g.range()).collect();
        assert!(ranges.len() == 1 && ranges[0].lo <= -5.0 && ranges[0].hi >= 122.0, "{ranges:?}");
        assert_eq!(cx.diagnostics[0].code, "quantizer_per_channel");
    }

    #[test]
    fn clamps_that_saturation_stood_in_for_come_back() {
        let mut cx = Context::default();
        cx.options.import_quantizers = true;
        check_with(
            run,
            &mut cx,
            "(float[2] x, float[2] u) => (y, w) <float s = {0.5}, uint8 z = {0}> {
                a = Add(x, u) q = QuantizeLinear(a, s, z) b = DequantizeLinear(q, s, z)
                c = Relu(u) r = QuantizeLinear(c, s, z) d = DequantizeLinear(r, s, z)
                y = Neg(b) w = Neg(d) }",
            "(float[2] x, float[2] u) => (y, w) <float b_least = {0}, float b_greatest = {127.5}, float d_least = {0}, float d_greatest = {127.5}> {
                a = Add(x, u) b = Clip(a, b_least, b_greatest) c = Relu(u) d = Clip(c, d_least, d_greatest) y = Neg(b) w = Neg(d) }",
        );
        assert_eq!(cx.learned.values.len(), 2);
    }

    #[test]
    fn conversions_that_are_no_quantizers_stay() {
        let other_scale = "(float[2] x) => (y) <float s = {0.5}, float t = {0.25}, uint8 z = {3}> {
            q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z) }";
        check_skipped(run, other_scale, "");
        let mut cx = Context::default();
        cx.options.import_quantizers = true;
        let mut model = crate::ir::text::parse(other_scale).unwrap();
        assert_eq!(run(&mut model, &mut cx).unwrap(), 0);
    }
}
