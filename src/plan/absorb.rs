//! Biases that are larger than a channel needs: what a clamp at 0 never touches moves on to the bias of the next layer, and the
//! range of the value between gets narrower.
//!
//! Markus Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.1.3:
//! `c = max(0, mean - 3 std)` for each channel of what a layer makes. Here mean and deviation are those of calibration, and
//! `c` is also no larger than the least number seen there: so the model computes the same on these data, where the paper's
//! loses what lies beyond three deviations.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::smooth::{REACHED, Smoothing};
use crate::{
    calibrate::{
        collect::{Feed, Progress, for_each_sample},
        means::{read_list, write_list},
    },
    error::{Error, Result},
    ir::ValueId,
};

/// Deviations below the mean that a channel keeps.
const DEVIATIONS: f64 = 3.0;
/// What must be left of the range at most: what gains less is not worth what unseen data may lose.
const LEAST: f64 = 0.95;

/// What each channel of a value loses, and what reads the value has in its bias instead.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelShifts {
    /// A number for each channel, as numbers with spaces between.
    #[serde(serialize_with = "write_list", deserialize_with = "read_list")]
    pub shifts: Vec<f32>,
}

impl ChannelShifts {
    /// Refuses what cannot be taken from so many channels.
    pub fn check(&self, channels: usize) -> Result<()> {
        if channels != self.shifts.len() {
            return Err(Error::config(format!("{} shifts are given, it has {channels} channels", self.shifts.len())));
        }
        match self.shifts.iter().find(|s| !(s.is_finite() && **s >= 0.0)) {
            Some(s) => Err(Error::config(format!("the shift of a channel is {s}, must be a number from 0 on"))),
            None => Ok(()),
        }
    }
}

/// A clamp at 0 between layers whose biases can pass something on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clamped {
    /// What the clamp reads.
    pub before: ValueId,
    /// What it makes.
    pub value: ValueId,
    /// The axis of the channels, from the first or, where `None`, the last.
    pub axis: Option<usize>,
    /// How many there are.
    pub channels: usize,
    /// The upper bound of the clamp.
    pub most: f32,
}

/// Finds what can be taken from the channels of clamped values whose range gets narrower by it.
pub fn absorb(
    task: &Smoothing<'_>,
    places: &[Clamped],
    samples: &[usize],
    feed: &Feed<'_>,
    progress: &Progress<'_>,
) -> Result<BTreeMap<String, ChannelShifts>> {
    let quantized = |p: &&Clamped| task.placement.values.get(&p.value).is_some_and(|q| q.root == p.value);
    let places: Vec<&Clamped> = places.iter().filter(quantized).filter(|p| !(task.fixed)(p.value)).collect();
    if places.is_empty() || samples.is_empty() {
        return Ok(BTreeMap::new());
    }
    let seen = see(task, &places, samples, feed, progress)?;
    let shifts = |(place, seen): (&Clamped, Vec<Channel>)| {
        let shifts = shifts(&seen, place.most)?;
        Some((task.model.value(place.value).name().to_owned(), ChannelShifts { shifts }))
    };
    Ok(places.into_iter().zip(seen).filter_map(shifts).collect())
}

/// No more than makes the range narrower; `None` where that is next to nothing.
fn shifts(seen: &[Channel], most: f32) -> Option<Vec<f32>> {
    let free: Vec<f32> = seen.iter().map(|c| c.free(most)).collect();
    let largest = |of: &mut dyn Iterator<Item = f32>| of.fold(0f32, f32::max);
    let before = largest(&mut seen.iter().map(|c| c.hi));
    let after = largest(&mut seen.iter().zip(&free).map(|(c, free)| c.hi - free));
    let narrower = before > 0.0 && before.is_finite() && f64::from(after) <= LEAST * f64::from(before);
    narrower.then(|| seen.iter().zip(free).map(|(c, free)| (c.hi - after).clamp(0.0, free)).collect())
}

/// What is seen of a channel.
#[derive(Debug, Clone, Copy)]
struct Channel {
    lo: f32,
    hi: f32,
    count: u64,
    sum: f64,
    squares: f64,
}

impl Channel {
    const NOTHING: Self = Self { lo: f32::INFINITY, hi: f32::NEG_INFINITY, count: 0, sum: 0.0, squares: 0.0 };

    fn add(&mut self, numbers: &[f32]) {
        for &x in numbers {
            // A NaN leaves the channel as it is, since then no number is below every other.
            (self.lo, self.hi) = (if x.is_nan() { f32::NEG_INFINITY } else { self.lo.min(x) }, self.hi.max(x));
            self.sum += f64::from(x);
            self.squares += f64::from(x) * f64::from(x);
        }
        self.count += numbers.len() as u64;
    }

    fn merge(&mut self, other: &Self) {
        (self.lo, self.hi) = (self.lo.min(other.lo), self.hi.max(other.hi));
        (self.count, self.sum, self.squares) =
            (self.count + other.count, self.sum + other.sum, self.squares + other.squares);
    }

    /// What can be taken from it in front of a clamp from 0 to `most`.
    fn free(&self, most: f32) -> f32 {
        let mean = self.sum / self.count.max(1) as f64;
        let deviation = (self.squares / self.count.max(1) as f64 - mean * mean).max(0.0).sqrt();
        let free = (mean - DEVIATIONS * deviation).min(f64::from(self.lo)) as f32;
        if free > 0.0 && free.is_finite() && self.hi < REACHED * most { free } else { 0.0 }
    }
}

/// The channels of what the clamps read.
fn see(
    task: &Smoothing<'_>,
    places: &[&Clamped],
    samples: &[usize],
    feed: &Feed<'_>,
    progress: &Progress<'_>,
) -> Result<Vec<Vec<Channel>>> {
    let values: Vec<ValueId> = places.iter().map(|p| p.before).collect();
    let session = task.runtime.load(task.model, &values)?;
    // By sample, so that sums do not depend on threads.
    let seen: Vec<Mutex<BTreeMap<usize, Vec<Channel>>>> = places.iter().map(|_| Mutex::default()).collect();
    for_each_sample(samples, progress, |sample| {
        session.run_observed(&feed(sample)?, &mut |i, value| {
            let (numbers, dims) = (value.floats()?, value.dims());
            let mut channels = vec![Channel::NOTHING; places[i].channels];
            let axis = places[i].axis.unwrap_or(dims.len().saturating_sub(1));
            let inner: usize = dims.iter().skip(axis + 1).product();
            for (at, run) in numbers.chunks(inner.max(1)).enumerate() {
                if let Some(channel) = channels.get_mut(at % places[i].channels.max(1)) {
                    channel.add(run);
                }
            }
            seen[i].lock().unwrap_or_else(PoisonError::into_inner).insert(sample, channels);
            Ok(())
        })?;
        Ok(())
    })?;
    let together = |(place, seen): (&&Clamped, Mutex<BTreeMap<usize, Vec<Channel>>>)| {
        let mut all = vec![Channel::NOTHING; place.channels];
        for channels in seen.into_inner().unwrap_or_else(PoisonError::into_inner).into_values() {
            all.iter_mut().zip(&channels).for_each(|(all, one)| all.merge(one));
        }
        all
    };
    Ok(places.iter().zip(seen).map(together).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(numbers: &[f32]) -> Channel {
        let mut channel = Channel::NOTHING;
        channel.add(numbers);
        channel
    }

    #[test]
    fn no_more_than_makes_the_range_narrower() {
        let (high, low) = (channel(&[9.0, 10.0, 9.5, 9.5]), channel(&[-1.0, 6.0]));
        // Of the first channel, 3 deviations below its mean of 9.5 are free; down to the second's range is enough.
        let deviation = (0.125f32).sqrt();
        assert!((high.free(f32::INFINITY) - (9.5 - 3.0 * deviation)).abs() < 1e-5);
        assert_eq!(shifts(&[high, low], f32::INFINITY), Some(vec![4.0, 0.0]));
        // The least number seen is nearer than three deviations.
        let near = channel(&[5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 4.9]);
        assert!(near.free(f32::INFINITY) < 4.95);
        // A clamp cuts the first channel, or nearly: it stays.
        assert_eq!(shifts(&[high, low], 10.0), None);
        assert_eq!(shifts(&[high, low], 11.0), None);
        // It is the second that makes the range.
        assert_eq!(shifts(&[high, channel(&[-1.0, 9.8])], f32::INFINITY), None);
        assert_eq!(channel(&[5.0, f32::NAN, 6.0]).free(f32::INFINITY), 0.0);
        assert_eq!(channel(&[5.0, f32::INFINITY]).free(f32::INFINITY), 0.0);
        assert_eq!(shifts(&[], f32::INFINITY), None);
    }
}
