//! `qonvert lint`: what is wrong with a model that is quantized already, and its repair.

use std::{fmt::Write, path::PathBuf, process::ExitCode};

use clap::ValueEnum;
use qonvert::{
    Error,
    config::suggest,
    lint::{self, LINTS, Lint, Severity},
    onnx_file::ReadOptions,
    pipeline::{self, LintJob},
    scheme,
};

use crate::Common;

/// Find and explain what is wrong with a model that is quantized already, by any tool, and mend it with --fix
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  qonvert lint model.int8.onnx                            what makes it slow, large or wrong, and the cure
  qonvert lint --fix -o better.onnx model.int8.onnx       the same, and a repaired file
  qonvert lint --cpu avx2 --deny warning model.int8.onnx  for x86 without VNNI; fail on any warning
  qonvert lint --list                                     all rules

Nothing is run and no data is needed: what each node becomes in the runtime is predicted, as `qonvert kernels` tells it, and
times are those of the target's cost model. A repair is kept only if the model becomes no slower by them.

Exit codes: 0 nothing as bad as --deny says is found (with --fix: is left); 1 something is; 2 the file cannot be read or written.")]
pub struct Args {
    /// The quantized model
    #[arg(required_unless_present = "list")]
    model: Option<PathBuf>,
    /// Mend what can be mended, and write the repaired model to --output
    #[arg(long, requires = "output")]
    fix: bool,
    /// The repaired model to write
    #[arg(short, long, value_name = "FILE", requires = "fix")]
    output: Option<PathBuf>,
    /// How to tell it: text, or json, which has every place
    #[arg(long, value_name = "FORM", value_enum, default_value_t = Format::Text, hide_possible_values = true)]
    format: Format,
    /// What is found from this on makes the exit code 1: error, warning, note, or nothing
    #[arg(long, value_name = "SEVERITY", value_enum, default_value_t = Deny::Error, hide_possible_values = true)]
    deny: Deny,
    /// Go by these rules only (several with commas)
    #[arg(long, value_name = "RULE", value_delimiter = ',')]
    only: Vec<String>,
    /// Leave these rules out (several with commas)
    #[arg(long, value_name = "RULE", value_delimiter = ',', conflicts_with = "only")]
    skip: Vec<String>,
    /// List all rules
    #[arg(long, exclusive = true)]
    list: bool,
    /// What runs the model: a built-in target or a YAML file
    #[arg(long, value_name = "NAME|FILE", default_value = "onnxruntime-cpu")]
    target: String,
    /// What kind of processor runs the model: vnni (the default), or avx2 for x86 CPUs without VNNI
    #[arg(long, value_name = "NAME")]
    cpu: Option<String>,
    /// Keep weights in a file of their own beside the repaired model (above 2 GB that happens anyway)
    #[arg(long, requires = "fix")]
    external_data: bool,
    /// Read a file of a newer IR version than qonvert knows
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Deny {
    Error,
    Warning,
    Note,
    Nothing,
}

impl Deny {
    fn least(self) -> Option<Severity> {
        match self {
            Self::Error => Some(Severity::Error),
            Self::Warning => Some(Severity::Warning),
            Self::Note => Some(Severity::Note),
            Self::Nothing => None,
        }
    }
}

pub fn run(args: &Args, common: &Common) -> anyhow::Result<ExitCode> {
    let Some(model) = &args.model else {
        crate::print(&list())?;
        return Ok(ExitCode::SUCCESS);
    };
    let target = scheme::target_on(&args.target, args.cpu.as_deref())?;
    let job = LintJob {
        output: args.output.clone(),
        rules: rules(args)?,
        external_data: args.external_data,
        read: ReadOptions { force: args.force },
        ..LintJob::new(model, &target)
    };
    let report = pipeline::lint(&job)?;
    match args.format {
        Format::Json => crate::print(&(serde_json::to_string_pretty(&report)? + "\n"))?,
        Format::Text if common.quiet => {}
        Format::Text => crate::print(&report.text(common.verbose > 0))?,
    }
    let denied = args.deny.least().is_some_and(|least| report.worst() >= Some(least));
    Ok(if denied { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn rules(args: &Args) -> anyhow::Result<Vec<&'static Lint>> {
    let find = |name: &String| {
        let close = suggest::closest(name, LINTS.iter().map(|l| l.name));
        let close = close.first().map(|c| format!("did you mean {c:?}? ")).unwrap_or_default();
        lint::by_name(name).map(|l| l.name).ok_or_else(|| {
            Error::config(format!("no rule is called {name:?}"))
                .help(format!("{close}`qonvert lint --list` lists them"))
        })
    };
    let only = args.only.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    let skip = args.skip.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    let wanted = |l: &&Lint| (only.is_empty() || only.contains(&l.name)) && !skip.contains(&l.name);
    Ok(LINTS.iter().filter(wanted).collect())
}

fn list() -> String {
    let width = LINTS.iter().map(|l| l.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for lint in LINTS {
        // Writing into a string cannot fail.
        let _ = writeln!(out, "{:width$}  {}", lint.name, lint.what);
    }
    out
}
