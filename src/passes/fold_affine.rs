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

#[cfg(test)]
mod tests {
    use super::{super::support::testing::after, run};

    fn behind_conv(nodes: &str) -> String {
        let text = "float[1,1,4,4] x\nfloat[2,1,1,1] w = {1, 2}\nfloat[2,1,1] c = {2, 4}\nfloat[] s = {3}\nfloat[2] last = {5, 6}";
        after(run, &format!("{text}\nv = Conv(x, w)\n{nodes}\nreturn y"))
    }

    #[test]
    fn behind_a_layer() {
        assert_eq!(behind_conv("y = Add(v, c)"), "y = Conv(x, [1.0, 2.0], [2.0, 4.0])");
        assert_eq!(behind_conv("y = Sub(c, v)"), "y = Conv(x, [-1.0, -2.0], [2.0, 4.0])");
        assert_eq!(behind_conv("a = Mul(c, v)\ny = Sub(a, s)"), "y = Conv(x, [2.0, 8.0], [-3.0, -3.0])");
        assert_eq!(behind_conv("a = Add(v, c)\nb = Div(a, c)\ny = Neg(b)"), "y = Conv(x, [-0.5, -0.5], [-1.0, -1.0])");
        // Not linear; and a constant along another axis than the channels'.
        assert!(behind_conv("y = Div(c, v)").contains("Div"));
        let wide = "float[1,1,4,2] x\nfloat[2,1,1,1] w = {1, 2}\nfloat[2] last = {5, 6}\nv = Conv(x, w)\ny = Mul(v, last)\nreturn y";
        assert!(after(run, wide).contains("Mul"));
    }

    #[test]
    fn behind_a_matmul() {
        let text = "float[a,b,1] x\nfloat[1,2] w = {1, 2}\nfloat[2] c = {2, 4}\nfloat[1,1,2] t = {1, 1}\nfloat[1,1,1,1] high = {2}";
        let fold = |nodes| after(run, &format!("{text}\nv = MatMul(x, w)\n{nodes}\nreturn y"));
        assert_eq!(fold("y = Mul(v, c)"), "y = MatMul(x, [2.0, 8.0])");
        // The Add is the layer's bias.
        assert_eq!(fold("y = Add(v, c)"), "v = MatMul(x, [1.0, 2.0]); y = Add(v, [2.0, 4.0])");
        assert_eq!(fold("a = Add(v, c)\ny = Add(t, a)"), "v = MatMul(x, [1.0, 2.0]); y = Add(v, [3.0, 5.0])");
        // This one raises the rank.
        assert!(fold("y = Mul(v, high)").contains("Mul(v"));
    }

    #[test]
    fn the_scale_of_attention() {
        let text = "
            float[b,t,2] x
            float[2,2] w = {1, 2, 3, 4}
            float[2] c = {2, 4}
            float[b,h,u,e] k
            int64[4] shape = {0, 0, 2, 1}
            float[] s = {0.5}
            m = MatMul(x, w)
            q = Add(m, c)
            r = Reshape(q, shape)
            sh = Shape(r)
            t = Transpose <perm = [0, 2, 1, 3]> (r)
        ";
        let want = "m = MatMul(x, [0.5, 1.0, 1.5, 2.0]); q = Add(m, [1.0, 2.0]); ";
        let scaled = after(run, &format!("{text}\nz = Mul(t, s)\ny = MatMul(z, k)\nreturn y\nreturn sh"));
        assert!(scaled.starts_with(want) && scaled.ends_with("y = MatMul(t, k)"), "{scaled}");
        let product = after(run, &format!("{text}\nz = MatMul(t, k)\ny = Mul(z, s)\nreturn y"));
        assert!(product.starts_with(want) && product.ends_with("y = MatMul(t, k)"), "{product}");
    }

    #[test]
    fn a_normalised_input() {
        let text = "float[1,2,4,4] x\nfloat[1,2,1,1] w = {2, 4}\nfloat[] s = {2}\nfloat[2,1,1] c = {2, 4}";
        let fold =
            |nodes| after(run, &format!("{text}\n{nodes}\nv = Conv <pads = [1,1,1,1]> (a, w)\ny = Relu(v)\nreturn y"));
        assert_eq!(fold("a = Div(x, s)"), "v = Conv(x, [1.0, 2.0]); y = Relu(v)");
        assert_eq!(
            fold("b = Sub(x, c)\na = Mul(b, s)"),
            "b = Sub(x, [2.0, 4.0]); v = Conv(b, [4.0, 8.0]); y = Relu(v)"
        );
        // Different scales by channel, and scales of values that are computed, stay.
        assert!(fold("a = Div(x, c)").contains("Div"));
        assert!(fold("b = Relu(x)\na = Mul(b, s)").contains("Mul"));
        // A skip connection reads it as well.
        assert!(fold("a = Mul(x, s)\nz = Exp(a)\nreturn z").contains("Mul"));
    }

    #[test]
    fn results_beyond_float_stay() {
        let text = "float[1,1,4,4] x\nfloat[1,1,1,1] w = {1e30}\nfloat[] s = {1e20}\nfloat[] z = {0}";
        assert!(after(run, &format!("{text}\nv = Conv(x, w)\ny = Mul(v, s)\nreturn y")).contains("Mul"));
        assert!(after(run, &format!("{text}\nv = Conv(x, w)\ny = Div(v, z)\nreturn y")).contains("Div"));
    }
}
