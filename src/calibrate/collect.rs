//! One pass over the data: the model runs on each sample and every observed value is counted as it is computed.
//!
//! Samples run in parallel, each on one thread. All threads feed the same observers, one lock a value: what observers
//! gather does not depend on the order of samples, so the result is the same each time, and memory depends neither on
//! the number of samples nor much on that of threads.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::{ChannelMeans, Observer};
use crate::{
    error::{Error, Result},
    ir::{Model, Tensor, ValueId},
    runtime::{Runtime, Session},
};

/// Called after each sample with the number of samples that are done, and of all.
pub type Progress<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// Gives the tensors of a sample by its number, one for each required input of the model.
pub type Feed<'a> = dyn Fn(usize) -> Result<Vec<Tensor>> + Sync + 'a;

/// A floating point value and what is to be known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Watch {
    /// The value.
    pub value: ValueId,
    /// For its range.
    pub observer: Option<Observer>,
    /// For the means of its channels.
    pub means: Option<ChannelMeans>,
}

impl Watch {
    fn update(&mut self, sample: usize, dims: &[usize], values: &[f32]) {
        if let Some(observer) = &mut self.observer {
            observer.update(sample, values);
        }
        if let Some(means) = &mut self.means {
            means.update(dims, values);
        }
    }
}

/// Runs `model` on `samples`. Returns the watches, in their order, fed with what was seen. Errors name the sample.
pub fn collect(
    runtime: &dyn Runtime,
    model: &Model,
    watches: Vec<Watch>,
    samples: &[usize],
    feed: &Feed<'_>,
    progress: &Progress<'_>,
) -> Result<Vec<Watch>> {
    if samples.is_empty() {
        return Err(Error::data("there are no samples to calibrate on"));
    }
    let values: Vec<ValueId> = watches.iter().map(|w| w.value).collect();
    let session = runtime.load(model, &values)?;
    let watches: Vec<Mutex<Watch>> = watches.into_iter().map(Mutex::new).collect();
    for_each_sample(samples, progress, |sample| run(&*session, sample, feed, &watches, model, &values))?;
    Ok(watches.into_iter().map(|w| w.into_inner().unwrap_or_else(PoisonError::into_inner)).collect())
}

fn run(
    session: &dyn Session,
    sample: usize,
    feed: &Feed<'_>,
    watches: &[Mutex<Watch>],
    model: &Model,
    watched: &[ValueId],
) -> Result<()> {
    let inputs = feed(sample)?;
    let mut seen = 0;
    session.run_observed(&inputs, &mut |number, value| {
        let values = value.floats().map_err(|e| e.value(model.value(watched[number]).name()))?;
        watches[number].lock().unwrap_or_else(PoisonError::into_inner).update(sample, value.dims(), &values);
        seen += 1;
        Ok(())
    })?;
    if seen == watches.len() {
        Ok(())
    } else {
        Err(Error::bug(format!("{seen} of {} observed values were computed", watches.len())))
    }
}

/// Does `work` for each sample, on all threads of rayon's pool; samples start in their order. The error is that of the
/// first sample that fails, whatever the threads' timing, and names it.
pub fn for_each_sample(
    samples: &[usize],
    progress: &Progress<'_>,
    work: impl Fn(usize) -> Result<()> + Sync,
) -> Result<()> {
    let (next, done, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    rayon::broadcast(|_| {
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(&sample) = samples.get(at) else { return };
            match work(sample) {
                Ok(()) => progress(done.fetch_add(1, Ordering::Relaxed) + 1, samples.len()),
                Err(error) => {
                    // Every sample before this one has started, and threads finish what they started.
                    stop.store(true, Ordering::Relaxed);
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if failed.as_ref().is_none_or(|(first, _)| at < *first) {
                        *failed = Some((at, error.sample(sample)));
                    }
                }
            }
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        calibrate::observers::{Options, by_name},
        ir::testing::{find, model},
        runtime::tract::Tract,
    };

    fn sample(i: usize) -> Result<Vec<Tensor>> {
        let len = 1 + i % 5;
        let values: Vec<f32> = (0..len).map(|k| (i as f32 * 0.7 + k as f32).sin() * 3.0).collect();
        Ok(vec![Tensor::from_f32(&[len], &values)])
    }

    fn gather(method: &str, feed: &Feed<'_>) -> Result<Vec<Observer>> {
        let m = model("float[n] x \n y = Relu(x) \n z = Neg(y) \n return z");
        let watch = |n: &str| Watch {
            value: find(&m, n),
            observer: Some(Observer::new(by_name(method).unwrap(), Options::default())),
            means: None,
        };
        let watches = ["x", "y", "z"].iter().map(|n| watch(n)).collect();
        let samples: Vec<usize> = (0..40).collect();
        let seen = collect(&Tract, &m, watches, &samples, feed, &|done, of| assert!(done <= of))?;
        Ok(seen.into_iter().filter_map(|w| w.observer).collect())
    }

    #[test]
    fn sees_every_sample_once_whatever_the_threads_do() {
        for method in ["min_max", "moving_average", "mse"] {
            let (a, b) = (gather(method, &sample).unwrap(), gather(method, &sample).unwrap());
            for (a, b) in a.iter().zip(&b) {
                assert_eq!(a.observation(), b.observation());
                assert_eq!((a.stats().samples, a.stats().count), (40, 120));
            }
            let all: Vec<f32> = (0..40).flat_map(|i| sample(i).unwrap()[0].to_f32().unwrap()).collect();
            assert_eq!(a[0].stats().min, all.iter().copied().fold(f32::INFINITY, f32::min));
            assert_eq!(a[1].stats().max, -a[2].stats().min);
        }
    }

    #[test]
    fn the_first_failing_sample_is_named() {
        for _ in 0..5 {
            let broken = |i| if i % 7 == 5 { Err(Error::data("is broken")) } else { sample(i) };
            let error = gather("min_max", &broken).unwrap_err();
            assert_eq!(error.to_string(), "sample 5: is broken");
        }
        let empty = |_: usize| Ok(vec![]);
        assert!(gather("min_max", &empty).unwrap_err().to_string().starts_with("sample 0: "));
    }
}
