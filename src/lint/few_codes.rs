//! Weights with one scale for all channels, where some channels use only a handful of codes.
//!
//! Channels of one weight can differ a hundredfold, those of depthwise convolutions above all. With the scale of the greatest, the
//! small ones are rounded to a few numbers, and the model loses accuracy that a scale for each channel would keep. What the weights were is
//! not in the file.
//!
//! ```text
//! before: (uint8[1,2,2,2] c) => (float[1,2,2,2] y) <float s = {0.5}, uint8 z = {3}, int8[2,1,1,2] k = {127, -100, 1, -1}, float t = {0.1}, int8 u = {0}> { x = DequantizeLinear(c, s, z) w = DequantizeLinear(k, t, u) y = Conv<group = 2, pads = [0, 0, 0, 1]>(x, w) }
//! ```

use super::{
    Context, Finding, Severity,
    support::weights::{Weight, channels},
};
use crate::{error::Result, ir::DType, ops, quant::pack::unpack};

pub(super) const WHAT: &str = "weights with one scale, of which some channels use a handful of codes";
pub(super) const CURE: &str = "quantize the float model anew with a scale for each channel";

/// Codes up to this magnitude are a handful: less than 4 bits.
const HANDFUL: i32 = 7;

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        let (Some(spec), Some((_, weight))) = (ops::spec(cx.model, n), Weight::at(cx, n)) else { continue };
        let codes = &weight.codes;
        let axis = spec.weight_axis(cx.model.node(n), codes.values.rank());
        if codes.axis.is_some() || axis.is_none() || !matches!(weight.dtype(), DType::Int8 | DType::Uint8) {
            continue;
        }
        let (count, inner) = channels(codes, axis)?;
        let mut most = vec![0; count];
        let zero = codes.params[0].zero_point;
        for (row, run) in unpack(&codes.values)?.chunks(inner).enumerate() {
            let most = &mut most[row % count];
            *most = run.iter().fold(*most, |m, &c| m.max((c - zero).abs()));
        }
        let few: Vec<i32> = most.iter().copied().filter(|m| (1..=HANDFUL).contains(m)).collect();
        // Where all have few codes, one scale for each would bring no more of them.
        if most.iter().all(|&m| m <= HANDFUL) {
            continue;
        }
        let Some(&least) = few.iter().min() else { continue };
        let severity = if few.len() * 20 >= count { Severity::Warning } else { Severity::Note };
        let fact =
            format!("{} of its {count} channels have no code beyond ±{HANDFUL}, one none beyond ±{least}", few.len());
        found.push(Finding::at(severity, n, fact).on(weight.dq.input));
    }
    Ok(found)
}
