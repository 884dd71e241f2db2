//! Reductions. Sums of floats are added up in f64: runtimes add in different orders, and this is nearest to all of them.

use super::{
    Eval,
    args::{Args, resolve_axis},
    arithmetic::Numbers,
    strided::{Walk, steps},
};
use crate::ir::{DType, Tensor};

pub(super) const EVALS: &[(&[&str], Eval)] = &[
    (&["ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"], reduce),
    (&["CumSum"], cumulate),
];

fn reduce(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let x = a.tensor(0)?;
    let rank = x.rank();
    let axes: Vec<usize> = match a.list("axes", 1)? {
        Some(axes) if !axes.is_empty() => axes.into_iter().map(|n| resolve_axis(n, rank)).collect::<Option<_>>()?,
        _ if a.int("noop_with_empty_axes", 0) != 0 => return Some(vec![x.clone()]),
        _ => (0..rank).collect(),
    };
    // The reduced axes go last: each result is then a run of neighbours.
    let kept: Vec<usize> = (0..rank).filter(|i| !axes.contains(i)).collect();
    let order: Vec<usize> = kept.iter().copied().chain((0..rank).filter(|i| axes.contains(i))).collect();
    let own = steps(x.dims());
    let dims: Vec<usize> = order.iter().map(|&i| x.dims()[i]).collect();
    let walk = Walk { steps: order.iter().map(|&i| own[i]).collect(), start: 0, dims };
    let run: usize = walk.dims[kept.len()..].iter().product();
    if run == 0 {
        return None;
    }
    let keep = a.int("keepdims", 1) != 0;
    let dims: Vec<usize> = (0..rank)
        .filter(|i| keep || !axes.contains(i))
        .map(|i| if axes.contains(&i) { 1 } else { x.dims()[i] })
        .collect();
    let op = a.node.op_type.as_str();
    let out = match Numbers::of(&walk.copy(x)?)? {
        Numbers::F32(v) => Numbers::F32(
            v.chunks_exact(run)
                .map(|c| float(op, c.iter().map(|&x| x.into())).map(|r| r as f32))
                .collect::<Option<_>>()?,
        ),
        Numbers::F64(v) => {
            Numbers::F64(v.chunks_exact(run).map(|c| float(op, c.iter().copied())).collect::<Option<_>>()?)
        }
        Numbers::I32(v) => {
            let all = v.chunks_exact(run).map(|c| i32::try_from(int(op, c.iter().map(|&x| x.into()))?).ok());
            Numbers::I32(all.collect::<Option<_>>()?)
        }
        Numbers::I64(v) => {
            Numbers::I64(v.chunks_exact(run).map(|c| int(op, c.iter().copied())).collect::<Option<_>>()?)
        }
    };
    Some(vec![out.tensor(&dims)?])
}

fn float(op: &str, v: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let n = v.len() as f64;
    Some(match op {
        "ReduceSum" => v.sum(),
        "ReduceMean" => v.sum::<f64>() / n,
        "ReduceProd" => v.product(),
        "ReduceMax" => v.fold(f64::NEG_INFINITY, |a, b| if a.is_nan() || a > b { a } else { b }),
        "ReduceMin" => v.fold(f64::INFINITY, |a, b| if a.is_nan() || a < b { a } else { b }),
        "ReduceL2" => v.map(|x| x * x).sum::<f64>().sqrt(),
        "ReduceSumSquare" => v.map(|x| x * x).sum(),
        _ => return None,
    })
}

fn int(op: &str, mut v: impl Iterator<Item = i64>) -> Option<i64> {
    match op {
        "ReduceSum" => v.try_fold(0i64, i64::checked_add),
        "ReduceProd" => v.try_fold(1i64, i64::checked_mul),
        "ReduceMax" => v.max(),
        "ReduceMin" => v.min(),
        _ => None,
    }
}

/// Running sums of integers along an axis.
fn cumulate(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let x = a.tensor(0).filter(|t| matches!(t.dtype(), DType::Int64 | DType::Int32))?;
    let axis = resolve_axis(a.scalar(1)?, x.rank())?;
    let (exclusive, reverse) = (a.int("exclusive", 0) != 0, a.int("reverse", 0) != 0);
    let mut v = x.to_i64().ok()?;
    let (len, step) = (x.dims()[axis], steps(x.dims())[axis] as usize);
    for first in (0..v.len()).filter(|i| i / step % len == 0) {
        let mut sum = 0i64;
        for k in 0..len {
            let i = first + step * if reverse { len - 1 - k } else { k };
            let own = v[i];
            v[i] = if exclusive { sum } else { sum.checked_add(own)? };
            sum = sum.checked_add(own)?;
        }
    }
    let out = match x.dtype() {
        DType::Int64 => Numbers::I64(v),
        _ => Numbers::I32(v.into_iter().map(|n| i32::try_from(n).ok()).collect::<Option<_>>()?),
    };
    Some(vec![out.tensor(x.dims())?])
}
