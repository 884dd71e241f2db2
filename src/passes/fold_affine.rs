//! Folds additions and multiplications by constants into the linear layer in front of them, and the scale of a
//! normalised graph input into the layer behind it.
//!
//! ```text
//! before: c = Conv(x, W); d = Mul(c, s); y = Add(d, t)      after: y = Conv(x, W·s, t)
//! ```
//!
//! - Behind a Conv, ConvTranspose, Gemm or MatMul (+ Add): Mul, Div, Add, Sub, Neg with one constant for all or one per
//!   output channel.
//! - The scale of attention: Mul or Div by one constant, with nodes in between that only move elements (Reshape,
//!   Transpose, …), or a MatMul of two computed values.
//! - In front of layers: Mul or Div of a graph input by one constant (pixels times 1/255). Only scales: a shift is not
//!   exact where the layer pads, and data far from zero (1000 ± 1) would lose its resolution, as a quantized range
//!   always includes 0. Only one constant for all: different ones by feature bring features of very different ranges
//!   to one scale, which is why the model has them.
//!
//! Scales elsewhere stay: they may be part of what the runtime fuses itself (the 0.5 of a Gelu).

use super::{
    Context,
    support::{
        constants::{self, Growth},
        linear::{Linear, Rescale},
        walk,
    },
};
use crate::{
    analysis::types::{Types, infer},
    error::Result,
    ir::{Model, NodeId, Use, ValueId},
};

/// Longest way between a scale and its layer.
const MAX_STEPS: usize = 16;

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let mut growth = Growth::new(cx);
    let types = &infer(model);
    let mut changes = 0;
    for node in model.all_nodes() {
        let n = model.node(node);
        if !n.in_onnx_domain() || !matches!(n.op_type.as_str(), "Add" | "Sub" | "Mul" | "Div" | "Neg") {
            continue;
        }
        if fold_behind(model, types, node, &mut growth)?
            || fold_scale_upwards(model, types, node, &mut growth)?
            || fold_in_front(model, types, node, &mut growth)?
        {
            changes += 1;
        }
    }
    Ok(changes)
}

/// `(scale, shift)` of a node's function of its computed input, given its constant.
fn function(op: &str, c: f64, constant_is_second: bool) -> Option<(f64, f64)> {
    match (op, constant_is_second) {
        ("Mul", _) => Some((c, 0.0)),
        ("Div", true) => Some((1.0 / c, 0.0)),
        ("Add", _) => Some((1.0, c)),
        ("Sub", true) => Some((1.0, -c)),
        ("Sub", false) => Some((-1.0, c)),
        ("Neg", _) => Some((-1.0, 0.0)),
        _ => None,
    }
}

/// The computed input of a node, and the number of its constant input (none for Neg).
fn split(model: &Model, node: NodeId) -> Option<(ValueId, Option<usize>)> {
    let n = model.node(node);
    let constant = |i| model.constant_input(node, i).is_some();
    match n.inputs() {
        [Some(x)] => Some((*x, None)),
        [Some(x), Some(_)] if constant(1) && !constant(0) => Some((*x, Some(1))),
        [Some(_), Some(x)] if constant(0) && !constant(1) => Some((*x, Some(0))),
        _ => None,
    }
}

fn fold_behind(model: &mut Model, types: &Types, node: NodeId, growth: &mut Growth) -> Result<bool> {
    let Some((x, constant)) = split(model, node) else { return Ok(false) };
    let Some(y) = model.node(node).output(0) else { return Ok(false) };
    if walk::sole_element_reader(model, x).is_none() {
        return Ok(false);
    }
    let Some(mut layer) = Linear::ending_at(model, types, x) else { return Ok(false) };
    let c = match constant.and_then(|i| model.constant_input(node, i)) {
        Some(t) => layer.per_channel(model, types, t)?,
        None => Some(vec![0.0; layer.outs]),
    };
    let op = model.node(node).op_type.as_str();
    let by: Option<Vec<(f64, f64)>> =
        c.and_then(|c| c.into_iter().map(|c| function(op, c, constant != Some(0))).collect());
    let Some(by) = by else { return Ok(false) };
    let (out_scale, out_shift) = by.into_iter().unzip();
    if !layer.rescale(model, &Rescale { out_scale, out_shift, ..Rescale::default() }, growth)? {
        return Ok(false);
    }
    walk::replace_and_remove(model, node, y, layer.output);
    Ok(true)
}

/// The value that a node multiplies by one constant, and that constant; if it is neither 0 nor extreme.
fn scale(model: &Model, types: &Types, node: NodeId) -> Option<(ValueId, f64)> {
    let n = model.node(node);
    let (x, c, second) = constants::with_scalar(model, types, node)?;
    let (s, _) = function(&n.op_type, f64::from(c), second).filter(|_| n.is("Mul") || n.is("Div"))?;
    (1e-9..1e9).contains(&s.abs()).then_some((x, s))
}

fn fold_scale_upwards(model: &mut Model, types: &Types, node: NodeId, growth: &mut Growth) -> Result<bool> {
    let Some((x, s)) = scale(model, types, node) else { return Ok(false) };
    let Some(y) = model.node(node).output(0) else { return Ok(false) };
    let Some(mut layer) = layer_above(model, types, x, MAX_STEPS) else { return Ok(false) };
    let by = Rescale { out_scale: vec![s; layer.outs], ..Rescale::default() };
    if !layer.rescale(model, &by, growth)? {
        return Ok(false);
    }
    walk::replace_and_remove(model, node, y, x);
    Ok(true)
}

/// The layer whose scale is the scale of `value`: each value on the way has one reader only.
fn layer_above(model: &Model, types: &Types, value: ValueId, steps: usize) -> Option<Linear> {
    walk::sole_element_reader(model, value).filter(|_| steps > 0)?;
    let node = model.producer(value)?;
    if let Some(layer) = Linear::ending_at(model, types, value) {
        return Some(layer);
    }
    let n = model.node(node);
    let computed = |i| n.input(i).filter(|_| model.constant_input(node, i).is_none());
    let up = |v| layer_above(model, types, v, steps / 2);
    match (computed(0), computed(1)) {
        (Some(a), _) if walk::moves_elements(model, node) => layer_above(model, types, a, steps - 1),
        (Some(a), Some(b)) if n.is("MatMul") => up(a).or_else(|| up(b)),
        _ => None,
    }
}

fn fold_in_front(model: &mut Model, types: &Types, node: NodeId, growth: &mut Growth) -> Result<bool> {
    let Some((x, s)) = scale(model, types, node) else { return Ok(false) };
    let Some(y) = model.node(node).output(0) else { return Ok(false) };
    let mut layers = Vec::new();
    if !is_input(model, x) || !layers_below(model, types, y, &mut layers, MAX_STEPS) {
        return Ok(false);
    }
    for layer in &layers {
        let w = model.constant_input(layer.node, 1).map(|t| t.to_f32()).transpose()?.unwrap_or_default();
        if !w.iter().all(|&w| ((f64::from(w) * s) as f32).is_finite()) || !growth.allows(model, layer.node, 1) {
            return Ok(false);
        }
    }
    // The growth is counted already.
    let mut counted = Growth::unlimited();
    for layer in &mut layers {
        let by = Rescale { in_scale: vec![s; layer.ins], ..Rescale::default() };
        layer.rescale(model, &by, &mut counted)?;
    }
    model.replace_all_uses(y, x);
    model.remove_node(node);
    Ok(true)
}

/// Whether a value is a graph input, converted, moved or shifted at most.
fn is_input(model: &Model, mut value: ValueId) -> bool {
    for _ in 0..MAX_STEPS {
        let v = model.value(value);
        let Some(node) = model.producer(value) else { return v.is_input() };
        let n = model.node(node);
        let shifts = || matches!(n.op_type.as_str(), "Add" | "Sub").then(|| split(model, node)).flatten();
        value = match n.input(0) {
            Some(a) if n.is("Cast") || walk::moves_elements(model, node) => a,
            _ => match shifts() {
                Some((a, _)) => a,
                None => return false,
            },
        };
    }
    false
}

/// Collects the layers that read a value, perhaps behind nodes that move elements; false if anything else reads it.
fn layers_below(model: &Model, types: &Types, value: ValueId, layers: &mut Vec<Linear>, steps: usize) -> bool {
    model.value(value).uses().iter().all(|used| {
        let Use::Input(reader, 0) = *used else { return false };
        if let Some(layer) = Linear::of(model, types, reader) {
            layers.push(layer);
            return true;
        }
        let moved = model.node(reader).output(0).filter(|_| steps > 0 && walk::moves_elements(model, reader));
        moved.is_some_and(|out| layers_below(model, types, out, layers, steps - 1))
    }) && !layers.is_empty()
}
