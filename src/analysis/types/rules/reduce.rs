//! Reductions, and normalizations that hand out statistics.

use super::{Cx, Rule};
use crate::{
    analysis::types::{SymDim, SymInt},
    ir::DType,
};

#[rustfmt::skip]
pub(super) const RULES: &[(&[&str], Rule)] = &[
    (&["ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
        "ReduceSum", "ReduceSumSquare"], reduce),
    (&["ArgMax", "ArgMin"], arg),
    (&["BatchNormalization"], batch_normalization),
    (&["LayerNormalization", "SimplifiedLayerNormalization"], layer_normalization),
];

fn reduce(cx: &mut Cx<'_>) -> Option<()> {
    let (dtype, keep) = (cx.dtype(0), cx.int("keepdims", 1) != 0);
    cx.set(0, dtype, None);
    let shape = cx.shape(0)?;
    let axes = match cx.axes(1, shape.len()) {
        Some(Some(axes)) if !axes.is_empty() => axes,
        Some(_) if cx.int("noop_with_empty_axes", 0) != 0 => Vec::new(),
        Some(_) => (0..shape.len()).collect(),
        // How many axes there are is known even where they themselves are not.
        None => {
            let rank = if keep { Some(shape.len()) } else { reduced_rank(cx, shape.len()) };
            let dims = rank.and_then(|r| cx.fresh_dims(r));
            cx.set(0, dtype, dims);
            return None;
        }
    };
    let all = axes.len() == shape.len();
    let dims = shape.iter().enumerate().filter_map(|(i, &d)| match (axes.contains(&i), keep) {
        (false, _) => Some(d),
        (true, true) => Some(SymDim::Known(1)),
        (true, false) => None,
    });
    cx.set(0, dtype, Some(dims.collect()));
    let op = cx.node().op_type.as_str();
    let ints = cx.ints(0).filter(|_| all)?;
    let s = cx.symbols();
    let total = match op {
        "ReduceProd" => s.product(ints),
        "ReduceSum" => ints.into_iter().fold(SymInt::Known(0), |a, b| s.add(a, b)),
        "ReduceMax" => ints.into_iter().reduce(|a, b| s.max(a, b))?,
        "ReduceMin" => ints.into_iter().reduce(|a, b| s.min(a, b))?,
        _ => return None,
    };
    cx.set_ints(0, Some(vec![total]));
    Some(())
}

fn reduced_rank(cx: &Cx<'_>, rank: usize) -> Option<usize> {
    let axes = cx.known_shape(1)?.iter().product::<usize>();
    rank.checked_sub(axes).filter(|_| axes > 0)
}

fn arg(cx: &mut Cx<'_>) -> Option<()> {
    cx.set(0, Some(DType::Int64), None);
    let mut dims = cx.shape(0)?;
    let axis = cx.axis(0, dims.len())?;
    if cx.int("keepdims", 1) != 0 {
        dims[axis] = SymDim::Known(1);
    } else {
        dims.remove(axis);
    }
    cx.set(0, Some(DType::Int64), Some(dims));
    Some(())
}

fn batch_normalization(cx: &mut Cx<'_>) -> Option<()> {
    cx.same()?;
    let channel = cx.dtype(4).zip(cx.shape(4));
    for i in 1..cx.node().outputs().len() {
        let (dtype, shape) = channel.clone().unzip();
        cx.set(i, dtype, shape);
    }
    Some(())
}

/// Outputs behind the first are mean and inverse standard deviation: the normalized axes are 1 in them.
fn layer_normalization(cx: &mut Cx<'_>) -> Option<()> {
    cx.same()?;
    let mut dims = cx.shape(0)?;
    let axis = cx.axis(-1, dims.len())?;
    dims[axis..].fill(SymDim::Known(1));
    for i in 1..cx.node().outputs().len() {
        cx.set(i, Some(DType::Float), Some(dims.clone()));
    }
    Some(())
}
