//! `qonvert bench`: how fast models are, in turns, in ONNX Runtime.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use qonvert::{
    Error,
    bench::{self, Limits, Options},
    calibrate::dataset::{self, Dataset, DatasetOptions},
    config::Config,
    files::{self, Files},
    onnx_file::ReadOptions,
    pipeline::Progress,
    report::speed,
};

use crate::{Common, progress::Bar, runtime_args::LibraryArgs, scheme_args::ImageArgs};

/// Measure how fast models are in ONNX Runtime, in turns, and against the first of them
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  qonvert bench model.onnx model.int8.onnx --data data.npz
  qonvert bench model.onnx --profile
      What each kernel takes, and the slowest nodes.
  qonvert bench model.onnx model.int8.onnx --dim seq=128 --batch 8 --threads 4

The models run in turns, so that whatever else the machine does hits all alike. Speed is how many
times as fast as the first model one is, the median over the rounds; the interval beside it is
95 % certain. --threads is that of a run, and 1 if not given.")]
pub struct Args {
    /// The models; all take the same inputs, and the first is what the others are compared with
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// Inputs: an .npz file (one array for each input, samples along axis 0), a folder of .npy or .npz files, or a folder of
    /// pictures. The first samples are used. Without it, numbers are made up
    #[arg(long, value_name = "DATA")]
    data: Option<PathBuf>,
    /// Without --data: the size of a dim that the inputs name, as seq=128; others are 1. May be given often
    #[arg(long, value_name = "NAME=SIZE", value_parser = dim, conflicts_with = "data")]
    dim: Vec<(String, usize)>,
    /// Samples in one run
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    batch: usize,
    /// Rounds: in each, every model has one turn
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = positive)]
    rounds: usize,
    /// The most seconds for all rounds; there are at least 3 rounds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    budget: u64,
    /// Show what each kernel takes and the slowest nodes (-v: all nodes)
    #[arg(long)]
    profile: bool,
    /// The figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Read files of a newer IR version than qonvert knows
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    onnxruntime: LibraryArgs,
    #[command(flatten)]
    image: ImageArgs,
}

pub fn run(args: &Args, common: &Common) -> anyhow::Result<ExitCode> {
    let mut config = Config::default();
    args.image.apply(&mut config);
    config.check()?;
    if args.data.is_none() && args.image.is_given() {
        let text = "the flags for pictures have no effect: no --data is given";
        return Err(Error::config(text).help("add --data with a folder of pictures, or leave them out").into());
    }
    let files = args.files();
    files.check()?;
    let options = Options {
        threads: common.threads.map_or(1, |n| if n == 0 { rayon::current_num_threads() } else { n }),
        batch: args.batch,
        limits: Limits { rounds: args.rounds, budget: Duration::from_secs(args.budget), ..Options::default().limits },
        profile: args.profile,
        read: ReadOptions { force: args.force },
    };
    let runtime = args.onnxruntime.open()?;
    let models = bench::Models::read(&args.models, &files, &options)?;
    let specs = models.inputs();
    let inputs = match &args.data {
        Some(path) => {
            let images = DatasetOptions { images: config.calibration.image.options() };
            let data = Dataset::open(path, specs, &images)?;
            bench::from_data(&data, args.batch).map_err(|e| e.file(path))?
        }
        None => {
            let mut dims = BTreeMap::new();
            for (name, size) in &args.dim {
                if dims.insert(name.clone(), *size).is_some() {
                    return Err(Error::config(format!("--dim {name} is given twice")).into());
                }
            }
            bench::made_up(specs, &dims, args.batch)?
        }
    };
    let bar = Bar::new(common);
    bar.step("measure");
    let done = bench::measure(&runtime, &models, &inputs, &options, &|done, all| bar.part(done, all));
    bar.finish();
    let done = done?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&done).context("the figures cannot be written as JSON")?;
        files::write(path, "the figures", (text + "\n").as_bytes())?;
    }
    if !common.quiet {
        crate::print(&speed::render(&done, common.verbose > 0))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn files(&self) -> Files {
        let mut all = self.onnxruntime.files();
        self.models.iter().for_each(|path| all.read("MODEL", path));
        let data = self.data.iter().flat_map(|d| dataset::files_of(d));
        data.for_each(|path| all.read("--data", path));
        self.json.iter().for_each(|path| all.write("--json", path));
        all
    }
}

fn dim(text: &str) -> Result<(String, usize), String> {
    let parts = text.split_once('=').and_then(|(name, n)| Some((name.trim().to_owned(), n.trim().parse().ok()?)));
    parts.filter(|(name, _)| !name.is_empty()).ok_or_else(|| "write a name and a number, as seq=128".to_owned())
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "write a number of 1 or more".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dims() {
        assert_eq!(dim("seq=128"), Ok(("seq".to_owned(), 128)));
        for bad in ["", "seq", "seq=", "=3", "seq=-1", "seq=x"] {
            assert!(dim(bad).is_err(), "{bad}");
        }
    }
}
