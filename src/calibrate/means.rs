//! The mean of each channel of a value: what the input of a layer is on average, which tells how far rounding the layer's
//! weight shifts its output.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// Where a value's channels lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Axis 1: what convolutions read.
    Second,
    /// The last axis: what matrix products read.
    Last,
}

/// Sums are kept in units of 2^-48, as integers, so that they do not depend on the order of samples.
const UNIT: f64 = 1.0 / (1u64 << 48) as f64;
/// Sums of one sample beyond this are not counted on: they would not fit many times.
const MOST: f64 = (1u64 << 50) as f64;

/// Adds up each channel of a value over samples of any shape.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelMeans {
    axis: Axis,
    sums: Vec<i128>,
    /// Numbers added to each channel.
    count: u64,
    /// The largest shape seen.
    shape: Vec<usize>,
    /// False once a sample had another number of channels, or a sum that is not finite or too large.
    sound: bool,
}

impl ChannelMeans {
    /// Means that have seen nothing.
    pub fn new(axis: Axis) -> Self {
        Self { axis, sums: Vec::new(), count: 0, shape: Vec::new(), sound: true }
    }

    /// Takes in the value as it was in a sample, of shape `dims`, row-major. Samples may come in any order.
    pub fn update(&mut self, dims: &[usize], values: &[f32]) {
        let axis = match self.axis {
            Axis::Second => 1,
            Axis::Last => dims.len().wrapping_sub(1),
        };
        let Some(&channels) = dims.get(axis).filter(|_| !values.is_empty()) else { return };
        if self.sums.is_empty() {
            self.sums = vec![0; channels];
        }
        if self.sums.len() != channels {
            self.sound = false;
            return;
        }
        let inner: usize = dims[axis + 1..].iter().product();
        let mut sums = vec![0f64; channels];
        if inner == 1 {
            for row in values.chunks_exact(channels) {
                sums.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v));
            }
        } else {
            for (run, i) in values.chunks_exact(inner).zip((0..channels).cycle()) {
                sums[i] += sum(run);
            }
        }
        for (total, s) in self.sums.iter_mut().zip(sums) {
            self.sound &= s.abs() < MOST;
            *total += (s / UNIT) as i128;
        }
        self.count += (values.len() / channels) as u64;
        if (dims.iter().product::<usize>(), dims) > (self.shape.iter().product(), &self.shape[..]) {
            self.shape = dims.to_vec();
        }
    }

    /// The means; `None` where nothing was seen, or something that has no mean.
    pub fn means(&self) -> Option<Means> {
        let mean = |&s: &i128| (s as f64 * UNIT / self.count as f64) as f32;
        let values = self.sums.iter().map(mean).collect();
        (self.sound && self.count > 0).then(|| Means { count: self.count, shape: self.shape.clone(), values })
    }
}

/// In lanes, since additions of doubles wait for each other.
fn sum(run: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let blocks = run.chunks_exact(8);
    let rest: f64 = blocks.remainder().iter().map(|&v| f64::from(v)).sum();
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(l, &v)| *l += f64::from(v));
    }
    lanes.iter().sum::<f64>() + rest
}

/// The mean of each channel of a value, as it is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Means {
    /// Numbers that each mean is of.
    pub count: u64,
    /// The largest shape that the value had, as numbers with spaces between.
    #[serde(serialize_with = "write_list", deserialize_with = "read_list")]
    pub shape: Vec<usize>,
    /// The means, as numbers with spaces between.
    #[serde(serialize_with = "write_list", deserialize_with = "read_list")]
    pub values: Vec<f32>,
}

impl Means {
    /// What both saw together; `None` if they speak of different numbers of channels.
    pub fn merged(&self, other: &Self) -> Option<Self> {
        if self.values.len() != other.values.len() {
            return None;
        }
        let (a, b) = (self.count as f64, other.count as f64);
        let mean = |(x, y): (&f32, &f32)| ((f64::from(*x) * a + f64::from(*y) * b) / (a + b).max(1.0)) as f32;
        let larger = self.shape.iter().product::<usize>() >= other.shape.iter().product();
        Some(Self {
            count: self.count + other.count,
            shape: if larger { self.shape.clone() } else { other.shape.clone() },
            values: self.values.iter().zip(&other.values).map(mean).collect(),
        })
    }

    /// Refuses means that are not finite.
    pub fn check(&self) -> Result<()> {
        match self.values.iter().find(|v| !v.is_finite()) {
            Some(v) => Err(Error::config(format!("the mean of a channel is {v}"))),
            None => Ok(()),
        }
    }
}

/// Numbers as one line of YAML, where a list would take one line for each.
pub fn write_list<T: ToString, S: Serializer>(list: &[T], to: S) -> Result<S::Ok, S::Error> {
    let words: Vec<String> = list.iter().map(T::to_string).collect();
    to.serialize_str(&words.join(" "))
}

/// What [`write_list`] wrote.
pub fn read_list<'a, T: std::str::FromStr<Err: std::fmt::Display>, D: Deserializer<'a>>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    let text = String::deserialize(from)?;
    let word = |w: &str| w.parse().map_err(|e| serde::de::Error::custom(format!("{w:?} is no number: {e}")));
    text.split_whitespace().map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_whatever_the_order() {
        let samples = [(vec![1, 2, 2], vec![1.0, 2.0, 10.0, 20.0]), (vec![1, 2, 1], vec![0.1, 0.7])];
        let of = |order: [usize; 2]| {
            let mut m = ChannelMeans::new(Axis::Second);
            order.iter().for_each(|&i| m.update(&samples[i].0, &samples[i].1));
            m.means().unwrap()
        };
        let m = of([0, 1]);
        assert_eq!((&m.values[..], &m.shape[..], m.count), (&[3.1 / 3.0, 30.7 / 3.0][..], &[1, 2, 2][..], 3));
        assert_eq!(m, of([1, 0]));
        let mut last = ChannelMeans::new(Axis::Last);
        last.update(&[2, 2], &[1.0, 2.0, 3.0, 6.0]);
        assert_eq!(last.means().unwrap().values, [2.0, 4.0]);
    }

    #[test]
    fn what_has_no_mean() {
        let mut m = ChannelMeans::new(Axis::Last);
        assert_eq!(m.means(), None);
        m.update(&[0], &[]);
        m.update(&[], &[1.0]);
        assert_eq!(m.means(), None);
        m.update(&[2], &[f32::NAN, 1.0]);
        assert_eq!(m.means(), None);
        let mut m = ChannelMeans::new(Axis::Last);
        m.update(&[1], &[1.0]);
        m.update(&[2], &[1.0, 2.0]);
        assert_eq!(m.means(), None);
    }

    #[test]
    fn saved_in_one_line_and_merged() {
        let m = Means { count: 3, shape: vec![1, 2, 3], values: vec![0.1, -2e-9] };
        let text = serde_yaml::to_string(&m).unwrap();
        assert!(text.contains("shape: 1 2 3\n"), "{text}");
        assert_eq!(serde_yaml::from_str::<Means>(&text).unwrap(), m);
        assert!(serde_yaml::from_str::<Means>("{count: 1, shape: 1 x, values: ''}").is_err());
        let both = m.merged(&Means { count: 1, shape: vec![9, 9, 9], values: vec![0.5, 0.0] }).unwrap();
        assert_eq!((both.count, &both.shape[..], both.values[0]), (4, &[9, 9, 9][..], 0.2));
        assert_eq!(m.merged(&Means { values: vec![], ..m.clone() }), None);
    }
}
