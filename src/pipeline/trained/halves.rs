//! Quantizers of models in 16-bit floats: their scales and what they round are such numbers, and integer kernels take neither.

use crate::{
    analysis::types,
    diagnostics::{Diagnostic, count},
    error::Result,
    ir::{DType, Model, NodeId},
    passes::{Context, convert_to_floats},
    target::{HalfForm, Target},
};

/// The code of what is said where such a model stays as it is.
pub(super) const STAY: &str = "quantizers_of_halves";

/// Nodes of these operators that read 16-bit floats: how many, and the first one.
fn found(model: &Model, ops: &[&str]) -> Option<(usize, NodeId)> {
    let asks = |n: &NodeId| ops.contains(&model.node(*n).op_type.as_str());
    let nodes: Vec<NodeId> = model.all_nodes().into_iter().filter(asks).collect();
    let types = (!nodes.is_empty()).then(|| types::infer(model))?;
    let half = |&n: &NodeId| {
        let read = model.node(n).input(0).and_then(|v| model.value(v).dtype().or_else(|| types.dtype(v)));
        matches!(read, Some(DType::Float16 | DType::Bfloat16))
    };
    let halves: Vec<NodeId> = nodes.into_iter().filter(half).collect();
    halves.first().map(|&first| (halves.len(), first))
}

/// Whether a runtime has no kernels for such floats and computes in 32 bits, so that nothing is lost with them.
fn widens(target: &Target) -> bool {
    let facts = target.halves.get(&DType::Float16);
    facts.is_some_and(|f| f.form == HalfForm::Stored || f.longest_sum.is_none())
}

/// A model with such quantizers in 32-bit floats, where its runtime computes in these anyway, and what is said of it.
pub(in crate::pipeline) fn widened(original: &Model, target: &Target) -> Result<Option<(Model, Diagnostic)>> {
    let Some((quantizers, first)) = found(original, &["QuantizeLinear", "Round"]).filter(|_| widens(target)) else {
        return Ok(None);
    };
    let (mut model, first) = (original.clone(), original.node_label(first));
    convert_to_floats::run(&mut model, &mut Context::default())?;
    let text = format!(
        "{} of 16-bit floats: the model becomes one of 32-bit floats, since integer kernels read and write no others; its inputs and outputs stay",
        count(quantizers, "quantizer")
    );
    Ok(Some((model, Diagnostic::note("quantizers_widened", text).on(first))))
}

/// What is said of such quantizers where they stay.
pub(in crate::pipeline) fn stay(model: &Model, target: &Target) -> Option<Diagnostic> {
    let (quantizers, first) = found(model, &["QuantizeLinear"]).filter(|_| !widens(target))?;
    let text = format!(
        "{} of 16-bit floats are not imported: target {} computes in such floats, and its scales would have to be 32-bit ones",
        count(quantizers, "quantizer"),
        target.name
    );
    let help = "give the model as it was exported in 32-bit floats, or --target onnxruntime-cpu for a file in those";
    Some(Diagnostic::warning(STAY, text).on(model.node_label(first)).help(help))
}
