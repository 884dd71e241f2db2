//! A quantized model of any form as a float model with the rounded weights.

use std::{collections::BTreeMap, path::PathBuf};

use super::{Progress, Silent, anew};
use crate::{
    analysis::types,
    diagnostics::{Diagnostic, count},
    error::Result,
    files::Files,
    ir::{DType, Model},
    onnx_file::{self, ReadOptions, WriteOptions, size_on_disk},
    passes::{
        self, Context, Stage, eliminate_initializer_inputs, fold_constants, inline_functions, remove_dead,
        remove_quantization::{Clamps, NOT_REMOVED, is_quantization},
        support::pairs::forget_import,
    },
    report::{Dequantization, NOTHING_QUANTIZED, Report, Size},
    runtime::{Runtime, tract::Tract},
    validate,
};

/// What to bring back to floats.
pub struct DequantizeJob<'a> {
    /// The quantized model to read.
    pub model: PathBuf,
    /// The file to write.
    pub output: PathBuf,
    /// Which clamps come back.
    pub clamps: Clamps,
    /// Inputs and outputs of the model become 32-bit floats as well.
    pub float_ends: bool,
    /// Data to run both files on.
    pub data: Option<PathBuf>,
    /// Further files that the caller reads or writes.
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

impl DequantizeJob<'_> {
    /// From `model` to `output`, without data to compare on, telling nobody of its progress.
    pub fn new(model: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            output: output.into(),
            clamps: Clamps::default(),
            float_ends: false,
            data: None,
            files: Files::default(),
            runtime: &Tract,
            external_data: false,
            read: ReadOptions::default(),
            progress: &Silent,
        }
    }
}

/// Before this version of the format, every initializer must be an input of the graph, new ones too.
const PLAIN_INITIALIZERS: i64 = 4;

/// A model in 32-bit floats. The operator set stays; what cannot be brought back is named among the diagnostics.
pub fn dequantize_model(original: &Model, clamps: Clamps, float_ends: bool, cx: &mut Context) -> Result<Model> {
    let mut model = original.clone();
    (cx.options.clamps, cx.options.float_ends, cx.options.float_state) = (clamps, float_ends, true);
    if !model.functions.is_empty() {
        inline_functions::run(&mut model, cx)?;
    }
    if model.ir_version < PLAIN_INITIALIZERS {
        eliminate_initializer_inputs::run(&mut model, cx)?;
    }
    passes::raise_training(&mut model, cx)?;
    if !is_quantized(&model) {
        let text = "nothing in the model is quantized, and it has no 16-bit floats: it was written as it is";
        cx.diagnostics.push(Diagnostic::warning(NOTHING_QUANTIZED, text));
        return Ok(original.clone());
    }
    passes::raise_in_between(&mut model, cx)?;
    // Before the rest of that stage: what is stored in blocks becomes float at once, and large weights are never in memory.
    passes::remove_few_bits::run(&mut model, cx)?;
    passes::raise(&mut model, cx)?;
    // Quantizers of training in front of constants.
    passes::fold_learned_weights::store_codes_of_constants(&mut model)?;
    passes::run_stage(Stage::Float, &mut model, cx)?;
    cx.removed.weights += fold_constants::fold_later(&mut model, fold_constants::unpacks)?;
    remove_dead::run(&mut model, cx)?;
    forget_import(&mut model, crate::ops::MICROSOFT);
    name_what_stays(&model, cx);
    model.verify()?;
    anew::check(original, &model, &mut cx.diagnostics)?;
    if !float_ends {
        validate::check_interface(original, &model, None)?;
    }
    Ok(model)
}

/// Whether there is anything to bring back: quantization, 16-bit floats, packed weights.
fn is_quantized(model: &Model) -> bool {
    let types = types::infer(model);
    let half = |t: DType| matches!(t, DType::Float16 | DType::Bfloat16);
    let halves = model.value_ids().into_iter().any(|v| model.value(v).dtype().or(types.dtype(v)).is_some_and(half));
    let nodes = model.all_nodes();
    halves || nodes.iter().any(|&n| is_quantization(model.node(n)) || fold_constants::unpacks(model, n))
}

/// Names the operators of quantization that are left.
fn name_what_stays(model: &Model, cx: &mut Context) {
    let mut left: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for n in model.all_nodes().into_iter().filter(|&n| is_quantization(model.node(n))) {
        left.entry(&model.node(n).op_type).or_default().push(model.node_label(n));
    }
    for (op, nodes) in left {
        // Others have said why already.
        let told = |d: &Diagnostic| {
            [NOT_REMOVED, "not_raised"].contains(&d.code) && nodes.iter().any(|n| d.message.contains(n.as_str()))
        };
        if !cx.diagnostics.iter().any(told) {
            let text = format!(
                "{} ({:?}{}) stayed quantized: no float form of that is known here",
                count(nodes.len(), op),
                nodes[0],
                if nodes.len() > 1 { " and others" } else { "" },
            );
            cx.diagnostics.push(Diagnostic::warning(NOT_REMOVED, text));
        }
    }
}

/// Reads, brings back to floats, compares where there is data, and writes. On an error nothing is written.
pub fn dequantize(job: &DequantizeJob<'_>) -> Result<Dequantization> {
    let output = Some(("--output", &*job.output));
    let files = anew::files(&job.model, job.data.as_deref(), output, &job.files)?;
    job.progress.step("dequantize");
    let original = anew::read(&job.model, job.read, &files)?;
    let mut cx = Context::default();
    let model = dequantize_model(&original, job.clamps, job.float_ends, &mut cx).map_err(|e| e.file(&job.model))?;
    let mut diagnostics = cx.diagnostics;
    let models = [&original, &model];
    let proof = anew::compared(job.runtime, models, job.data.as_deref(), job.progress, &mut diagnostics)?;
    job.progress.step("write");
    onnx_file::write(&model, &job.output, WriteOptions { external_data: job.external_data.then_some(true) })?;
    let before = size_on_disk(&job.model, &original);
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: job.model.display().to_string(),
        output: Some(job.output.display().to_string()),
        size: Size { before, after: size_on_disk(&job.output, &model) },
        proof,
        diagnostics,
        ..Report::default()
    };
    Ok(Dequantization::between(&original, &model, cx.removed, job.clamps, report))
}
