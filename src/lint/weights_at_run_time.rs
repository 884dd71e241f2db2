//! Weights in codes that are dequantized at every run, in front of operators that compute in float.
//!
//! ONNX Runtime folds constants when it loads a file, but never a DequantizeLinear: that may become part of an integer kernel. Where it
//! does not, the whole weight is dequantized at each run, the same numbers each time: the file is small, and the model slow. Cast and
//! Mul say the same, are folded, and leave the codes in the file as they are.
//!
//! ```text
//! before: (float[1,1,2,2] x) => (float[1,1,2,2] y) <int8[1,1,1,1] c = {5}, float[1] s = {0.1}, int8[1] z = {1}> { w = DequantizeLinear<axis = 0>(c, s, z) y = Conv(x, w) }
//! after: (float[1,1,2,2] x) => (float[1,1,2,2] y) <int8[1,1,1,1] c = {5}, float w_zero = {1}, float w_scale = {0.1}> { w_Cast_Output = Cast<to = 1>(c) w_Sub_Output = Sub(w_Cast_Output, w_zero) w_Mul_Output = Mul(w_Sub_Output, w_scale) y = Conv(x, w_Mul_Output) }
//! ```

use super::{Changes, Context, Finding, Severity, support::weights::Weight};
use crate::{
    error::Result,
    ir::{DType, Model, NodeId, NodeSpec, Place, Tensor, ValueId},
    passes::support::pairs::{Linear, moves_codes},
    quant::pack::unpack,
};

pub(super) const WHAT: &str = "weights that are dequantized at every run, for operators that compute in float";
pub(super) const CURE: &str =
    "write Cast and Mul in place of the DequantizeLinear, which the runtime folds when it loads the file";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        let node = cx.model.node(n);
        let (Some(codes), Some(out)) = (node.input(0), node.output(0)) else { continue };
        let Some(tensor) =
            cx.model.value(codes).constant().filter(|_| node.op_type == "DequantizeLinear" && cx.converts(n))
        else {
            continue;
        };
        let readers: Vec<NodeId> = cx.model.value(out).readers().map(|(r, _)| r).collect();
        let Some(&reader) = readers.first() else { continue };
        let fact = format!("{} bytes of {} codes for {}", tensor.byte_len(), tensor.dtype(), cx.node(reader));
        let severity = if tensor.len() > 4096 { Severity::Warning } else { Severity::Note };
        let finding = Finding::at(severity, n, fact).on(codes).costs(cx.times.node(n));
        // Between conversions, the runtime would quantize a float weight by itself.
        let between = readers.iter().any(|&r| cx.target.requantizes(&cx.model.node(r).op_type) && reads_codes(cx, r));
        let can =
            !between && !tensor.is_deferred() && parts(cx.model, n).is_some() && !cx.model.value(out).is_graph_output();
        found.push(match can {
            true => finding.mend(Changes::Nothing, move |model: &mut Model| store(model, n)),
            false => finding,
        });
    }
    Ok(found)
}

/// Whether the data of a node are made of codes, moved or not: conversions go past what only moves data.
fn reads_codes(cx: &Context<'_>, id: NodeId) -> bool {
    let mut next = Some(id);
    while let Some(n) = next {
        if cx.dequantized(n, 0).is_some() {
            return true;
        }
        let before = cx.model.node(n).input(0).and_then(|v| cx.model.producer(v));
        next = before.filter(|&b| moves_codes(cx.model, b));
    }
    false
}

/// Zero points (where any is not 0) and scales, in the shape in which they spread over the codes.
fn parts(model: &Model, n: NodeId) -> Option<(Option<Tensor>, Tensor)> {
    let d = Linear::of(model, n, "DequantizeLinear")?;
    let codes = model.value(d.input).constant()?;
    let (rank, axis, scales, zeros) = match codes.dtype() {
        DType::Int32 => {
            let zeros = d.zero_point.map(|z| unpack(model.value(z).constant()?).ok());
            let zeros = zeros.map_or(Some(vec![0]), |z| z)?;
            (codes.rank(), d.axis_of(codes.rank())?, d.scales(model)?, zeros)
        }
        t if matches!(t.bits(), 8 | 16) && t.is_integer() => {
            let weight = Weight::of(model, n)?;
            let zeros = weight.codes.params.iter().map(|p| p.zero_point).collect();
            (codes.rank(), weight.codes.axis.unwrap_or(0), weight.codes.scales(), zeros)
        }
        _ => return None,
    };
    let dims: Vec<usize> = match scales.len() {
        1 => vec![],
        many if codes.dims().get(axis) == Some(&many) => (0..rank).map(|i| if i == axis { many } else { 1 }).collect(),
        _ => return None,
    };
    let zeros: Vec<f32> = zeros.iter().map(|&z| z as f32).collect();
    if zeros.iter().all(|&z| z == 0.0) {
        return Some((None, Tensor::from_f32(&dims, &scales)));
    }
    (zeros.len() == scales.len()).then(|| (Some(Tensor::from_f32(&dims, &zeros)), Tensor::from_f32(&dims, &scales)))
}

fn store(model: &mut Model, n: NodeId) -> Result<bool> {
    if model.try_node(n).is_none() {
        return Ok(false);
    }
    let (Some((zeros, scales)), Some(codes), Some(out)) =
        (parts(model, n), model.node(n).input(0), model.node(n).output(0))
    else {
        return Ok(false);
    };
    let (graph, name) = (model.node(n).graph(), model.value(out).name().to_owned());
    let then = |model: &mut Model, op: &str, inputs: &[ValueId], last: Place| {
        let mut spec = NodeSpec::new(op).inputs(inputs.iter().map(|&v| Some(v))).output(format!("{name}_{op}_Output"));
        if op == "Cast" {
            spec = spec.attr("to", i64::from(DType::Float.to_onnx()));
        }
        model.insert_value(spec, last)
    };
    let mut real = then(model, "Cast", &[codes], Place::Before(n))?;
    if let Some(zeros) = zeros {
        let zeros = model.add_initializer(graph, &format!("{name}_zero"), zeros);
        real = then(model, "Sub", &[real, zeros], Place::Before(n))?;
    }
    let scales = model.add_initializer(graph, &format!("{name}_scale"), scales);
    real = then(model, "Mul", &[real, scales], Place::Before(n))?;
    model.replace_readers(out, real, |_, _| true);
    Ok(true)
}
