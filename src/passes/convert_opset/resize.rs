//! Upsample 7 → 9 → 10, which became Resize 10 → 11 → 13.

use super::step::Step;
use crate::{
    error::{Error, Result},
    ir::{Attr, Tensor},
};

/// Upsample 7 → 9: `scales` became an input.
pub(super) fn scales_to_input(step: &mut Step<'_>) -> Result<()> {
    let scales = step.take_floats("scales")?.ok_or_else(|| Error::malformed("lacks attribute \"scales\""))?;
    let v = step.constant("scales", Tensor::from_f32(&[scales.len()], &scales));
    step.model.set_input(step.node, 1, Some(v));
    Ok(())
}

/// Upsample 9 → Resize 10: another name.
pub(super) fn upsample_to_resize(step: &mut Step<'_>) -> Result<()> {
    step.model.node_mut(step.node).op_type = "Resize".to_owned();
    Ok(())
}

/// Resize 10 → 11: the coordinates got names. The old form is `asymmetric`; its nearest neighbour, on which the
/// specification is silent, is ONNX Runtime's: rounded down where an axis grows, up where it shrinks.
pub(super) fn name_coordinates(step: &mut Step<'_>) -> Result<()> {
    let mut x = step.input(0)?;
    let mut scales = step.input(1)?;
    let mode = step.word("mode")?;
    let nearest = mode.is_none_or(|m| m == "nearest");
    if mode == Some("bilinear") {
        step.set("mode", "linear");
    }
    let constant = step.constant_input(1).and_then(|t| t.to_f32().ok());
    let roi = step.constant("roi", Tensor::from_f32(&[0], &[]));
    let mut rounding = "floor";
    match constant {
        _ if !nearest => {}
        None => step.warn(
            "resize_scales_unknown",
            "its scales are computed at run time; it is taken to enlarge, which decides how the nearest element is found",
        ),
        Some(s) if s.iter().any(|&s| s < 1.0) => {
            rounding = "ceil";
            if s.iter().any(|&s| s > 1.0) {
                // The axes are independent: grow first, then shrink.
                let (grow, shrink): (Vec<f32>, Vec<f32>) = s.iter().map(|&s| (s.max(1.0), s.min(1.0))).unzip();
                let grow = step.constant("grow", Tensor::from_f32(&[grow.len()], &grow));
                scales = step.constant("shrink", Tensor::from_f32(&[shrink.len()], &shrink));
                x = step.before("Resize", &[x, roi, grow], nearest_attributes("floor"));
            }
        }
        Some(_) => {}
    }
    for (i, v) in [x, roi, scales].into_iter().enumerate() {
        step.model.set_input(step.node, i, Some(v));
    }
    step.set("coordinate_transformation_mode", "asymmetric");
    if nearest {
        step.set("nearest_mode", rounding);
    }
    Ok(())
}

fn nearest_attributes(rounding: &str) -> Vec<Attr> {
    vec![
        Attr::new("mode", "nearest"),
        Attr::new("coordinate_transformation_mode", "asymmetric"),
        Attr::new("nearest_mode", rounding),
    ]
}

/// Resize 11 → 13: empty tensors that stood for absent inputs become absent, and `tf_half_pixel_for_nn` is gone:
/// `floor((x + 0.5) / s)` is `half_pixel`, `(x + 0.5) / s - 0.5`, rounded half up.
pub(super) fn optional_inputs(step: &mut Step<'_>) -> Result<()> {
    let empty = |step: &Step<'_>, i| step.constant_input(i).is_some_and(|t| t.is_empty());
    if empty(step, 1) {
        step.model.set_input(step.node, 1, None);
    }
    if step.node().input(3).is_some() && empty(step, 2) {
        step.model.set_input(step.node, 2, None);
    }
    if step.word("coordinate_transformation_mode")? == Some("tf_half_pixel_for_nn") {
        let (mode, rounding) = (step.word("mode")?, step.word("nearest_mode")?);
        if !matches!(mode, None | Some("nearest")) || rounding != Some("floor") {
            return Err(Error::unsupported(format!(
                "coordinates tf_half_pixel_for_nn with mode {} and nearest_mode {} have no form in opset 13",
                mode.unwrap_or("nearest"),
                rounding.unwrap_or("round_prefer_floor")
            )));
        }
        step.set("coordinate_transformation_mode", "half_pixel");
        step.set("nearest_mode", "round_prefer_ceil");
    }
    Ok(())
}
