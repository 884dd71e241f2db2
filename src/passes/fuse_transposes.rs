//! Makes one Transpose of two in a row.
//!
//! ```text
//! before: t = Transpose<perm = [0,2,1]>(x); y = Transpose<perm = [1,0,2]>(t)      after: y = Transpose<perm = [2,0,1]>(x)
//! ```
//!
//! One that is left in its input's order is taken out by [`super::eliminate_noop`]. The first stays where others read it.

use super::Context;
use crate::{
    error::Result,
    ir::{Attr, Model, NodeId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut fused = 0;
    for n in model.all_nodes() {
        let Some((first, perm)) = composed(model, n) else { continue };
        let x = model.node(first).input(0);
        model.set_input(n, 0, x);
        let node = model.node_mut(n);
        node.attributes.retain(|a| a.name != "perm");
        node.attributes.push(Attr::new("perm", perm));
        fused += 1;
    }
    Ok(fused)
}

/// The Transpose in front, and the order of both together.
fn composed(model: &Model, n: NodeId) -> Option<(NodeId, Vec<i64>)> {
    let node = model.node(n);
    let first = model.producer(node.input(0)?)?;
    if !node.is("Transpose") || !model.node(first).is("Transpose") {
        return None;
    }
    let (a, b) = (model.node(first).ints("perm")?, node.ints("perm")?);
    let perm = b.iter().map(|&i| usize::try_from(i).ok().and_then(|i| a.get(i)).copied());
    Some((first, perm.collect::<Option<_>>().filter(|_| a.len() == b.len())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::check;

    #[test]
    fn orders_are_composed() {
        check(
            run,
            "(float[a,b,c] x) => (y) { t = Transpose <perm = [0, 2, 1]> (x) y = Transpose <perm = [1, 0, 2]> (t) }",
            "(float[a,b,c] x) => (y) { y = Transpose <perm = [2, 0, 1]> (x) }",
        );
    }
}
