//! Gives Reshape and Expand constant targets where the shapes are known well enough, which cuts the Shape, Gather,
//! Unsqueeze and Concat nodes that computed them.
//!
//! ```text
//! before: s = Shape(x); b = Gather(s, 0); t = Concat(b, 12, 64); y = Reshape(x, t)
//! after:  y = Reshape(x, [0, 12, 64])
//! ```
//!
//! In the target of a Reshape 0 copies a dim and -1 stands for the rest; in that of an Expand 1 keeps a dim.

use super::{
    Context,
    support::shapes::{expand_target, reshape_target},
};
use crate::{
    analysis::types::{self, Types},
    error::Result,
    ir::{Model, NodeId, Tensor},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let types = types::infer(model);
    let bodies: Vec<_> = model.functions.iter().map(|f| f.graph).collect();
    let mut folded = 0;
    for n in model.all_nodes() {
        let Some(target) = target(model, &types, n).filter(|_| !bodies.contains(&model.node(n).graph())) else {
            continue;
        };
        let name = model.node(n).output(0).map_or_else(String::new, |v| format!("{}_shape", model.value(v).name()));
        let constant = model.add_initializer(model.main(), &name, Tensor::from_i64(&[target.len()], &target));
        model.set_input(n, 1, Some(constant));
        // Here a 0 copies.
        model.node_mut(n).attributes.retain(|a| a.name != "allowzero");
        folded += 1;
    }
    Ok(folded)
}

fn target(model: &Model, types: &Types, n: NodeId) -> Option<Vec<i64>> {
    let node = model.node(n);
    let (reshape, expand) = (node.is("Reshape"), node.is("Expand"));
    let computed = model.value(node.input(1)?).producer().is_some();
    if !computed || !(reshape || expand) {
        return None;
    }
    let (from, to) = (types.shape(node.input(0)?)?, types.shape(node.output(0)?)?);
    if reshape { reshape_target(from, to) } else { expand_target(from, to) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped};

    #[test]
    fn heads_are_split_and_joined_without_shapes() {
        check(
            run,
            "(float[b,s,384] x) => (v) <int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] heads = {12}, int64[1] rest = {-1},
                int64[1] width = {384}> {
                sh = Shape(x)
                b0 = Gather(sh, i0)
                s0 = Gather(sh, i1)
                t = Concat <axis = 0> (b0, s0, heads, rest)
                y = Reshape <allowzero = 1> (x, t)
                z = Transpose <perm = [0, 2, 1, 3]> (y)
                u = Concat <axis = 0> (b0, s0, width)
                w = Transpose <perm = [0, 2, 1, 3]> (z)
                v = Reshape(w, u)
             }",
            "(float[b,s,384] x) => (v) <int64[4] y_shape = {0, 0, 12, 32}, int64[3] v_shape = {0, 0, 384}> {
                y = Reshape(x, y_shape)
                z = Transpose <perm = [0, 2, 1, 3]> (y)
                w = Transpose <perm = [0, 2, 1, 3]> (z)
                v = Reshape(w, v_shape)
             }",
        );
    }

    #[test]
    fn one_dim_for_all_rows() {
        check(
            run,
            "(float[b,s,12] x, float[b,1,12] z) => (y, e) <int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] twelve = {12}> {
                sh = Shape(x)
                b0 = Gather(sh, i0)
                s0 = Gather(sh, i1)
                rows = Mul(b0, s0)
                t = Concat <axis = 0> (rows, twelve)
                y = Reshape(x, t)
                one = Concat <axis = 0> (b0, i1, twelve)
                e = Expand(z, one)
             }",
            "(float[b,s,12] x, float[b,1,12] z) => (y, e) <int64[2] y_shape = {-1, 12}, int64[3] e_shape = {1, 1, 12}> {
                y = Reshape(x, y_shape)
                e = Expand(z, e_shape)
             }",
        );
    }

    #[test]
    fn two_open_dims_stay_computed() {
        check_skipped(
            run,
            "(float[b,s,12] x) => (y) <int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] twelve = {12}> {
                sh = Shape(x)
                b0 = Gather(sh, i0)
                s0 = Gather(sh, i1)
                t = Concat <axis = 0> (s0, b0, twelve)
                y = Reshape(x, t)
             }",
            "",
        );
    }
}
