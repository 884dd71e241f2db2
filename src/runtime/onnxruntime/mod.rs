//! ONNX Runtime, from a library that is installed: the runtime that the written models are for. Alone names its crate.
//!
//! The library is looked for by [`OnnxRuntime::open`] ([`library`]) and loaded once in a process. A model is loaded into as
//! many sessions as there are threads, or into one that has all threads where the weights are large. The graph that the
//! runtime makes of a model can be read back ([`OnnxRuntime::optimized_graph`]).

mod failure;
mod library;
mod session;
mod source;
mod tensors;
mod timed;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ort::{
    environment::Environment,
    ep::CPU,
    logging::LogLevel,
    session::{
        Session as OrtSession,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
};

pub use self::timed::{Feeds, Timed};
use self::{
    failure::{Doing, guard},
    source::Source,
};
use super::{Runtime, Session, guard::catch};
use crate::{
    error::{Error, Result},
    files::Scratch,
    ir::{Model, ValueId},
    onnx_file,
};

/// ONNX Runtime, loaded.
#[derive(Debug, Clone)]
pub struct OnnxRuntime {
    environment: Environment,
    library: Arc<PathBuf>,
}

/// The one of this process: a second library cannot be loaded beside it.
static LOADED: Mutex<Option<OnnxRuntime>> = Mutex::new(None);

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Its answers: memory stays small and does not grow with the number of shapes.
    Answers,
    /// Its speed: as a deployment would load it.
    Speed,
}

impl OnnxRuntime {
    /// Finds the library and loads it: the given file, else the one that `ORT_DYLIB_PATH` names, else that of an
    /// installed Python wheel. It stays loaded.
    pub fn open(library: Option<&Path>) -> Result<Self> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(runtime), None) = (&*loaded, library) {
            return Ok(runtime.clone());
        }
        let path = library::find(library)?;
        if let Some(runtime) = &*loaded {
            if *runtime.library == path {
                return Ok(runtime.clone());
            }
            let text = format!("ONNX Runtime is loaded from {} already", runtime.library.display());
            return Err(Error::config(text).file(&path).help("one process has one ONNX Runtime"));
        }
        let environment = load(&path, library::help(library)).map_err(|e| e.file(&path))?;
        let runtime = Self { environment, library: Arc::new(path) };
        log::info!("ONNX Runtime {} from {}", runtime.version(), runtime.library.display());
        Ok(loaded.insert(runtime).clone())
    }

    /// The library's file.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Its version, as the names of its files say it.
    pub fn version(&self) -> String {
        library::version(&self.library).unwrap_or_else(|| "of unknown version".to_owned())
    }

    /// The graph that the runtime makes of a model when it loads it on CPU with every optimization: what its nodes are is
    /// what runs. Values and nodes that were fused have the names that the runtime gives them.
    pub fn optimized_graph(&self, model: &Model) -> Result<Model> {
        let folder = Scratch::new()?;
        let path = folder.path().join("optimized.onnx");
        let source = Source::new(model)?;
        let builder = guard(Doing::Load, || {
            // Weights beside the model: the runtime, too, writes no more than 2 GB into one file.
            let builder = self.bare_builder(1)?.with_optimized_model_path(&path)?;
            let builder =
                builder.with_config_entry("session.optimized_model_external_initializers_file_name", "weights.data")?;
            Ok(builder.with_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")?)
        })?;
        drop(source.load(builder)?);
        onnx_file::read(&path)
    }

    fn builder(&self, threads: usize, purpose: Purpose) -> Result<SessionBuilder> {
        guard(Doing::Load, || {
            let builder = self.bare_builder(threads)?;
            if purpose == Purpose::Speed {
                return Ok(builder);
            }
            // Plans of memory are kept for each shape, and the arena keeps what the largest sample took, rounded up.
            let builder = builder.with_memory_pattern(false)?;
            Ok(builder.with_execution_providers([CPU::default().with_arena_allocator(false).build()])?)
        })
    }

    /// Every optimization, on the CPU alone, quiet.
    fn bare_builder(&self, threads: usize) -> Result<SessionBuilder, ort::Error> {
        let level = if log::log_enabled!(log::Level::Trace) { LogLevel::Warning } else { LogLevel::Fatal };
        let builder = OrtSession::builder(&self.environment)?.with_log_level(level)?;
        Ok(builder.with_optimization_level(GraphOptimizationLevel::All)?.with_intra_threads(threads)?)
    }
}

/// Loads the library; whatever is wrong with it, an error.
fn load(path: &Path, help: &str) -> Result<Environment> {
    let logger: ort::logging::LoggerFunction =
        Arc::new(|_, category, _, _, message| log::trace!("ONNX Runtime: {category}: {message}"));
    let made = catch(|| {
        let builder = ort::init_from(path).map_err(|e| e.to_string())?;
        let builder = builder.with_name("qonvert").with_telemetry(false).with_logger(logger);
        builder.build().map_err(|e| e.message().to_owned())
    });
    made.and_then(|done| done)
        .map_err(|text| Error::runtime("cannot be loaded as ONNX Runtime's library").help(help).source(text))
}

impl Runtime for OnnxRuntime {
    fn name(&self) -> &'static str {
        "onnxruntime"
    }

    fn has_integer_operators(&self) -> bool {
        true
    }

    fn has_halves(&self) -> bool {
        true
    }

    fn load(&self, model: &Model, observe: &[ValueId]) -> Result<Box<dyn Session>> {
        let outside = observe.iter().find(|&&v| model.value(v).graph() != model.main());
        if let Some(&v) = outside {
            return Err(Error::bug("a value inside a subgraph cannot be observed").value(model.value(v).name()));
        }
        Ok(Box::new(session::Sessions::new(self, model, observe)?))
    }
}
