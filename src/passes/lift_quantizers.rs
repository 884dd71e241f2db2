//! Takes the quantizers of training out of the way of data, and notes what they let through.
//!
//! ```text
//! before: x' = DequantizeLinear(QuantizeLinear(x, s, z), s, z); y = Conv(x', w)
//! after:  y = Conv(x, w)          where the grid of x stands in the context
//! ```
//!
//! The plan puts them in again where kernels want them ([`crate::plan::Learned`]): moved past what only moves data, once for several
//! readers, not where nothing computes with codes. Only where the import of quantizers is asked for, and behind all passes that
//! change the model, since a grid is that of a value.

use super::{Context, support::quantizer::FakeQuantizer};
use crate::{
    analysis::types,
    diagnostics::{Diagnostic, count},
    error::Result,
    ir::Model,
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
        let Some(grid) = found.grid().map_err(|e| e.node(label.clone(), "QuantizeLinear"))? else {
            by_channel.push(label);
            continue;
        };
        if model.value(found.input).constant().is_some() || !model.replace_all_uses(found.output, found.input) {
            continue;
        }
        let grids = cx.learned.values.entry(found.input).or_default();
        if !grids.contains(&grid) {
            grids.push(grid);
        }
        model.remove_node(id);
        changes += 1;
    }
    if let Some(first) = by_channel.first() {
        let text = format!(
            "{} of data with a scale for each channel, which no kernel takes: they stay as they are",
            count(by_channel.len(), "quantizer")
        );
        cx.diagnostics.push(Diagnostic::warning("quantizer_per_channel", text).on(first));
    }
    Ok(changes)
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
