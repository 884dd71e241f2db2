//! `qonvert compare`: two models on the same data.

use std::{path::PathBuf, process::ExitCode};

use qonvert::{
    calibrate::dataset::DatasetOptions,
    config::Config,
    onnx_file::{self, ReadOptions},
    pipeline::{self, Progress},
    report::{Report, json, terminal},
    runtime::Runtime,
    validate,
};

use crate::{Common, progress::Bar, runtime_args::RuntimeArgs, scheme_args::ImageArgs};

/// Run two models on the same data and say how far apart their answers are
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  qonvert compare model.onnx model.int8.onnx --data eval.npz

Outputs are compared in their order. SQNR is the signal to noise ratio: 20 dB is an error of 10 %, 40 dB of 1 %.
An array `labels` in the data gives the accuracy of both models.")]
pub struct Args {
    /// The model that is right
    a: PathBuf,
    /// The model that is measured
    b: PathBuf,
    /// An .npz file (one array for each input, samples along axis 0), a folder of .npy or .npz files, or a folder of
    /// pictures
    #[arg(long, value_name = "DATA")]
    data: PathBuf,
    /// The most samples to use, evenly spread over the data; 0, as if not given, uses all
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// The figures as JSON
    #[arg(long)]
    json: bool,
    /// Fail (exit code 1) if any output's SQNR is less
    #[arg(long, value_name = "DB", help_heading = "Gates", allow_negative_numbers = true)]
    min_sqnr: Option<f64>,
    /// Fail if the top answers agree less often, 0 to 1
    #[arg(long, value_name = "SHARE", help_heading = "Gates")]
    min_agreement: Option<f64>,
    /// Fail if accuracy on the data's `labels` drops by more, 0 to 1
    #[arg(long, value_name = "SHARE", help_heading = "Gates")]
    max_drop: Option<f64>,
    /// Read files of a newer IR version than qonvert knows
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    image: ImageArgs,
}

pub fn run(args: &Args, common: &Common) -> anyhow::Result<ExitCode> {
    let mut config = Config::default();
    args.image.apply(&mut config);
    let proof = &mut config.proof;
    (proof.min_sqnr, proof.min_agreement, proof.max_drop) = (args.min_sqnr, args.min_agreement, args.max_drop);
    config.check()?;
    let runtime = args.runtime.open()?;
    let bar = Bar::new(common);
    bar.step("compare");
    let report = compare(args, &config, &*runtime, &bar);
    bar.finish();
    let report = report?;
    if args.json {
        crate::print(&json::render(&report)?)?;
    } else if !common.quiet {
        crate::print(&terminal::comparison(&report))?;
    }
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn compare(args: &Args, config: &Config, runtime: &dyn Runtime, bar: &Bar) -> anyhow::Result<Report> {
    let read = |path: &PathBuf| onnx_file::read_with(path, ReadOptions { force: args.force });
    let (a, b) = (read(&args.a)?, read(&args.b)?);
    let options = DatasetOptions { images: config.calibration.image.options() };
    let data = pipeline::open_data(&args.data, &a, &options)?;
    let mut samples: Vec<usize> = (0..data.len()).collect();
    pipeline::thin(&mut samples, args.samples.filter(|&n| n > 0).unwrap_or(usize::MAX));
    let compared = validate::compare(runtime, &a, &b, &data, &samples, &|done, total| bar.part(done, total))?;
    let mut diagnostics = data.notes().to_vec();
    diagnostics.extend(pipeline::odd_outputs(&compared));
    diagnostics.extend(pipeline::check_labels(&compared, &data)?);
    // Two models may differ as much as they like: no floor here.
    let mut proof = pipeline::proof_of(&a, &compared, f64::NEG_INFINITY);
    proof.unseen = samples.len();
    proof.check(args.min_sqnr, args.min_agreement, args.max_drop);
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: args.a.display().to_string(),
        output: Some(args.b.display().to_string()),
        proof: Some(proof),
        diagnostics,
        ..Report::default()
    };
    report.judge();
    Ok(report)
}
