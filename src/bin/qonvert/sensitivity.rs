//! `qonvert sensitivity`: which nodes hurt when they are quantized.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use qonvert::{
    files,
    onnx_file::ReadOptions,
    pipeline::{self, Job, MeasureSensitivity},
    report::{sensitivity, terminal::count},
};

use crate::{Common, progress::Bar, runtime_args::RuntimeArgs, scheme_args::SchemeArgs};

/// Measure what quantizing each node does to the answers of the model
#[derive(clap::Args)]
#[command(after_help = "\
All that the plan rounds is measured at the model's outputs, on samples that calibration has not
seen: each unit quantized alone, and alone left in float. A unit is an integer node with the
values that it reads and makes, a node whose weight has few bits, or float nodes whose weight is
stored in 8 bits; nodes that can only be switched together are one. SQNR is the signal to noise ratio of the worst output: 20 dB
is an error of 10 %, 40 dB of 1 %. Where outputs hold classes, KL is the divergence of the
distribution over these. The most harmful come first: by right answers lost where the data have
enough labels, else by divergence, else by noise. The model runs in the built-in runtime, with
roundings switched where integer kernels round; with --runtime onnxruntime a model is written
and run for each measurement. Nothing of it stays.

Examples:
  qonvert sensitivity model.onnx --calibration data.npz
  qonvert sensitivity model.onnx --calibration data.npz --rules worst.yaml --worst 3
  qonvert quantize model.onnx -o model.int8.onnx --calibration data.npz --config worst.yaml
      The three most harmful nodes stay float.")]
pub struct Args {
    /// The float model
    model: PathBuf,
    /// Data: an .npz file (one array for each input, samples along axis 0), a folder of .npy or .npz files, or a folder
    /// of pictures
    #[arg(long, value_name = "DATA")]
    calibration: PathBuf,
    /// Data to measure on, instead of the calibration data; with an array `labels`, right answers are counted
    #[arg(long, value_name = "DATA")]
    evaluation: Option<PathBuf>,
    /// The most units to measure: with more nodes, neighbours are measured together
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    units: u32,
    /// The most samples to measure on; of the calibration data, those first that calibration keeps back
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    measured_samples: u32,
    /// The figures as JSON
    #[arg(long)]
    json: bool,
    /// Write rules that keep the most harmful units in float, for --config
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// How many units the rules keep in float
    #[arg(long, value_name = "N", default_value_t = 1, requires = "rules")]
    worst: usize,
    /// Read a file of a newer IR version than qonvert knows
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    scheme: SchemeArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

pub fn run(args: &Args, common: &Common) -> anyhow::Result<ExitCode> {
    let settings = args.scheme.code_settings(|config| config.never_slower = false)?;
    let runtime = args.runtime.open()?;
    let bar = Bar::new(common);
    let mut files = args.scheme.files();
    files.extend(&args.runtime.files());
    args.rules.iter().for_each(|path| files.write("--rules", path));
    let job = Job {
        data: Some(args.calibration.clone()),
        evaluation: args.evaluation.clone(),
        read: ReadOptions { force: args.force },
        files,
        runtime: &*runtime,
        progress: &bar,
        // No model is written.
        ..Job::new(&args.model, "", &settings)
    };
    let how = MeasureSensitivity {
        most_units: args.units as usize,
        samples: args.measured_samples as usize,
        one_by_one: false,
    };
    let measured = pipeline::measure_sensitivity(&job, how);
    bar.finish();
    let measured = measured?;
    if let Some(path) = &args.rules {
        files::write(path, "the rules", measured.rules(args.worst)?.as_bytes())?;
    }
    args.scheme.dump(&settings)?;
    if args.json {
        let text = serde_json::to_string_pretty(&measured.found).context("the figures cannot be written as JSON")?;
        crate::print(&format!("{text}\n"))?;
    } else if !common.quiet {
        let samples = count(measured.samples, "sample");
        let seen = match measured.unseen {
            n if n == measured.samples => " that calibration has not seen".to_owned(),
            0 => " that calibration has seen, too".to_owned(),
            n => format!(", {n} of them new to calibration"),
        };
        let mut text = sensitivity::render(&measured.found);
        text += &format!("measured on {samples}{seen}\n");
        measured.diagnostics.iter().for_each(|d| text += &format!("{d}\n"));
        crate::print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}
