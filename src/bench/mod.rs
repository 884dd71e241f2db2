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
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

pub use self::{
    feeds::{Inputs, from_data, made_up},
    never_slower::{BUSY, Measured, PutBack, Task, compared_in, put_back, speed_in},
    profile::{Kernel, Kind, NodeTime, Profile},
    stats::{Interval, ratio},
    turns::{Limits, in_turns},
};
use crate::{
    calibrate::InputSpec,
    error::{Error, Result},
    files::{self, Files},
    ir::Dim,
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

/// The models that are to be measured, and the inputs that all of them take.
pub struct Models {
    files: Vec<PathBuf>,
    /// Bytes of each, weights in other files with them.
    bytes: Vec<u64>,
    inputs: Vec<InputSpec>,
}

impl Models {
    /// Reads what is to be known of them. `writes` are the files that the run will write, each with the flag that names it.
    pub fn read(files: &[PathBuf], writes: &Files, options: &Options) -> Result<Self> {
        let mut all = Self { files: files.to_vec(), bytes: Vec::new(), inputs: Vec::new() };
        for (i, file) in files.iter().enumerate() {
            let model = onnx_file::read_with(file, options.read)?;
            if let Some((called, path)) = writes.written().find(|(_, p)| p.exists() && onnx_file::is_mapped(p)) {
                return Err(files::over(called, "the weights of MODEL").file(path));
            }
            all.bytes.push(onnx_file::size_on_disk(file, &model));
            let specs = InputSpec::of_model(&model).map_err(|e| e.file(file))?;
            all.inputs =
                if i == 0 { specs } else { common(&all.inputs, &specs, &files[0]).map_err(|e| e.file(file))? };
        }
        if files.is_empty() {
            return Err(Error::config("there is no model to measure"));
        }
        Ok(all)
    }

    /// The inputs that all take. A dim is open where it is in all of them.
    pub fn inputs(&self) -> &[InputSpec] {
        &self.inputs
    }
}

/// The inputs that fit both. They go by name, so their order may differ.
fn common(first: &[InputSpec], specs: &[InputSpec], file: &Path) -> Result<Vec<InputSpec>> {
    let both = |a: &InputSpec| {
        let b = specs.iter().find(|b| b.name == a.name && b.dtype == a.dtype)?;
        let dims = match (&a.dims, &b.dims) {
            (Some(a), Some(b)) if a.len() == b.len() => Some(a.iter().zip(b).map(common_dim).collect::<Option<_>>()?),
            (Some(_), Some(_)) => return None,
            (a, b) => a.clone().or_else(|| b.clone()),
        };
        Some(InputSpec { dims, ..a.clone() })
    };
    let found: Option<Vec<InputSpec>> = first.iter().map(both).collect();
    found.filter(|all| all.len() == specs.len()).ok_or_else(|| {
        let words = |specs: &[InputSpec]| specs.iter().map(feeds::words).collect::<Vec<_>>().join(", ");
        Error::data(format!("takes {}, {} takes {}", words(specs), file.display(), words(first)))
            .help("models can be measured in turns only on the same inputs")
    })
}

fn common_dim((a, b): (&Dim, &Dim)) -> Option<Dim> {
    match (a.known(), b.known()) {
        (Some(n), Some(m)) if n != m => None,
        (None, Some(_)) => Some(b.clone()),
        _ => Some(a.clone()),
    }
}

/// Measures model files in turns, on the same inputs.
pub fn measure(
    runtime: &OnnxRuntime,
    models: &Models,
    inputs: &Inputs,
    options: &Options,
    progress: &dyn Fn(usize, usize),
) -> Result<Bench> {
    let (feeds, files) = (&inputs.tensors[..], &models.files);
    let load = |file: &PathBuf| runtime.timed_file(file, options.threads, feeds);
    let mut loaded: Vec<Timed> = files.iter().map(load).collect::<Result<_>>()?;
    let mut runs: Vec<_> = loaded.iter_mut().zip(files).map(|(m, f)| move || m.run().map_err(|e| e.file(f))).collect();
    let mut turns: Vec<&mut dyn FnMut() -> Result<()>> = runs.iter_mut().map(|r| r as _).collect();
    let seconds = in_turns(&mut turns, options.limits, &|_| false, progress)?;
    let speed = |((file, &bytes), times): ((&PathBuf, &u64), &Vec<f64>)| {
        let json = || runtime.profile_file(file, options.threads, feeds, PROFILED_RUNS);
        let profile = options.profile.then(|| profile::parse(&json()?).map_err(|e| e.file(file))).transpose()?;
        Ok(Speed {
            model: file.display().to_string(),
            bytes,
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
        models: files.iter().zip(&models.bytes).zip(&seconds).map(speed).collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::DType;

    fn spec(name: &str, dims: Option<&[Dim]>) -> InputSpec {
        InputSpec { name: name.into(), dtype: DType::Float, dims: dims.map(<[Dim]>::to_vec) }
    }

    #[test]
    fn a_dim_is_open_where_it_is_in_all_models() {
        let named = |n: &str| Dim::Named(n.into());
        let dims = |specs: Option<Vec<InputSpec>>| specs.map(|s| s[0].dims.clone());
        let both = |a: Option<&[Dim]>, b: Option<&[Dim]>| {
            dims(common(&[spec("x", a)], &[spec("x", b)], Path::new("a.onnx")).ok())
        };
        let (free, fixed) = ([named("N"), Dim::Known(3)], [Dim::Known(1), Dim::Known(3)]);
        assert_eq!(both(Some(&free), Some(&fixed)), Some(Some(fixed.to_vec())));
        assert_eq!(both(Some(&fixed), Some(&free)), Some(Some(fixed.to_vec())));
        assert_eq!(both(Some(&free), None), Some(Some(free.to_vec())));
        assert_eq!(both(None, Some(&fixed)), Some(Some(fixed.to_vec())));
        assert_eq!(both(Some(&[Dim::Known(2), Dim::Known(3)]), Some(&fixed)), None);
        assert_eq!(both(Some(&free[..1]), Some(&fixed)), None);
        let two = [spec("y", None), spec("x", None)];
        assert!(common(&[spec("x", None), spec("y", None)], &two, Path::new("a.onnx")).is_ok());
        let e = common(&[spec("x", None)], &two, Path::new("a.onnx")).unwrap_err().to_string();
        assert_eq!(e, "takes y float[...], x float[...], a.onnx takes x float[...]");
    }
}
