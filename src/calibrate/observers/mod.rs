//! Observers: what is gathered of a value during calibration, and the range that is chosen from it.
//!
//! Gathering is the same for all ([`Observation`]: exact statistics, and a histogram where the method asks for one);
//! a method is a function from an observation and a target type to a range. So one observation can be asked for other
//! targets, and none depends on the order of the samples or on threads.

pub mod exact_sum;
pub mod histogram;
mod search;
pub mod stats;

use serde::{Deserialize, Serialize};

pub use self::{histogram::Histogram, stats::TensorStats};
use crate::{
    error::{Error, Result},
    quant::{QuantTarget, Range},
};

/// Numbers that methods can be tuned with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// `percentile`: how much of the numbers the range keeps, in percent.
    pub percentile: f64,
    /// `moving_average`: how far each sample pulls the range to its own.
    pub averaging: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { percentile: 99.99, averaging: 0.01 }
    }
}

impl Options {
    /// Refuses numbers that make no sense.
    pub fn check(&self) -> Result<()> {
        if !(self.percentile > 50.0 && self.percentile <= 100.0) {
            return Err(Error::config(format!("percentile is {}, must be above 50 and at most 100", self.percentile)));
        }
        if !(self.averaging > 0.0 && self.averaging <= 1.0) {
            return Err(Error::config(format!("averaging is {}, must be above 0 and at most 1", self.averaging)));
        }
        Ok(())
    }
}

/// What a method needs beside the statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Stats,
    /// A histogram of all numbers: 64 kB a value.
    Histogram,
    /// The range of each sample: 16 bytes a sample.
    SampleRanges,
}

/// A way to choose a range.
pub struct Method {
    /// The file's name, which is also its name on the command line and in YAML.
    pub name: &'static str,
    /// What must be gathered for it.
    pub needs: Needs,
    /// Chooses the range from an observation with at least one finite number.
    pub range: fn(&Observation, QuantTarget, &Options) -> Result<Range>,
}

macro_rules! observers {
    ($($name:ident),* $(,)?) => {
        $(pub mod $name;)*

        /// Every method.
        pub const METHODS: &[Method] =
            &[$(Method { name: stringify!($name), needs: $name::NEEDS, range: $name::range }),*];
    };
}

observers! { min_max, moving_average, percentile, entropy, mse, auto }

/// Each number of [`Options`] and the only method that reads it.
pub const READERS: &[(&str, &str)] = &[("percentile", "percentile"), ("averaging", "moving_average")];

/// The name of the method that is used where none is named: the one that measures best.
pub const DEFAULT: &str = "auto";

/// The method of this name.
pub fn by_name(name: &str) -> Result<&'static Method> {
    METHODS.iter().find(|m| m.name == name).ok_or_else(|| {
        let names: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
        Error::config(format!("no calibration method {name:?}")).help(format!("use one of: {}", names.join(", ")))
    })
}

impl PartialEq for Method {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl std::fmt::Debug for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Everything that was gathered of one value.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Always gathered.
    pub stats: TensorStats,
    /// For methods that need it.
    pub histogram: Option<Histogram>,
    /// The finite range of each sample by its number, in ascending order, for methods that need it.
    pub sample_ranges: Option<Vec<(usize, Range)>>,
}

/// Observes one value with one method.
#[derive(Debug, Clone, PartialEq)]
pub struct Observer {
    method: &'static Method,
    options: Options,
    seen: Observation,
}

impl Observer {
    /// An observer that has seen nothing.
    pub fn new(method: &'static Method, options: Options) -> Self {
        let seen = Observation {
            stats: TensorStats::default(),
            histogram: (method.needs == Needs::Histogram).then(Histogram::default),
            sample_ranges: (method.needs == Needs::SampleRanges).then(Vec::new),
        };
        Self { method, options, seen }
    }

    /// Takes in the value as it was in a sample. Samples may come in any order, each once.
    pub fn update(&mut self, sample: usize, values: &[f32]) {
        let (range, all_finite) = self.seen.stats.update(values);
        let Some(range) = range else { return };
        if let Some(histogram) = &mut self.seen.histogram {
            if all_finite {
                histogram.update(values, range);
            } else {
                let finite: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
                histogram.update(&finite, range);
            }
        }
        if let Some(ranges) = &mut self.seen.sample_ranges {
            let at = ranges.partition_point(|&(s, _)| s < sample);
            ranges.insert(at, (sample, range));
        }
    }

    /// Takes in what an observer of the same value and method saw of other samples.
    pub fn merge(&mut self, other: Self) {
        self.seen.stats.merge(&other.seen.stats);
        if let (Some(mine), Some(theirs)) = (&mut self.seen.histogram, &other.seen.histogram) {
            mine.merge(theirs);
        }
        if let (Some(mine), Some(theirs)) = (&mut self.seen.sample_ranges, other.seen.sample_ranges) {
            mine.extend(theirs);
            mine.sort_by_key(|&(sample, _)| sample);
        }
    }

    /// The range that the method chooses for a target type; from 0 to 0 if no finite number was seen. It lies within
    /// the least range that holds 0 and everything seen.
    pub fn range(&self, target: QuantTarget) -> Result<Range> {
        let Some(seen) = self.seen.stats.range() else { return Ok(Range::new(0.0, 0.0)) };
        let range = (self.method.range)(&self.seen, target, &self.options)?;
        let within = seen.with_zero();
        Ok(Range::new(range.lo.clamp(within.lo, within.hi), range.hi.clamp(within.lo, within.hi)))
    }

    /// The method.
    pub fn method(&self) -> &'static Method {
        self.method
    }

    /// What was gathered.
    pub fn observation(&self) -> &Observation {
        &self.seen
    }

    /// The statistics.
    pub fn stats(&self) -> &TensorStats {
        &self.seen.stats
    }
}

impl Observation {
    /// The finite range; from 0 to 0 where there is none.
    pub fn extremes(&self) -> Range {
        self.stats.range().unwrap_or(Range::new(0.0, 0.0))
    }

    fn need_histogram(&self) -> Result<&Histogram> {
        self.histogram.as_ref().ok_or_else(|| Error::bug("this value was observed without a histogram"))
    }
}

/// Pseudo-random numbers that are nearly normal, for tests.
#[cfg(test)]
pub(crate) fn normal(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::DType;

    /// A bell curve with a few outliers, in samples of different sizes.
    fn samples() -> Vec<Vec<f32>> {
        let bell = normal(40_000);
        (0..6)
            .map(|s| {
                let values = bell[5000 * s..5000 * s + 3000 + 500 * s].iter().enumerate();
                values.map(|(i, v)| if i % 2999 == 7 { v * 9.0 } else { *v }).collect()
            })
            .collect()
    }

    #[test]
    fn no_method_depends_on_order_or_threads() {
        let data = samples();
        for method in METHODS {
            let new = || Observer::new(method, Options::default());
            let mut forward = new();
            data.iter().enumerate().for_each(|(i, v)| forward.update(i, v));
            let (mut a, mut b) = (new(), new());
            data.iter().enumerate().rev().for_each(|(i, v)| if i % 2 == 0 { a.update(i, v) } else { b.update(i, v) });
            b.merge(a);
            assert_eq!(forward.observation(), b.observation(), "{}", method.name);
            for target in
                [QuantTarget::ACTIVATION, QuantTarget { dtype: DType::Int8, symmetric: true, reduce_range: false }]
            {
                let range = forward.range(target).unwrap();
                assert_eq!(range, b.range(target).unwrap(), "{}", method.name);
                let seen = forward.observation().extremes().with_zero();
                assert!(range.is_valid() && range.lo >= seen.lo && range.hi <= seen.hi, "{} {range:?}", method.name);
                assert!(range.hi - range.lo > 3.0, "{} {range:?}", method.name);
            }
        }
    }

    #[test]
    fn odd_tensors_have_a_range_under_every_method() {
        for method in METHODS {
            for values in [
                &[][..],
                &[0.0; 9],
                &[3.5],
                &[-2.0; 40],
                &[f32::NAN, 1.0, f32::INFINITY],
                &[f32::NAN],
                &[-1e-42, 1e-42],
                &[f32::MAX, f32::MIN, 1.0],
                &[-65504.0, 0.1, 0.2, 0.3],
            ] {
                for dtype in [DType::Uint8, DType::Int8, DType::Uint16, DType::Int4, DType::Uint2] {
                    for symmetric in [false, true] {
                        let mut o = Observer::new(method, Options::default());
                        o.update(0, values);
                        let target = QuantTarget { dtype, symmetric, reduce_range: false };
                        let range = o.range(target).unwrap();
                        assert!(target.params(range).is_ok(), "{} {values:?} {range:?}", method.name);
                    }
                }
            }
        }
    }

    #[test]
    fn names_and_options() {
        assert_eq!(by_name(DEFAULT).unwrap().name, DEFAULT);
        assert!(by_name("minmax").unwrap_err().help_text().unwrap().contains("min_max"));
        assert!(Options { percentile: 100.5, ..Options::default() }.check().is_err());
        assert!(Options::default().check().is_ok());
    }
}
