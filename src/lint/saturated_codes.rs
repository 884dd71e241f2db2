//! Weights whose codes pile up at an end: their range was cut too short, and great weights became smaller than they are.
//!
//! Rounding to the nearest code leaves a few codes at the ends, about as many as at the codes beside them. Many more than that are weights
//! that did not fit. What they were is not in the file. Where a float constant is quantized in the graph itself, the file has it, and
//! the share of what is cut off is told.
//!
//! ```text
//! before: (float[2] x) => (float[4] y) <float[4] w = {1, 2, 3, 400}, float s = {0.1}, int8 z = {0}> { q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = Add(d, d) }
//! ```

use super::{Context, Finding, Severity, support::weights::Weight};
use crate::{
    error::Result,
    ir::DType,
    quant::{arith::quantize_slice, pack::unpack, params::type_range},
};

pub(super) const WHAT: &str = "weights whose codes pile up at the ends of their type";
pub(super) const CURE: &str = "quantize the weight anew from the float model, over its whole range";

/// Fewer codes than this show no pile.
const LEAST: usize = 256;
/// With fewer different codes, the weight has few numbers by nature.
const LEAST_DIFFERENT: usize = 32;
/// A pile is this share of all codes at least, and this many times what stands at the codes beside it.
const SHARE: f64 = 0.005;
const TIMES: f64 = 4.0;
/// So many codes beside an end are looked at.
const BESIDE: usize = 8;

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        found.extend(cut_in_the_graph(cx, n)?);
        let Some(weight) = Weight::of(cx.model, n).filter(|w| matches!(w.dtype(), DType::Int8 | DType::Uint8)) else {
            continue;
        };
        let codes = unpack(&weight.codes.values)?;
        let (qmin, qmax) = type_range(weight.dtype())?;
        let mut counts = vec![0usize; 256];
        for &c in &codes {
            counts[(c - qmin) as usize] += 1;
        }
        let different = counts.iter().filter(|&&c| c > 0).count();
        if codes.len() < LEAST || different < LEAST_DIFFERENT {
            continue;
        }
        // Symmetric weights leave the least code out.
        let first = if weight.dtype() == DType::Int8 && counts[0] == 0 { 1 } else { 0 };
        let channels = weight.codes.params.len() as f64;
        let pile = |at: usize, beside: &[usize]| {
            let mean = beside.iter().sum::<usize>() as f64 / beside.len() as f64;
            // Each channel has its greatest weight there by right.
            let expected = TIMES * mean + channels;
            (counts[at] as f64 > expected && counts[at] as f64 > SHARE * codes.len() as f64).then_some(counts[at])
        };
        let low = pile(first, &counts[first + 1..=first + BESIDE]);
        let high = pile(255, &counts[255 - BESIDE..255]);
        if low.is_none() && high.is_none() {
            continue;
        }
        let many = low.unwrap_or(0) + high.unwrap_or(0);
        let ends = match (low, high) {
            (Some(_), Some(_)) => format!("{} and {qmax}", qmin + first as i32),
            (Some(_), None) => format!("{}", qmin + first as i32),
            _ => format!("{qmax}"),
        };
        let fact = format!(
            "{:.1} % of its {} codes stand at {ends}, an end of {}",
            100.0 * many as f64 / codes.len() as f64,
            codes.len(),
            weight.dtype()
        );
        found.push(Finding::at(Severity::Warning, n, fact).on(weight.dq.input));
    }
    Ok(found)
}

/// A QuantizeLinear of a float constant that cuts some of it off.
fn cut_in_the_graph(cx: &Context<'_>, n: crate::ir::NodeId) -> Result<Option<Finding>> {
    let Some(pair) = cx.pair(n) else { return Ok(None) };
    let Some(t) = cx.model.value(pair.value()).constant().filter(|t| t.dtype() == DType::Float && !t.is_deferred())
    else {
        return Ok(None);
    };
    let (values, range) = (t.to_f32()?, pair.range());
    let half = pair.params.scale / 2.0;
    let cut = values.iter().filter(|v| **v < range.lo - half || **v > range.hi + half).count();
    if cut == 0 {
        return Ok(None);
    }
    let codes = quantize_slice(&values, pair.params)?;
    let real = |c: i32| f64::from(pair.params.scale) * f64::from(c - pair.params.zero_point);
    let noise: f64 = values.iter().zip(codes).map(|(&v, c)| (f64::from(v) - real(c)).powi(2)).sum();
    let signal: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
    let fact = format!(
        "{cut} of {} numbers of the constant lie beyond {} to {}, and are cut off ({:.1} dB)",
        values.len(),
        range.lo,
        range.hi,
        crate::quant::error::sqnr_db(signal, noise)
    );
    Ok(Some(Finding::at(Severity::Warning, n, fact).on(pair.value())))
}
