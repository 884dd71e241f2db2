//! The flags that say what runs models here; shared by the subcommands that do.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use qonvert::{
    Error,
    files::Files,
    runtime::{Runtime, onnxruntime::OnnxRuntime, tract::Tract},
};

/// What runs models here. Where they are deployed is the target's affair.
#[derive(Args)]
#[command(next_help_heading = "Runtime")]
pub struct RuntimeArgs {
    /// What runs the models here, for calibration and proof: tract, which is built in, or onnxruntime, which must be
    /// installed and knows more operators
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Name::Tract, hide_possible_values = true)]
    runtime: Name,
    #[command(flatten)]
    onnxruntime: LibraryArgs,
}

/// Where ONNX Runtime is.
#[derive(Args)]
pub struct LibraryArgs {
    /// ONNX Runtime's library; otherwise the one that ORT_DYLIB_PATH names, or that of an installed Python wheel
    #[arg(long, value_name = "FILE", help_heading = "Runtime")]
    onnxruntime_lib: Option<PathBuf>,
}

/// The runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    Tract,
    Onnxruntime,
}

impl RuntimeArgs {
    /// The runtime that is asked for.
    pub fn open(&self) -> anyhow::Result<Box<dyn Runtime>> {
        self.open_for(false)
    }

    /// As [`Self::open`]; where the run `measures`, ONNX Runtime is loaded besides.
    pub fn open_for(&self, measures: bool) -> anyhow::Result<Box<dyn Runtime>> {
        if measures && self.onnxruntime.onnxruntime_lib.is_some() {
            self.onnxruntime.open()?;
        }
        match self.runtime {
            Name::Onnxruntime => Ok(Box::new(self.onnxruntime.open()?)),
            Name::Tract if self.onnxruntime.onnxruntime_lib.is_some() && !measures => {
                let text = "--onnxruntime-lib has no effect: the models are run by tract";
                Err(Error::config(text).help("add --runtime onnxruntime, or leave --onnxruntime-lib out").into())
            }
            Name::Tract => Ok(Box::new(Tract)),
        }
    }

    /// The files that these flags name.
    pub fn files(&self) -> Files {
        self.onnxruntime.files()
    }
}

impl LibraryArgs {
    /// ONNX Runtime, loaded.
    pub fn open(&self) -> anyhow::Result<OnnxRuntime> {
        Ok(OnnxRuntime::open(self.onnxruntime_lib.as_deref())?)
    }

    /// As [`Self::open`], but `None` where nothing is installed and nobody named a library.
    pub fn open_if_installed(&self) -> anyhow::Result<Option<OnnxRuntime>> {
        let named = self.is_named() || std::env::var_os("ORT_DYLIB_PATH").is_some_and(|path| !path.is_empty());
        match self.open() {
            Ok(runtime) => Ok(Some(runtime)),
            Err(e) if named => Err(e),
            Err(e) => {
                log::info!("{e}");
                Ok(None)
            }
        }
    }

    /// Whether the flag is given.
    pub fn is_named(&self) -> bool {
        self.onnxruntime_lib.is_some()
    }

    /// The file that the flag names.
    pub fn files(&self) -> Files {
        let mut files = Files::default();
        self.onnxruntime_lib.iter().for_each(|path| files.read("--onnxruntime-lib", path));
        files
    }
}
