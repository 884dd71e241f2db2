//! Outputs that mix numbers of very different size, as boxes beside scores: the noise of the whole says nothing of the small
//! ones, so each part is looked at for itself.

use serde::Serialize;

/// Axes of so many channels may mix parts.
const CHANNELS: std::ops::RangeInclusive<usize> = 2..=1024;
/// Parts are so many times as large as the next, in the root mean square and, a little less, at their greatest.
const GAP: (f64, f64) = (30.0, 8.0);
/// What stays under this share of the greatest number of the output is next to nothing, and no part.
const LEAST: f64 = 5e-4;
/// Sums are kept as multiples of this, so that they do not depend on the order of samples.
const UNIT: f64 = 1.0 / (1u128 << 64) as f64;

/// Some channels of an output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// The axis that they lie along.
    pub axis: usize,
    /// Their numbers, in ascending order.
    pub channels: Vec<usize>,
    /// Signal to quantization noise of these channels alone, dB.
    pub sqnr_db: f64,
}

impl Part {
    /// Which channels, in words: runs of neighbours together.
    pub fn words(&self) -> String {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for &c in &self.channels {
            match runs.last_mut() {
                Some((_, to)) if *to + 1 == c => *to = c,
                _ => runs.push((c, c)),
            }
        }
        let mut words: Vec<String> = runs
            .iter()
            .take(3)
            .map(|&(from, to)| if from == to { from.to_string() } else { format!("{from} to {to}") })
            .collect();
        if runs.len() > words.len() {
            words.push("…".to_owned());
        }
        format!("channels {} of axis {}", words.join(", "), self.axis)
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Channel {
    signal: i128,
    noise: i128,
    peak: f32,
}

/// What is gathered of the channels of an output.
#[derive(Debug, Clone, Default)]
pub(super) struct Channels {
    axes: Vec<(usize, Vec<Channel>)>,
    samples: u64,
}

fn units(x: f64) -> i128 {
    (x / UNIT) as i128
}

impl Channels {
    /// Takes in both outputs of a sample.
    pub(super) fn add(&mut self, dims: &[usize], a: &[f32], b: &[f32]) {
        let rank = dims.len();
        // Channels lie along the second axis or the last; the last of a map is its width.
        let axes = [1, rank.wrapping_sub(1)].into_iter().filter(|&x| x >= 1 && x < rank && (x == 1 || rank != 4));
        let mut now: Vec<(usize, Vec<Channel>)> = Vec::new();
        for axis in axes.filter(|&axis| CHANNELS.contains(&dims[axis])) {
            if now.iter().all(|(known, _)| *known != axis) {
                now.push((axis, of_axis(dims, axis, a, b)));
            }
        }
        if self.samples == 0 {
            self.axes = now;
        } else {
            self.axes.retain(|(axis, all)| now.iter().any(|(x, these)| x == axis && these.len() == all.len()));
            for (axis, all) in &mut self.axes {
                let these = now.iter().find(|(x, _)| x == axis).map_or(&[][..], |(_, these)| these);
                for (sum, one) in all.iter_mut().zip(these) {
                    sum.signal = sum.signal.saturating_add(one.signal);
                    sum.noise = sum.noise.saturating_add(one.noise);
                    sum.peak = sum.peak.max(one.peak);
                }
            }
        }
        self.samples += 1;
    }

    /// The part with the most noise for its size, of an output that has several.
    pub(super) fn worst(&self) -> Option<Part> {
        let parts = self.axes.iter().flat_map(|(axis, channels)| parts(*axis, channels));
        parts.min_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db))
    }
}

fn of_axis(dims: &[usize], axis: usize, a: &[f32], b: &[f32]) -> Vec<Channel> {
    let inner: usize = dims[axis + 1..].iter().product::<usize>().max(1);
    let mut sums = vec![(0f64, 0f64, 0f32); dims[axis]];
    for (i, (a, b)) in a.chunks_exact(inner).zip(b.chunks_exact(inner)).enumerate() {
        let (signal, noise, peak) = &mut sums[i % dims[axis]];
        for (&x, &y) in a.iter().zip(b).filter(|(x, y)| x.is_finite() && y.is_finite()) {
            *signal += f64::from(x) * f64::from(x);
            *noise += (f64::from(x) - f64::from(y)).powi(2);
            *peak = peak.max(x.abs());
        }
    }
    let channel = |(signal, noise, peak)| Channel { signal: units(signal), noise: units(noise), peak };
    sums.into_iter().map(channel).collect()
}

/// The parts that the channels of an axis fall into; none where they are all alike.
fn parts(axis: usize, channels: &[Channel]) -> Vec<Part> {
    let mut order: Vec<usize> = (0..channels.len()).filter(|&c| channels[c].signal > 0).collect();
    order.sort_by(|&i, &j| channels[j].signal.cmp(&channels[i].signal).then(i.cmp(&j)));
    let peak = |of: &[usize]| of.iter().map(|&c| f64::from(channels[c].peak)).fold(0.0, f64::max);
    let least = |of: &[usize]| of.iter().map(|&c| f64::from(channels[c].peak)).fold(f64::INFINITY, f64::min);
    let greatest = peak(&order);
    let mut found: Vec<&[usize]> = Vec::new();
    let mut from = 0;
    for at in 1..order.len() {
        let ratio = (channels[order[at - 1]].signal as f64 / channels[order[at]].signal as f64).sqrt();
        if ratio >= GAP.0 && least(&order[from..at]) >= GAP.1 * peak(&order[at..]) {
            found.push(&order[from..at]);
            from = at;
        }
    }
    found.push(&order[from..]);
    found.retain(|part| peak(part) >= LEAST * greatest);
    if found.len() < 2 {
        return Vec::new();
    }
    let part = |of: &[usize]| {
        let sum = |get: fn(&Channel) -> i128| of.iter().map(|&c| get(&channels[c]) as f64 * UNIT).sum::<f64>();
        let mut channels = of.to_vec();
        channels.sort_unstable();
        Part { axis, channels, sqnr_db: super::metrics::decibel(sum(|c| c.signal), sum(|c| c.noise)) }
    };
    found.into_iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four coordinates and six scores for each of five boxes, and the same with the noise of one scale for all.
    fn boxes(channels_last: bool, sample: usize) -> (Vec<usize>, Vec<f32>, Vec<f32>) {
        let number = |c: usize, i: usize| {
            let x = ((c * 7 + i * 13 + sample * 29) % 17) as f32 / 17.0;
            if c < 4 { 100.0 + 500.0 * x } else { 0.9 * x }
        };
        let all: Vec<f32> = match channels_last {
            true => (0..50).map(|i| number(i % 10, i / 10)).collect(),
            false => (0..50).map(|i| number(i / 5, i % 5)).collect(),
        };
        let rounded = all.iter().map(|x| (x / 2.4).round() * 2.4).collect();
        (if channels_last { vec![1, 5, 10] } else { vec![1, 10, 5] }, all, rounded)
    }

    #[test]
    fn scores_beside_boxes_are_seen() {
        for channels_last in [false, true] {
            let mut channels = Channels::default();
            for sample in 0..3 {
                let (dims, a, b) = boxes(channels_last, sample);
                channels.add(&dims, &a, &b);
            }
            let worst = channels.worst().unwrap();
            assert_eq!(worst.channels, (4..10).collect::<Vec<_>>());
            assert_eq!(worst.words(), format!("channels 4 to 9 of axis {}", 1 + usize::from(channels_last)));
            assert!(worst.sqnr_db.abs() < 1e-9, "all of them are rounded to zero: {}", worst.sqnr_db);
        }
    }

    #[test]
    fn what_is_alike_or_next_to_nothing_is_no_part() {
        let mut alike = Channels::default();
        alike.add(&[1, 3], &[1.0, 5.0, 20.0], &[1.0, 5.0, 20.0]);
        assert_eq!(alike.worst(), None);
        let mut dead = Channels::default();
        dead.add(&[1, 3], &[1.0, 0.5, 1e-4], &[1.0, 0.5, 0.0]);
        assert_eq!(dead.worst(), None);
        // A map is as wide as it is.
        let mut map = Channels::default();
        map.add(&[1, 1, 1, 2], &[1.0, 1e-2], &[1.0, 0.0]);
        assert_eq!(map.worst(), None);
        let mut other = Channels::default();
        other.add(&[1, 2], &[1.0, 1e-2], &[1.0, 0.0]);
        assert_eq!(other.worst().unwrap().channels, [1]);
        other.add(&[1, 3], &[1.0, 1.0, 1.0], &[1.0, 1.0, 1.0]);
        assert_eq!(other.worst(), None);
    }
}
