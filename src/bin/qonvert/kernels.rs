//! `qonvert kernels`: what each node of a model becomes in the runtime.

use std::{path::PathBuf, process::ExitCode};

use qonvert::{
    files,
    kernels::{self, check},
    onnx_file::{self, ReadOptions},
    target::Target,
};

use crate::Common;

/// Show what each node of a model becomes in ONNX Runtime: integer kernel, float, conversion, and why
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  qonvert kernels model.int8.onnx            how many nodes compute in integers, which conversions are left, what stays float and why
  qonvert kernels --nodes model.int8.onnx    every node

Exit codes: 0 done; 1 ONNX Runtime's own graph differs from what is told here; 2 error.")]
pub struct Args {
    /// The model
    model: PathBuf,
    /// The runtime: a built-in target or a YAML file
    #[arg(long, value_name = "NAME|FILE", default_value = "onnxruntime-cpu")]
    target: String,
    /// Tell of every node
    #[arg(long)]
    nodes: bool,
    /// Write all as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare with the graph that ONNX Runtime saved (its session option `optimized_model_filepath`)
    #[arg(long, value_name = "FILE")]
    optimized: Option<PathBuf>,
    /// Read a file of a newer IR version than qonvert knows
    #[arg(long)]
    force: bool,
}

pub fn run(args: &Args, common: &Common) -> anyhow::Result<ExitCode> {
    let model = onnx_file::read_with(&args.model, ReadOptions { force: args.force })?;
    let target = Target::load(&args.target)?;
    let prediction = kernels::predict(&model, &target);
    let summary = prediction.summary();
    let differences = match &args.optimized {
        Some(path) => Some(check::differences(&prediction, &onnx_file::read(path)?, &target)),
        None => None,
    };
    if let Some(path) = &args.json {
        let json = serde_json::json!({
            "model": args.model.display().to_string(),
            "target": target.name,
            "summary": summary,
            "nodes": prediction.nodes,
            "differences": differences,
        });
        files::write(path, "the JSON", (serde_json::to_string_pretty(&json)? + "\n").as_bytes())?;
    }
    let mut text = if args.nodes { prediction.render_nodes() + "\n" } else { String::new() };
    text += &summary.render();
    text += &match &differences {
        None => format!("\nfrom the table of {}; not compared with the runtime\n", target.name),
        Some(d) if d.is_empty() => "\nONNX Runtime's own graph has the same\n".to_owned(),
        Some(d) => format!("\nerror: ONNX Runtime's own graph differs; this is an error of qonvert's\n  {}\n", d.join("\n  ")),
    };
    if !common.quiet {
        crate::print(&text)?;
    }
    Ok(if differences.is_none_or(|d| d.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
