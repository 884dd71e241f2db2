//! What the commands share that write a quantized file anew: which files there are, reading, soundness, and the comparison.

use std::path::Path;

use super::{Progress, before, odd_outputs, open_data, proof_of};
use crate::{
    calibrate::dataset::{self, DatasetOptions},
    diagnostics::Diagnostic,
    error::Result,
    files::Files,
    ir::Model,
    onnx_file::{self, ReadOptions},
    report::Proof,
    runtime::Runtime,
    validate,
};

/// All files of a run, checked; the output with what it is called.
pub(super) fn files(model: &Path, data: Option<&Path>, output: Option<(&str, &Path)>, others: &Files) -> Result<Files> {
    let mut all = Files::default();
    all.read("MODEL", model);
    data.into_iter().flat_map(dataset::files_of).for_each(|path| all.read("--data", path));
    if let Some((called, path)) = output {
        all.write(called, path);
        all.write(format!("the weights of {called}"), onnx_file::data_path(path));
    }
    all.extend(others);
    all.check()?;
    Ok(all)
}

/// Reads the model; none of the files that will be written may hold its weights.
pub(super) fn read(model: &Path, options: ReadOptions, files: &Files) -> Result<Model> {
    let original = onnx_file::read_with(model, options)?;
    before::check_weights(files)?;
    Ok(original)
}

/// Refuses a model that is not sound, unless the original was not either: then that is said.
pub(super) fn check(original: &Model, model: &Model, noticed: &mut Vec<Diagnostic>) -> Result<()> {
    match validate::check(model) {
        Err(error) if validate::check(original).is_ok() => Err(error),
        Err(error) => {
            let text = format!("the model is not sound, and was not before: {error}");
            noticed.push(Diagnostic::warning("not_sound", text));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// How far both models are apart on all of the data, if there are some.
pub(super) fn compared(
    runtime: &dyn Runtime,
    models: [&Model; 2],
    data: Option<&Path>,
    progress: &dyn Progress,
    noticed: &mut Vec<Diagnostic>,
) -> Result<Option<Proof>> {
    let Some(path) = data else { return Ok(None) };
    let [original, model] = models;
    progress.step("compare");
    let data = open_data(path, original, &DatasetOptions::default())?;
    let samples: Vec<usize> = (0..data.len()).collect();
    let part = |done, total| progress.part(done, total);
    let compared = validate::compare(runtime, original, model, &data, &samples, &part)?;
    noticed.extend(data.notes().to_vec());
    noticed.extend(odd_outputs(&compared));
    Ok(Some(proof_of(original, &compared, f64::NEG_INFINITY)))
}
