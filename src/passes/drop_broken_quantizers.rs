//! Takes quantizers of data out whose scale is zero, negative, infinite or no number: no codes stand for anything then.
//!
//! ```text
//! before: x' = DequantizeLinear(QuantizeLinear(x, inf), inf); y = Add(x', b)
//! after:  y = Add(x, b)
//! ```
//!
//! Tools write such scales for masks that hold the least `float` there is. Only where the import of quantizers is asked for.

use super::{Context, support::pairs::Linear};
use crate::{
    diagnostics::{Diagnostic, count},
    error::Result,
    ir::{DType, Model, NodeId, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    if !cx.options.import_quantizers {
        return Ok(0);
    }
    let mut gone: Vec<(String, f32)> = Vec::new();
    for id in model.nodes(model.main()) {
        let Some((x, out, scale)) = broken(model, id)? else { continue };
        let name = model.value(x).name().to_owned();
        if model.replace_all_uses(out, x) {
            model.remove_node(id);
            gone.push((name, scale));
        }
    }
    let Some((first, scale)) = gone.first() else { return Ok(0) };
    let text = format!(
        "{} out, as no codes stand for anything with a scale like {scale}: what they rounded stays float",
        match gone.len() {
            1 => "1 quantizer is left".to_owned(),
            n => format!("{} are left", count(n, "quantizer")),
        }
    );
    let help = "infinite scales come from masks of the least float (-3.4e38): masks of -10000 do the same and can be quantized";
    cx.diagnostics.push(Diagnostic::warning("quantizer_broken", text).on(first).help(help));
    Ok(gone.len())
}

/// What a quantizer of data reads and makes, and the scale that breaks it.
fn broken(model: &Model, id: NodeId) -> Result<Option<(ValueId, ValueId, f32)>> {
    let Some(back) = Linear::of(model, id, "DequantizeLinear") else { return Ok(None) };
    let there = model.producer(back.input).and_then(|q| Linear::of(model, q, "QuantizeLinear"));
    let Some(there) = there.filter(|q| model.value(q.input).constant().is_none()) else { return Ok(None) };
    for scale in [there.scale, back.scale] {
        let numbers = model.value(scale).constant().filter(|t| t.dtype() == DType::Float && !t.is_deferred());
        let Some(numbers) = numbers else { return Ok(None) };
        if let Some(bad) = numbers.to_f32()?.into_iter().find(|s| !(s.is_finite() && *s > 0.0)) {
            return Ok(Some((there.input, back.output, bad)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check_skipped, check_with};

    #[test]
    fn what_no_code_stands_for_stays_float() {
        let text = "(float[2] x) => (y) <float s = {SCALE}, uint8 z = {3}, float[2] b = {1, 2}> {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Add(d, b) }";
        let after = "(float[2] x) => (y) <float[2] b = {1, 2}> { y = Add(x, b) }";
        for scale in ["inf", "nan", "0", "-0.5"] {
            let mut cx = Context::default();
            cx.options.import_quantizers = true;
            check_with(run, &mut cx, &text.replace("SCALE", scale), after);
            let told = &cx.diagnostics[0];
            assert!(told.code == "quantizer_broken" && told.message.contains("1 quantizer is left out"), "{told:?}");
        }
        check_skipped(run, &text.replace("SCALE", "inf"), "");
        let mut cx = Context::default();
        cx.options.import_quantizers = true;
        let mut sound = crate::ir::text::parse(&text.replace("SCALE", "0.5")).unwrap();
        assert_eq!(run(&mut sound, &mut cx).unwrap(), 0);
    }
}
