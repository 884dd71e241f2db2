//! Signal processing.

use super::{Cx, Rule};
use crate::{
    analysis::types::{SymDim, SymInt, cx::resolve_axis, symbols::Func},
    ir::DType,
};

#[rustfmt::skip]
pub(super) const RULES: &[(&[&str], Rule)] = &[
    (&["HannWindow", "HammingWindow", "BlackmanWindow"], window),
    (&["DFT"], dft),
    (&["STFT"], stft),
    (&["MelWeightMatrix"], mel),
];

fn one(cx: &Cx<'_>, i: usize) -> SymInt {
    match cx.ints(i).as_deref() {
        Some([n]) => *n,
        _ => SymInt::Unknown,
    }
}

fn to(cx: &Cx<'_>) -> DType {
    cx.node()
        .int("output_datatype")
        .and_then(|n| i32::try_from(n).ok())
        .and_then(DType::from_onnx)
        .unwrap_or(DType::Float)
}

fn window(cx: &mut Cx<'_>) -> Option<()> {
    let (dtype, size) = (to(cx), one(cx, 0));
    cx.set(0, Some(dtype), Some(vec![size.dim()]));
    Some(())
}

/// Half of the spectrum and one number more where it is symmetric.
fn half(cx: &mut Cx<'_>, n: SymInt) -> SymInt {
    let s = cx.symbols();
    let half = s.div(Func::FloorDiv, n, SymInt::Known(2));
    s.add(half, SymInt::Known(1))
}

fn dft(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let mut dims = cx.shape(0)?;
    if cx.int("inverse", 0) != 0 && cx.int("onesided", 0) != 0 {
        return None;
    }
    let axis = if cx.opset() >= 20 {
        let axis = if cx.has(2) { *cx.known_ints(2)?.first()? } else { -2 };
        resolve_axis(axis, dims.len())?
    } else {
        cx.axis(1, dims.len())?
    };
    let n = if cx.has(1) { one(cx, 1) } else { dims[axis].into() };
    let n = if cx.int("onesided", 0) != 0 { half(cx, n) } else { n };
    dims[axis] = n.dim();
    *dims.last_mut()? = SymDim::Known(2);
    cx.set(0, dtype, Some(dims));
    Some(())
}

/// `[batch, frames, bins, 2]` of a signal, a step, a window and a frame length.
fn stft(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, Some(vec![SymDim::Unknown, SymDim::Unknown, SymDim::Unknown, SymDim::Known(2)]));
    let signal = cx.sizes(0)?;
    let (&batch, &length) = (signal.first()?, signal.get(1)?);
    let frame = if cx.has(3) { one(cx, 3) } else { *cx.sizes(2)?.first()? };
    let step = one(cx, 1);
    let s = cx.symbols();
    let room = s.sub(length, frame);
    let steps = s.div(Func::FloorDiv, room, step);
    let frames = s.add(steps, SymInt::Known(1));
    let bins = if cx.int("onesided", 1) != 0 { half(cx, frame) } else { frame };
    cx.set(0, dtype, Some(vec![batch.dim(), frames.dim(), bins.dim(), SymDim::Known(2)]));
    Some(())
}

fn mel(cx: &mut Cx<'_>) -> Option<()> {
    let (bins, frame) = (one(cx, 0), one(cx, 1));
    let rows = half(cx, frame);
    let dtype = to(cx);
    cx.set(0, Some(dtype), Some(vec![rows.dim(), bins.dim()]));
    Some(())
}
