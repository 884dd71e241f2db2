//! How fast models are in the runtime that they are for: latency in turns, with medians, ratios and their certainty, and
//! what each kernel takes.
//!
//! The models run in turns (A B A B …), so that whatever else the machine does hits all alike. A turn is as many runs as fill
//! a few hundredths of a second, and counts with what a tenth of them stay under, so that runs in which another process had
//! the core do not matter. The ratio of two models is the median of their ratios in each round. The interval beside it holds
//! the true median in 95 of 100 measurements.

mod feeds;
mod never_slower;
mod profile;
mod stats;
mod turns;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

pub use self::{
    feeds::{Inputs, from_data, made_up},
    never_slower::{BUSY, Measured, PutBack, Task, put_back},
    profile::{Kernel, Kind, NodeTime, Profile},
    stats::{Interval, ratio},
    turns::{Limits, in_turns},
};
use crate::{
    calibrate::InputSpec,
    error::{Error, Result},
    onnx_file::{self, ReadOptions},
    runtime::onnxruntime::{OnnxRuntime, Timed},
};

/// How to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that a run may use.
    pub threads: usize,
    /// Samples that are stacked in one run.
    pub batch: usize,
    /// Rounds, their length, and the time for all.
    pub limits: Limits,
    /// Ask the runtime what each node takes, too.
    pub profile: bool,
    /// How to read the files.
    pub read: ReadOptions,
}

impl Default for Options {
    fn default() -> Self {
        let limits = Limits { rounds: 15, turn: Duration::from_millis(60), budget: Duration::from_secs(120) };
        Self { threads: 1, batch: 1, limits, profile: false, read: ReadOptions::default() }
    }
}

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bench {
    /// The runtime's version.
    pub onnxruntime: String,
    /// Threads of a run.
    pub threads: usize,
    /// Samples in a run.
    pub batch: usize,
    /// What the inputs are, in words.
    pub inputs: Vec<String>,
    /// Rounds that were measured.
    pub rounds: usize,
    /// The models, in the order that they were given.
    pub models: Vec<Speed>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// Its file.
    pub model: String,
    /// Bytes of file and weights.
    pub bytes: u64,
    /// Milliseconds of an undisturbed run: the median over the rounds, and its quartiles.
    pub milliseconds: Interval,
    /// How many times as fast as the first model, with the interval that is 95 % certain.
    pub speed: Interval,
    /// What its kernels take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
}

/// Runs that a profile is made of.
const PROFILED_RUNS: usize = 12;

/// The inputs of the first model, which those of the others must be, too.
pub fn input_specs(files: &[PathBuf], options: &Options) -> Result<Vec<InputSpec>> {
    let mut first: Option<(&Path, Vec<InputSpec>)> = None;
    for file in files {
        let model = onnx_file::read_with(file, options.read)?;
        let specs = InputSpec::of_model(&model).map_err(|e| e.file(file))?;
        match &first {
            None => first = Some((file, specs)),
            Some((other, known)) => same_inputs(known, &specs, other).map_err(|e| e.file(file))?,
        }
    }
    first.map(|(_, specs)| specs).ok_or_else(|| Error::config("there is no model to measure"))
}

/// Inputs go by name, so their order may differ.
fn same_inputs(first: &[InputSpec], specs: &[InputSpec], file: &Path) -> Result<()> {
    let types = |specs: &[InputSpec]| -> BTreeMap<String, (crate::ir::DType, Option<usize>)> {
        specs.iter().map(|s| (s.name.clone(), (s.dtype, s.dims.as_ref().map(Vec::len)))).collect()
    };
    if types(first) == types(specs) {
        return Ok(());
    }
    let words = |specs: &[InputSpec]| specs.iter().map(feeds::words).collect::<Vec<_>>().join(", ");
    Err(Error::data(format!("takes {}, {} takes {}", words(specs), file.display(), words(first)))
        .help("models can be measured in turns only on the same inputs"))
}

/// Measures model files in turns, on the same inputs.
pub fn measure(
    runtime: &OnnxRuntime,
    files: &[PathBuf],
    inputs: &Inputs,
    options: &Options,
    progress: &dyn Fn(usize, usize),
) -> Result<Bench> {
    let feeds = &inputs.tensors[..];
    let load = |file: &PathBuf| runtime.timed_file(file, options.threads, feeds);
    let mut models: Vec<Timed> = files.iter().map(load).collect::<Result<_>>()?;
    let mut runs: Vec<_> = models.iter_mut().zip(files).map(|(m, f)| move || m.run().map_err(|e| e.file(f))).collect();
    let mut turns: Vec<&mut dyn FnMut() -> Result<()>> = runs.iter_mut().map(|r| r as _).collect();
    let seconds = in_turns(&mut turns, options.limits, &|_| false, progress)?;
    let speed = |(file, times): (&PathBuf, &Vec<f64>)| {
        let json = || runtime.profile_file(file, options.threads, feeds, PROFILED_RUNS);
        let profile = options.profile.then(|| profile::parse(&json()?).map_err(|e| e.file(file))).transpose()?;
        Ok(Speed {
            model: file.display().to_string(),
            bytes: on_disk(file),
            milliseconds: stats::quartiles(&times.iter().map(|t| 1e3 * t).collect::<Vec<_>>()),
            speed: ratio(&seconds[0], times),
            profile,
        })
    };
    Ok(Bench {
        onnxruntime: runtime.version(),
        threads: options.threads,
        batch: options.batch,
        inputs: inputs.words.clone(),
        rounds: seconds[0].len(),
        models: files.iter().zip(&seconds).map(speed).collect::<Result<_>>()?,
    })
}

fn on_disk(file: &Path) -> u64 {
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
    length(file) + length(&onnx_file::data_path(file))
}
