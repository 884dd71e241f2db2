//! Takes a Transpose between a constant weight and the layer that reads it out of the graph.
//!
//! ```text
//! before: T = Transpose(W); y = MatMul(x, T)      after: y = MatMul(x, W')      W' = W transposed
//! before: T = Transpose(W); y = Gemm(x, T, b)     after: y = Gemm<transB = 1>(x, W, b)
//! ```
//!
//! A Gemm reads the weight as it is. Otherwise the elements are moved, also where that leaves two copies in the model (a
//! table that is read by Gather and, transposed, by the last MatMul): as a weight of a layer the copy will be quantized
//! to a quarter of its size, whereas a Transpose would run at every inference. `transB = 1` itself costs nothing:
//! the runtime's kernels, float and integer, pack a constant B once.

use super::{
    Context,
    support::permute::{permutation, transposed},
};
use crate::{
    error::Result,
    ir::{Attr, DType, Model, NodeId, Use, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let mut changes = 0;
    for node in model.all_nodes() {
        if model.try_node(node).is_some_and(|n| n.is("Transpose")) && fold(model, node, cx)? {
            changes += 1;
        }
    }
    Ok(changes)
}

fn fold(model: &mut Model, node: NodeId, cx: &Context) -> Result<bool> {
    let n = model.node(node);
    let (Some(w), Some(out)) = (n.input(0), n.output(0)) else { return Ok(false) };
    let Some(t) = model.value(w).constant().filter(|t| t.dtype() == DType::Float).cloned() else { return Ok(false) };
    let Some(perm) = permutation(n.ints("perm"), t.rank()) else { return Ok(false) };
    let name = model.value(out).name().to_owned();
    if t.rank() == 2 && perm == [1, 0] {
        turn_gemms(model, out, w);
    }
    let uses = model.value(out).uses();
    if uses.is_empty() {
        model.remove_node(node);
        return Ok(true);
    }
    let as_weight = |u: &Use| match *u {
        Use::Input(n, 1) => matches!(model.node(n).op_type.as_str(), "MatMul" | "Gemm" | "Conv" | "ConvTranspose"),
        _ => false,
    };
    let free = model.sole_reader(w).is_some() || t.byte_len() <= cx.options.fold_growth_limit;
    if model.value(out).is_graph_output() || !(free || uses.iter().all(as_weight)) {
        return Ok(false);
    }
    let graph = model.node(node).graph();
    let new = model.add_initializer(graph, &name, transposed(&t, &perm)?);
    model.replace_all_uses(out, new);
    model.remove_node(node);
    Ok(true)
}

/// Makes every Gemm that reads `transposed` as its B read `weight`.
fn turn_gemms(model: &mut Model, transposed: ValueId, weight: ValueId) {
    let gemms: Vec<_> =
        model.value(transposed).readers().filter(|&(n, i)| i == 1 && model.node(n).is("Gemm")).collect();
    for (gemm, _) in gemms {
        let turned = 1 - model.node(gemm).int("transB").unwrap_or(0).clamp(0, 1);
        let attributes = &mut model.node_mut(gemm).attributes;
        attributes.retain(|a| a.name != "transB");
        if turned == 1 {
            attributes.push(Attr::new("transB", 1));
        }
        model.set_input(gemm, 1, Some(weight));
    }
}

#[cfg(test)]
mod tests {
    use super::{super::support::testing::after, run};

    #[test]
    fn a_gemm_reads_the_weight_as_it_is() {
        let text = "
            float[n,3] x
            float[2,3] w = {1, 2, 3, 4, 5, 6}
            t = Transpose <perm = [1, 0]> (w)
            y = Gemm(x, t)
            return y
        ";
        let mut model = crate::ir::testing::model(text);
        assert_eq!(run(&mut model, &mut Default::default()).unwrap(), 1);
        let gemm = model.node(model.nodes(model.main())[0]);
        assert_eq!((gemm.int("transB"), model.value(gemm.input(1).unwrap()).name()), (Some(1), "w"));
    }

    #[test]
    fn a_matmul_gets_its_own_copy() {
        let text = "
            int64[n] i
            float[2,3] w = {1, 2, 3, 4, 5, 6}
            e = Gather(w, i)
            t = Transpose(w)
            y = MatMul(e, t)
            return y
        ";
        let want = "e = Gather([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], i); y = MatMul(e, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0])";
        assert_eq!(after(run, text), want);
    }

    #[test]
    fn an_output_and_a_broken_permutation_stay() {
        let output = "float[1,2] w = {1, 2}\nt = Transpose(w)\nreturn t";
        assert!(after(run, output).contains("Transpose"));
        let broken =
            "float[2,1] x\nfloat[1,2] w = {1, 2}\nt = Transpose <perm = [0, 0]> (w)\ny = MatMul(x, t)\nreturn y";
        assert!(after(run, broken).contains("Transpose"));
    }
}
