//! Operators that pick elements.

use super::{Cx, Dims, Rule};
use crate::{
    analysis::types::{
        SymDim, SymInt,
        cx::resolve_axis,
        symbols::{Func, Symbols},
    },
    ir::DType,
};

#[rustfmt::skip]
pub(super) const RULES: &[(&[&str], Rule)] = &[
    (&["Slice"], slice),
    (&["Gather"], gather),
    (&["com.microsoft.GatherBlockQuantized"], gather_blocks),
    (&["GatherElements"], |cx| { let (d, s) = (cx.dtype(0), cx.shape(1)); cx.set(0, d, s); Some(()) }),
    (&["GatherND"], gather_nd),
    (&["Scatter", "ScatterElements", "ScatterND", "TensorScatter"], |cx| cx.same()),
    (&["TopK"], top_k),
    (&["OneHot"], one_hot),
    (&["NonZero"], |cx| { let rank = cx.rank(0).map_or(SymDim::Unknown, SymDim::Known); cx.set(0, Some(DType::Int64), Some(vec![rank, SymDim::Unknown])); Some(()) }),
    (&["NonMaxSuppression"], |cx| { cx.set(0, Some(DType::Int64), Some(vec![SymDim::Unknown, SymDim::Known(3)])); Some(()) }),
    (&["Compress"], compress),
    (&["Unique"], unique),
];

fn slice(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let x = cx.sizes(0)?;
    let node = cx.node();
    let list = |cx: &Cx<'_>, name: &str, i: usize| match node.ints(name) {
        Some(v) => Some(v.iter().map(|&n| SymInt::Known(n)).collect::<Vec<_>>()),
        None => cx.ints(i),
    };
    let starts = list(cx, "starts", 1);
    let ends = list(cx, "ends", 2);
    let given = |name: &str, i: usize| node.ints(name).is_some() || cx.has(i);
    let count = match (&starts, &ends) {
        (Some(s), _) | (_, Some(s)) => s.len(),
        _ => cx.known_shape(1).or_else(|| cx.known_shape(2))?.iter().product(),
    };
    let axes: Option<Vec<usize>> = if given("axes", 3) {
        list(cx, "axes", 3).and_then(|a| a.into_iter().map(|a| resolve_axis(a.known()?, x.len())).collect())
    } else {
        Some((0..count.min(x.len())).collect())
    };
    let steps = if cx.has(4) { cx.ints(4) } else { Some(vec![SymInt::Known(1); count]) };
    let Some(axes) = axes.filter(|a| a.len() == count) else {
        let dims = cx.fresh_dims(x.len());
        cx.set(0, dtype, dims);
        return None;
    };
    let mut dims = x.clone();
    let mut at = Vec::new();
    for (k, &axis) in axes.iter().enumerate() {
        let item = |v: &Option<Vec<SymInt>>| v.as_ref().and_then(|v| v.get(k)).copied().unwrap_or(SymInt::Unknown);
        let (start, step) = (item(&starts), item(&steps));
        dims[axis] = range(cx.symbols(), x[axis], start, item(&ends), step);
        at.push((start, step));
    }
    cx.set(0, dtype, Some(dims.iter().map(|d| d.dim()).collect()));
    // The content of a vector.
    let ints = cx.ints(0)?;
    let (&[(SymInt::Known(start), SymInt::Known(step))], &[SymInt::Known(count)]) = (at.as_slice(), dims.as_slice())
    else {
        return None;
    };
    let len = i64::try_from(ints.len()).ok()?;
    let first = if start < 0 { start.checked_add(len)? } else { start }.clamp(0, if step < 0 { len - 1 } else { len });
    let pick = |i: i64| ints.get(usize::try_from(first.checked_add(i.checked_mul(step)?)?).ok()?).copied();
    cx.set_ints(0, (0..count).map(pick).collect());
    Some(())
}

/// How many elements `start..end` with `step` takes of a dim.
fn range(s: &mut Symbols, dim: SymInt, start: SymInt, end: SymInt, step: SymInt) -> SymInt {
    if let (SymInt::Known(d), SymInt::Known(a), SymInt::Known(b), SymInt::Known(n)) = (dim, start, end, step) {
        let place = |i: i64| if i < 0 { i.saturating_add(d) } else { i };
        return SymInt::Known(match n {
            0 => return SymInt::Unknown,
            n if n > 0 => {
                let (a, b) = (place(a).clamp(0, d), place(b).clamp(0, d));
                (b - a).max(0).checked_add(n - 1).map_or(1, |span| span / n)
            }
            n => {
                let (a, b) = (place(a).clamp(0, (d - 1).max(0)), place(b).clamp(-1, (d - 1).max(-1)));
                let span = (a - b).max(0);
                if d == 0 {
                    0
                } else {
                    span / n.saturating_neg().max(1) + i64::from(span % n.saturating_neg().max(1) != 0)
                }
            }
        });
    }
    // Exporters write the largest int32 or int64 for "to the end".
    const FAR: i64 = i32::MAX as i64;
    let zero = SymInt::Known(0);
    if step == SymInt::Known(-1) && start == SymInt::Known(-1) && end.known().is_some_and(|e| e <= -FAR) {
        return dim;
    }
    if step.known().is_none_or(|n| n <= 0) {
        return SymInt::Unknown;
    }
    let place = |s: &mut Symbols, i: SymInt, far: bool| match i {
        SymInt::Known(n) if n >= FAR && far => dim,
        SymInt::Known(n) if n < 0 => {
            let from_end = s.add(dim, i);
            s.max(from_end, zero)
        }
        SymInt::Known(_) => s.min(i, dim),
        i if s.is_natural(i) => s.min(i, dim),
        _ => SymInt::Unknown,
    };
    let (from, to) = (place(s, start, false), place(s, end, true));
    let span = s.sub(to, from);
    // `dim - min(k, dim)` and `max(dim - k, 0)` are one number: write it one way.
    let span = match (from, start) {
        (SymInt::Symbol(_), SymInt::Known(n)) if to == dim && n > 0 => s.sub(dim, start),
        _ => span,
    };
    let span = s.max(span, zero);
    let SymInt::Known(n) = step else { return SymInt::Unknown };
    let up = s.add(span, SymInt::Known(n - 1));
    s.div(Func::FloorDiv, up, step)
}

fn gather(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let (x, at) = (cx.shape(0)?, cx.shape(1)?);
    let axis = cx.axis(0, x.len())?;
    let dims: Dims = [&x[..axis], &at, &x[axis + 1..]].concat();
    cx.set(0, dtype, Some(dims));
    let (ints, at) = (cx.ints(0).filter(|_| x.len() == 1)?, cx.ints(1)?);
    let len = i64::try_from(ints.len()).ok()?;
    let pick = |i: SymInt| {
        let i = i.known().map(|i| if i < 0 { i.saturating_add(len) } else { i });
        i.and_then(|i| usize::try_from(i).ok()).and_then(|i| ints.get(i)).copied().unwrap_or(SymInt::Unknown)
    };
    cx.set_ints(0, Some(at.into_iter().map(pick).collect()));
    Some(())
}

/// The table holds packed codes; the result is of the scales' type.
fn gather_blocks(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(2);
    cx.set(0, dtype, None);
    let (x, at) = (cx.shape(0)?, cx.shape(1)?);
    let axis = resolve_axis(cx.int("gather_axis", 0), x.len())?;
    let mut dims: Dims = [&x[..axis], &at, &x[axis + 1..]].concat();
    if cx.dtype(0) == Some(DType::Uint8) && cx.int("bits", 4) < 8 {
        // Two or more codes an octet; the last may be half full.
        *dims.last_mut()? = SymDim::Unknown;
    }
    cx.set(0, dtype, Some(dims));
    Some(())
}

fn gather_nd(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let (x, at) = (cx.shape(0)?, cx.shape(1)?);
    let batch = usize::try_from(cx.int("batch_dims", 0)).ok()?;
    let depth = at.last()?.known()?;
    let rest = x.get(batch.checked_add(depth)?..)?;
    let dims = [&at[..at.len() - 1], rest].concat();
    cx.set(0, dtype, Some(dims));
    // One element of a vector, as exporters look up a size.
    if let (Some(ints), Some([SymInt::Known(i)]), 1) = (cx.ints(0), cx.ints(1).as_deref(), x.len()) {
        let len = i64::try_from(ints.len()).ok()?;
        let i = usize::try_from(if *i < 0 { i.saturating_add(len) } else { *i }).ok()?;
        cx.set_ints(0, Some(vec![*ints.get(i)?]));
    }
    Some(())
}

fn top_k(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    let shape = cx.shape(0).and_then(|mut dims| {
        let axis = cx.axis(-1, dims.len())?;
        let k = match (cx.node().int("k"), cx.ints(1).as_deref()) {
            (Some(k), _) => SymInt::Known(k),
            (None, Some([k])) => *k,
            _ => SymInt::Unknown,
        };
        dims[axis] = match k.dim() {
            SymDim::Unknown => cx.fresh(),
            k => k,
        };
        Some(dims)
    });
    cx.set(0, dtype, shape.clone());
    cx.set(1, Some(DType::Int64), shape);
    Some(())
}

fn one_hot(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(2);
    cx.set(0, dtype, None);
    let mut dims = cx.shape(0)?;
    let axis = cx.axis(-1, dims.len() + 1)?;
    let depth = match cx.ints(1).as_deref() {
        Some([n]) => n.dim(),
        _ => SymDim::Unknown,
    };
    dims.insert(axis, depth);
    cx.set(0, dtype, Some(dims));
    Some(())
}

fn compress(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let dims = match cx.node().int("axis") {
        None => vec![SymDim::Unknown],
        Some(axis) => {
            let mut dims = cx.shape(0)?;
            let axis = resolve_axis(axis, dims.len())?;
            dims[axis] = SymDim::Unknown;
            dims
        }
    };
    cx.set(0, dtype, Some(dims));
    Some(())
}

fn unique(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    let count = cx.fresh();
    let long = Some(DType::Int64);
    for (i, dim) in [(1, count), (2, SymDim::Unknown), (3, count)] {
        cx.set(i, long, Some(vec![dim]));
    }
    let dims = match cx.node().int("axis") {
        None => Some(vec![count]),
        Some(axis) => cx.shape(0).and_then(|mut dims| {
            let axis = resolve_axis(axis, dims.len())?;
            dims[axis] = count;
            Some(dims)
        }),
    };
    cx.set(0, dtype, dims);
    Some(())
}
