//! Takes Identity out.
//!
//! ```text
//! before: i = Identity(x); y = Relu(i)      after: y = Relu(x)
//! ```
//!
//! One that hands a graph input, a constant or a second name of an output out stays: names of outputs are promises.

use super::{Context, support::replace::bypass};
use crate::{error::Result, ir::Model};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut gone = 0;
    for n in model.all_nodes() {
        let Some(node) = model.try_node(n).filter(|node| node.is("Identity")) else { continue };
        if let Some(x) = node.input(0) {
            gone += usize::from(bypass(model, n, x));
        }
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped};

    #[test]
    fn in_the_middle_and_at_the_end() {
        check(run, "(float[2] x) => (y) { i = Identity(x) y = Relu(i) }", "(float[2] x) => (y) { y = Relu(x) }");
        check(run, "(float[2] x) => (y) { r = Relu(x) y = Identity(r) }", "(float[2] x) => (y) { y = Relu(x) }");
    }

    #[test]
    fn outputs_that_are_inputs_or_two_names_of_one_value_stay() {
        check_skipped(run, "(float[2] x) => (y) { y = Identity(x) }", "");
        check_skipped(run, "(float[2] x) => (r, y) { r = Relu(x) y = Identity(r) }", "");
    }
}
