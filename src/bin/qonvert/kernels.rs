//! `qonvert kernels`: what each node of a model becomes in the runtime.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use qonvert::{
    files::{self, Files},
    ir::Model,
    kernels::{self, check},
    onnx_file::{self, ReadOptions},
    target::Target,
};

use crate::{Common, runtime_args::LibraryArgs};

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
    /// Do not look for ONNX Runtime
    #[arg(long, conflicts_with = "onnxruntime_lib")]
    no_runtime: bool,
    /// Compare with a graph that ONNX Runtime saved (its session option `optimized_model_filepath`)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["onnxruntime_lib", "no_runtime"])]
    optimized: Option<PathBuf>,
    /// Read a file of a newer IR version than qonvert knows
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    onnxruntime: LibraryArgs,
}

pub fn run(args: &Args, common: &Common) -> anyhow::Result<ExitCode> {
    args.files().check()?;
    let model = onnx_file::read_with(&args.model, ReadOptions { force: args.force })?;
    if let Some(path) = args.json.as_ref().filter(|path| path.exists() && onnx_file::is_mapped(path)) {
        return Err(files::over("--json", "the weights of MODEL").file(path).into());
    }
    let target = Target::load(&args.target)?;
    let prediction = kernels::predict(&model, &target);
    let summary = prediction.summary();
    let own = own_graph(args, &model)?;
    let differences = own.as_ref().map(|(graph, _)| check::differences(&prediction, graph, &target));
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
    text += &match (&differences, &own) {
        (Some(d), Some((_, who))) if d.is_empty() => format!("\nchecked: the graph of {who} has the same kernels\n"),
        (Some(d), Some((_, who))) => {
            let list = d.join("\n  ");
            let why = match args.optimized {
                Some(_) => "it was made of another model or by another release, or qonvert is wrong",
                None => "qonvert is wrong, or this release differs from the one that its table was measured on",
            };
            format!("\nerror: the graph of {who} differs: {why}\n  {list}\n")
        }
        _ => format!("\nfrom the table of {}; not compared with the runtime\n", target.name),
    };
    if !common.quiet {
        crate::print(&text)?;
    }
    Ok(if differences.is_none_or(|d| d.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Args {
    fn files(&self) -> Files {
        let mut all = self.onnxruntime.files();
        all.read("MODEL", &self.model);
        self.optimized.iter().for_each(|path| all.read("--optimized", path));
        if Path::new(&self.target).is_file() {
            all.read("--target", &self.target);
        }
        self.json.iter().for_each(|path| all.write("--json", path));
        all
    }
}

/// The graph that ONNX Runtime makes of the model, and whose it is; `None` where there is no ONNX Runtime.
fn own_graph(args: &Args, model: &Model) -> anyhow::Result<Option<(Model, String)>> {
    if let Some(path) = &args.optimized {
        return Ok(Some((onnx_file::read(path)?, path.display().to_string())));
    }
    // The table of another runtime cannot be checked with this one.
    if args.no_runtime || (args.target != "onnxruntime-cpu" && !args.onnxruntime.is_named()) {
        return Ok(None);
    }
    let Some(runtime) = args.onnxruntime.open_if_installed()? else { return Ok(None) };
    let version = runtime.version();
    let refused = |e| {
        anyhow::Error::new(e)
            .context(format!("nothing to compare with in ONNX Runtime {version}; --no-runtime leaves that out"))
    };
    let graph = runtime.optimized_graph(model).map_err(refused)?;
    Ok(Some((graph, format!("ONNX Runtime {}", runtime.version()))))
}
