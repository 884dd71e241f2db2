//! Weights whose scales lie along another axis than the output channels: the kernel is lost, or reads scales that are not meant
//! for it.
//!
//! Scales per channel belong to axis 0 of a Conv's weight, to axis 1 of a ConvTranspose's, to the last of a MatMul's, and to axis 1 of a Gemm's
//! (0 with `transB`). Along any other, an integer kernel would have to scale within a sum. The weight is rounded again, from the
//! numbers that its codes stand for, along the right axis.
//!
//! ```text
//! before: (uint8[1,2] xq) => (float[1,2] y) <float s = {0.5}, uint8 z = {3}, int8[2,2] c = {127, 64, 10, 127}, float[2] t = {0.01, 0.02}, int8[2] u = {0, 0}> { x = DequantizeLinear(xq, s, z) w = DequantizeLinear<axis = 0>(c, t, u) y = MatMul(x, w) }
//! after: (uint8[1,2] xq) => (float[1,2] y) <float s = {0.5}, uint8 z = {3}, int8[2,2] c = {127, 32, 20, 127}, float[2] t = {0.01, 0.02}, int8[2] u = {0, 0}> { x = DequantizeLinear(xq, s, z) w = DequantizeLinear<axis = 1>(c, t, u) y = MatMul(x, w) }
//! ```

use super::{
    Changes, Context, Finding, Severity,
    support::weights::{self, Weight},
};
use crate::{error::Result, ir::Tensor, ops, quant::quantize_weight};

pub(super) const WHAT: &str = "scales of weights that do not lie along the output channels";
pub(super) const CURE: &str = "quantize these weights along the axis of their output channels";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        let (Some(spec), Some((_, weight))) = (ops::spec(cx.model, n), Weight::at(cx, n)) else { continue };
        let rank = weight.codes.values.rank();
        let (Some(axis), Some(right)) = (weight.codes.axis, spec.weight_axis(cx.model.node(n), rank)) else { continue };
        // A ConvTranspose has no kernel that could be lost.
        if axis == right || cx.row(n).is_none() {
            continue;
        }
        let real = Tensor::from_f32(weight.codes.values.dims(), &weight.codes.dequantized()?);
        let symmetric = weight.codes.params.iter().all(|p| p.zero_point == 0);
        let anew = quantize_weight(&real, weight.dtype(), Some(right), symmetric, false)?;
        let away = weight.distance(&anew)?;
        let fact = format!(
            "its weight has {} scales along axis {axis}, the output channels lie along axis {right}",
            weight.codes.params.len()
        );
        // A Conv takes them for those of its channels where there are as many.
        let severity = if cx.model.node(n).is("Conv") { Severity::Error } else { Severity::Warning };
        let dq = weight.dq.node;
        let time = if cx.is_float(n) { cx.times.node(n) } else { 0.0 };
        let finding = Finding::at(severity, n, fact).costs(time).on(weight.dq.input);
        if cx.model.value(weight.dq.output).uses().len() > 1 || weight.dtype().bits() != 8 {
            found.push(finding);
            continue;
        }
        let words = format!("changes numbers: the weight is rounded once more ({away:.1} dB)");
        found.push(finding.mend(Changes::As(words), weights::exchange(n, dq, anew)));
    }
    Ok(found)
}
