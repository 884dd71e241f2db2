//! Makes QuantizeLinear, Clip and DequantizeLinear of quantizers that are spelled out in arithmetic, as exporters leave those of
//! training that they know no operator for.
//!
//! ```text
//! before: a = Div(x, s); b = Round(a); c = Add(b, z); d = Clip(c, lo, hi); e = Sub(d, z); y = Mul(e, s)
//! after:  q = QuantizeLinear(x, s, z); c = Clip(q, lo, hi); y = DequantizeLinear(c, s, z)
//! before: a = Clip(x, 0, 1); b = Mul(a, 15); c = Round(b); y = Div(c, 15)
//! after:  q = QuantizeLinear(x, 1/15, 0); c = Clip(q, 0, 15); y = DequantizeLinear(c, 1/15, 0)
//! ```
//!
//! In any order in which it is the same ([`super::support::spelled`]): zero points in front of the rounding or behind it, clamps between
//! any two steps, also in front of the division where their bounds are real numbers, spelled as Clip, Relu, Max or Min; products by the
//! reciprocal; offsets in real numbers that are whole steps. Of offsets that are none, no codes are left that integer kernels
//! compute with: such quantizers stay, and are named. And with the detour that gradients take: `Add(x, Sub(y, x))` is `y`.

use std::collections::BTreeSet;

use super::{
    Context, remove_dead,
    support::{
        quantizer::{Written, broadcast_axis},
        replace::bypass,
        spelled::{Found, Spelled, behind_rounding},
    },
};
use crate::{
    analysis::types::{self, Types},
    diagnostics::Diagnostic,
    error::Result,
    ir::{DType, Model, NodeId, Tensor, ValueId},
};

/// The code of what is said of quantizers whose offset is no whole number of steps.
pub const OFFSET: &str = "quantizer_offset";

/// Why such a quantizer stays in floats.
pub const WHY_FLOAT: &str = "integer kernels need a whole zero point among the codes";

/// Operators that make numbers of few kinds, around which gradients take a detour.
const ROUNDING: &[&str] = &["Round", "Floor", "Ceil", "Sign", "DequantizeLinear"];

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let rounds = |&id: &NodeId| ROUNDING.iter().any(|op| model.node(id).is(op));
    if model.opset("").is_none_or(|v| v < 13) || !model.all_nodes().iter().any(rounds) {
        return Ok(0);
    }
    let types = types::infer(model);
    let mut changes = 0;
    for id in model.all_nodes() {
        if let Some(rounded) = straight_through(model, id) {
            changes += usize::from(bypass(model, id, rounded));
        }
    }
    if changes > 0 {
        // The detours would count as readers.
        remove_dead::run(model, cx)?;
    }
    // From the end: with an offset in real numbers the quantizer of what is left without it ends earlier.
    let (mut parts, mut left) = (BTreeSet::<NodeId>::new(), Vec::new());
    for id in model.all_nodes().into_iter().rev() {
        if parts.contains(&id) {
            continue;
        }
        match model.try_node(id).and_then(|_| Found::ending_with(model, id)) {
            Some(Found::Quantizer(spelled)) => {
                parts.extend(behind_rounding(model, id));
                changes += usize::from(write(model, &types, id, &spelled)?);
            }
            Some(Found::Offset(steps)) => {
                parts.extend(behind_rounding(model, id));
                left.push((model.node_label(id), steps));
            }
            None => {}
        }
    }
    left.reverse();
    if let Some(said) = between_codes(&left) {
        cx.diagnostics.retain(|d| d.code != OFFSET);
        cx.diagnostics.push(said);
    }
    Ok(changes)
}

/// A number of steps in words.
pub fn steps(offset: f64) -> String {
    ((offset * 1000.0).round() / 1000.0).to_string()
}

/// What is said of quantizers that no codes stand for: their last nodes, with their offsets.
fn between_codes(found: &[(String, f64)]) -> Option<Diagnostic> {
    let (first, offset) = found.first()?;
    let text = match found.len() {
        1 => format!("a quantizer with an offset of {} steps stays in floats, and what it rounds", steps(*offset)),
        n => format!(
            "{n} quantizers with offsets (of {} steps here) stay in floats, and what they round",
            steps(*offset)
        ),
    };
    let help = "train with offsets that are multiples of the scale, or without any; or export without quantizers, and calibrate";
    Some(Diagnostic::warning(OFFSET, format!("{text}: {WHY_FLOAT}")).on(first).help(help))
}

/// What `Add(x, Sub(rounded, x))` rounds to, and the like: `Sub(x, Sub(x, rounded))`, `Add(rounded, Sub(x, x))`.
fn straight_through(model: &Model, id: NodeId) -> Option<ValueId> {
    let node = model.node(id);
    let (a, b) = (node.input(0)?, node.input(1)?);
    let difference = |v: ValueId| {
        let sub = model.node(model.producer(v)?);
        sub.input(0).zip(sub.input(1)).filter(|_| sub.is("Sub"))
    };
    let of_sum = |x: ValueId, detour: ValueId| match difference(detour)? {
        (rounded, back) if back == x => Some(rounded),
        (one, same) if one == same => Some(x),
        _ => None,
    };
    let found = match node.op_type.as_str() {
        "Add" if node.in_onnx_domain() => of_sum(a, b).or_else(|| of_sum(b, a)),
        "Sub" if node.in_onnx_domain() => difference(b).filter(|&(x, _)| x == a).map(|(_, rounded)| rounded),
        _ => None,
    };
    found.filter(|&v| is_rounded(model, v))
}

/// Whether a value is rounded within the few nodes that a quantizer is spelled with.
fn is_rounded(model: &Model, value: ValueId) -> bool {
    let before = |&v: &ValueId| {
        let node = model.node(model.producer(v)?);
        node.inputs().iter().copied().flatten().find(|&v| model.value(v).constant().is_none())
    };
    let rounds = |v: ValueId| model.producer(v).is_some_and(|n| ROUNDING.iter().any(|op| model.node(n).is(op)));
    std::iter::successors(Some(value), before).take(10).any(rounds)
}

/// Writes a quantizer in operators, if shapes are such that these mean the same; `id` is its last node.
fn write(model: &mut Model, types: &Types, id: NodeId, spelled: &Spelled) -> Result<bool> {
    let Spelled { input, scales, dims, zero_points, dtype, bounds, .. } = spelled;
    let constant = model.value(*input).initializer();
    let float = types.dtype(*input).or_else(|| model.value(*input).dtype()) == Some(DType::Float);
    let rank = constant.map(Tensor::rank).or_else(|| types.rank(*input));
    let long = |axis: usize| match constant {
        Some(t) => t.dims().get(axis).copied(),
        None => types.shape(*input).and_then(|shape| shape.get(axis)?.known()),
    };
    // Constants of more axes than the value add axes to the result; of one axis they do not, as far as there are any.
    let widened = rank.map_or(spelled.rank > 1, |rank| spelled.rank > rank);
    let Some(axis) = broadcast_axis(&Tensor::from_f32(dims, scales), rank).filter(|_| float && !widened) else {
        return Ok(false);
    };
    if scales.len() > 1 && long(axis).is_some_and(|n| n != scales.len()) {
        return Ok(false);
    }
    let new = Written { input: *input, dtype: *dtype, scales, zero_points, axis, bounds: *bounds };
    new.instead_of(model, id, None)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped};

    const AFTER: &str = "(float[2,3] x) => (y) <float y_scale = {0.5}, uint8 y_zero_point = {10}, uint8 y_least = {0}, uint8 y_greatest = {127}> {
                y_QuantizeLinear_Output = QuantizeLinear(x, y_scale, y_zero_point)
                y_Clip_Output = Clip(y_QuantizeLinear_Output, y_least, y_greatest)
                y = DequantizeLinear(y_Clip_Output, y_scale, y_zero_point) }";

    #[test]
    fn all_of_it() {
        check(
            run,
            "(float[2,3] x) => (y) <float s = {0.5}, float z = {10}, float lo = {0}, float hi = {127}> {
                a = Div(x, s) b = Round(a) c = Add(b, z) d = Clip(c, lo, hi) e = Sub(d, z) y = Mul(e, s) }",
            AFTER,
        );
    }

    #[test]
    fn with_the_reciprocal_and_the_clamp_in_front() {
        check(
            run,
            "(float[2,3] x) => (y) <float r = {2}, float s = {0.5}, float z = {10}, float lo = {-10}, float hi = {117}> {
                a = Mul(r, x) c = Clip(a, lo, hi) b = Round(c) d = Add(z, b) e = Sub(d, z) y = Mul(s, e) }",
            AFTER,
        );
    }

    #[test]
    fn scales_of_channels_without_zero_points_and_the_detour_of_gradients() {
        check(
            run,
            "(float[3,2] w) => (y) <float[3,1] s = {0.5, 1, 2}, float lo = {-8}, float hi = {7}> {
                a = Div(w, s) b = Round(a) i = Sub(b, a) j = Add(a, i) d = Clip(j, lo, hi) y = Mul(d, s) }",
            "(float[3,2] w) => (y) <float[3] y_scale = {0.5, 1, 2}, int8[3] y_zero_point = {0, 0, 0}, int8 y_least = {-8}, int8 y_greatest = {7}> {
                y_QuantizeLinear_Output = QuantizeLinear <axis = 0> (w, y_scale, y_zero_point)
                y_Clip_Output = Clip(y_QuantizeLinear_Output, y_least, y_greatest)
                y = DequantizeLinear <axis = 0> (y_Clip_Output, y_scale, y_zero_point) }",
        );
    }

    /// With constants for all that may be in a quantizer.
    fn with(steps: &str) -> String {
        format!(
            "(float[2,3] x) => (y) <float s = {{0.5}}, float r = {{2}}, float t = {{0.25}}, float z = {{10}}, float n = {{-10}}, float lo = {{0}}, float hi = {{127}}, float zl = {{-10}}, float zh = {{117}}, float rl = {{-5}}, float rh = {{58.5}}, float beta = {{-5}}, float some = {{0.3}}> {{ {steps} }}"
        )
    }

    #[test]
    fn every_order_of_zero_point_clamp_and_rounding() {
        for steps in [
            // The zero point in front of the rounding: before the clamp, behind it, and as the difference from its negative.
            "a = Div(x, s) b = Add(a, z) c = Clip(b, lo, hi) d = Round(c) e = Sub(d, z) y = Mul(e, s)",
            "a = Div(x, s) b = Sub(a, n) c = Round(b) d = Clip(c, lo, hi) e = Add(n, d) y = Mul(e, s)",
            "a = Div(x, s) b = Clip(a, zl, zh) c = Add(b, z) d = Round(c) e = Sub(d, z) y = Mul(e, s)",
            "a = Mul(x, r) b = Clip(a, zl, zh) c = Round(b) d = Add(c, z) e = Sub(d, z) y = Div(e, r)",
            "a = Div(x, s) b = Round(a) c = Clip(b, zl, zh) d = Add(c, z) e = Sub(d, z) y = Mul(e, s)",
            // Bounds of real numbers, in front.
            "a = Clip(x, rl, rh) b = Div(a, s) c = Round(b) d = Add(c, z) e = Sub(d, z) y = Mul(e, s)",
            "a = Max(rl, x) b = Min(a, rh) c = Div(b, s) d = Add(c, z) e = Round(d) f = Sub(e, z) y = Mul(f, s)",
            // One bound in front, one behind; and a clamp twice.
            "a = Max(x, rl) b = Div(a, s) c = Add(b, z) d = Round(c) e = Min(hi, d) f = Sub(e, z) y = Mul(f, s)",
            "a = Div(x, s) b = Add(a, z) c = Clip(b, lo, hi) d = Round(c) e = Clip(d, lo, hi) f = Sub(e, z) y = Mul(f, s)",
            // An offset in real numbers.
            "a = Sub(x, beta) b = Div(a, s) c = Clip(b, lo, hi) d = Round(c) e = Mul(d, s) y = Add(e, beta)",
        ] {
            check(run, &with(steps), AFTER);
        }
    }

    #[test]
    fn levels_between_0_and_1() {
        const LEVELS: &str = "(float[2,3] x) => (y) <float y_scale = {0.06666667}, uint8 y_zero_point = {0}, uint8 y_least = {0}, uint8 y_greatest = {15}> {
                y_QuantizeLinear_Output = QuantizeLinear(x, y_scale, y_zero_point)
                y_Clip_Output = Clip(y_QuantizeLinear_Output, y_least, y_greatest)
                y = DequantizeLinear(y_Clip_Output, y_scale, y_zero_point) }";
        let with = |outputs: &str, steps: &str| {
            format!(
                "(float[2,3] x) => ({outputs}) <float n = {{15}}, float lo = {{0}}, float hi = {{1}}> {{ {steps} }}"
            )
        };
        check(run, &with("y", "a = Clip(x, lo, hi) b = Mul(a, n) c = Round(b) y = Div(c, n)"), LEVELS);
        // What others read clamped stays.
        check(
            run,
            &with("y, k", "a = Clip(x, lo, hi) b = Mul(a, n) c = Round(b) y = Div(c, n) k = Exp(a)"),
            &LEVELS
                .replace("(y)", "(y, k)")
                .replace("<", "<float lo = {0}, float hi = {1}, ")
                .replace("{\n", "{ a = Clip(x, lo, hi)\n")
                .replace("Linear(x,", "Linear(a,")
                .replace(" }", " k = Exp(a) }"),
        );
    }

    #[test]
    fn bounds_that_are_no_codes() {
        // 58.3 is 116.6 steps, which are rounded to 117; behind the rounding they would be numbers of their own.
        check(
            run,
            &with("a = Clip(x, rl, rh) b = Div(a, s) c = Round(b) y = Mul(c, s)").replace("58.5", "58.3"),
            "(float[2,3] x) => (y) <float y_scale = {0.5}, int8 y_zero_point = {0}, int8 y_least = {-10}, int8 y_greatest = {117}> {
                y_QuantizeLinear_Output = QuantizeLinear(x, y_scale, y_zero_point)
                y_Clip_Output = Clip(y_QuantizeLinear_Output, y_least, y_greatest)
                y = DequantizeLinear(y_Clip_Output, y_scale, y_zero_point) }",
        );
        check_skipped(
            run,
            &with("a = Div(x, s) b = Round(a) c = Clip(b, zl, zh) y = Mul(c, s)").replace("117", "116.6"),
            "",
        );
        // Between two codes it is up to the last bit.
        check_skipped(
            run,
            &with("a = Clip(x, rl, rh) b = Div(a, s) c = Round(b) y = Mul(c, s)").replace("58.5", "58.25"),
            "",
        );
    }

    #[test]
    fn offsets_of_parts_of_a_step_are_named() {
        let plus = "a = Sub(x, some) b = Div(a, s) c = Clip(b, lo, hi) d = Round(c) e = Mul(d, s) y = Add(e, some)";
        check_skipped(run, &with(plus), OFFSET);
        let far = with(plus).replace("some = {0.3}", "some = {5}").replace("127", "255");
        check_skipped(run, &far, OFFSET);
        // Noise of 32 bits is none.
        let near = with(plus).replace("some = {0.3}", "some = {-5.00001}");
        check(run, &near, AFTER);
    }

    #[test]
    fn detours_of_gradients() {
        let quantizer = "a = Div(x, s) b = Add(a, z) c = Clip(b, lo, hi) d = Round(c) e = Sub(d, z) q = Mul(s, e)";
        for detour in [
            "i = Sub(q, x) y = Add(x, i)",
            "i = Sub(q, x) y = Add(i, x)",
            "i = Sub(x, q) y = Sub(x, i)",
            "i = Sub(x, x) y = Add(q, i)",
        ] {
            check(run, &with(&format!("{quantizer} {detour}")), AFTER);
        }
        check(
            run,
            "(float[2,3] x) => (y) { a = Sign(x) b = Sub(a, x) y = Add(x, b) }",
            "(float[2,3] x) => (y) { y = Sign(x) }",
        );
        check_skipped(
            run,
            "(float[2,3] x) => (y) { c = Round(x) a = Exp(x) b = Sub(a, x) d = Add(x, b) y = Mul(c, d) }",
            "",
        );
    }

    #[test]
    fn what_is_no_quantizer() {
        // Another scale on the way back, another zero point, no bounds.
        check_skipped(run, &with("a = Div(x, s) b = Round(a) d = Clip(b, lo, hi) y = Mul(d, t)"), "");
        check_skipped(
            run,
            &with("a = Div(x, s) b = Round(a) c = Add(b, t) d = Clip(c, lo, hi) e = Sub(d, z) y = Mul(e, s)"),
            "",
        );
        check_skipped(run, &with("a = Div(x, s) b = Round(a) y = Mul(b, s)"), "");
        // A zero point that is only added, a product by a negative number, one bound only, a difference the other way round.
        check_skipped(run, &with("a = Div(x, s) b = Add(a, z) c = Clip(b, lo, hi) d = Round(c) y = Mul(d, s)"), "");
        check_skipped(run, &with("a = Mul(x, n) b = Round(a) c = Clip(b, lo, hi) y = Div(c, n)"), "");
        check_skipped(run, &with("a = Div(x, s) b = Round(a) c = Max(b, lo) y = Mul(c, s)"), "");
        check_skipped(run, &with("a = Div(x, s) b = Round(a) c = Clip(b, lo, hi) d = Sub(z, c) y = Mul(d, s)"), "");
        // More codes than 8 bits have, and none but one.
        check_skipped(
            run,
            &with("a = Div(x, s) b = Round(a) c = Clip(b, lo, hi) y = Mul(c, s)").replace("{127}", "{256}"),
            "",
        );
        check_skipped(
            run,
            &with("a = Div(x, s) b = Round(a) c = Clip(b, lo, hi) y = Mul(c, s)").replace("{127}", "{0}"),
            "",
        );
    }

    #[test]
    fn shapes_that_operators_do_not_give() {
        let with = |x: &str, s: &str| {
            format!(
                "({x} x) => (y) <{s}, float lo = {{0}}, float hi = {{127}}> {{ a = Div(x, s) b = Round(a) c = Clip(b, lo, hi) y = Mul(c, s) }}"
            )
        };
        // Constants that add axes or repeat the value; and that lie along two axes.
        check_skipped(run, &with("float[3]", "float[1,1] s = {0.5}"), "");
        check_skipped(run, &with("float[1,3]", "float[2,1] s = {0.5, 1}"), "");
        check_skipped(run, &with("float[2,2]", "float[2,2] s = {0.5, 1, 2, 4}"), "");
        check_skipped(run, &with("float16[2,3]", "float s = {0.5}"), "");
    }

    #[test]
    fn weights() {
        let after = "(x) => (y) <float[2,3] w = {0, 0.4, 1, -7, 9, 0.5}, float[2] v_scale = {0.5, 1}, int8[2] v_zero_point = {0, 0}, int8 v_least = {-8}, int8 v_greatest = {7}> {
                v_QuantizeLinear_Output = QuantizeLinear <axis = 0> (w, v_scale, v_zero_point)
                v_Clip_Output = Clip(v_QuantizeLinear_Output, v_least, v_greatest)
                v = DequantizeLinear <axis = 0> (v_Clip_Output, v_scale, v_zero_point) y = MatMul(x, v) }";
        let with = |steps: &str| {
            format!(
                "(x) => (y) <float[2,3] w = {{0, 0.4, 1, -7, 9, 0.5}}, float[2,1] s = {{0.5, 1}}, float[2,1] r = {{2, 1}}, float lo = {{-8}}, float hi = {{7}}> {{ {steps} y = MatMul(x, v) }}"
            )
        };
        check(run, &with("a = Div(w, s) b = Clip(a, lo, hi) c = Round(b) v = Mul(c, s)"), after);
        check(run, &with("a = Mul(r, w) b = Round(a) c = Clip(b, lo, hi) v = Mul(s, c)"), after);
    }

    #[test]
    fn zero_points_of_channels() {
        check(
            run,
            "(float[2,3] x) => (y) <float[2,1] s = {0.5, 1}, float[2,1] z = {10, 20}, float lo = {0}, float hi = {255}> {
                a = Div(x, s) b = Add(a, z) c = Clip(b, lo, hi) d = Round(c) e = Sub(d, z) y = Mul(e, s) }",
            "(float[2,3] x) => (y) <float[2] y_scale = {0.5, 1}, uint8[2] y_zero_point = {10, 20}> {
                y_QuantizeLinear_Output = QuantizeLinear <axis = 0> (x, y_scale, y_zero_point)
                y = DequantizeLinear <axis = 0> (y_QuantizeLinear_Output, y_scale, y_zero_point) }",
        );
    }
}
