//! Takes Dropout out where it does nothing, which is in inference.
//!
//! ```text
//! before: d = Dropout(x, 0.5); y = Relu(d)      after: y = Relu(x)
//! ```
//!
//! One in training mode, or with a reader of its mask, stays.

use super::{Context, support::replace::bypass};
use crate::{
    error::Result,
    ir::{Model, Node, NodeId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut gone = 0;
    for n in model.all_nodes() {
        if model.try_node(n).is_some_and(|node| node.is("Dropout"))
            && !trains(model, n)
            && let Some(x) = model.node(n).input(0)
        {
            gone += usize::from(bypass(model, n, x));
        }
    }
    Ok(gone)
}

/// Input 2 is the mode since opset 12; before, all but the very first versions were for inference only.
pub(crate) fn trains(model: &Model, n: NodeId) -> bool {
    let node: &Node = model.node(n);
    match node.input(2) {
        Some(_) => model.constant_input(n, 2).and_then(|t| t.scalar_i64()) != Some(0),
        None => model.opset("").is_some_and(|v| v < 7) && node.int("is_test").unwrap_or(0) == 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::check;

    #[test]
    fn inference_only() {
        check(
            run,
            "<ir_version: 8, opset_import: [\"\" : 17]>
             g (float[2] x) => (y, mask) <float ratio = {0.5}, bool off = {0}, bool on = {1}> {
                a = Dropout(x, ratio, off)
                b = Dropout(a, ratio)
                c = Dropout(b, ratio, on)
                d, mask = Dropout(c)
                y = Relu(d)
             }",
            "<ir_version: 8, opset_import: [\"\" : 17]>
             g (float[2] x) => (y, mask) <float ratio = {0.5}, bool on = {1}> {
                c = Dropout(x, ratio, on)
                d, mask = Dropout(c)
                y = Relu(d)
             }",
        );
    }
}
