//! The command line of qonvert: one file for each subcommand.

mod progress;
mod runtime_args;
mod scheme_args;

use std::{io::Write, process::ExitCode};

use clap::Parser;
use qonvert::config::suggest;

/// Turns a trained ONNX model into a smaller, faster one for an unchanged ONNX Runtime deployment.
#[derive(Parser)]
#[command(name = "qonvert", version, arg_required_else_help = true, after_help = EXAMPLE, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

const EXAMPLE: &str = "\
Example:
  qonvert quantize model.onnx -o model.int8.onnx --calibration data.npz

Exit codes: 0 done; 1 written, but a gate failed or an output is lost (tune: nothing is within the
budgets, and nothing is written); 2 error: nothing is written, or the message names what is.
`qonvert help COMMAND` tells more.";

/// Threads for each core at most: with more, they wait for one another.
const THREADS_OF_A_CORE: usize = 4;

/// What every subcommand takes.
#[derive(clap::Args)]
struct Common {
    /// Threads to use; all cores if not given
    #[arg(long, global = true, value_name = "N", help_heading = "Common options")]
    threads: Option<usize>,
    /// Tell more: -v all reasons and what is done, -vv each pass, -vvv everything (RUST_LOG does the same)
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Common options")]
    verbose: u8,
    /// Tell nothing but errors and failed gates
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Common options")]
    quiet: bool,
}

/// Makes the modules and the commands. The name on the command line is the file's.
macro_rules! subcommands {
    ($($name:ident),* $(,)?) => {
        $(mod $name;)*

        #[derive(clap::Subcommand)]
        #[expect(non_camel_case_types, reason = "named like their files")]
        enum Command {
            $($name($name::Args)),*
        }

        impl Command {
            fn run(&self, common: &Common) -> anyhow::Result<ExitCode> {
                match self {
                    $(Self::$name(args) => $name::run(args, common)),*
                }
            }
        }
    };
}

subcommands! { quantize, tune, calibrate, convert, dequantize, diff, inspect, kernels, lint, sensitivity, compare, bench }

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(&cli.common);
    keep_caught_panics_quiet();
    clean_up_when_interrupted();
    let run = || {
        if let Some(asked) = cli.common.threads {
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            let threads = asked.min(THREADS_OF_A_CORE * cores);
            if threads < asked {
                log::warn!(
                    "{threads} threads are used, not {asked}: more than {THREADS_OF_A_CORE} for each core only wait"
                );
            }
            let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
            built.map_err(|e| anyhow::Error::new(e).context("cannot start the threads"))?;
        }
        cli.command.run(&cli.common)
    };
    run().unwrap_or_else(|error| {
        complain(&error);
        ExitCode::from(2)
    })
}

/// A panic of the runtime's becomes an error in plain words; the default hook would print it besides.
fn keep_caught_panics_quiet() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !qonvert::runtime::panics_become_errors() {
            usual(info);
        }
    }));
}

/// On SIGINT, SIGTERM and SIGHUP no file that is not complete stays behind.
fn clean_up_when_interrupted() {
    let handler = || {
        qonvert::files::discard_drafts();
        std::process::exit(130);
    };
    // Without a handler the program ends all the same.
    if let Err(e) = ctrlc::set_handler(handler) {
        log::info!("interrupts are not handled: {e}");
    }
}

/// The log goes to stderr: warnings, and with each `-v` one level more.
fn start_log(common: &Common) {
    let level = match (common.quiet, common.verbose) {
        (true, _) => "off",
        (_, 0) => "qonvert=warn,off", // others' warnings are about their own affairs
        (_, 1) => "qonvert=info,warn",
        (_, 2) => "qonvert=debug,warn",
        (_, _) => "trace",
    };
    let env = env_logger::Env::default().default_filter_or(level);
    env_logger::Builder::from_env(env).format_timestamp(None).format_target(false).init();
}

/// The error, its causes and the next step.
fn complain(error: &anyhow::Error) {
    let mut text = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        text += &format!("caused by: {cause}\n");
    }
    let help = |e: &(dyn std::error::Error + 'static)| {
        e.downcast_ref::<qonvert::Error>().and_then(|e| e.help_text().map(str::to_owned))
    };
    if let Some(help) = error.chain().find_map(help).or_else(|| near(error)) {
        text += &format!("help: {help}\n");
    }
    eprint!("{text}");
}

/// Files with names like that of one that is not there.
fn near(error: &anyhow::Error) -> Option<String> {
    let missing = |e: &std::io::Error| e.kind() == std::io::ErrorKind::NotFound;
    error.chain().find(|e| e.downcast_ref().is_some_and(missing))?;
    let at = |e: &(dyn std::error::Error + 'static)| e.downcast_ref::<qonvert::Error>()?.at().file.clone();
    let path = std::path::PathBuf::from(error.chain().find_map(at)?);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Some(format!("there is no folder {}", folder.display()));
    };
    let names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let wanted = path.file_name()?.to_string_lossy().into_owned();
    let same_kind = |n: &&str| std::path::Path::new(n).extension() == path.extension();
    let close = suggest::closest(&wanted, names.iter().map(String::as_str).filter(same_kind));
    close
        .first()
        .map(|name| format!("did you mean {:?}?", folder.join(name).display().to_string().trim_start_matches("./")))
}

/// Prints a result. A reader that stopped reading (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(e).context("the result cannot be written to the standard output"))
        }
        _ => Ok(()),
    }
}
