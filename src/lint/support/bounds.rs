//! Numbers that a value cannot go beyond, as far as its maker says; and clamps that saturation did besides its rounding.

use super::pairs::Pair;
use crate::{
    error::Result,
    ir::{Model, Place, Tensor, ValueId},
    ops,
    passes::support::{clamp::clamping, pairs::Linear, walk::moves_elements},
    quant::params::{QParams, Range},
};

/// How far back makers are followed.
const DEPTH: usize = 12;

/// Least and greatest number of a value, as far as is certain.
pub fn of(model: &Model, v: ValueId) -> (f32, f32) {
    bounds(model, v, DEPTH)
}

fn bounds(model: &Model, v: ValueId, depth: usize) -> (f32, f32) {
    let all = (f32::NEG_INFINITY, f32::INFINITY);
    let Some(n) = model.producer(v).filter(|_| depth > 0) else { return all };
    let node = model.node(n);
    let input = |i: usize| node.input(i).map_or(all, |v| bounds(model, v, depth - 1));
    if let Some((lo, hi)) = ops::clamp_bounds(model, n) {
        let (a, b) = input(0);
        return (a.max(lo).min(hi), b.min(hi).max(lo));
    }
    if moves_elements(model, n) {
        return input(0);
    }
    match node.op_type.as_str() {
        "Sigmoid" | "Softmax" | "HardSigmoid" => (0.0, 1.0),
        "Tanh" | "Erf" | "Sin" | "Cos" => (-1.0, 1.0),
        "Exp" | "Sqrt" | "Abs" | "Softplus" => (0.0, f32::INFINITY),
        "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" | "ReduceMax" | "ReduceMin"
        | "ReduceMean" => input(0),
        "Concat" => (0..node.inputs().len())
            .map(input)
            .fold((f32::INFINITY, f32::NEG_INFINITY), |a, b| (a.0.min(b.0), a.1.max(b.1))),
        "DequantizeLinear" => dequantized(model, v).map_or(all, |r| (r.lo, r.hi)),
        _ => all,
    }
}

fn dequantized(model: &Model, v: ValueId) -> Option<Range> {
    let d = Linear::dequantized(model, v)?;
    let (scale, zero_point) = d.per_tensor(model)?;
    let dtype = d.zero_point.and_then(|z| model.value(z).dtype())?;
    QParams { scale, zero_point: i32::try_from(zero_point).ok()?, dtype }.representable().ok()
}

/// The clamp that must stay when a pair goes: tools take a Relu or Clip in front of a QuantizeLinear out, and let its codes
/// end where that cut. Codes that end at 0, or at a number that somebody may have written down, stand for one.
pub fn clamp_of(model: &Model, pair: &Pair) -> Option<(f32, f32)> {
    // What the model is given was never behind a clamp.
    model.producer(pair.value())?;
    let range = pair.range();
    let (lo, hi) = of(model, pair.value());
    let written = |x: f32, step: f32| {
        let near = (x * 4.0).round() / 4.0;
        near != 0.0 && (x - near).abs() <= 1e-5 * near.abs().max(step)
    };
    let step = pair.params.scale;
    let cut_lo = (range.lo == 0.0 && lo < 0.0) || (written(range.lo, step) && lo < range.lo);
    // An upper bound alone says nothing: ranges of one sign are scaled to the greatest number seen.
    let cut_hi = (range.hi == 0.0 && hi > 0.0) || (written(range.hi, step) && hi > range.hi);
    let cut = (if cut_lo { range.lo } else { f32::NEG_INFINITY }, if cut_hi { range.hi } else { f32::INFINITY });
    (cut_lo || cut_hi).then_some(cut)
}

/// The value with a clamp behind it, in front of the pair.
pub fn clamped(model: &mut Model, pair: &Pair, (lo, hi): (f32, f32)) -> Result<ValueId> {
    let (v, graph) = (pair.value(), model.node(pair.q.node).graph());
    let name = model.value(v).name().to_owned();
    let given = |bound: f32| Some(bound).filter(|b| b.is_finite());
    let spec = clamping(model, v, (given(lo), given(hi)), |model, what, bound| {
        Ok(model.add_initializer(graph, &format!("{name}_clip_{what}"), Tensor::from_f32(&[], &[bound])))
    })?;
    let op = if (lo, hi) == (0.0, f32::INFINITY) { "Relu" } else { "Clip" };
    model.insert_value(spec.output(format!("{name}_{op}_Output")), Place::Before(pair.q.node))
}
