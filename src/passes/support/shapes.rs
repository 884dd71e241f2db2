//! Shapes as constants: what a Reshape or Expand must be told.

use crate::{
    analysis::types::{SymDim, Types},
    ir::{Model, NodeId, ValueId},
};

/// The constant target that reshapes something of shape `from` to `to`: 0 copies a dim, one -1 is left to be computed.
/// `None` where `to` has more open dims than that.
pub fn reshape_target(from: &[SymDim], to: &[SymDim]) -> Option<Vec<i64>> {
    let mut open = 0;
    let mut target = Vec::with_capacity(to.len());
    for (i, &d) in to.iter().enumerate() {
        target.push(match d {
            SymDim::Known(0) => return None,
            SymDim::Known(n) => i64::try_from(n).ok()?,
            SymDim::Symbol(_) if from.get(i) == Some(&d) => 0,
            _ => {
                open += 1;
                -1
            }
        });
    }
    (open <= 1).then_some(target)
}

/// The constant target that expands `from` to `to`: 1 keeps a dim.
pub fn expand_target(from: &[SymDim], to: &[SymDim]) -> Option<Vec<i64>> {
    let missing = to.len().checked_sub(from.len())?;
    let dim = |(i, &d): (usize, &SymDim)| match d {
        SymDim::Known(n) => i64::try_from(n).ok(),
        d => (i >= missing && from[i - missing] == d).then_some(1),
    };
    to.iter().enumerate().map(dim).collect()
}

/// Whether a node gives the elements of its first input another shape and does nothing else.
pub fn is_reshape(model: &Model, n: NodeId) -> bool {
    ["Reshape", "Flatten", "Squeeze", "Unsqueeze"].iter().any(|op| model.node(n).is(op))
}

/// Whether two values certainly have one shape.
pub fn same_shape(types: &Types, a: ValueId, b: ValueId) -> bool {
    match (types.shape(a), types.shape(b)) {
        (Some(a), Some(b)) => a == b && !a.contains(&SymDim::Unknown),
        _ => false,
    }
}
