//! Folds `alpha` and `beta` of a Gemm into its constant weights and bias.
//!
//! ```text
//! before: y = Gemm<alpha = 0.5, beta = 2>(x, W, b)      after: y = Gemm(x, W·0.5, b·2)
//! ```
//!
//! ONNX Runtime's integer Gemm needs both to be 1. A bias that is one number, or a row of a matrix, becomes a vector.

use super::{
    Context,
    support::constants::{Growth, set_constant_input},
};
use crate::{
    error::Result,
    ir::{DType, Model, NodeId, Tensor},
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let mut growth = Growth::new(cx);
    let mut changes = 0;
    for node in model.all_nodes() {
        if model.node(node).is("Gemm") {
            changes += usize::from(fold(model, node, "alpha", 1, &mut growth)?);
            changes += usize::from(fold(model, node, "beta", 2, &mut growth)?);
            changes += usize::from(flatten_bias(model, node)?);
        }
    }
    Ok(changes)
}

/// Folds the scale that is attribute `name` into constant input `i`.
fn fold(model: &mut Model, node: NodeId, name: &str, i: usize, growth: &mut Growth) -> Result<bool> {
    let n = model.node(node);
    let Some(scale) = n.float(name).filter(|&s| s != 1.0) else { return Ok(false) };
    if n.input(i).is_some() {
        let Some(t) = model.constant_input(node, i).filter(|t| t.dtype() == DType::Float).cloned() else {
            return Ok(false);
        };
        let scaled: Vec<f32> = t.to_f32()?.into_iter().map(|v| v * scale).collect();
        if !scaled.iter().all(|v| v.is_finite()) || !growth.allows(model, node, i) {
            return Ok(false);
        }
        set_constant_input(model, node, i, Tensor::from_f32(t.dims(), &scaled), name);
    }
    model.node_mut(node).attributes.retain(|a| a.name != name);
    Ok(true)
}

/// Makes a constant bias of shape `[]`, `[1]`, `[1, 1]` or `[1, N]` one of shape `[N]`.
fn flatten_bias(model: &mut Model, node: NodeId) -> Result<bool> {
    let trans_b = model.node(node).int("transB").unwrap_or(0) != 0;
    let Some(w) = model.constant_input(node, 1).filter(|w| w.rank() == 2) else { return Ok(false) };
    let outs = w.dims()[usize::from(!trans_b)];
    let Some(bias) = model.constant_input(node, 2) else { return Ok(false) };
    let vector = match bias.dims() {
        [n] if *n == outs => return Ok(false),
        [1, n] if *n == outs => bias.reshaped(vec![outs])?,
        dims if dims.len() <= 2 && bias.len() == 1 && bias.dtype() == DType::Float => {
            Tensor::from_f32(&[outs], &bias.to_f32()?.repeat(outs))
        }
        _ => return Ok(false),
    };
    set_constant_input(model, node, 2, vector, "bias");
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::{super::support::testing::after, run};

    #[test]
    fn scales_go_into_constants() {
        let text = "float[n,1] x\nfloat[1,2] w = {1, 2}\nfloat[1] b = {3}\nfloat[n,2] c";
        let both = "y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)\nreturn y";
        assert_eq!(after(run, &format!("{text}\n{both}")), "y = Gemm(x, [0.5, 1.0], [6.0, 6.0])");
        // What is not constant keeps its scale, and so does a weight that is too.
        let computed = "y = Gemm <alpha = 0.5, beta = 2.0> (x, w, c)\nreturn y";
        let mut model = crate::ir::testing::model(&format!("{text}\n{computed}"));
        run(&mut model, &mut Default::default()).unwrap();
        let gemm = model.node(model.nodes(model.main())[0]);
        assert_eq!((gemm.float("alpha"), gemm.float("beta")), (None, Some(2.0)));
    }
}
