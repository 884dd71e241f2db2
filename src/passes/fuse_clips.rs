//! Gives clamps their plain form: Max and Min with a constant become Clip, one behind another become one, Clip from 0
//! without an upper bound becomes Relu.
//!
//! ```text
//! before: a = Max(x, lo); y = Min(a, hi)      after: y = Clip(x, lo, hi)
//! before: a = Relu(x); y = Clip(a, 0, 6)      after: y = Clip(x, 0, 6)
//! before: y = Clip(x, 0)                      after: y = Relu(x)
//! ```
//!
//! Max and Min never have an integer kernel; a Clip or Relu behind a layer disappears into the quantized range. Needs the
//! Clip of opset 11, whose bounds are inputs.

use super::{
    Context,
    support::{clamp::Clamp, convert::convert, walk},
};
use crate::{
    analysis::types::infer,
    error::Result,
    ir::{Model, NodeId, Tensor},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    if model.opset("").is_none_or(|v| v < 11) {
        return Ok(0);
    }
    let types = &infer(model);
    let mut changes = 0;
    for node in model.all_nodes() {
        let Some(outer) = Clamp::of(model, types, node) else { continue };
        let op = model.node(node).op_type.as_str();
        let inner_node = walk::sole_producer(model, outer.x).filter(|&n| model.node(n).outputs().len() == 1);
        let inner = inner_node.and_then(|n| Clamp::of(model, types, n));
        let clamp = inner.map_or(outer, |inner| inner.then(outer));
        let relu = (clamp.lo, clamp.hi) == (0.0, f32::INFINITY);
        let plain = match op {
            "Relu" => true,
            "Clip" => !relu && (clamp.lo > f32::NEG_INFINITY || clamp.hi < f32::INFINITY),
            _ => false,
        };
        if inner.is_some() || !plain {
            replace(model, node, clamp, relu);
            changes += 1;
        }
    }
    Ok(changes)
}

fn replace(model: &mut Model, node: NodeId, clamp: Clamp, relu: bool) {
    if relu {
        return convert(model, node, "Relu", &[Some(clamp.x)], Vec::new());
    }
    let Some(y) = model.node(node).output(0) else { return };
    let (graph, name) = (model.node(node).graph(), model.value(y).name().to_owned());
    let mut bound = |value: f32, what: &str| {
        let tensor = Tensor::from_f32(&[], &[value]);
        value.is_finite().then(|| model.add_initializer(graph, &format!("{name}_{what}"), tensor))
    };
    let (lo, hi) = (bound(clamp.lo, "min"), bound(clamp.hi, "max"));
    let inputs = [Some(clamp.x), lo, hi];
    convert(model, node, "Clip", &inputs[..if hi.is_some() { 3 } else { 2 }], Vec::new());
}

#[cfg(test)]
mod tests {
    use super::{
        super::support::testing::{after, after_at},
        run,
    };

    const X: &str =
        "float[n] x\nint64[n] i\nfloat[1] low = {-1}\nfloat[] zero = {0}\nfloat[] six = {6}\nint64[] whole = {2}\n";

    fn fuse(nodes: &str) -> String {
        after(run, &format!("{X}{nodes}\nreturn y"))
    }

    #[test]
    fn clamps_take_their_plain_form() {
        assert_eq!(fuse("y = Max(x, low)"), "y = Clip(x, [-1.0])");
        assert_eq!(fuse("y = Min(six, x)"), "y = Clip(x, _, [6.0])");
        assert_eq!(fuse("a = Max(x, low)\ny = Min(a, six)"), "y = Clip(x, [-1.0], [6.0])");
        assert_eq!(fuse("y = Clip(x, zero)"), "y = Relu(x)");
        assert_eq!(fuse("a = Relu(x)\ny = Relu(a)"), "y = Relu(x)");
        assert_eq!(fuse("a = Relu(x)\ny = Clip(a, low, six)"), "y = Clip(x, [0.0], [6.0])");
        assert_eq!(fuse("a = Clip(x, low, six)\ny = Relu(a)"), "y = Clip(x, [0.0], [6.0])");
        assert_eq!(after_at(9, run, &format!("{X}y = Max(x, low)\nreturn y")), "y = Max(x, [-1.0])");
    }

    #[test]
    fn what_is_no_clamp_of_floats_stays() {
        assert_eq!(fuse("y = Max(i, whole)"), "y = Max(i, [2])");
        assert_eq!(fuse("y = Clip(x, six, zero)"), "y = Clip(x, [6.0], [0.0])");
        assert_eq!(fuse("y = Clip(x, zero, six)"), "y = Clip(x, [0.0], [6.0])");
        assert_eq!(fuse("a = Relu(x)\nz = Abs(a)\ny = Relu(a)\nreturn z"), "a = Relu(x); z = Abs(a); y = Relu(a)");
    }
}
