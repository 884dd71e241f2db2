//! Fuses a MatMul of matrices with a constant, and the Add of a constant bias behind it, into a Gemm.
//!
//! ```text
//! before: m = MatMul(x, W); y = Add(m, b)      after: y = Gemm(x, W, b)
//! ```
//!
//! ONNX Runtime makes this Gemm itself when it loads the model, but too early: with Q/DQ pairs around MatMul and Add it
//! ends as a `float` Gemm behind DequantizeLinear unless the output is quantized, whereas a Gemm becomes an integer
//! kernel in either case. Only where x is certainly of rank 2; a MatMul of higher rank has an integer kernel of its own.

use super::{
    Context,
    support::{
        constants::set_constant_input,
        convert::convert,
        linear::{Kind, Linear},
        walk,
    },
};
use crate::{
    analysis::types::{Types, infer},
    error::Result,
    ir::{Model, NodeId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let types = &infer(model);
    let mut changes = 0;
    for node in model.all_nodes() {
        // Two nodes become one: the second of them may be gone.
        if model.try_node(node).is_some() && fuse(model, types, node)?.is_some() {
            changes += 1;
        }
    }
    Ok(changes)
}

fn fuse(model: &mut Model, types: &Types, node: NodeId) -> Result<Option<()>> {
    let Some(layer) = Linear::of(model, types, node).filter(|l| l.kind == Kind::MatMul) else { return Ok(None) };
    let n = model.node(node);
    let (Some(x), Some(w), Some(product)) = (n.input(0), n.input(1), n.output(0)) else { return Ok(None) };
    let matrices = walk::rank(model, types, x) == Some(2) && walk::rank(model, types, w) == Some(2);
    let Some((add, i)) = walk::sole_reader(model, product).filter(|_| matrices && layer.output != product) else {
        return Ok(None);
    };
    let Some(bias) = model.node(add).input(1 - i) else { return Ok(None) };
    // QGemm wants the bias as a vector.
    let constant = model.value(bias).constant();
    let vector = match constant.filter(|t| t.len() == layer.outs).map(|t| t.reshaped(vec![layer.outs])) {
        Some(t) => t?,
        None => return Ok(None),
    };
    convert(model, add, "Gemm", &[Some(x), Some(w), Some(bias)], Vec::new());
    // The name of the layer is the MatMul's.
    if let Some(name) = model.node(node).name.clone() {
        model.node_mut(add).name = Some(name);
    }
    model.remove_node(node);
    if model.value(bias).initializer().is_some_and(|t| t.rank() != 1) {
        set_constant_input(model, add, 2, vector, "bias");
    }
    Ok(Some(()))
}

#[cfg(test)]
mod tests {
    use super::{super::support::testing::after, run};

    fn fuse(x: &str, bias: &str) -> String {
        let text = format!("float[{x}] x\nfloat[1,2] w = {{1, 2}}\nfloat[{bias}] b = {{3, 4}}");
        after(run, &format!("{text}\nm = MatMul(x, w)\ny = Add(b, m)\nreturn y"))
    }

    #[test]
    fn matrices_only() {
        assert_eq!(fuse("n,1", "2"), "y = Gemm(x, [1.0, 2.0], [3.0, 4.0])");
        assert_eq!(fuse("n,1", "1,2"), "y = Gemm(x, [1.0, 2.0], [3.0, 4.0])");
        assert!(fuse("n,t,1", "2").contains("MatMul"));
        assert!(fuse("2,1", "2,1").contains("MatMul"));
    }
}
