//! Removes nodes and initializers that nothing reads.
//!
//! ```text
//! before: y = Relu(x); unused = Exp(x); return y      after: y = Relu(x); return y
//! ```
//!
//! Graph inputs stay, also those with an initial value: callers may feed them.

use super::Context;
use crate::{error::Result, ir::Model};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut removed = 0;
    for g in model.graph_ids() {
        // Subgraphs of removed nodes are gone by the time their turn comes.
        if model.try_graph(g).is_none() {
            continue;
        }
        for n in model.nodes(g).into_iter().rev() {
            let used = |v| !model.value(v).uses().is_empty();
            if !model.node(n).outputs().iter().flatten().any(|&v| used(v)) {
                model.remove_node(n);
                removed += 1;
            }
        }
    }
    for v in model.value_ids() {
        let value = model.value(v);
        let origin = value.is_input() || value.producer().is_some();
        if value.uses().is_empty() && !origin {
            model.remove_value(v);
            removed += 1;
        }
    }
    Ok(removed)
}
