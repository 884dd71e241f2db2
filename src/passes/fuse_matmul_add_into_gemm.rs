//! Fuses a MatMul of matrices with a constant, and the Add of a constant bias behind it, into a Gemm.
//!
//! ```text
//! before: m = MatMul(x, W); y = Add(m, b)      after: y = Gemm(x, W, b)
//! ```
//!
//! ONNX Runtime makes this Gemm itself when it loads the model, but too early: with Q/DQ pairs around MatMul and Add it
//! ends as a `float` Gemm behind DequantizeLinear unless the output is quantized, whereas a Gemm becomes an integer
//! kernel in either case. It does the same with more dims where all of them are known numbers:
//!
//! ```text
//! before: m = MatMul(x, W); y = Add(m, b)      after: y = Reshape(Gemm(Reshape(x, [rows, K]), W, b), [dims, N])
//! ```
//!
//! A MatMul of higher rank with an unknown dim stays, and has an integer kernel of its own.

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
    ir::{Model, NodeId, NodeSpec, Place, Tensor, ValueId},
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
    let matrix = walk::rank(model, types, x) == Some(2);
    let dims = types.known_shape(x).filter(|d| !matrix && d.len() > 2);
    if walk::rank(model, types, w) != Some(2) || !(matrix || dims.is_some()) || layer.output == product {
        return Ok(None);
    }
    let Some((add, i)) = model.sole_reader(product) else { return Ok(None) };
    let Some(bias) = model.node(add).input(1 - i) else { return Ok(None) };
    // QGemm wants the bias as a vector.
    let constant = model.value(bias).constant();
    let vector = match constant.filter(|t| t.len() == layer.outs).map(|t| t.reshaped(vec![layer.outs])) {
        Some(t) => t?,
        None => return Ok(None),
    };
    // The name of the layer is the MatMul's.
    let name = model.node(node).name.clone();
    let gemm = match dims {
        None => {
            convert(model, add, "Gemm", &[Some(x), Some(w), Some(bias)], Vec::new());
            if name.is_some() {
                model.node_mut(add).name = name;
            }
            add
        }
        Some(dims) => gemm_of_rows(model, &dims, &layer, (node, add), [x, w, bias], name),
    };
    model.remove_node(node);
    if model.value(bias).initializer().is_some_and(|t| t.rank() != 1) {
        set_constant_input(model, gemm, 2, vector, "bias");
    }
    Ok(Some(()))
}

/// The Gemm between two Reshapes, the second of them in the place of the Add.
fn gemm_of_rows(
    model: &mut Model,
    dims: &[usize],
    layer: &Linear,
    (matmul, add): (NodeId, NodeId),
    [x, w, bias]: [ValueId; 3],
    name: Option<String>,
) -> NodeId {
    let graph = model.node(matmul).graph();
    let product = model.value(layer.output).name().to_owned();
    let rows: usize = dims[..dims.len() - 1].iter().product();
    let shape = |sizes: &[usize]| {
        let sizes: Vec<i64> = sizes.iter().map(|&d| d as i64).collect();
        Tensor::from_i64(&[sizes.len()], &sizes)
    };
    let flat = model.add_initializer(graph, &format!("{product}_rows_shape"), shape(&[rows, layer.ins]));
    let whole = [&dims[..dims.len() - 1], &[layer.outs]].concat();
    let whole = model.add_initializer(graph, &format!("{product}_shape"), shape(&whole));
    let input = format!("{}_rows", model.value(x).name());
    let reshape = NodeSpec::new("Reshape").input(x).input(flat).output(input);
    let reshape = model.insert(reshape, Place::Before(matmul));
    let input = model.node(reshape).output(0);
    let mut spec = NodeSpec::new("Gemm").inputs([input, Some(w), Some(bias)]).output(format!("{product}_rows"));
    if let Some(name) = name {
        spec = spec.name(name);
    }
    let gemm = model.insert(spec, Place::Before(add));
    let made = model.node(gemm).output(0);
    convert(model, add, "Reshape", &[made, Some(whole)], Vec::new());
    gemm
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

    #[test]
    fn more_dims_that_are_all_known() {
        let text = fuse("2,3,1", "2");
        assert!(text.contains("Gemm(x_rows, [1.0, 2.0], [3.0, 4.0])"), "{text}");
        assert!(
            text.starts_with("x_rows = Reshape(x, [6, 1])") && text.ends_with("y = Reshape(y_rows, [2, 3, 2])"),
            "{text}"
        );
    }
}
