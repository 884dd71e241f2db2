//! Convolutions and pools.

use super::{Cx, Dims, Rule};
use crate::{
    analysis::types::{SymDim, SymInt, symbols::Func},
    ir::DType,
};

#[rustfmt::skip]
pub(super) const RULES: &[(&[&str], Rule)] = &[
    (&["Conv", "com.microsoft.FusedConv"], |cx| conv(cx, 1, cx.dtype(0))),
    (&["ConvInteger"], |cx| conv(cx, 1, Some(DType::Int32))),
    (&["QLinearConv", "com.microsoft.QLinearConv"], |cx| conv(cx, 3, cx.dtype(7))),
    (&["ConvTranspose"], conv_transpose),
    (&["MaxPool", "AveragePool", "LpPool", "com.microsoft.QLinearAveragePool", "com.microsoft.NhwcMaxPool"], pool),
    (&["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "com.microsoft.QLinearGlobalAveragePool"], global_pool),
    (&["MaxUnpool"], max_unpool),
    (&["MaxRoiPool"], |cx| roi(cx, cx.node().ints("pooled_shape").map(<[_]>::to_vec), 1, 0)),
    (&["RoiAlign"], |cx| roi(cx, Some(vec![cx.int("output_height", 1), cx.int("output_width", 1)]), 1, 0)),
    (&["DeformConv"], |cx| conv(cx, 1, cx.dtype(0))),
    (&["Col2Im"], col2im),
];

/// A sliding window along one axis.
struct Window {
    size: i64,
    stride: i64,
    dilation: i64,
    pads: (i64, i64),
}

/// The windows along the spatial axes.
fn windows(cx: &Cx<'_>, sizes: &[i64]) -> Option<Vec<Window>> {
    let n = sizes.len();
    let list = |name: &str, count: usize, default: i64| match cx.node().ints(name) {
        Some(v) if v.len() == count => Some(v.to_vec()),
        Some(v) if !v.is_empty() => None,
        _ => Some(vec![default; count]),
    };
    let (strides, dilations, pads) = (list("strides", n, 1)?, list("dilations", n, 1)?, list("pads", 2 * n, 0)?);
    let window = |i: usize| {
        let w = Window { size: sizes[i], stride: strides[i], dilation: dilations[i], pads: (pads[i], pads[i + n]) };
        (w.size > 0 && w.stride > 0 && w.dilation > 0).then_some(w)
    };
    (0..n).map(window).collect()
}

/// Positions of a window along a dim: `floor((in + pads - reach) / stride) + 1`.
fn positions(cx: &mut Cx<'_>, dim: SymInt, w: &Window, ceil: bool) -> Option<SymInt> {
    let auto_pad = cx.node().string("auto_pad").unwrap_or("NOTSET");
    let reach = w.size.checked_sub(1)?.checked_mul(w.dilation)?.checked_add(1)?;
    let stride = SymInt::Known(w.stride);
    let s = cx.symbols();
    if auto_pad.starts_with("SAME") {
        let up = s.add(dim, SymInt::Known(w.stride - 1));
        return Some(s.div(Func::FloorDiv, up, stride));
    }
    let (before, after) = if auto_pad == "VALID" { (0, 0) } else { w.pads };
    let room = before.checked_add(after)?.checked_sub(reach)?;
    let room = s.add(dim, SymInt::Known(room));
    if !ceil || w.stride == 1 {
        let steps = s.div(Func::FloorDiv, room, stride);
        return Some(s.add(steps, SymInt::Known(1)));
    }
    let (SymInt::Known(room), SymInt::Known(dim)) = (room, dim) else {
        let args = [w.size, w.stride, w.dilation, before, after].map(SymInt::Known);
        return Some(s.call(Func::CeilWindow, [vec![dim], args.to_vec()].concat()));
    };
    // A window that would start in the padding behind the data is left out.
    let steps = room.checked_add(w.stride - 1)?.div_euclid(w.stride).checked_add(1)?;
    let beyond = (steps - 1).checked_mul(w.stride)? >= dim.checked_add(before)?;
    Some(SymInt::Known(steps - i64::from(beyond)))
}

fn known(dims: &[SymInt]) -> Option<Vec<i64>> {
    dims.iter().map(|d| d.known()).collect()
}

fn channels_last(cx: &Cx<'_>) -> bool {
    cx.int("channels_last", 0) != 0 || cx.node().op_type == "NhwcMaxPool"
}

fn conv(cx: &mut Cx<'_>, weight: usize, dtype: Option<DType>) -> Option<()> {
    cx.set(0, dtype, None);
    let (x, w) = (cx.sizes(0), cx.sizes(weight));
    let rank = x.as_ref().or(w.as_ref())?.len();
    let unknown = |n: usize| vec![SymInt::Unknown; n];
    let (x, w) = (x.unwrap_or_else(|| unknown(rank)), w.unwrap_or_else(|| unknown(rank)));
    if rank < 2 || x.len() != rank || w.len() != rank || channels_last(cx) {
        return None;
    }
    let sizes = cx.node().ints("kernel_shape").map(<[_]>::to_vec).or_else(|| known(&w[2..]));
    let mut dims: Dims = vec![x[0].dim(), w[0].dim()];
    match sizes.filter(|s| s.len() == rank - 2).and_then(|s| windows(cx, &s)) {
        Some(windows) => {
            for (i, window) in windows.iter().enumerate() {
                dims.push(positions(cx, x[2 + i], window, false).map_or(SymDim::Unknown, SymInt::dim));
            }
        }
        None => dims.resize(rank, SymDim::Unknown),
    }
    cx.set(0, dtype, Some(dims));
    Some(())
}

fn conv_transpose(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let (x, w) = (cx.sizes(0)?, cx.sizes(1)?);
    let rank = x.len();
    if rank < 3 || w.len() != rank {
        return None;
    }
    let group = SymInt::Known(cx.int("group", 1));
    let channels = cx.symbols().mul(w[1], group);
    let mut dims: Dims = vec![x[0].dim(), channels.dim()];
    let sizes = cx.node().ints("kernel_shape").map(<[_]>::to_vec).or_else(|| known(&w[2..]));
    let windows = sizes.filter(|s| s.len() == rank - 2).and_then(|s| windows(cx, &s));
    let node = cx.node();
    let auto_pad = node.string("auto_pad").unwrap_or("NOTSET");
    for i in 0..rank - 2 {
        let given = node.ints("output_shape").and_then(|s| s.get((i + s.len()).checked_sub(rank - 2)?));
        let dim = match (given, &windows) {
            (Some(&n), _) => SymInt::Known(n),
            (None, Some(windows)) => {
                let w = &windows[i];
                let more = node.ints("output_padding").and_then(|p| p.get(i)).copied().unwrap_or(0);
                let reach = (w.size - 1).checked_mul(w.dilation)?.checked_add(1)?;
                let s = cx.symbols();
                let spread = s.mul(x[2 + i], SymInt::Known(w.stride));
                let (before, after) = if auto_pad == "NOTSET" { w.pads } else { (0, 0) };
                let rest = reach.checked_sub(w.stride)?.checked_add(more)?.checked_sub(before)?.checked_sub(after)?;
                if auto_pad.starts_with("SAME") { spread } else { s.add(spread, SymInt::Known(rest)) }
            }
            (None, None) => SymInt::Unknown,
        };
        dims.push(dim.dim());
    }
    cx.set(0, dtype, Some(dims));
    Some(())
}

fn pool(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let x = cx.sizes(0)?;
    let sizes = cx.node().ints("kernel_shape")?.to_vec();
    if x.len() < 2 || sizes.len() != x.len() - 2 {
        return None;
    }
    let first = if channels_last(cx) { 1 } else { 2 };
    let mut dims: Dims = x.iter().map(|d| d.dim()).collect();
    let ceil = cx.int("ceil_mode", 0) != 0;
    for (i, w) in windows(cx, &sizes)?.iter().enumerate() {
        dims[first + i] = positions(cx, x[first + i], w, ceil).map_or(SymDim::Unknown, SymInt::dim);
    }
    cx.set(0, dtype, Some(dims.clone()));
    if cx.node().op_type == "MaxPool" && cx.node().output(1).is_some() {
        // The indices' shape is that of the result, symbols included.
        let dims = if dims.contains(&SymDim::Unknown) { None } else { Some(dims) };
        cx.set(1, Some(DType::Int64), dims);
    }
    Some(())
}

fn global_pool(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let mut dims = cx.shape(0)?;
    let (rank, first) = (dims.len(), if channels_last(cx) { 1 } else { 2 });
    let last = if channels_last(cx) { rank.checked_sub(1)? } else { rank };
    dims.get_mut(first..last)?.fill(SymDim::Known(1));
    cx.set(0, dtype, Some(dims));
    Some(())
}

fn max_unpool(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    let rank = cx.rank(0);
    let dims = match cx.ints(2) {
        Some(ints) => Some(ints.into_iter().map(SymInt::dim).collect()),
        None => rank.and_then(|r| cx.fresh_dims(r)),
    };
    cx.set(0, dtype, dims);
    Some(())
}

/// One piece of the picture for each region.
fn roi(cx: &mut Cx<'_>, size: Option<Vec<i64>>, rois: usize, x: usize) -> Option<()> {
    let dtype = cx.dtype(x);
    cx.set(0, dtype, None);
    let count = cx.shape(rois).and_then(|s| s.first().copied()).unwrap_or(SymDim::Unknown);
    let channels = cx.shape(x).and_then(|s| s.get(1).copied()).unwrap_or(SymDim::Unknown);
    let mut dims = vec![count, channels];
    dims.extend(size?.into_iter().map(|n| SymInt::Known(n).dim()));
    cx.set(0, dtype, Some(dims));
    Some(())
}

fn col2im(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let (x, image, block) = (cx.sizes(0)?, cx.ints(1)?, cx.ints(2)?);
    let (&batch, &columns) = (x.first()?, x.get(1)?);
    let s = cx.symbols();
    let area = s.product(block);
    let channels = s.div(Func::FloorDiv, columns, area);
    let dims = [batch, channels].into_iter().chain(image).map(SymInt::dim).collect();
    cx.set(0, dtype, Some(dims));
    Some(())
}
