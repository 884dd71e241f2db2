//! Models loaded as a deployment loads them, to be timed and profiled.

use std::{fs, path::Path};

use ort::{session::Session as OrtSession, value::DynValue};

use super::{
    OnnxRuntime, Purpose,
    failure::{Doing, guard},
    source::Source,
    tensors,
};
use crate::{
    error::{Error, Result},
    files::Scratch,
    ir::{Model, Tensor},
};

/// Inputs by their names.
pub type Feeds = [(String, Tensor)];

/// A loaded model with its inputs, which are converted once.
pub struct Timed {
    session: OrtSession,
    feeds: Vec<(String, DynValue)>,
}

impl OnnxRuntime {
    /// Loads a model from memory.
    pub fn timed(&self, model: &Model, threads: usize, feeds: &Feeds) -> Result<Timed> {
        let builder = self.builder(threads, Purpose::Speed)?;
        Ok(Timed { session: Source::new(model)?.load(builder)?, feeds: converted(feeds)? })
    }

    /// Loads a model from its file, as it stands there.
    pub fn timed_file(&self, file: &Path, threads: usize, feeds: &Feeds) -> Result<Timed> {
        let mut builder = self.builder(threads, Purpose::Speed)?;
        let session = guard(Doing::Load, || builder.commit_from_file(file)).map_err(|e| e.file(file))?;
        Ok(Timed { session, feeds: converted(feeds)? })
    }

    /// Runs a model file so often and returns what the runtime noted of each run and node: its JSON.
    pub fn profile_file(&self, file: &Path, threads: usize, feeds: &Feeds, runs: usize) -> Result<String> {
        let folder = Scratch::new()?;
        let builder = self.builder(threads, Purpose::Speed)?;
        let session =
            guard(Doing::Load, || builder.with_profiling(folder.path().join("profile"))?.commit_from_file(file));
        let mut timed = Timed { session: session.map_err(|e| e.file(file))?, feeds: converted(feeds)? };
        for _ in 0..runs {
            timed.run()?;
        }
        let path = guard(Doing::Run, || timed.session.end_profiling())?;
        fs::read_to_string(&path).map_err(|e| Error::io(Path::new(&path), "read the runtime's profile", e))
    }
}

impl Timed {
    /// One run; the outputs are made and dropped.
    pub fn run(&mut self) -> Result<()> {
        let feeds: Vec<(&str, &DynValue)> = self.feeds.iter().map(|(name, v)| (name.as_str(), v)).collect();
        guard(Doing::Run, || self.session.run(feeds).map(drop))
    }
}

fn converted(feeds: &Feeds) -> Result<Vec<(String, DynValue)>> {
    feeds.iter().map(|(name, t)| Ok((name.clone(), tensors::to_ort(t).map_err(|e| e.value(name))?))).collect()
}
