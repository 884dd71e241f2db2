//! `qonvert inspect`: what is in a model.

use std::{path::PathBuf, process::ExitCode};

use qonvert::{
    ir::text::{PrintOptions, print_with},
    onnx_file::{self, ReadOptions},
    report::inspect::Inspection,
};

use crate::Common;

/// Show what is in a model: inputs, outputs, operators, sizes, precision
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  qonvert inspect model.onnx                 the facts on one page
  qonvert inspect --nodes model.int8.onnx    every node with its precision, for names to use in rules
  qonvert inspect --text model.onnx | less   the whole graph in ONNX's textual syntax")]
pub struct Args {
    /// The model
    model: PathBuf,
    /// List every node with its precision, name and constants
    #[arg(long, conflicts_with_all = ["text", "json"])]
    nodes: bool,
    /// The whole graph in ONNX's textual syntax
    #[arg(long, conflicts_with = "json")]
    text: bool,
    /// With --text: print at most so many elements of a tensor; 0 prints all
    #[arg(long, value_name = "N", default_value_t = 8, requires = "text")]
    elements: usize,
    /// All facts as JSON
    #[arg(long)]
    json: bool,
    /// Read a file of a newer IR version than qonvert knows
    #[arg(long)]
    force: bool,
}

pub fn run(args: &Args, _: &Common) -> anyhow::Result<ExitCode> {
    let model = onnx_file::read_with(&args.model, ReadOptions { force: args.force })?;
    let text = if args.text {
        let max_elements = Some(args.elements).filter(|&n| n > 0);
        print_with(&model, &PrintOptions { max_elements, ..PrintOptions::default() })
    } else {
        let size = onnx_file::size_on_disk(&args.model, &model);
        let facts = Inspection::of(&model, &args.model.display().to_string(), size);
        if args.json { serde_json::to_string_pretty(&facts)? + "\n" } else { facts.render(args.nodes) }
    };
    crate::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
