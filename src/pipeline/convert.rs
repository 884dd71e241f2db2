//! A quantized model in another form: nothing is calibrated or decided.

use std::path::PathBuf;

use super::{Progress, Silent, anew};
use crate::{
    config::Format,
    diagnostics::Diagnostic,
    error::Result,
    files::Files,
    ir::{Model, Node, NodeId},
    onnx_file::{self, ReadOptions, WriteOptions},
    ops,
    passes::{self, Context, Stage, convert_opset},
    report::{Conversion, NOTHING_QUANTIZED, Report},
    runtime::{Runtime, tract::Tract},
    target::Target,
    validate,
};

/// What to convert into what.
pub struct ConvertJob<'a> {
    /// The quantized model to read.
    pub model: PathBuf,
    /// The file to write.
    pub output: PathBuf,
    /// The form to write.
    pub format: Format,
    /// What runs the model: says which integer operators there are.
    pub target: &'a Target,
    /// Data to run both files on.
    pub data: Option<PathBuf>,
    /// Further files that the caller reads.
    pub files: Files,
    /// What runs the files here.
    pub runtime: &'a dyn Runtime,
    /// Weights go into a file of their own.
    pub external_data: bool,
    /// How to read.
    pub read: ReadOptions,
    /// Told of each step and its progress.
    pub progress: &'a dyn Progress,
}

impl<'a> ConvertJob<'a> {
    /// From `model` to `output`, without data to compare on, telling nobody of its progress.
    pub fn new(model: impl Into<PathBuf>, output: impl Into<PathBuf>, format: Format, target: &'a Target) -> Self {
        Self {
            model: model.into(),
            output: output.into(),
            format,
            target,
            data: None,
            files: Files::default(),
            runtime: &Tract,
            external_data: false,
            read: ReadOptions::default(),
            progress: &Silent,
        }
    }
}

/// Brings a model into a form. Scales and zero points stay what they are; what has no other form stays as it is.
pub fn convert_model(original: &Model, format: Format, target: &Target, cx: &mut Context) -> Result<Model> {
    let mut model = original.clone();
    cx.options.float_state = format == Format::Qdq;
    cx.options.onnx_only = format == Format::Qdq;
    cx.options.seen_through.clone_from(&target.seen_through);
    cx.options.qoperator = (format == Format::Qoperator).then(|| target.integer_ops());
    passes::raise(&mut model, cx)?;
    passes::raise_training(&mut model, cx)?;
    if format == Format::Qoperator {
        // Weights that are quantized when the file is loaded.
        passes::fold_learned_weights::store_codes_of_constants(&mut model)?;
    }
    // What is quantized at run time has integer operators in both.
    passes::run_stage(Stage::Lower, &mut model, cx)?;
    if has_channel_scales(&model) && model.opset("").is_some_and(|v| v < convert_opset::NEEDED) {
        convert_opset::run(&mut model, cx)?;
    }
    notice_what_stays(original, &model, cx);
    model.verify()?;
    anew::check(original, &model, &mut cx.diagnostics)?;
    validate::check_interface(original, &model, None)?;
    Ok(model)
}

/// Operators of ONNX Runtime on codes that have no other form here.
const ONE_FORM: &[&str] = &["QAttention", "QEmbedLayerNormalization", "QLinearReduceMean", "QMoE", "MatMulBnb4"];

/// Says where there is nothing to convert, and which quantized operators are the same in both forms.
fn notice_what_stays(original: &Model, model: &Model, cx: &mut Context) {
    let ids = original.all_nodes();
    let microsoft = |n: &Node| n.domain.as_deref() == Some(ops::MICROSOFT);
    let on_codes = |n: &Node| {
        let known = n.in_onnx_domain() || microsoft(n);
        let op = n.op_type.as_str();
        let named =
            ["QuantizeLinear", "DequantizeLinear", "Integer", "NBits", "DynamicQuantize"].map(|s| op.contains(s));
        known && (named.contains(&true) || ops::raised_by(n).is_some() || ONE_FORM.contains(&op))
    };
    let spelled = || model.all_nodes().into_iter().any(|n| on_codes(model.node(n)));
    if !ids.iter().any(|&n| on_codes(original.node(n))) && !spelled() {
        let text = "nothing in the model is quantized: it was written as it is";
        let help = "`qonvert quantize` quantizes it, with --format qdq or qoperator";
        cx.diagnostics.push(Diagnostic::warning(NOTHING_QUANTIZED, text).help(help));
    }
    for op in ONE_FORM {
        let of = |id: NodeId| model.node(id).op_type == *op && microsoft(model.node(id));
        let nodes: Vec<String> =
            model.all_nodes().into_iter().filter(|&n| of(n)).map(|n| model.node_label(n)).collect();
        if !nodes.is_empty() {
            let text = format!("{}: {op} is the same in both forms", passes::support::pairs::stay(&nodes, op));
            cx.diagnostics.push(Diagnostic::note("one_form", text));
        }
    }
}

/// Whether some DequantizeLinear has a scale for each channel: older operator sets than the newest that is needed do not
/// have that.
fn has_channel_scales(model: &Model) -> bool {
    let scales = |n| model.node(n).input(1).and_then(|s| model.value(s).constant().map(|t| t.len()));
    model.all_nodes().into_iter().any(|n| model.node(n).is("DequantizeLinear") && scales(n).is_some_and(|n| n > 1))
}

/// Reads, converts, compares where there is data, and writes. On an error nothing is written.
pub fn convert(job: &ConvertJob<'_>) -> Result<Conversion> {
    let output = Some(("OUTPUT", &*job.output));
    let files = anew::files(&job.model, job.data.as_deref(), output, &job.files)?;
    job.progress.step("convert");
    let original = anew::read(&job.model, job.read, &files)?;
    let mut cx = Context::default();
    let model = convert_model(&original, job.format, job.target, &mut cx).map_err(|e| e.file(&job.model))?;
    let mut diagnostics = cx.diagnostics;
    let models = [&original, &model];
    let proof = anew::compared(job.runtime, models, job.data.as_deref(), job.progress, &mut diagnostics)?;
    job.progress.step("write");
    onnx_file::write(&model, &job.output, WriteOptions { external_data: job.external_data.then_some(true) })?;
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: job.model.display().to_string(),
        output: Some(job.output.display().to_string()),
        proof,
        diagnostics,
        ..Report::default()
    };
    Ok(Conversion::between(job.format.name(), &original, &model, report))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    /// The codes of what is told of a conversion.
    fn told(nodes: &str) -> Vec<&'static str> {
        let head = "<ir_version: 8, opset_import: [\"\" : 17, \"com.microsoft\" : 1]> g (float[2,2] x) => (y)";
        let model = text::parse(&format!("{head} <float s = {{0.5}}, uint8 z = {{3}}> {{ {nodes} }}")).unwrap();
        let mut cx = Context::default();
        notice_what_stays(&model, &model, &mut cx);
        cx.diagnostics.iter().map(|d| d.code).collect()
    }

    #[test]
    fn what_stays_is_told() {
        assert_eq!(told("y = MatMul(x, x)"), [NOTHING_QUANTIZED]);
        assert_eq!(told("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"), [""; 0]);
        assert_eq!(told("y = com.microsoft.QAttention(x)"), ["one_form"]);
    }
}
