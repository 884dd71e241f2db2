//! The answers that others are measured by: the original model's on the samples.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{compare::output_names, runnable::in_runnable_form};
use crate::{
    calibrate::{
        Dataset,
        collect::{Progress, for_each_sample},
    },
    error::{Error, Result},
    ir::{Model, Tensor},
    runtime::{Runtime, Session},
};

/// Bytes of answers that are kept. The more memory that takes, the less of it is for the models.
const MOST_BYTES: usize = 64 << 20;

/// What the original model answers. Small answers are kept and the model is let go, so that it does not lie in memory
/// beside the one that is measured; where they are large, it runs again beside it.
pub struct Reference<'a> {
    pub(super) runtime: &'a dyn Runtime,
    pub(super) model: &'a Model,
    pub(super) data: &'a Dataset,
    pub(super) names: Vec<String>,
    kept: BTreeMap<usize, Vec<Tensor>>,
    session: Option<Box<dyn Session>>,
}

impl<'a> Reference<'a> {
    /// Runs the model on the samples, as far as its answers can be kept. Errors name the model and the sample.
    pub fn new(
        runtime: &'a dyn Runtime,
        model: &'a Model,
        data: &'a Dataset,
        samples: &[usize],
        progress: &Progress<'_>,
    ) -> Result<Self> {
        Self::with_limit(runtime, model, data, samples, progress, MOST_BYTES)
    }

    pub(super) fn with_limit(
        runtime: &'a dyn Runtime,
        model: &'a Model,
        data: &'a Dataset,
        samples: &[usize],
        progress: &Progress<'_>,
        most_bytes: usize,
    ) -> Result<Self> {
        let (kept, session) =
            in_runnable_form(runtime, model, |m| answers(runtime, m, data, samples, progress, most_bytes))
                .map_err(of_original)?;
        let session = session.filter(|_| kept.len() < samples.len());
        Ok(Self { runtime, model, data, names: output_names(model), kept, session })
    }

    /// The samples in whose answers some output of floats has no finite number, with the first such output.
    pub fn hollow(&self, samples: &[usize]) -> Result<BTreeMap<usize, String>> {
        let found: Mutex<BTreeMap<usize, String>> = Mutex::default();
        for_each_sample(samples, &|_, _| (), |sample| {
            let inputs = if self.kept.contains_key(&sample) { Vec::new() } else { self.data.sample(sample)? };
            let first = self.with_answers(sample, &inputs, |answers| {
                for (name, answer) in self.names.iter().zip(answers).filter(|(_, a)| a.dtype().is_float()) {
                    let numbers = answer.to_f32()?;
                    if !numbers.is_empty() && !numbers.iter().any(|x| x.is_finite()) {
                        return Ok(Some(name.clone()));
                    }
                }
                Ok(None)
            })?;
            if let Some(name) = first {
                found.lock().unwrap_or_else(PoisonError::into_inner).insert(sample, name);
            }
            Ok(())
        })?;
        Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does `work` with the answers to a sample; `inputs` are its tensors.
    pub(super) fn with_answers<T>(
        &self,
        sample: usize,
        inputs: &[Tensor],
        work: impl FnOnce(&[Tensor]) -> Result<T>,
    ) -> Result<T> {
        match (self.kept.get(&sample), &self.session) {
            (Some(answers), _) => work(answers),
            (None, Some(session)) => work(&session.run(inputs).map_err(of_original)?),
            (None, None) => Err(Error::bug("a sample is compared that the reference has not seen")),
        }
    }
}

/// Says that an error is about the original model.
fn of_original(error: Error) -> Error {
    error.file(Path::new("the original model"))
}

type Answers = (BTreeMap<usize, Vec<Tensor>>, Option<Box<dyn Session>>);

fn answers(
    runtime: &dyn Runtime,
    model: &Model,
    data: &Dataset,
    samples: &[usize],
    progress: &Progress<'_>,
    most_bytes: usize,
) -> Result<Answers> {
    let session = runtime.load(model, &[])?;
    let kept: Mutex<BTreeMap<usize, Vec<Tensor>>> = Mutex::default();
    let bytes = AtomicUsize::new(0);
    for_each_sample(samples, progress, |sample| {
        if bytes.load(Ordering::Relaxed) > most_bytes {
            return Ok(());
        }
        let answers = session.run(&data.sample(sample)?)?;
        let size: usize = answers.iter().map(Tensor::byte_len).sum();
        if bytes.fetch_add(size, Ordering::Relaxed).saturating_add(size) <= most_bytes {
            kept.lock().unwrap_or_else(PoisonError::into_inner).insert(sample, answers);
        }
        Ok(())
    })?;
    Ok((kept.into_inner().unwrap_or_else(PoisonError::into_inner), Some(session)))
}
