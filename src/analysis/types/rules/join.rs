//! Putting tensors together and apart: Concat, Split, Pad.

use super::{Cx, Rule};
use crate::analysis::types::{SymDim, SymInt, cx::resolve_axis, symbols::Func};

pub(super) const RULES: &[(&[&str], Rule)] = &[
    (&["Concat"], |cx| concat(cx, 0, 1)),
    (&["com.microsoft.QLinearConcat"], |cx| concat(cx, 2, 3)),
    (&["Split"], split),
    (&["Pad"], pad),
];

/// Joins every `every`th input from `first` on.
fn concat(cx: &mut Cx<'_>, first: usize, every: usize) -> Option<()> {
    let parts: Vec<usize> = (first..cx.node().inputs().len()).step_by(every).collect();
    let dtype = parts.iter().find_map(|&i| cx.dtype(i));
    cx.set(0, dtype, None);
    let rank = parts.iter().find_map(|&i| cx.rank(i))?;
    let axis = cx.axis(1, rank)?;
    let mut dims = vec![SymInt::Unknown; rank];
    dims[axis] = SymInt::Known(0);
    for &i in &parts {
        let sizes = cx.sizes(i).filter(|s| s.len() == rank).unwrap_or_else(|| vec![SymInt::Unknown; rank]);
        for (k, (dim, size)) in dims.iter_mut().zip(sizes).enumerate() {
            if k == axis {
                *dim = cx.symbols().add(*dim, size);
            } else if !matches!(dim, SymInt::Known(_)) && size != SymInt::Unknown {
                // All parts agree here: the first number, else the first symbol.
                *dim = if *dim == SymInt::Unknown || matches!(size, SymInt::Known(_)) { size } else { *dim };
            }
        }
    }
    cx.set(0, dtype, Some(dims.into_iter().map(SymInt::dim).collect()));
    if rank == 1 {
        let mut ints = Vec::new();
        for &i in &parts {
            match (cx.ints(i), cx.known_shape(i).as_deref()) {
                (Some(part), _) => ints.extend(part),
                (None, Some(&[n])) if n <= super::super::MOST_INTS => {
                    ints.extend(std::iter::repeat_n(SymInt::Unknown, n))
                }
                _ => return None,
            }
        }
        cx.set_ints(0, Some(ints));
    }
    Some(())
}

fn split(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    let count = cx.node().outputs().len();
    for i in 0..count {
        cx.set(i, dtype, None);
    }
    let x = cx.sizes(0)?;
    let axis = cx.axis(0, x.len())?;
    let parts: Vec<SymInt> = match cx.node().ints("split") {
        Some(s) => s.iter().map(|&n| SymInt::Known(n)).collect(),
        None if cx.has(1) => cx.ints(1).unwrap_or_else(|| vec![SymInt::Unknown; count]),
        None => {
            let n = SymInt::Known(i64::try_from(count).ok().filter(|&n| n > 0)?);
            let s = cx.symbols();
            // Parts of equal size but for the last, which is smaller where they do not fit.
            let up = s.add(x[axis], SymInt::Known(n.known()? - 1));
            let each = s.exact_div(x[axis], n).unwrap_or_else(|| s.div(Func::FloorDiv, up, n));
            let before = s.mul(each, SymInt::Known(n.known()? - 1));
            let rest = s.sub(x[axis], before);
            let last = if s.exact_div(x[axis], n).is_some() { each } else { rest };
            let mut parts = vec![each; count - 1];
            parts.push(last);
            parts
        }
    };
    let content = cx.ints(0).filter(|_| x.len() == 1);
    let mut from = 0usize;
    for i in 0..count {
        let part = parts.get(i).copied().unwrap_or(SymInt::Unknown);
        let mut dims: Vec<SymDim> = x.iter().map(|d| d.dim()).collect();
        dims[axis] = part.dim();
        cx.set(i, dtype, Some(dims));
        if let (Some(content), Some(n)) = (&content, part.known().and_then(|n| usize::try_from(n).ok())) {
            let ints = content.get(from..from.saturating_add(n)).map(<[_]>::to_vec);
            cx.set_ints(i, ints);
            from = from.saturating_add(n);
        }
    }
    Some(())
}

fn pad(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    let rank = cx.rank(0);
    let dims = rank.and_then(|r| cx.fresh_dims(r));
    cx.set(0, dtype, dims);
    let mut x = cx.sizes(0)?;
    let pads: Vec<SymInt> = match cx.node().ints("pads").or_else(|| cx.node().ints("paddings")) {
        Some(p) => p.iter().map(|&n| SymInt::Known(n)).collect(),
        None => cx.ints(1)?,
    };
    let axes: Vec<usize> = if cx.has(3) {
        cx.known_ints(3)?.into_iter().map(|a| resolve_axis(a, x.len())).collect::<Option<_>>()?
    } else {
        (0..x.len()).collect()
    };
    if pads.len() != 2 * axes.len() {
        return None;
    }
    for (k, &axis) in axes.iter().enumerate() {
        let s = cx.symbols();
        let both = s.add(pads[k], pads[k + axes.len()]);
        x[axis] = s.add(x[axis], both);
    }
    cx.set(0, dtype, Some(x.into_iter().map(SymInt::dim).collect()));
    Some(())
}
