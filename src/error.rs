//! The one error type of the library: what is wrong, where, and what to do next.

use std::{error::Error as StdError, fmt, path::Path};

/// Result with qonvert's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of thing went wrong. Callers can decide on it; people read the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Reading or writing failed in the operating system.
    Io,
    /// A model file breaks the ONNX specification.
    Malformed,
    /// Correct input that qonvert cannot handle.
    Unsupported,
    /// A configuration, plan or command line that makes no sense.
    Config,
    /// Calibration or evaluation data that does not fit the model.
    Data,
    /// The runtime that executes the model refused it or failed.
    Runtime,
    /// An invariant of qonvert itself does not hold.
    Bug,
}

/// The place an error speaks of. Empty parts are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct At {
    /// Path of the file.
    pub file: Option<String>,
    /// Number of the sample in the data, from 0.
    pub sample: Option<usize>,
    /// Name of the graph.
    pub graph: Option<String>,
    /// Name of the node (its first output's name where it has none).
    pub node: Option<String>,
    /// Operator type of the node.
    pub op: Option<String>,
    /// Name of the value.
    pub value: Option<String>,
}

/// An error with its place, an optional next step and an optional cause.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    at: At,
    help: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of the given kind. The message states the fact; the place is added by the methods below.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let inner = Inner { kind, message: message.into(), at: At::default(), help: None, source: None };
        Self(Box::new(inner))
    }

    /// [`ErrorKind::Malformed`].
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Malformed, message)
    }

    /// [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// [`ErrorKind::Config`].
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// [`ErrorKind::Data`].
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, message)
    }

    /// [`ErrorKind::Runtime`].
    pub fn runtime(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Runtime, message)
    }

    /// [`ErrorKind::Bug`].
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Bug, message)
    }

    /// [`ErrorKind::Io`] on a file.
    pub fn io(path: &Path, doing: &str, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("cannot {doing}")).file(path).source(source)
    }

    /// Adds the file, unless one is known already.
    #[must_use]
    pub fn file(mut self, path: &Path) -> Self {
        self.0.at.file.get_or_insert_with(|| path.display().to_string());
        self
    }

    /// Adds the sample's number in the data, unless one is known already.
    #[must_use]
    pub fn sample(mut self, number: usize) -> Self {
        self.0.at.sample.get_or_insert(number);
        self
    }

    /// Adds the graph, unless one is known already.
    #[must_use]
    pub fn graph(mut self, name: impl Into<String>) -> Self {
        self.0.at.graph.get_or_insert_with(|| name.into());
        self
    }

    /// Adds the node and its operator, unless one is known already.
    #[must_use]
    pub fn node(mut self, name: impl Into<String>, op: impl Into<String>) -> Self {
        if self.0.at.node.is_none() {
            self.0.at.node = Some(name.into());
            self.0.at.op = Some(op.into());
        }
        self
    }

    /// Adds the value, unless one is known already.
    #[must_use]
    pub fn value(mut self, name: impl Into<String>) -> Self {
        self.0.at.value.get_or_insert_with(|| name.into());
        self
    }

    /// Adds the next step for the user.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.0.help.get_or_insert_with(|| text.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What sort of error this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The place that it speaks of.
    pub fn at(&self) -> &At {
        &self.0.at
    }

    /// The next step, where there is one.
    pub fn help_text(&self) -> Option<&str> {
        self.0.help.as_deref()
    }

    /// The fact alone, without its place.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = &self.0.at;
        if let Some(file) = &at.file {
            write!(f, "{file}: ")?;
        }
        if let Some(sample) = at.sample {
            write!(f, "sample {sample}: ")?;
        }
        if let Some(graph) = &at.graph {
            write!(f, "graph {graph:?}: ")?;
        }
        if let Some(node) = &at.node {
            write!(f, "node {node:?} ({}): ", at.op.as_deref().unwrap_or("?"))?;
        }
        if let Some(value) = &at.value {
            write!(f, "value {value:?}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}
