//! Brings the nodes of every graph into an order in which values are made before they are read.
//!
//! ```text
//! before: z = Neg(y); y = Abs(x)      after: y = Abs(x); z = Neg(y)
//! ```

use super::Context;
use crate::{error::Result, ir::Model};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut moved = 0;
    for g in model.graph_ids() {
        moved += usize::from(model.sort(g)?);
    }
    Ok(moved)
}
