//! Makes a Transpose of more dims of one that stands between two Reshapes.
//!
//! ```text
//! before: a = Reshape(x: [b,12,s,32]) to [12*b,s,32]; t = Transpose<perm = [0,2,1]>(a); y = Reshape(t) to [b,12,32,s]
//! after:  y = Transpose<perm = [0,1,3,2]>(x)
//! ```
//!
//! That is how exporters turn the keys of an attention round.

use super::Context;
use crate::{
    analysis::types::{self, SymDim, SymInt, Types},
    error::Result,
    ir::{Attr, Model, NodeId, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut types = types::infer(model);
    let mut fused = 0;
    for n in model.all_nodes() {
        let Some((x, perm)) = whole(model, &mut types, n) else { continue };
        model.truncate_inputs(n, 0);
        model.push_input(n, Some(x));
        let node = model.node_mut(n);
        node.op_type = "Transpose".to_owned();
        node.attributes = vec![Attr::new("perm", perm)];
        fused += 1;
    }
    Ok(fused)
}

/// What a Reshape behind Transpose behind Reshape is a Transpose of, and its order.
fn whole(model: &Model, types: &mut Types, last: NodeId) -> Option<(ValueId, Vec<i64>)> {
    let behind = |n: NodeId, op: &str| model.producer(model.node(n).input(0)?).filter(|&p| model.node(p).is(op));
    if !model.node(last).is("Reshape") {
        return None;
    }
    let middle = behind(last, "Transpose")?;
    let first = behind(middle, "Reshape")?;
    // A second reader would keep the old Transpose too.
    if model.value(model.node(middle).output(0)?).uses().len() != 1 {
        return None;
    }
    let perm = model.node(middle).ints("perm")?;
    let x = model.node(first).input(0)?;
    let from = types.shape(x)?.to_vec();
    let between = types.shape(model.node(first).output(0)?)?.to_vec();
    let to = types.shape(model.node(last).output(0)?)?.to_vec();
    // Each dim in between is a product of neighbouring dims of x, which the last Reshape must take apart again.
    let groups = groups(types, &from, &between)?;
    let order: Vec<usize> = perm
        .iter()
        .map(|&p| usize::try_from(p).ok().and_then(|p| groups.get(p)).cloned())
        .collect::<Option<Vec<_>>>()?
        .concat();
    let same = perm.len() == between.len() && order.len() == from.len();
    let fits = same && order.iter().map(|&i| from[i]).eq(to.iter().copied()) && !to.contains(&SymDim::Unknown);
    Some((x, order.into_iter().map(|i| i as i64).collect())).filter(|_| fits)
}

/// Splits `from` into neighbouring dims with the products `into`.
fn groups(types: &mut Types, from: &[SymDim], into: &[SymDim]) -> Option<Vec<Vec<usize>>> {
    let mut groups = Vec::with_capacity(into.len());
    let mut next = 0;
    for &want in into {
        let first = next;
        loop {
            next += 1;
            if next > from.len() {
                return None;
            }
            if types.product(&from[first..next]) == SymInt::from(want) {
                break;
            }
        }
        groups.push((first..next).collect());
    }
    (next == from.len()).then_some(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped};

    #[test]
    fn keys_are_turned_round_at_once() {
        check(
            run,
            "<ir_version: 8, opset_import: [\"\" : 17]>
             g (float[b,12,s,32] x) => (y) <int64[1] minus = {-1}> {
                s1 = Shape <start = 2> (x)
                to = Concat <axis = 0> (minus, s1)
                a = Reshape(x, to)
                t = Transpose <perm = [0, 2, 1]> (a)
                bh = Shape <end = 2> (x)
                w = Shape <start = 3> (x)
                s2 = Shape <start = 2, end = 3> (x)
                back = Concat <axis = 0> (bh, w, s2)
                y = Reshape(t, back)
             }",
            "<ir_version: 8, opset_import: [\"\" : 17]>
             g (float[b,12,s,32] x) => (y) { y = Transpose <perm = [0, 1, 3, 2]> (x) }",
        );
    }

    #[test]
    fn other_cuts_stay() {
        check_skipped(
            run,
            "(float[2,12,8,32] x) => (y) <int64[3] to = {6, 32, 32}, int64[4] back = {2, 12, 32, 8}> {
                a = Reshape(x, to)
                t = Transpose <perm = [0, 2, 1]> (a)
                y = Reshape(t, back)
             }",
            "",
        );
    }
}
