//! `qonvert calibrate`: ranges of values, to be looked at, edited, merged and used again.

use std::{path::PathBuf, process::ExitCode};

use qonvert::{
    Error,
    calibrate::Table,
    onnx_file::ReadOptions,
    pipeline::{self, Job},
    report::terminal::count,
};

use crate::{Common, progress::Bar, runtime_args::RuntimeArgs, scheme_args::SchemeArgs};

/// Run a model on data and save the ranges of the values that quantization needs
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  qonvert calibrate model.onnx --calibration data.npz -o ranges.yaml
  qonvert quantize model.onnx -o model.int8.onnx --calibration data.npz --ranges ranges.yaml
  qonvert calibrate model.onnx --calibration more.npz --merge ranges.yaml -o all.yaml")]
pub struct Args {
    /// The float model
    model: PathBuf,
    /// Data: an .npz file (one array for each input, samples along axis 0), a folder of .npy or .npz files, or a folder
    /// of pictures
    #[arg(long, value_name = "DATA")]
    calibration: PathBuf,
    /// The table to write, YAML
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Tables of earlier runs to take in: a value in several gets the range that holds all; may be given often
    #[arg(long, value_name = "FILE")]
    merge: Vec<PathBuf>,
    /// Read a file of a newer IR version than qonvert knows
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    scheme: SchemeArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

pub fn run(args: &Args, common: &Common) -> anyhow::Result<ExitCode> {
    let settings = args.scheme.integer_settings(|config| config.never_slower = false)?;
    let fastest = settings.fastest();
    if settings.config.smooth || settings.config.equalize || settings.config.absorb_biases {
        let text = "smooth, equalize and absorb_biases change values before they are calibrated: such ranges would fit no other run";
        return Err(Error::config(text).help("leave them out here").into());
    }
    let runtime = args.runtime.open()?;
    let others = args.merge.iter().map(|path| Table::open(path)).collect::<Result<Vec<_>, _>>()?;
    let bar = Bar::new(common);
    let read = ReadOptions { force: args.force };
    let data = Some(args.calibration.clone());
    let mut files = args.scheme.files();
    files.extend(&args.runtime.files());
    args.merge.iter().for_each(|path| files.read("--merge", path));
    let job =
        Job { data, read, files, runtime: &*runtime, progress: &bar, ..Job::new(&args.model, &args.output, &fastest) };
    let done = pipeline::quantize(&job);
    bar.finish();
    let done = done?;
    let (mut table, mut noticed) = (done.table, done.diagnostics);
    for other in others {
        noticed.extend(table.merge(other));
    }
    table.save(&args.output)?;
    args.scheme.dump(&settings)?;
    if !common.quiet {
        let (values, samples) = (count(table.ranges.len(), "value"), count(done.samples.len(), "sample"));
        let mut text = format!("written: {} with the ranges of {values} on {samples}\n", args.output.display());
        noticed.iter().for_each(|d| text += &format!("{d}\n"));
        crate::print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}
