//! What differs between two models: read, matched, told.

use std::path::PathBuf;

use crate::{
    difference::Difference,
    error::Result,
    onnx_file::{self, ReadOptions, size_on_disk},
    report::{DifferenceReport, Size},
    target::Target,
};

/// Which models to compare.
pub struct DiffJob<'a> {
    /// The first model.
    pub a: PathBuf,
    /// The second.
    pub b: PathBuf,
    /// Whose kernels are told.
    pub target: &'a Target,
    /// How to read.
    pub read: ReadOptions,
}

/// Reads both models and says what differs. Nothing is written.
pub fn diff(job: &DiffJob<'_>) -> Result<DifferenceReport> {
    let read = |path: &PathBuf| onnx_file::read_with(path, job.read);
    let (a, b) = (read(&job.a)?, read(&job.b)?);
    let size = Size { before: size_on_disk(&job.a, &a), after: size_on_disk(&job.b, &b) };
    let difference = Difference::between(&a, &b, job.target)?;
    let [a, b] = [&job.a, &job.b].map(|path| path.display().to_string());
    Ok(DifferenceReport { version: env!("CARGO_PKG_VERSION"), a, b, target: job.target.name.clone(), size, difference })
}
