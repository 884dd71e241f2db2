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
    support::{bounds::Bounds, clamp::clamping, pairs::moves_codes, quantizer::FakeQuantizer, walk},
};
use crate::{
    analysis::types,
    diagnostics::{Diagnostic, count},
    error::Result,
    ir::{Model, NodeId, NodeSpec, Place, Tensor, ValueId},
    ops,
    quant::params::Range,
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    if !cx.options.import_quantizers {
        return Ok(0);
    }
    let types = types::infer(model);
    let (mut changes, mut by_channel, mut for_some, mut bounds) = (0, Vec::new(), Vec::new(), Bounds::default());
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
        let ends = bounds.cut(model, &types, found.input, (grid.range(), grid.params.scale));
        let saturation = match ends {
            (None, None) => None,
            _ if walk::sole_element_reader(model, found.input).is_some() || !may_be_integer(model, found.output) => {
                Some(grid.range())
            }
            // Other readers shall be able to read the same codes.
            (Some(0.0), _) => Some(grid.range()),
            _ => {
                for_some.push(model.value(found.input).name().to_owned());
                None
            }
        };
        let rounded = match saturation {
            Some(range) => match first_moved(model, cx, found.input) {
                // In front of what moves elements, where the kernel that makes them can take it along.
                Some((mover, from)) if model.replace_all_uses(found.output, found.input) => {
                    let name = format!("{}_clipped", model.value(from).name());
                    let clip = clip(model, (from, found.output), range)?.output(name);
                    let clipped = model.insert_value(clip, Place::Before(mover))?;
                    model.set_input(mover, 0, Some(clipped));
                    cx.learned.values.entry(clipped).or_default().push(grid);
                    bounds = Bounds::default();
                    found.input
                }
                _ => {
                    let clip = clip(model, (found.input, found.output), range)?;
                    let output = model.take_outputs(id).first().copied().flatten();
                    model.insert(clip.output_value(output), Place::Before(id));
                    found.output
                }
            },
            None if model.replace_all_uses(found.output, found.input) => found.input,
            None => continue,
        };
        let grids = cx.learned.values.entry(rounded).or_default();
        if !grids.contains(&grid) {
            grids.push(grid);
        }
        model.remove_node(id);
        changes += 1;
    }
    if let Some(first) = for_some.first() {
        let text = format!(
            "{} read as it is by some nodes, and through a quantizer that may cut it off by others: kernels hand out one form, so all may get it cut off, or none",
            match for_some.len() {
                1 => "it is".to_owned(),
                n => format!("this and {} are", count(n - 1, "other value")),
            }
        );
        let help = "look at the comparison; train with one quantizer for all that reads a value";
        cx.diagnostics.push(Diagnostic::note("quantizer_for_some", text).on(first).help(help));
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

/// A Clip of a value to a range, its bounds named after the output of the quantizer in the place of which it stands.
fn clip(model: &mut Model, (from, quantized): (ValueId, ValueId), range: Range) -> Result<NodeSpec> {
    let (graph, name) = (model.value(quantized).graph(), model.value(quantized).name().to_owned());
    clamping(model, from, (Some(range.lo), Some(range.hi)), |model, which, bound| {
        let end = if which == "min" { "least" } else { "greatest" };
        Ok(model.add_initializer(graph, &format!("{name}_{end}"), Tensor::from_f32(&[], &[bound])))
    })
}

/// The first of the nodes that move the elements of a value, one behind another, and do nothing else, with what it moves, where
/// nothing else has rounded these.
fn first_moved(model: &Model, cx: &Context, v: ValueId) -> Option<(NodeId, ValueId)> {
    let mut first = None;
    let mut value = v;
    while let Some(n) = walk::sole_producer(model, value).filter(|&n| moves_codes(model, n)) {
        let node = model.node(n);
        let computed = node.input(0).filter(|&x| model.value(x).constant().is_none());
        let Some(from) = computed.filter(|_| node.outputs().len() == 1) else { break };
        (first, value) = (Some((n, from)), from);
    }
    let alone = model.sole_reader(value).is_some() && !cx.learned.values.contains_key(&value);
    first.filter(|_| model.producer(value).is_some() && alone)
}

/// Whether something that reads a value may compute in integers.
fn may_be_integer(model: &Model, v: ValueId) -> bool {
    let may = |n: NodeId| ops::spec(model, n).is_some() || model.node(n).op_type == "QuantizeLinear";
    model.value(v).readers().any(|(n, _)| may(n))
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
                a = Sigmoid(d2) b = Sigmoid(d3) y = Add(a, b) }",
            "(float[2] x) => (y) { a = Sigmoid(x) b = Sigmoid(x) y = Add(a, b) }",
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
            "(float[1,2] x) => (y) <float d_least = {-5}, float d_greatest = {122.5}> { d = Clip(x, d_least, d_greatest) y = Neg(d) }",
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
    fn clamps_stand_in_front_of_what_moves_elements() {
        let mut cx = Context::default();
        cx.options.import_quantizers = true;
        check_with(
            run,
            &mut cx,
            "(float[2,2] x) => (y) <float s = {0.5}, uint8 z = {0}> {
                a = Relu(x) b = Transpose(a) c = Flatten(b) q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z) y = Neg(d) }",
            "(float[2,2] x) => (y) <float d_least = {0}, float d_greatest = {127.5}> {
                a = Relu(x) a_clipped = Clip(a, d_least, d_greatest) b = Transpose(a_clipped) c = Flatten(b) y = Neg(c) }",
        );
        assert_eq!(cx.learned.values.len(), 2);
        // What another quantizer has rounded keeps its codes.
        let two = "(float[2,2] x) => (y) <float s = {0.5}, float t = {0.25}, uint8 z = {0}> {
            a = Relu(x) p = QuantizeLinear(a, s, z) e = DequantizeLinear(p, s, z) b = Transpose(e) q = QuantizeLinear(b, t, z)
            d = DequantizeLinear(q, t, z) y = Neg(d) }";
        let after = "(float[2,2] x) => (y) <float e_least = {0}, float e_greatest = {127.5}, float d_least = {0}, float d_greatest = {63.75}> {
            a = Relu(x) e = Clip(a, e_least, e_greatest) b = Transpose(e) d = Clip(b, d_least, d_greatest) y = Neg(d) }";
        check_with(run, &mut cx, two, after);
    }

    #[test]
    fn float_readers_of_what_others_read_as_it_is() {
        let mut cx = Context::default();
        cx.options.import_quantizers = true;
        check_with(
            run,
            &mut cx,
            "(float[2] x) => (y, w) <float s = {0.5}, uint8 z = {3}> {
                q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) w = Exp(x) }",
            "(float[2] x) => (y, w) <float y_least = {-1.5}, float y_greatest = {126}> {
                y = Clip(x, y_least, y_greatest) w = Exp(x) }",
        );
        assert!(cx.diagnostics.is_empty(), "{:?}", cx.diagnostics);
        // A kernel shall be able to read the codes of one value.
        let shared = "(float[2] x) => (y, w) <float s = {0.5}, uint8 z = {3}> {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Add(d, d) w = Exp(x) }";
        check_with(run, &mut cx, shared, "(float[2] x) => (y, w) { y = Add(x, x) w = Exp(x) }");
        assert_eq!(cx.diagnostics[0].code, "quantizer_for_some");
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
