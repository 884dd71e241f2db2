//! Makes one Reshape, or none, of several nodes in a row that only change the shape.
//!
//! ```text
//! before: a = Squeeze(x, 3); b = Unsqueeze(a, 3); y = Flatten(b)      after: y = Reshape(x, [0, -1])
//! ```
//!
//! Only where the result's shape can be written as a constant target, and only over nodes that nothing else reads.

use super::{
    Context,
    support::{
        replace::bypass,
        shapes::{is_reshape, reshape_target, same_shape},
    },
};
use crate::{
    analysis::types::{self, Types},
    error::Result,
    ir::{Model, NodeId, Tensor, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let types = types::infer(model);
    let bodies: Vec<_> = model.functions.iter().map(|f| f.graph).collect();
    let mut fused = 0;
    for n in model.all_nodes().into_iter().rev() {
        let in_function = |m: &Model| bodies.contains(&m.node(n).graph());
        if model.try_node(n).is_none() || !is_reshape(model, n) || in_function(model) {
            continue;
        }
        let Some(out) = model.node(n).output(0) else { continue };
        let chain = above(model, n);
        // Back to the shape of something above: that is the result, whoever else reads what is between.
        if let Some(&(x, _)) = chain.iter().find(|(x, _)| same_shape(&types, *x, out)) {
            fused += usize::from(bypass(model, n, x));
        } else if let Some((x, target)) = reachable(&types, &chain, out) {
            become_reshape(model, n, x, &target);
            fused += 1;
        }
    }
    Ok(fused)
}

/// The inputs of the chain of shape changes that ends in `n`, nearest first but for the input of `n` itself; and whether
/// all between is read by the chain alone.
fn above(model: &Model, n: NodeId) -> Vec<(ValueId, bool)> {
    let mut found = Vec::new();
    let (mut at, mut private) = (n, true);
    while let Some(v) = model.node(at).input(0) {
        if at != n {
            found.push((v, private));
        }
        match model.producer(v).filter(|&p| is_reshape(model, p) && model.node(p).graph() == model.node(n).graph()) {
            Some(p) if found.len() < 64 => at = p,
            _ => break,
        }
        private &= model.value(v).uses().len() == 1;
    }
    found
}

/// The furthest value from which one Reshape with a constant target leads to `out`.
fn reachable(types: &Types, chain: &[(ValueId, bool)], out: ValueId) -> Option<(ValueId, Vec<i64>)> {
    let to = types.shape(out)?;
    chain
        .iter()
        .rev()
        .filter(|(_, private)| *private)
        .find_map(|&(x, _)| Some((x, reshape_target(types.shape(x)?, to)?)))
}

fn become_reshape(model: &mut Model, n: NodeId, x: ValueId, target: &[i64]) {
    let name = model.node(n).output(0).map_or_else(String::new, |v| format!("{}_shape", model.value(v).name()));
    let target = model.add_initializer(model.main(), &name, Tensor::from_i64(&[target.len()], target));
    model.truncate_inputs(n, 0);
    model.push_input(n, Some(x));
    model.push_input(n, Some(target));
    let node = model.node_mut(n);
    node.op_type = "Reshape".to_owned();
    node.attributes.clear();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped};

    #[test]
    fn there_and_back() {
        check(
            run,
            "(float[b,3,1] x) => (y, z) <int64[1] two = {2}> {
                s = Squeeze(x, two)
                u = Unsqueeze(s, two)
                y = Relu(u)
                z = Neg(s)
             }",
            "(float[b,3,1] x) => (y, z) <int64[1] two = {2}> { s = Squeeze(x, two) y = Relu(x) z = Neg(s) }",
        );
    }

    #[test]
    fn three_become_one() {
        check(
            run,
            "(float[b,3,4,1] x) => (y) <int64[1] three = {3}, int64[3] to = {0, 2, 6}> {
                s = Squeeze(x, three)
                r = Reshape(s, to)
                f = Flatten(r)
                y = Relu(f)
             }",
            "(float[b,3,4,1] x) => (y) <int64[2] f_shape = {0, 12}> { f = Reshape(x, f_shape) y = Relu(f) }",
        );
    }

    #[test]
    fn one_alone_stays() {
        check_skipped(run, "(float[b,3] x) => (y) <int64[1] i = {0}> { u = Unsqueeze(x, i) y = Relu(u) }", "");
    }
}
