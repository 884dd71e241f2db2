//! `qonvert convert`: a quantized model in another form.

use std::{path::PathBuf, process::ExitCode};

use qonvert::{
    config::Format,
    onnx_file::ReadOptions,
    pipeline::{self, ConvertJob},
    target::Target,
};

use crate::{Common, progress::Bar, runtime_args::RuntimeArgs, scheme_args};

/// Write a quantized model in another form: Q/DQ pairs, or integer operators
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  qonvert convert --format qdq model.qoperator.onnx model.qdq.onnx --data eval.npz

Scales and zero points stay what they are, bit for bit. What has no other form stays as it is, and is named.
With --data both files run, and the comparison is told.")]
pub struct Args {
    /// The form: qdq (float operators between QuantizeLinear and DequantizeLinear) or qoperator (QLinearConv and the like)
    #[arg(long, value_name = "FORM", value_parser = scheme_args::format)]
    format: Format,
    /// The quantized model
    model: PathBuf,
    /// The file to write
    output: PathBuf,
    /// What runs the model: says which integer operators there are, for --format qoperator
    #[arg(long, value_name = "NAME", default_value = "onnxruntime-cpu")]
    target: String,
    /// Run both files on this data and say how far apart their answers are
    #[arg(long, value_name = "DATA")]
    data: Option<PathBuf>,
    /// Keep weights in a file of their own beside the model (above 2 GB that happens anyway)
    #[arg(long)]
    external_data: bool,
    /// Read a file of a newer IR version than qonvert knows
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

pub fn run(args: &Args, common: &Common) -> anyhow::Result<ExitCode> {
    let target = Target::load(&args.target)?;
    let runtime = args.runtime.open()?;
    let bar = Bar::new(common);
    let job = ConvertJob {
        data: args.data.clone(),
        external_data: args.external_data,
        read: ReadOptions { force: args.force },
        runtime: &*runtime,
        files: args.runtime.files(),
        progress: &bar,
        ..ConvertJob::new(&args.model, &args.output, args.format, &target)
    };
    let done = pipeline::convert(&job);
    bar.finish();
    let done = done?;
    if !common.quiet {
        crate::print(&done.text())?;
    }
    Ok(ExitCode::SUCCESS)
}
