//! Makes QuantizeLinear, Clip and DequantizeLinear of quantizers that are spelled out in arithmetic, as exporters leave those of
//! training that they know no operator for.
//!
//! ```text
//! before: a = Div(x, s); b = Round(a); c = Add(b, z); d = Clip(c, lo, hi); e = Sub(d, z); y = Mul(e, s)
//! after:  q = QuantizeLinear(x, s, z); c = Clip(q, lo, hi); y = DequantizeLinear(c, s, z)
//! ```
//!
//! Also without a zero point, with a product by the reciprocal in front, with the clamp in front of the rounding, spelled as Max and
//! Min, and with the detour that gradients take: `Add(x, Sub(y, x))` is `y`.

use super::{
    Context, remove_dead,
    support::{
        quantizer::{Written, broadcast_axis, spread_zero_points},
        replace::bypass,
        walk::sole_producer,
    },
};
use crate::{
    analysis::types,
    error::Result,
    ir::{DType, Model, NodeId, Tensor, ValueId},
    ops,
    quant::params::type_range,
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    if model.opset("").is_none_or(|v| v < 13) || !model.all_nodes().iter().any(|&n| model.node(n).is("Round")) {
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
    for id in model.all_nodes() {
        let Some(x) = model.try_node(id).and_then(|_| Spelled::ending_with(model, id)) else { continue };
        let float = types.dtype(x.input).or_else(|| model.value(x.input).dtype()) == Some(DType::Float);
        let rank = model.value(x.input).initializer().map(Tensor::rank).or_else(|| types.rank(x.input));
        changes += usize::from(float && x.write(model, id, rank)?);
    }
    Ok(changes)
}

/// The rounded value of `Add(x, Sub(rounded, x))`.
fn straight_through(model: &Model, id: NodeId) -> Option<ValueId> {
    let node = model.node(id);
    let (a, b) = (node.input(0).filter(|_| node.is("Add"))?, node.input(1)?);
    [(a, b), (b, a)].into_iter().find_map(|(x, detour)| {
        let sub = model.node(model.producer(detour)?);
        let rounded = sub.input(0).filter(|_| sub.is("Sub") && sub.input(1) == Some(x))?;
        let rounds = |v: ValueId| {
            // Within the few nodes that a quantizer is spelled with.
            let before = |&v: &ValueId| model.producer(v).and_then(|n| model.node(n).input(0));
            std::iter::successors(Some(v), before)
                .take(6)
                .any(|v| model.producer(v).is_some_and(|n| model.node(n).is("Round")))
        };
        rounds(rounded).then_some(rounded)
    })
}

/// A quantizer spelled out.
struct Spelled {
    input: ValueId,
    scale: Tensor,
    zero_points: Vec<f32>,
    bounds: (f32, f32),
}

impl Spelled {
    /// The quantizer that this product ends.
    fn ending_with(model: &Model, id: NodeId) -> Option<Self> {
        let (scale, mut value) = beside(model, id, "Mul")?;
        let scale = constant(model, scale)?;
        let mut zero_points = None;
        let mut bounds = None;
        let mut rounded = false;
        // From the end to the beginning: Sub, Clip, Add, Round, Div, of which two may be missing and two change places.
        for _ in 0..8 {
            let maker = sole_producer(model, value)?;
            let node = model.node(maker);
            match node.op_type.as_str() {
                "Sub" if zero_points.is_none() && !rounded => {
                    zero_points = Some((floats(model, node.input(1)?)?, false));
                    value = node.input(0)?;
                }
                "Add" if zero_points.as_ref().is_some_and(|(_, back)| !back) => {
                    let (z, x) = beside(model, maker, "Add")?;
                    let (known, back) = zero_points.as_mut()?;
                    *back = true;
                    if floats(model, z)? != *known {
                        return None;
                    }
                    value = x;
                }
                "Clip" | "Max" | "Min" => {
                    let (lo, hi) = ops::clamp_bounds(model, maker)?;
                    let (low, high) = bounds.unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
                    // In front of the zero point, bounds are those of the steps.
                    let inner = rounded_without(&zero_points, rounded);
                    let shift = if inner { uniform(&zero_points)? } else { 0.0 };
                    bounds = Some((low.max(lo + shift), high.min(hi + shift)));
                    value = clamped(model, maker)?;
                }
                "Round" if !rounded => {
                    rounded = true;
                    value = node.input(0)?;
                }
                "Div" if rounded => {
                    let by = constant(model, node.input(1)?)?;
                    let zero_points = match zero_points {
                        None => vec![0.0],
                        Some((z, true)) => z,
                        Some((_, false)) => return None,
                    };
                    let same = by.to_f32().ok()? == scale.to_f32().ok()?;
                    return same.then_some(Self { input: node.input(0)?, scale, zero_points, bounds: bounds? });
                }
                "Mul" if rounded => {
                    let (by, x) = beside(model, maker, "Mul")?;
                    let (by, s) = (floats(model, by)?, scale.to_f32().ok()?);
                    let inverse = by.len() == s.len() && by.iter().zip(&s).all(|(b, s)| (b * s - 1.0).abs() < 1e-6);
                    let zero_points = match zero_points {
                        None => vec![0.0],
                        Some((z, true)) => z,
                        Some((_, false)) => return None,
                    };
                    return inverse.then_some(Self { input: x, scale, zero_points, bounds: bounds? });
                }
                _ => return None,
            }
        }
        None
    }

    /// Writes it in operators, if there are such; `id` is its last node, `rank` that of what it rounds.
    fn write(&self, model: &mut Model, id: NodeId, rank: Option<usize>) -> Result<bool> {
        let (lo, hi) = self.bounds;
        let of_type = |dtype: DType| type_range(dtype).is_ok_and(|(a, b)| a as f32 <= lo && hi <= b as f32);
        let Some(dtype) = [DType::Uint8, DType::Int8].into_iter().find(|&d| of_type(d)) else { return Ok(false) };
        let whole = |v: &f32| v.fract() == 0.0;
        let scales = self.scale.to_f32()?;
        let (least, most) = type_range(dtype)?;
        let fits = self.zero_points.iter().all(|z| whole(z) && (least as f32..=most as f32).contains(z))
            && whole(&lo)
            && whole(&hi)
            && scales.iter().all(|s| s.is_finite() && *s > 0.0);
        let Some(axis) = broadcast_axis(&self.scale, rank).filter(|_| fits) else { return Ok(false) };
        let Some(zero_points) = spread_zero_points(&self.zero_points, scales.len()) else { return Ok(false) };
        let bounds = (lo as i32, hi as i32);
        let new = Written { input: self.input, dtype, scales: &scales, zero_points: &zero_points, axis, bounds };
        new.instead_of(model, id, None)?;
        Ok(true)
    }
}

/// Whether a clamp stands where zero points are not in the numbers: in front of the rounding of a quantizer that has some.
fn rounded_without(zero_points: &Option<(Vec<f32>, bool)>, rounded: bool) -> bool {
    zero_points.as_ref().is_some_and(|(_, back)| *back || rounded)
}

/// The zero point, if there is one for all.
fn uniform(zero_points: &Option<(Vec<f32>, bool)>) -> Option<f32> {
    let (z, _) = zero_points.as_ref()?;
    z.first().copied().filter(|first| z.iter().all(|v| v == first))
}

/// What a clamp clamps.
fn clamped(model: &Model, id: NodeId) -> Option<ValueId> {
    let node = model.node(id);
    if node.is("Clip") {
        return node.input(0);
    }
    node.inputs().iter().copied().flatten().find(|&v| model.value(v).constant().is_none())
}

/// The constant operand of a commutative operator, and the other one.
fn beside(model: &Model, id: NodeId, op: &str) -> Option<(ValueId, ValueId)> {
    let node = model.node(id);
    let (a, b) = (node.input(0).filter(|_| node.is(op))?, node.input(1)?);
    let is_constant = |v: ValueId| model.value(v).constant().is_some();
    match (is_constant(a), is_constant(b)) {
        (false, true) => Some((b, a)),
        (true, false) => Some((a, b)),
        _ => None,
    }
}

fn constant(model: &Model, v: ValueId) -> Option<Tensor> {
    model.value(v).constant().filter(|t| t.dtype() == DType::Float).cloned()
}

fn floats(model: &Model, v: ValueId) -> Option<Vec<f32>> {
    constant(model, v)?.to_f32().ok()
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

    #[test]
    fn what_is_no_quantizer() {
        let with = |steps: &str| {
            format!(
                "(float[2,3] x) => (y) <float s = {{0.5}}, float t = {{0.25}}, float z = {{10}}, float lo = {{0}}, float hi = {{127}}> {{ {steps} }}"
            )
        };
        // Another scale on the way back, another zero point, no bounds.
        check_skipped(run, &with("a = Div(x, s) b = Round(a) d = Clip(b, lo, hi) y = Mul(d, t)"), "");
        check_skipped(
            run,
            &with("a = Div(x, s) b = Round(a) c = Add(b, t) d = Clip(c, lo, hi) e = Sub(d, z) y = Mul(e, s)"),
            "",
        );
        check_skipped(run, &with("a = Div(x, s) b = Round(a) y = Mul(b, s)"), "");
    }
}
