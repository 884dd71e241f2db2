//! Operators that give the same elements another shape or order.

use super::{Cx, Dims, Rule};
use crate::analysis::types::{SymDim, SymInt, symbols::Func};

pub(super) const RULES: &[(&[&str], Rule)] = &[
    (&["Reshape"], reshape),
    (&["Flatten"], flatten),
    (&["Squeeze"], squeeze),
    (&["Unsqueeze"], unsqueeze),
    (&["Transpose"], transpose),
    (&["Expand"], expand),
    (&["Tile"], tile),
    (&["DepthToSpace"], |cx| blocks(cx, true)),
    (&["SpaceToDepth"], |cx| blocks(cx, false)),
];

/// Sets output 0 and passes the content on, which these operators do not touch.
fn set(cx: &mut Cx<'_>, dims: Option<Dims>) {
    let (dtype, ints) = (cx.dtype(0), cx.ints(0));
    cx.set(0, dtype, dims);
    cx.set_ints(0, ints);
}

fn reshape(cx: &mut Cx<'_>) -> Option<()> {
    set(cx, None);
    let target = match (cx.node().ints("shape"), cx.ints(1)) {
        (Some(s), _) if !cx.has(1) => s.iter().map(|&n| SymInt::Known(n)).collect(),
        (_, Some(ints)) => ints,
        // The length of the target is the new rank.
        _ => match cx.known_shape(1)?.as_slice() {
            &[rank] if rank <= super::super::MOST_DIMS => vec![SymInt::Unknown; rank],
            _ => return None,
        },
    };
    let x = cx.sizes(0);
    let copy = cx.int("allowzero", 0) == 0;
    let mut dims: Vec<SymInt> = Vec::with_capacity(target.len());
    for (i, t) in target.iter().enumerate() {
        dims.push(match t {
            SymInt::Known(0) if copy => x.as_ref().and_then(|x| x.get(i)).copied().unwrap_or(SymInt::Unknown),
            SymInt::Known(n) if *n < 0 => SymInt::Unknown,
            SymInt::Symbol(_) if !cx.symbols().is_natural(*t) => SymInt::Unknown,
            t => *t,
        });
    }
    // The number of elements stays: one open dim follows from the others.
    let open: Vec<usize> = dims.iter().enumerate().filter(|(_, d)| **d == SymInt::Unknown).map(|(i, _)| i).collect();
    if let (&[i], Some(x)) = (open.as_slice(), x) {
        dims[i] = quotient(cx, x, dims.iter().copied().filter(|d| *d != SymInt::Unknown).collect());
    }
    set(cx, Some(dims.into_iter().map(SymInt::dim).collect()));
    Some(())
}

/// The product of `above` by the product of `below`; factors that are alike on both sides go first.
fn quotient(cx: &mut Cx<'_>, mut above: Vec<SymInt>, mut below: Vec<SymInt>) -> SymInt {
    below.retain(|b| match above.iter().position(|a| a == b && *a != SymInt::Known(0)) {
        Some(i) => {
            above.remove(i);
            false
        }
        None => true,
    });
    let s = cx.symbols();
    let (above, below) = (s.product(above), s.product(below));
    s.div(Func::FloorDiv, above, below)
}

fn flatten(cx: &mut Cx<'_>) -> Option<()> {
    set(cx, Some(vec![SymDim::Unknown; 2]));
    let x = cx.sizes(0)?;
    let axis = cx.int("axis", 1);
    let rank = i64::try_from(x.len()).ok()?;
    let axis = usize::try_from(if axis < 0 { axis.checked_add(rank)? } else { axis }).ok().filter(|&a| a <= x.len())?;
    let s = cx.symbols();
    let (rows, columns) = (s.product(x[..axis].to_vec()), s.product(x[axis..].to_vec()));
    set(cx, Some(vec![rows.dim(), columns.dim()]));
    Some(())
}

fn squeeze(cx: &mut Cx<'_>) -> Option<()> {
    set(cx, None);
    let shape = cx.shape(0)?;
    let axes = match cx.axes(1, shape.len()) {
        Some(Some(axes)) => axes,
        // Every dim that is 1 goes; a symbol may be 1.
        Some(None) if shape.iter().all(|d| d.known().is_some()) => {
            (0..shape.len()).filter(|&i| shape[i] == SymDim::Known(1)).collect()
        }
        Some(None) => return None,
        None => {
            let gone = cx.known_shape(1)?.first().copied()?;
            let rank = shape.len().checked_sub(gone)?;
            let dims = cx.fresh_dims(rank);
            set(cx, dims);
            return None;
        }
    };
    let dims = shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, &d)| d).collect();
    set(cx, Some(dims));
    Some(())
}

fn unsqueeze(cx: &mut Cx<'_>) -> Option<()> {
    set(cx, None);
    let shape = cx.shape(0)?;
    let count = match cx.node().ints("axes") {
        Some(a) => a.len(),
        None => cx.known_shape(1)?.iter().product(),
    };
    let rank = shape.len().checked_add(count).filter(|&r| r <= super::super::MOST_DIMS)?;
    let Some(Some(axes)) = cx.axes(1, rank) else {
        let dims = cx.fresh_dims(rank);
        set(cx, dims);
        return None;
    };
    let mut old = shape.into_iter();
    let dims = (0..rank).map(|i| if axes.contains(&i) { Some(SymDim::Known(1)) } else { old.next() });
    let dims = dims.collect();
    set(cx, dims);
    Some(())
}

fn transpose(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let shape = cx.shape(0)?;
    let dims = match cx.node().ints("perm") {
        Some(perm) if perm.len() == shape.len() => {
            perm.iter().map(|&p| usize::try_from(p).ok().and_then(|p| shape.get(p)).copied()).collect::<Option<_>>()?
        }
        Some(_) => return None,
        None => shape.iter().rev().copied().collect(),
    };
    cx.set(0, dtype, Some(dims));
    if shape.len() < 2 {
        let ints = cx.ints(0);
        cx.set_ints(0, ints);
    }
    Some(())
}

fn expand(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let shape = cx.shape(0)?;
    let target: Dims = match cx.ints(1) {
        Some(ints) => ints.into_iter().map(SymInt::dim).collect(),
        None => match cx.known_shape(1)?.as_slice() {
            &[rank] if rank <= super::super::MOST_DIMS => vec![SymDim::Unknown; rank],
            _ => return None,
        },
    };
    let dims = cx.broadcast(&[Some(shape), Some(target)]);
    cx.set(0, dtype, dims);
    // One element, as often as there is room for it.
    if let Some([one]) = cx.ints(0).as_deref() {
        let out = cx.node().output(0)?;
        let count = cx.count_of(out)?;
        cx.set_ints(0, Some(vec![*one; count]));
    }
    Some(())
}

fn tile(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    let rank = cx.rank(0);
    let dims = rank.and_then(|r| cx.fresh_dims(r));
    cx.set(0, dtype, dims);
    let (x, times) = (cx.sizes(0)?, cx.ints(1)?);
    if x.len() != times.len() {
        return None;
    }
    let s = cx.symbols();
    let dims = x.into_iter().zip(times).map(|(d, n)| s.mul(d, n).dim()).collect();
    cx.set(0, dtype, Some(dims));
    Some(())
}

fn blocks(cx: &mut Cx<'_>, to_space: bool) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let x = cx.sizes(0).filter(|x| x.len() == 4)?;
    let block = SymInt::Known(cx.node().int("blocksize").filter(|&b| b > 0)?);
    let s = cx.symbols();
    let area = s.mul(block, block);
    let mut grow = |grow: bool, d, by| if grow { s.mul(d, by) } else { s.div(Func::FloorDiv, d, by) };
    let dims = [x[0], grow(!to_space, x[1], area), grow(to_space, x[2], block), grow(to_space, x[3], block)];
    cx.set(0, dtype, Some(dims.map(SymInt::dim).to_vec()));
    Some(())
}
