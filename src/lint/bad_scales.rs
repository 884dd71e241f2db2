//! Scales that are zero, negative, subnormal, infinite or no number.
//!
//! A quantizer divides by its scale: zero gives infinities, and each runtime makes other codes of them. Subnormal scales are
//! zero on processors that flush them. Beside an AveragePool, the runtime also refuses scales of shape `[1]` in the place of scalars.
//! Of a dequantized constant, a scale of zero makes zeros whatever the codes: scale 1 with codes at the zero point says the same and
//! survives.
//!
//! ```text
//! before: (float[2] x) => (float[2] y) <int8[2] c = {3, 4}, float s = {0}, int8 z = {1}> { d = DequantizeLinear(c, s, z) y = Add(x, d) }
//! after: (float[2] x) => (float[2] y) <int8[2] c = {1, 1}, float s = {1}, int8 z = {1}> { d = DequantizeLinear(c, s, z) y = Add(x, d) }
//! ```

use super::{Changes, Context, Finding, Severity};
use crate::{
    error::Result,
    ir::{DType, Model, NodeId, Tensor},
    kernels::is_conversion,
    passes::support::{constants::set_constant_input, pairs::Linear},
    quant::{
        granularity::Granularity,
        pack::{pack, unpack},
    },
};

pub(super) const WHAT: &str = "scales that are no normal positive numbers";
pub(super) const CURE: &str = "quantize these values anew, or keep them in float";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        let node = cx.model.node(n);
        let scale = node.input(1).filter(|_| is_conversion(&node.op_type));
        let Some((v, scales)) = scale.and_then(|v| Some((v, cx.model.value(v).constant()?))) else { continue };
        if scales.dtype() != DType::Float || scales.is_deferred() {
            continue;
        }
        if scales.dims() == [1] && beside_average_pool(cx, n) {
            let fact = "its scale has shape [1], and the kernel of the AveragePool beside it takes a scalar alone";
            let mend = move |model: &mut Model| with_scalars(model, n);
            found.push(Finding::at(Severity::Error, n, fact).on(v).mend(Changes::Nothing, mend));
        }
        let scales = scales.to_f32()?;
        let quantizes = node.op_type == "QuantizeLinear";
        let bad = |s: f32| match s {
            s if !s.is_finite() => Some((Severity::Error, "no finite number")),
            0.0 => Some((Severity::Error, "zero")),
            // Codes may stand for numbers of the other sign.
            s if s < 0.0 && quantizes => Some((Severity::Error, "negative")),
            s if s.abs() < f32::MIN_POSITIVE => {
                Some((Severity::Warning, "subnormal: some processors take it for zero"))
            }
            _ => None,
        };
        let all: Vec<(Severity, &str, f32)> = scales.iter().filter_map(|&s| bad(s).map(|(a, b)| (a, b, s))).collect();
        let Some(&(severity, what, s)) = all.iter().max_by_key(|(severity, ..)| *severity) else { continue };
        let fact = match scales.len() {
            1 => format!("its scale is {s}: {what}"),
            total => format!("{} of its {total} scales are like {s}: {what}", all.len()),
        };
        let finding = Finding::at(severity, n, fact).on(v);
        let only_zeros = !quantizes && all.iter().all(|(_, _, s)| *s == 0.0) && codes_of(cx.model, n).is_some();
        found.push(match only_zeros {
            true => finding.mend(Changes::Nothing, move |model: &mut Model| without_zeros(model, n)),
            false => finding,
        });
    }
    Ok(found)
}

/// Whether an AveragePool reads what a DequantizeLinear makes, or makes what a QuantizeLinear reads.
fn beside_average_pool(cx: &Context<'_>, n: NodeId) -> bool {
    let node = cx.model.node(n);
    let pools = |n: NodeId| cx.model.node(n).is("AveragePool");
    match node.op_type == "QuantizeLinear" {
        true => node.input(0).and_then(|v| cx.model.producer(v)).is_some_and(pools),
        false => node.output(0).is_some_and(|v| cx.model.value(v).readers().any(|(n, _)| pools(n))),
    }
}

/// Scale and zero point of one element become scalars.
fn with_scalars(model: &mut Model, n: NodeId) -> Result<bool> {
    if model.try_node(n).is_none() {
        return Ok(false);
    }
    let mut any = false;
    for (i, name) in [(1, "scale"), (2, "zero_point")] {
        if let Some(t) = model.constant_input(n, i).filter(|t| t.dims() == [1]).cloned() {
            set_constant_input(model, n, i, t.reshaped(vec![])?, name);
            any = true;
        }
    }
    Ok(any)
}

/// The constant codes that a DequantizeLinear without blocks reads.
fn codes_of(model: &Model, n: NodeId) -> Option<(Linear, Tensor)> {
    let d = Linear::of(model, n, "DequantizeLinear")?;
    let codes = model.value(d.input).constant().filter(|t| !t.is_deferred() && t.dtype().is_integer())?;
    d.zero_point.is_none_or(|z| model.value(z).constant().is_some()).then(|| (d, codes.clone()))
}

fn without_zeros(model: &mut Model, n: NodeId) -> Result<bool> {
    if model.try_node(n).is_none() {
        return Ok(false);
    }
    let (Some((d, codes)), Some(scale)) = (codes_of(model, n), model.constant_input(n, 1).cloned()) else {
        return Ok(false);
    };
    let mut scales = scale.to_f32()?;
    let axis = if scales.len() > 1 { d.axis_of(codes.rank()) } else { None };
    let Ok((channels, inner)) = Granularity::from_axis(axis).layout(codes.dims()) else { return Ok(false) };
    let zeros = match d.zero_point.and_then(|z| model.value(z).constant()) {
        Some(z) => unpack(z)?,
        None => vec![0],
    };
    if channels != scales.len() || !(zeros.len() == 1 || zeros.len() == channels) || !scales.contains(&0.0) {
        return Ok(false);
    }
    let mut all = unpack(&codes)?;
    for (row, run) in all.chunks_mut(inner).enumerate() {
        if scales[row % channels] == 0.0 {
            run.fill(zeros[row % channels % zeros.len()]);
        }
    }
    scales.iter_mut().filter(|s| **s == 0.0).for_each(|s| *s = 1.0);
    set_constant_input(model, n, 0, pack(codes.dtype(), codes.dims(), &all)?, "codes");
    set_constant_input(model, n, 1, Tensor::from_f32(scale.dims(), &scales), "scale");
    Ok(true)
}
