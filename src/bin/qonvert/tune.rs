//! `qonvert tune`: the front of size, speed and loss of a model, and the best model within budgets.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::ValueEnum;
use qonvert::{
    config::{Size, duration},
    files,
    onnx_file::ReadOptions,
    pipeline::{
        self, Job,
        tune::{Aims, POINTS, SpeedBy, Tuning, parse_speedup},
    },
    report::{
        terminal,
        tune::{Tuned, missed, table},
    },
};

use crate::{Common, progress::Bar, runtime_args::RuntimeArgs, scheme_args::SchemeArgs};

/// Search for the best model within budgets of loss, speed and size
#[derive(clap::Args)]
#[command(after_help = "\
Many quantized models are made and measured, each as a whole: its loss as mode auto has it, its speed in
ONNX Runtime where that is installed (else by the cost model), its size as it will be written. The best
within the budgets is written: the fastest where --max-loss is given (or nothing is), else that with
the least loss. Where none is within all budgets the exit code is 1, nothing is written, and the closest is named.
Which points are tried depends on the seed and on no clock.

Examples:
  qonvert tune model.onnx -o model.int8.onnx --calibration data.npz --max-loss 0.5% --max-size 30%
  qonvert tune model.onnx -o model.int8.onnx --calibration data.npz --min-speedup 2 --yaml best.yaml
      The most faithful model that is twice as fast. This makes it again:
      qonvert quantize model.onnx -o model.int8.onnx --calibration data.npz --config best.yaml
  qonvert tune model.onnx -o model.int8.onnx --calibration data.npz --state tune.json --time-budget 10m
      Begun again, it goes on where it stopped; other budgets may be asked of the same state.")]
pub struct Args {
    /// The float model, .onnx
    model: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Typical inputs, as for quantize; points are judged on some that calibration does not see
    #[arg(long, value_name = "DATA")]
    calibration: PathBuf,
    /// Data to judge points and to prove the result on, instead of samples that calibration keeps back
    #[arg(long, value_name = "DATA")]
    evaluation: Option<PathBuf>,
    /// How many times as fast as the original at least: 2 or 1.5x
    #[arg(long, value_name = "TIMES", value_parser = parse_speedup, help_heading = "Budgets")]
    min_speedup: Option<f64>,
    /// The most bytes, as 8MB or 800kB, or a share of the original, as 30%
    #[arg(long, value_name = "SIZE", help_heading = "Budgets")]
    max_size: Option<Size>,
    /// Where speeds come from: measured in ONNX Runtime, or model, the target's cost model; by default measured where it is
    /// installed
    #[arg(long, value_name = "HOW", value_enum, hide_possible_values = true, help_heading = "Search")]
    speed: Option<How>,
    /// The most points to try
    #[arg(long, value_name = "N", default_value_t = POINTS, help_heading = "Search")]
    points: usize,
    /// No new point is begun after this time, as 90s or 10m
    #[arg(long, value_name = "TIME", value_parser = duration::parse, help_heading = "Search")]
    time_budget: Option<Duration>,
    /// For the choices that are made by chance
    #[arg(long, value_name = "N", default_value_t = 7, help_heading = "Search")]
    seed: u64,
    /// Keep what is known in this file, and go on from it where it is there
    #[arg(long, value_name = "FILE", help_heading = "Search")]
    state: Option<PathBuf>,
    /// Write the configuration that makes the best model again, for quantize --config
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    yaml: Option<PathBuf>,
    /// All points as JSON
    #[arg(long, help_heading = "Result")]
    json: bool,
    /// Keep weights in a file of their own beside the model (above 2 GB that happens anyway)
    #[arg(long, help_heading = "File")]
    external_data: bool,
    /// Read a file of a newer IR version than qonvert knows
    #[arg(long, help_heading = "File")]
    force: bool,
    #[command(flatten)]
    scheme: SchemeArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// Where speeds come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    Measured,
    Model,
}

pub fn run(args: &Args, common: &Common) -> anyhow::Result<ExitCode> {
    let settings = args.scheme.integer_settings(|config| config.external_data |= args.external_data)?;
    let measures = args.speed != Some(How::Model);
    let runtime = args.runtime.open_for(measures)?;
    let bar = Bar::new(common);
    let mut files = args.scheme.files();
    files.extend(&args.runtime.files());
    args.yaml.iter().for_each(|path| files.write("--yaml", path));
    let job = Job {
        data: Some(args.calibration.clone()),
        evaluation: args.evaluation.clone(),
        files,
        read: ReadOptions { force: args.force },
        runtime: &*runtime,
        progress: &bar,
        ..Job::new(&args.model, &args.output, &settings)
    };
    // One that a file asks for is a budget, too.
    let max_loss = settings.config.max_loss;
    let tuning = Tuning {
        job: &job,
        aims: Aims { max_loss, min_speedup: args.min_speedup, max_size: args.max_size },
        speed: match args.speed {
            None => SpeedBy::Either,
            Some(How::Measured) => SpeedBy::Measured,
            Some(How::Model) => SpeedBy::Model,
        },
        points: args.points,
        time: args.time_budget,
        seed: args.seed,
        state: args.state.clone(),
    };
    let tuned = pipeline::tune::tune(&tuning);
    bar.finish();
    let tuned = tuned?;
    if let (Some(path), Some(yaml)) = (&args.yaml, &tuned.yaml) {
        files::write(path, "the configuration", yaml.as_bytes())?;
    }
    args.scheme.dump(&settings)?;
    tell(&tuned, args.json, common).map_err(|e| match tuned.report {
        Some(_) => e.context(format!("{} is written, but not the report of it", args.output.display())),
        None => e,
    })
}

fn tell(tuned: &Tuned, as_json: bool, common: &Common) -> anyhow::Result<ExitCode> {
    if as_json {
        let text = serde_json::to_string_pretty(tuned).context("the points cannot be written as JSON")?;
        crate::print(&format!("{text}\n"))?;
    } else if !common.quiet {
        crate::print(&table(tuned))?;
    }
    let Some(report) = &tuned.report else {
        eprintln!("{}", missed(tuned));
        return Ok(ExitCode::from(1));
    };
    match (common.quiet, report.passed()) {
        (true, true) => {}
        (true, false) => eprintln!("{}", terminal::verdict(report)),
        (false, _) if as_json => {}
        (false, _) => crate::print(&format!("\n{}", terminal::render(report, common.verbose > 0)))?,
    }
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
