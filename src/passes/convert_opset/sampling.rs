//! Words that changed: modes of RoiAlign and GridSample, and the name of Scatter.

use super::step::Step;
use crate::error::Result;

/// Scatter 9 → ScatterElements 11.
pub(super) fn scatter_to_scatter_elements(step: &mut Step<'_>) -> Result<()> {
    step.model.node_mut(step.node).op_type = "ScatterElements".to_owned();
    Ok(())
}

/// RoiAlign 10 → 16: the old form does not shift by half a pixel, the new default does.
pub(super) fn roi_align_coordinates(step: &mut Step<'_>) -> Result<()> {
    step.set("coordinate_transformation_mode", "output_half_pixel");
    Ok(())
}

/// GridSample 16 → 20: `bilinear` and `bicubic` lost their prefix.
pub(super) fn grid_sample_modes(step: &mut Step<'_>) -> Result<()> {
    match step.word("mode")? {
        Some("bilinear") => step.set("mode", "linear"),
        Some("bicubic") => step.set("mode", "cubic"),
        _ => {}
    }
    Ok(())
}
