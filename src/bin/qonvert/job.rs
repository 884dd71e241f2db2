//! From settings to a job of the library.

use std::path::{Path, PathBuf};

use qonvert::{
    Result,
    calibrate::{Table, dataset::DatasetOptions},
    ir::Model,
    onnx_file::{ReadOptions, WriteOptions},
    pipeline::{Job, Progress, Resolved},
    plan::Plan,
    runtime::tract::Tract,
    scheme::Settings,
};

/// What a job works on.
pub struct Inputs {
    pub model: PathBuf,
    pub output: PathBuf,
    pub data: Option<PathBuf>,
    pub ranges: Option<Table>,
    pub plan: Option<Plan>,
    pub force: bool,
}

impl Inputs {
    pub fn new(model: &Path) -> Self {
        Self { model: model.to_owned(), output: PathBuf::new(), data: None, ranges: None, plan: None, force: false }
    }
}

/// The settings as the job asks for them.
pub fn resolve(settings: &Settings) -> impl Fn(&Model, &Model) -> Result<Resolved> {
    |original, model| settings.resolve(original, model)
}

/// The job.
pub fn job<'a>(
    inputs: Inputs,
    settings: &Settings,
    resolve: &'a dyn Fn(&Model, &Model) -> Result<Resolved>,
    progress: &'a dyn Progress,
) -> Job<'a> {
    let config = &settings.config;
    Job {
        model: inputs.model,
        output: inputs.output,
        data: inputs.data,
        dataset: DatasetOptions { images: config.calibration.image.options() },
        samples: config.calibration.samples,
        target: settings.target.clone(),
        runtime: &Tract,
        resolve,
        ranges: inputs.ranges,
        plan: inputs.plan,
        read: ReadOptions { force: inputs.force },
        write: WriteOptions { external_data: config.external_data.then_some(true) },
        progress,
    }
}
