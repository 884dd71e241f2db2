//! What values are like on some samples: the range of each channel, and rows of what layers read.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::{Smoothing, layer::Layer};
use crate::{
    calibrate::collect::{Feed, Progress, for_each_sample},
    error::Result,
    ir::ValueId,
    quant::Range,
};

/// Rows of a layer's data that are kept of all samples.
const ROWS: usize = 64;
/// Numbers in them, at most.
const NUMBERS: usize = 1 << 18;

/// What is to be known of a value.
pub(super) struct Watched {
    /// The axes of its channels.
    pub axes: Vec<usize>,
    /// The layers that read it.
    pub layers: Vec<usize>,
}

/// The range of each channel.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// The least number, at most 0.
    pub lo: Vec<f32>,
    /// The greatest number, at least 0.
    pub hi: Vec<f32>,
}

impl Seen {
    /// The largest magnitude in each channel.
    pub fn largest(&self) -> impl Iterator<Item = f32> + '_ {
        self.lo.iter().zip(&self.hi).map(|(lo, hi)| hi.max(-lo))
    }

    /// The range of the whole value, its channels divided by `factors`.
    pub fn range(&self, factors: &[f32]) -> Range {
        let ends = self.lo.iter().zip(&self.hi).zip(factors);
        ends.fold(Range::new(0.0, 0.0), |all, ((lo, hi), f)| all.union(Range::new(lo / f, hi / f)))
    }

    fn update(&mut self, axes: &[usize], dims: &[usize], values: &[f32]) {
        let stride = |axis: usize| dims.iter().skip(axis + 1).product::<usize>().max(1);
        let place: Vec<(usize, usize)> =
            axes.iter().map(|&a| (stride(a), dims.get(a).copied().unwrap_or(1).max(1))).collect();
        let channels: usize = place.iter().map(|(_, size)| size).product();
        if self.lo.is_empty() {
            (self.lo, self.hi) = (vec![0.0; channels], vec![0.0; channels]);
        }
        // Numbers that lie side by side in one channel are looked at together.
        let run = place.iter().map(|(stride, _)| *stride).min().unwrap_or(1);
        for (i, run) in values.chunks(run).enumerate().map(|(i, chunk)| (i * run, chunk)) {
            let channel = place.iter().fold(0, |c, (stride, size)| c * size + i / stride % size);
            let Some((lo, hi)) = self.lo.get_mut(channel).zip(self.hi.get_mut(channel)) else { continue };
            for &x in run.iter().filter(|x| x.is_finite()) {
                (*lo, *hi) = (lo.min(x), hi.max(x));
            }
        }
    }
}

/// Rows of what each layer reads: of the samples at even places, and of those at odd places.
pub(super) type Rows = Vec<[Vec<f32>; 2]>;

/// Runs the model on the samples.
pub(super) fn see(
    task: &Smoothing<'_>,
    watched: &BTreeMap<ValueId, Watched>,
    layers: &[&Layer],
    samples: &[usize],
    feed: &Feed<'_>,
    progress: &Progress<'_>,
) -> Result<(BTreeMap<ValueId, Seen>, Rows)> {
    let model = task.model;
    let values: Vec<ValueId> = watched.keys().copied().collect();
    let session = task.runtime.load(model, &values)?;
    let seen: Vec<Mutex<Seen>> = values.iter().map(|_| Mutex::default()).collect();
    // By sample, so that their order does not depend on threads.
    let rows: Vec<Mutex<BTreeMap<usize, Vec<f32>>>> = layers.iter().map(|_| Mutex::default()).collect();
    for_each_sample(samples, progress, |sample| {
        session.run_observed(&feed(sample)?, &mut |i, value| {
            let (numbers, dims) = (value.floats()?, value.dims());
            let Some(watched) = watched.get(&values[i]) else { return Ok(()) };
            for &layer in &watched.layers {
                let most = ROWS.min(NUMBERS / layers[layer].width.max(1)).div_ceil(samples.len()).max(1);
                let some = layers[layer].rows(model, dims, &numbers, most, sample);
                rows[layer].lock().unwrap_or_else(PoisonError::into_inner).insert(sample, some);
            }
            seen[i].lock().unwrap_or_else(PoisonError::into_inner).update(&watched.axes, dims, &numbers);
            Ok(())
        })?;
        Ok(())
    })?;
    let done = |seen: Mutex<Seen>| seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seen = values.iter().copied().zip(seen.into_iter().map(done)).collect();
    let halves = |rows: Mutex<BTreeMap<usize, Vec<f32>>>| {
        let rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
        let half = |half: usize| {
            let those = samples.iter().skip(half).step_by(2);
            those.filter_map(|s| rows.get(s)).flatten().copied().collect()
        };
        [half(0), half(1)]
    };
    Ok((seen, rows.into_iter().map(halves).collect()))
}
