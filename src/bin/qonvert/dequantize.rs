//! `qonvert dequantize`: a quantized model back in floats.

use std::{path::PathBuf, process::ExitCode};

use qonvert::{
    files,
    onnx_file::ReadOptions,
    passes::remove_quantization::Clamps,
    pipeline::{self, DequantizeJob},
};

use crate::{Common, progress::Bar, runtime_args::RuntimeArgs};

/// Write a quantized model of any form in 32-bit floats, with the rounded weights
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  qonvert dequantize model.int8.onnx -o model.float.onnx --data eval.npz

For training on, or for a target that quantizes by itself. Reads Q/DQ pairs, integer operators, what quantizes at run time,
weights in few bits, 16-bit and 8-bit floats, of any tool. Weights become the numbers that their codes stand for,
exactly; quantizers of values go, and with them their rounding. A quantizer also clamps, and a Relu or another clamp
in front of it is often left out for that: --clamps says which come back.

  keep   wherever a value could leave the range of its quantizer; a clamp that stands there is made narrower
  relu   as Relu, where the range begins at 0; the upper bound of a Relu6 and other clamps are lost
  none   none: answers may be wrong

The operator set stays what it is. What has no float form stays, and is named.
With --data both files run, and the comparison is told.")]
pub struct Args {
    /// The quantized model
    model: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The clamps that quantizers did: keep, relu or none (see below)
    #[arg(long, value_name = "WHICH", default_value = "keep", value_parser = clamps)]
    clamps: Clamps,
    /// Types of the model's inputs and outputs: keep (callers need not change) or float32
    #[arg(long, value_name = "TYPES", value_enum, default_value_t = Io::Keep, hide_possible_values = true)]
    io: Io,
    /// Run both files on this data and say how far apart their answers are
    #[arg(long, value_name = "DATA")]
    data: Option<PathBuf>,
    /// Write what was done as JSON too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Keep weights in a file of their own beside the model (above 2 GB that happens anyway)
    #[arg(long)]
    external_data: bool,
    /// Read a file of a newer IR version than qonvert knows
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

fn clamps(name: &str) -> Result<Clamps, String> {
    match name {
        "keep" => Ok(Clamps::Keep),
        "relu" => Ok(Clamps::Relu),
        "none" => Ok(Clamps::None),
        _ => Err("write keep, relu or none".to_owned()),
    }
}

/// Types of inputs and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Io {
    Keep,
    Float32,
}

pub fn run(args: &Args, common: &Common) -> anyhow::Result<ExitCode> {
    let runtime = args.runtime.open()?;
    let bar = Bar::new(common);
    let mut files = args.runtime.files();
    args.report.iter().for_each(|path| files.write("--report", path));
    let job = DequantizeJob {
        clamps: args.clamps,
        float_ends: args.io == Io::Float32,
        data: args.data.clone(),
        external_data: args.external_data,
        read: ReadOptions { force: args.force },
        runtime: &*runtime,
        files,
        progress: &bar,
        ..DequantizeJob::new(&args.model, &args.output)
    };
    let done = pipeline::dequantize(&job);
    bar.finish();
    let done = done?;
    if let Some(path) = &args.report {
        files::write(path, "the report", (serde_json::to_string_pretty(&done)? + "\n").as_bytes())?;
    }
    if !common.quiet {
        crate::print(&done.text())?;
    }
    Ok(ExitCode::SUCCESS)
}
