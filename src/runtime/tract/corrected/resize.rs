//! Resize: tract takes the length of the output for the input's times the scale where ONNX Runtime takes what it is.
//!
//! They differ where that product is no whole number, in the modes that stretch the corners to the corners. The scale that is
//! the ratio of both lengths makes them the same.

use tract_onnx::{
    model::{ParsingContext, optional_inputs},
    pb::NodeProto,
    prelude::*,
    tract_hir::internal::*,
};

use super::{Corrected, Correction, Parsed};
use crate::runtime::tract::tracts;

/// What the correction needs of the node.
#[derive(Debug, Clone)]
pub(super) struct Resize {
    /// Which of tract's inputs the scales are.
    scales: Option<usize>,
    axes: Option<Vec<i64>>,
    stretches: bool,
    /// In this mode, ONNX Runtime has a rule of its own for outputs of length 1.
    refuses_one: bool,
}

pub(super) fn parse(cx: &ParsingContext, node: &NodeProto) -> Parsed {
    let (tracts, captured) = tracts::parse(cx, node)?;
    let interpolation = node.get_attr_opt::<&str>("mode")?.unwrap_or("nearest");
    let mode = node.get_attr_opt::<&str>("coordinate_transformation_mode")?.unwrap_or("half_pixel");
    let nearest = node.get_attr_opt::<&str>("nearest_mode")?.unwrap_or("round_prefer_floor");
    // Its positions are whole numbers but for the last digit, which then decides.
    let unsure = mode == "half_pixel_symmetric" && interpolation == "nearest" && ["floor", "ceil"].contains(&nearest);
    ensure!(!unsure, "{mode} with nearest_mode = {nearest} is not supported");
    let resize = Resize {
        scales: optional_inputs(node).nth(2).flatten(),
        axes: node.get_attr_opt_vec("axes")?,
        stretches: ["align_corners", "tf_crop_and_resize"].contains(&mode),
        refuses_one: interpolation == "cubic" && mode == "pytorch_half_pixel",
    };
    // Up to opset 10 there is one mode only.
    if cx.onnx_operator_set_version < 11 || !(resize.stretches || resize.refuses_one) {
        return Ok((tracts, captured));
    }
    Ok((Box::new(Corrected { tracts, correction: Correction::Resize(resize) }), captured))
}

impl Resize {
    /// The input to replace, and what with.
    pub(super) fn scales(
        &self,
        node: &InferenceNode,
        target: &TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<Option<(usize, Tensor)>> {
        let x = target.outlet_fact(*inputs.first().context("has no data")?)?;
        let lengths = x.shape.as_concrete().context("the shape of the data is not known")?.to_vec();
        let rank = lengths.len();
        if self.refuses_one {
            let made = node.outputs.first().and_then(|o| o.fact.shape.as_concrete_finite().ok().flatten());
            let made = made.context("the shape of the output is not known")?;
            let shrinks = lengths.iter().zip(&made).any(|(&had, &has)| had != 1 && has == 1);
            ensure!(!shrinks, "cubic, pytorch_half_pixel and a length of 1 are not supported together");
        }
        let Some(input) = self.scales.filter(|_| self.stretches) else { return Ok(None) };
        let scales = target.outlet_fact(*inputs.get(input).context("has no scales")?)?.konst.clone();
        let scales = scales.context("the scales are not known")?.cast_to::<f32>()?.into_owned();
        let scales = scales.try_as_plain_ram()?.as_slice::<f32>()?.to_vec();
        if scales.is_empty() {
            return Ok(None);
        }
        let axes = self.axes.clone().unwrap_or_else(|| (0..rank as i64).collect());
        ensure!(axes.len() == scales.len(), "{} scales for {} axes", scales.len(), axes.len());
        let ratio = |(&axis, &scale): (&i64, &f32)| {
            let axis = if axis < 0 { axis + rank as i64 } else { axis };
            let length = usize::try_from(axis).ok().and_then(|a| lengths.get(a));
            length.map(|&length| effective(length, scale)).with_context(|| format!("axis {axis} of {rank} axes"))
        };
        let ratios = axes.iter().zip(&scales).map(ratio).collect::<TractResult<Vec<f32>>>()?;
        Ok(Some((input, tensor1(&ratios))))
    }
}

/// The ratio of the lengths, by which tract comes to the same length of the output.
fn effective(length: usize, scale: f32) -> f32 {
    let made = (length as f32 * scale).floor();
    let ratio = made / length.max(1) as f32;
    if length as f32 * ratio < made { ratio.next_up() } else { ratio }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_makes_the_same_length() {
        for length in 1..200usize {
            for scale in [0.1, 0.3, 0.5, 0.7, 1.0, 1.3, 1.5, 2.0, 2.7, 3.1] {
                let made = (length as f32 * scale) as usize;
                let ratio = effective(length, scale);
                assert_eq!((length as f32 * ratio) as usize, made, "{length} * {scale}");
                assert!((ratio - made as f32 / length as f32).abs() < 1e-6);
            }
        }
    }
}
