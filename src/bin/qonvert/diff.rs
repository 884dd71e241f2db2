//! `qonvert diff`: what differs between two models.

use std::{path::PathBuf, process::ExitCode};

use qonvert::{
    onnx_file::ReadOptions,
    pipeline::{self, DiffJob},
    report::Sort,
    target::Target,
};

use crate::Common;

/// Show what differs between two models, layer by layer: precision, ranges, scales, kernels, sizes
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  qonvert diff model.onnx model.int8.onnx

The models may be of any form and tool: float or quantized, Q/DQ pairs or integer operators. Layers are matched by name, by
the numbers of their weights, and else by what stands around them, which is marked with ~. Of each layer that changed, one
line: what it computes in; its weight, with the signal to noise of the second beside the first; the range of what it
makes; its kernel in the target's runtime; its constants' bytes. Unlike `compare` it runs nothing and needs no data.

Exit codes: 0 done, whether there is a difference or not; with --exit-code 1 if there is one; 2 error.")]
pub struct Args {
    /// The first model
    a: PathBuf,
    /// The second model
    b: PathBuf,
    /// Whose kernels are told: a built-in target or a YAML file
    #[arg(long, value_name = "NAME|FILE", default_value = "onnxruntime-cpu")]
    target: String,
    /// List layers that are the same, too
    #[arg(long)]
    all: bool,
    /// The order of layers: change (the biggest changes first) or graph
    #[arg(long, value_name = "ORDER", default_value = "change", value_parser = sort)]
    sort: Sort,
    /// How to tell: text or json
    #[arg(long, value_name = "FORM", value_enum, default_value_t = Form::Text, hide_possible_values = true)]
    format: Form,
    /// Exit with 1 if anything differs
    #[arg(long)]
    exit_code: bool,
    /// Read files of a newer IR version than qonvert knows
    #[arg(long)]
    force: bool,
}

fn sort(name: &str) -> Result<Sort, String> {
    match name {
        "change" => Ok(Sort::Change),
        "graph" => Ok(Sort::Graph),
        _ => Err("write change or graph".to_owned()),
    }
}

/// How it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    Text,
    Json,
}

pub fn run(args: &Args, common: &Common) -> anyhow::Result<ExitCode> {
    let target = Target::load(&args.target)?;
    let job =
        DiffJob { a: args.a.clone(), b: args.b.clone(), target: &target, read: ReadOptions { force: args.force } };
    let done = pipeline::diff(&job)?;
    if args.format == Form::Json {
        crate::print(&(serde_json::to_string_pretty(&done)? + "\n"))?;
    } else if !common.quiet {
        crate::print(&done.text(args.sort, args.all))?;
    }
    let differs = args.exit_code && !done.difference.is_none();
    Ok(if differs { ExitCode::from(1) } else { ExitCode::SUCCESS })
}
