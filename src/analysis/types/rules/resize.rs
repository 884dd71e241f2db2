//! Resizing of pictures.

use super::{Cx, Rule};
use crate::{
    analysis::types::{SymDim, SymInt, cx::resolve_axis, symbols::Func},
    ir::DType,
};

pub(super) const RULES: &[(&[&str], Rule)] = &[
    (&["Resize", "Upsample"], resize),
    (&["GridSample"], grid_sample),
    (&["AffineGrid"], affine_grid),
    (&["CenterCropPad"], center_crop_pad),
];

/// The picture by constant scales or by sizes; the inputs' places depend on the opset.
fn resize(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    let rank = cx.rank(0);
    // Whatever the sizes are, the rank stays.
    let dims = rank.and_then(|r| cx.fresh_dims(r));
    cx.set(0, dtype, dims);
    let x = cx.sizes(0)?;
    let new = cx.node().op_type == "Resize" && cx.opset() >= 11;
    let axes: Vec<usize> = match cx.node().ints("axes") {
        Some(axes) => axes.iter().map(|&a| resolve_axis(a, x.len())).collect::<Option<_>>()?,
        None => (0..x.len()).collect(),
    };
    if cx.node().string("keep_aspect_ratio_policy").is_some_and(|p| p != "stretch") {
        return None;
    }
    let mut dims: Vec<SymInt> = x.clone();
    if new && cx.has(3) {
        let sizes = cx.ints(3).filter(|s| s.len() == axes.len())?;
        for (&a, n) in axes.iter().zip(sizes) {
            dims[a] = n;
        }
    } else {
        let scales = match cx.node().attr("scales") {
            Some(crate::ir::AttrValue::Floats(f)) => f.clone(),
            _ => cx.constant(if new { 2 } else { 1 })?.to_f32().ok()?,
        };
        let crop = cx.node().string("coordinate_transformation_mode") == Some("tf_crop_and_resize");
        if scales.len() != axes.len() || crop && scales.iter().any(|&f| f != 1.0) {
            return None;
        }
        for (&a, f) in axes.iter().zip(scales) {
            dims[a] = scaled(cx, x[a], f);
        }
    }
    cx.set(0, dtype, Some(dims.into_iter().map(SymInt::dim).collect()));
    Some(())
}

/// `floor(dim * scale)` in single precision, as runtimes compute it.
fn scaled(cx: &mut Cx<'_>, dim: SymInt, scale: f32) -> SymInt {
    match dim {
        _ if scale.fract() == 0.0 && (1.0..1e6).contains(&scale) => cx.symbols().mul(dim, SymInt::Known(scale as i64)),
        SymInt::Known(n) if scale.is_finite() && scale > 0.0 => SymInt::Known((n as f32 * scale) as i64),
        dim => cx.symbols().call(Func::Scale, vec![dim, SymInt::Known(i64::from(scale.to_bits()))]),
    }
}

fn grid_sample(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let (x, grid) = (cx.shape(0)?, cx.shape(1)?);
    let mut dims = x.get(..2)?.to_vec();
    dims.extend_from_slice(grid.get(1..grid.len().checked_sub(1)?)?);
    cx.set(0, dtype, Some(dims));
    Some(())
}

fn affine_grid(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let size: Vec<SymDim> = cx.ints(1)?.into_iter().map(SymInt::dim).collect();
    let mut dims = vec![*size.first()?];
    dims.extend_from_slice(size.get(2..)?);
    dims.push(SymDim::Known(size.len() - 2));
    cx.set(0, dtype, Some(dims));
    Some(())
}

fn center_crop_pad(cx: &mut Cx<'_>) -> Option<()> {
    let dtype: Option<DType> = cx.dtype(0);
    let mut dims = cx.shape(0)?;
    let axes: Vec<usize> = match cx.node().ints("axes") {
        Some(axes) => axes.iter().map(|&a| resolve_axis(a, dims.len())).collect::<Option<_>>()?,
        None => (0..dims.len()).collect(),
    };
    let sizes = cx.ints(1).unwrap_or_else(|| vec![SymInt::Unknown; axes.len()]);
    for (&a, n) in axes.iter().zip(sizes) {
        dims[a] = n.dim();
    }
    cx.set(0, dtype, Some(dims));
    Some(())
}
