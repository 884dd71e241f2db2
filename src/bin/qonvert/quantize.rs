//! `qonvert quantize`: from a float model to an INT8 model.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context;
use qonvert::{
    calibrate::Table,
    config::{Config, IoTypes, Numbers, duration},
    files::{self, Files},
    onnx_file::ReadOptions,
    pipeline::{self, Job},
    plan::Plan,
    report::{Report, json, terminal},
};

use crate::{
    Common,
    progress::Bar,
    runtime_args::RuntimeArgs,
    scheme_args::{SchemeArgs, number},
};

/// Turn a float model into an INT8 model that ONNX Runtime runs faster
#[derive(clap::Args)]
#[command(after_help = "\
The model keeps the names, types and order of its inputs and outputs: put it where the old one was.

Examples:
  qonvert quantize model.onnx -o model.int8.onnx --calibration data.npz
      The whole job. data.npz holds 100 or so typical inputs, one array for each input of the
      model, samples along axis 0: numpy.savez(\"data.npz\", input=array).
      With an array `labels` beside them, accuracy is measured too.
  qonvert quantize model.onnx -o out.onnx --calibration pictures/ \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
      A folder of pictures, normalised as the model was trained.
  qonvert quantize model.onnx -o out.onnx --calibration data.npz \\
      --keep-float \"/head/*\" --min-sqnr 20
      Keep some nodes in float; exit code 1 if the answers are too far from the original's.
  qonvert quantize model.onnx -o out.onnx --mode dynamic --evaluation data.npz
      Quantize data at run time: no calibration data are needed, here some are given to compare on.

`qonvert inspect --nodes MODEL` lists the names for --keep-float.
`--dump-config FILE` writes every setting, to change and use again with --config.")]
pub struct Args {
    /// The float model, .onnx
    model: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Typical inputs: an .npz file (one array for each input, samples along axis 0), a folder of .npy or .npz files, or
    /// a folder of pictures. Some are kept back to compare the result with the original. Not needed with --mode dynamic
    #[arg(long, value_name = "DATA")]
    calibration: Option<PathBuf>,
    /// Ranges from `qonvert calibrate` or written by hand; values that are missing are calibrated; may be given often
    #[arg(long, value_name = "FILE", help_heading = "Calibration")]
    ranges: Vec<PathBuf>,
    /// Compare with the original and fail (exit code 1) if any output's SQNR is less
    #[arg(long, value_name = "DB", help_heading = "Proof", allow_negative_numbers = true, value_parser = number)]
    min_sqnr: Option<f64>,
    /// Fail if the top answers agree less often, 0 to 1
    #[arg(long, value_name = "SHARE", help_heading = "Proof", allow_negative_numbers = true, value_parser = number)]
    min_agreement: Option<f64>,
    /// Fail if accuracy on the data's `labels` drops by more, 0 to 1 (0.01 is one point)
    #[arg(long, value_name = "SHARE", help_heading = "Proof", allow_negative_numbers = true, value_parser = number)]
    max_drop: Option<f64>,
    /// Data to compare on, all of it, instead of samples that calibration keeps back; same forms as --calibration
    #[arg(long, value_name = "DATA", help_heading = "Proof", conflicts_with = "no_proof")]
    evaluation: Option<PathBuf>,
    /// Do not compare the result with the original
    #[arg(long, help_heading = "Proof", conflicts_with_all = ["min_sqnr", "min_agreement", "max_drop"])]
    no_proof: bool,
    /// Write the report as JSON too
    #[arg(long, value_name = "FILE", help_heading = "Proof")]
    report: Option<PathBuf>,

    #[command(flatten)]
    scheme: SchemeArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,

    /// Write the plan: what becomes of each value and node, and why
    #[arg(long, value_name = "FILE", help_heading = "Plan")]
    dump_plan: Option<PathBuf>,
    /// Carry out this plan, perhaps edited, instead of making one
    #[arg(long, value_name = "FILE", help_heading = "Plan", conflicts_with_all = [
        "ranges", "target", "samples", "observer", "percentile", "activation_type", "weight_type", "weight_algorithm", "per_tensor",
        "symmetric", "reduce_range", "keep_float", "everywhere", "no_bias_correction", "equalize", "smooth", "absorb_biases", "split_concats",
        "fit_ranges", "mode", "max_loss", "time_budget", "precision", "io_types",
    ])]
    plan: Option<PathBuf>,
    /// The numbers to compute in: int8 (the default); fp16 or bf16 (with data or without; what would overflow, or costs more of
    /// the answers than --max-loss, stays in 32 bits); fp8, fp8-e5m2, fp8-fnuz or fp8-e5m2-fnuz for accelerators that have them
    /// (with data; ONNX Runtime's CPU has no kernels of them)
    #[arg(long, value_name = "TYPE", value_parser = precision, help_heading = "Configuration")]
    precision: Option<Numbers>,
    /// With fp16 or bf16, types of inputs and outputs: keep (the default), or half for 16-bit floats, too
    #[arg(long, value_name = "TYPES", value_parser = io_types, help_heading = "Configuration")]
    io_types: Option<IoTypes>,
    /// Measure in ONNX Runtime (which must be installed) and put back into float what does not gain on this machine; takes up
    /// to two minutes
    #[arg(long, help_heading = "Scheme")]
    never_slower: bool,
    /// How long mode auto may search for a better plan, as 90s or 10m; as long as it takes if not given
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Configuration")]
    time_budget: Option<String>,
    /// Keep weights in a file of their own beside the model (above 2 GB that happens anyway)
    #[arg(long, help_heading = "File")]
    external_data: bool,
    /// Read a file of a newer IR version than qonvert knows
    #[arg(long, help_heading = "File")]
    force: bool,
}

pub fn run(args: &Args, common: &Common) -> anyhow::Result<ExitCode> {
    let settings = args.scheme.settings(|config| args.apply(config))?;
    let runtime = args.runtime.open_for(settings.config.never_slower)?;
    let bar = Bar::new(common);
    let job = Job {
        data: args.calibration.clone(),
        evaluation: args.evaluation.clone(),
        ranges: ranges(&args.ranges)?,
        plan: args.plan.as_deref().map(read_plan).transpose()?,
        files: args.files(),
        read: ReadOptions { force: args.force },
        runtime: &*runtime,
        progress: &bar,
        ..Job::new(&args.model, &args.output, &settings)
    };
    let outcome = pipeline::quantize(&job).and_then(|done| {
        let plan = args.dump_plan.as_ref().map(|path| (path, done.plan.to_yaml()));
        Ok((pipeline::finish(&job, done)?, plan))
    });
    bar.finish();
    let (report, plan) = outcome?;
    if let Some((path, yaml)) = plan {
        files::write(path, "the plan", yaml?.as_bytes())?;
    }
    if let Some(path) = &args.report {
        files::write(path, "the report", json::render(&report)?.as_bytes())?;
    }
    args.scheme.dump(&settings)?;
    tell(&report, common)
}

impl Args {
    /// The files that the flags name, but for those of the job itself.
    fn files(&self) -> Files {
        let mut files = self.scheme.files();
        files.extend(&self.runtime.files());
        self.ranges.iter().for_each(|path| files.read("--ranges", path));
        self.plan.iter().for_each(|path| files.read("--plan", path));
        self.dump_plan.iter().for_each(|path| files.write("--dump-plan", path));
        self.report.iter().for_each(|path| files.write("--report", path));
        files
    }

    fn apply(&self, config: &mut Config) {
        let proof = &mut config.proof;
        proof.min_sqnr = self.min_sqnr.or(proof.min_sqnr);
        proof.min_agreement = self.min_agreement.or(proof.min_agreement);
        proof.max_drop = self.max_drop.or(proof.max_drop);
        if self.no_proof {
            (proof.samples, proof.min_sqnr, proof.min_agreement, proof.max_drop) = (0, None, None, None);
        }
        config.time_budget = self.time_budget.clone().or(config.time_budget.take());
        config.precision = self.precision.unwrap_or(config.precision);
        config.io_types = self.io_types.unwrap_or(config.io_types);
        config.never_slower |= self.never_slower;
        config.external_data |= self.external_data;
    }
}

fn precision(name: &str) -> Result<Numbers, String> {
    let names: Vec<&str> = Numbers::ALL.iter().map(|n| n.name()).collect();
    let found = Numbers::ALL.iter().find(|n| n.name() == name);
    found.copied().ok_or_else(|| format!("write one of {}", names.join(", ")))
}

fn io_types(name: &str) -> Result<IoTypes, String> {
    match name {
        "keep" => Ok(IoTypes::Keep),
        "half" => Ok(IoTypes::Half),
        _ => Err("write keep (the types of the original) or half (16-bit floats)".to_owned()),
    }
}

/// A length of time, as it is written.
fn time(text: &str) -> Result<String, String> {
    duration::parse(text).map(|_| text.trim().to_owned())
}

fn tell(report: &Report, common: &Common) -> anyhow::Result<ExitCode> {
    match (common.quiet, report.passed()) {
        (true, true) => {}
        (true, false) => eprintln!("{}", terminal::verdict(report)),
        (false, _) => crate::print(&terminal::render(report, common.verbose > 0))?,
    }
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn ranges(paths: &[PathBuf]) -> anyhow::Result<Option<Table>> {
    let mut all: Option<Table> = None;
    for path in paths {
        let table = Table::open(path)?;
        match &mut all {
            Some(all) => drop(all.merge(table)),
            None => all = Some(table),
        }
    }
    Ok(all)
}

fn read_plan(path: &std::path::Path) -> anyhow::Result<Plan> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the plan {}", path.display()))?;
    Ok(Plan::from_yaml(&text).map_err(|e| e.file(path))?)
}
