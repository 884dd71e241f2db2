//! Numbers whose rounding moves something: what becomes an index or a size, and angles of trigonometric functions. What they
//! are computed from keeps 32 bits.

use std::collections::BTreeSet;

use super::Work;
use crate::{
    ir::{DType, NodeId, ValueId},
    ops::{self, Class},
};

/// Operators that bring numbers to where they count; what is in front of others is data.
const BEFORE: &[&str] = &[
    "Abs",
    "Add",
    "Cast",
    "Ceil",
    "Clip",
    "Concat",
    "ConstantOfShape",
    "CumSum",
    "Div",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "Identity",
    "MatMul",
    "Max",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "Pow",
    "Range",
    "Reciprocal",
    "Reshape",
    "Round",
    "Slice",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// Angles within this are exact enough in 16 bits, radians.
const SMALL_ANGLE: f32 = 4.0;
/// Weights of more numbers are learned, not made for angles.
const LEARNED: usize = 4096;

/// Keeps them in 32 bits.
pub(super) fn look(work: &mut Work<'_>) {
    let model = work.model();
    for n in work.nodes.clone() {
        let node = model.node(n);
        let Some(x) = node.input(0).filter(|&x| work.is_float(x)) else { continue };
        let counts = node.is("Cast") && node.output(0).and_then(|v| work.types.dtype(v)).is_some_and(DType::is_integer);
        let turns = ["Sin", "Cos", "Tan"].iter().any(|op| node.is(op))
            && work.seen(x).is_none_or(|seen| seen.largest() > SMALL_ANGLE);
        if counts {
            keep_before(work, n, x, "counts: its numbers become indices or sizes");
        } else if turns {
            keep_before(work, n, x, "is an angle: rounding turns it by too much");
        }
    }
}

fn keep_before(work: &mut Work<'_>, n: NodeId, x: ValueId, reason: &str) {
    let model = work.model();
    work.exact.insert(n);
    work.keep(n, format!("what it reads {reason}"));
    let (mut seen, mut todo) = (BTreeSet::new(), vec![x]);
    while let Some(maker) = todo.pop().and_then(|v| model.producer(v)) {
        if seen.insert(maker) && is_before(work, maker) {
            work.exact.insert(maker);
            work.keep(maker, format!("what it makes {reason}"));
            todo.extend(work.inputs(maker));
        }
        // `todo` may hold values that no node makes in front of others.
        while todo.last().is_some_and(|&v| model.producer(v).is_none()) {
            todo.pop();
        }
    }
}

fn is_before(work: &Work<'_>, n: NodeId) -> bool {
    let (model, node) = (work.model(), work.model().node(n));
    let learned = |v: &ValueId| model.value(*v).constant().is_some_and(|t| t.len() > LEARNED);
    let product = ops::spec(model, n).is_some_and(|s| s.class == Class::Product);
    BEFORE.iter().any(|op| node.is(op)) && !(product && work.inputs(n).iter().any(learned))
}
