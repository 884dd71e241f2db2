//! Constants as -1e9 or the least float, which are added to logits so that a Softmax makes nothing of them. In 16 bits they
//! would be infinite, and a row of nothing else, or a product with 0, not a number. Any number far below logits does as well.

use std::collections::BTreeSet;

use super::{Work, constants};
use crate::{
    error::Result,
    ir::{DType, NodeId, Tensor, ValueId},
    quant::halves::largest,
};

/// What such constants are limited to: a Softmax in 16 or 32 bits makes 0 of it beside any logit of float16, and three masks
/// together stay finite.
const LIMIT: f32 = 16384.0;
/// Nodes that are followed from one constant.
const FARTHEST: usize = 64;

/// Operators that a mask goes through on its way.
const THROUGH: &[&str] = &[
    "Add",
    "Cast",
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Max",
    "Mul",
    "Reshape",
    "ScatterND",
    "Slice",
    "Split",
    "Squeeze",
    "Sub",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
];

/// Limits the constants that are masks and would overflow.
pub(super) fn limit(work: &mut Work<'_>) -> Result<()> {
    let model = work.model();
    let most = largest(work.task.dtype);
    let mut found: Vec<(ValueId, &Tensor)> = Vec::new();
    for v in model.value_ids() {
        found.extend(model.value(v).constant().map(|t| (v, t)));
    }
    for &n in &work.nodes {
        let node = model.node(n);
        found.extend(node.output(0).zip(node.tensor("value").filter(|_| node.is("ConstantOfShape"))));
    }
    for (v, t) in found {
        let mut overflows = false;
        if t.dtype() == DType::Float {
            constants::each(t, |x| overflows |= x.is_finite() && x.abs() > most)?;
        }
        if !overflows {
            continue;
        }
        if let Some(reached) = only_softmaxes(work, v) {
            work.limited.insert(v, LIMIT);
            work.masked.extend(reached);
        }
    }
    Ok(())
}

/// The values that are made of a value, if all ways from it end in a Softmax.
fn only_softmaxes(work: &Work<'_>, start: ValueId) -> Option<BTreeSet<ValueId>> {
    let model = work.model();
    let (mut reached, mut todo, mut ends) = (BTreeSet::from([start]), vec![start], false);
    while let Some(v) = todo.pop() {
        if model.value(v).is_graph_output() || reached.len() > FARTHEST {
            return None;
        }
        for (n, _) in model.value(v).readers() {
            let node = model.node(n);
            if node.is("Softmax") || node.is("LogSoftmax") {
                ends = true;
                continue;
            }
            if !THROUGH.iter().any(|op| node.is(op)) || !makes_floats(work, n) {
                return None;
            }
            todo.extend(node.outputs().iter().copied().flatten().filter(|&o| reached.insert(o)));
        }
    }
    ends.then_some(reached)
}

fn makes_floats(work: &Work<'_>, n: NodeId) -> bool {
    !work.outputs(n).is_empty()
}
