//! Fuses a value times its hard sigmoid into HardSwish, from opset 14 on, which has that operator.
//!
//! ```text
//! before: h = HardSigmoid<alpha = 1/6, beta = 0.5>(x); y = Mul(x, h)      after: y = HardSwish(x)
//! ```
//!
//! ONNX Runtime takes HardSwish apart again where its kernels gain, but behind a DequantizeLinear: one value to convert
//! instead of two.

use super::{
    Context,
    support::{convert::convert, walk},
};
use crate::{
    error::Result,
    ir::{DType, Model, NodeId, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    if model.opset("").is_none_or(|v| v < 14) {
        return Ok(0);
    }
    let mut changes = 0;
    for node in model.all_nodes() {
        let Some(x) = find(model, node) else { continue };
        convert(model, node, "HardSwish", &[Some(x)], Vec::new());
        changes += 1;
    }
    Ok(changes)
}

/// The value whose hard swish this node computes.
fn find(model: &Model, node: NodeId) -> Option<ValueId> {
    let n = model.node(node);
    let (a, b) = (n.input(0)?, n.input(1).filter(|_| n.is("Mul"))?);
    // A half-precision model's numbers are its own.
    let half = |v| matches!(model.value(v).dtype(), Some(d) if d != DType::Float);
    [(a, b), (b, a)].into_iter().find_map(|(x, gate)| {
        let g = model.node(walk::sole_producer(model, gate)?);
        let near = |name, default, want: f32| (g.float(name).unwrap_or(default) - want).abs() < 1e-6;
        let fits = g.is("HardSigmoid") && near("alpha", 0.2, 1.0 / 6.0) && near("beta", 0.5, 0.5);
        (fits && g.input(0) == Some(x) && !half(x)).then_some(x)
    })
}

#[cfg(test)]
mod tests {
    use super::{super::support::testing::after_at, run};

    #[test]
    fn only_with_the_right_numbers_and_opset() {
        let text =
            |alpha| format!("float[n] x\nh = HardSigmoid <alpha = {alpha}, beta = 0.5> (x)\ny = Mul(h, x)\nreturn y");
        assert_eq!(after_at(14, run, &text("0.16666667")), "y = HardSwish(x)");
        assert!(after_at(14, run, &text("0.2")).contains("HardSigmoid"));
        assert!(after_at(13, run, &text("0.16666667")).contains("HardSigmoid"));
    }
}
