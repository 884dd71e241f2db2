//! Biases in int32 whose scale is not that of the data times that of the weight, or whose zero point is not 0.
//!
//! Integer kernels add the bias's codes to sums of products, and so take its scale to be that product, whatever the file says: either the
//! runtime sees the difference and computes in float, or the bias counts for more or less than it should. The bias is rounded again
//! to the scale that it should have; steps of that are finer than anything else in the layer.
//!
//! ```text
//! before: (uint8[1,2] xq) => (float[1,1] y) <float s = {0.5}, uint8 z = {3}, int8[2,1] c = {5, 6}, float t = {0.1}, int8 u = {0}, int32[1] b = {100}, float r = {0.1}> {
//!     x = DequantizeLinear(xq, s, z) w = DequantizeLinear(c, t, u) bias = DequantizeLinear(b, r) y = Gemm(x, w, bias)
//! }
//! after: (uint8[1,2] xq) => (float[1,1] y) <float s = {0.5}, uint8 z = {3}, int8[2,1] c = {5, 6}, float t = {0.1}, int8 u = {0}, int32[1] b = {200}, float r = {0.05}> {
//!     x = DequantizeLinear(xq, s, z) w = DequantizeLinear(c, t, u) bias = DequantizeLinear(b, r) y = Gemm(x, w, bias)
//! }
//! ```

use super::{
    Changes, Context, Finding, Severity,
    support::biases::{Bias, SAME, refit},
};
use crate::{error::Result, ir::Model};

pub(super) const WHAT: &str = "biases whose scale is not that of the data times that of the weight";
pub(super) const CURE: &str = "quantize the bias with the product of the two scales and zero point 0";

/// Up to this the runtime takes one scale for the other.
const TAKEN: f32 = 0.01;
/// Less than this is no more than rounding of another kind.
const SMALL: f32 = 1e-3;

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        let Some((bias, (_, row))) = Bias::of(cx.model, n).zip(cx.operator(n)) else { continue };
        let (off, shifted) = bias.off();
        if off <= SAME && !shifted {
            continue;
        }
        let (severity, effect) = match off {
            _ if shifted => (Severity::Error, "kernels take its zero point to be 0"),
            off if off > TAKEN && row.bias_scale => (Severity::Warning, "the node computes in float"),
            off if off > TAKEN => (Severity::Error, "the kernel computes with the other scale"),
            off if off > SMALL => (Severity::Warning, "the kernel computes with the other scale"),
            _ => (Severity::Note, "which hardly matters"),
        };
        let fact = match shifted {
            true => format!("the zero point of its bias is not 0: {effect}"),
            false => format!("the scale of its bias is off by {:.3} %: {effect}", 100.0 * off),
        };
        let time = if cx.is_float(n) { cx.times.node(n) } else { 0.0 };
        let finding = Finding::at(severity, n, fact).on(bias.dq.input).costs(time);
        found.push(match bias.refitted() {
            Some(_) => finding.mend(
                Changes::As("changes numbers by less than a step of the sums".to_owned()),
                move |model: &mut Model| {
                    if model.try_node(n).is_none() { Ok(false) } else { refit(model, n) }
                },
            ),
            None => finding,
        });
    }
    Ok(found)
}
