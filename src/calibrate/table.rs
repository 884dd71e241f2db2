//! Ranges by value name, as a YAML file: to be looked at, edited, merged and used again.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};

use super::{means::Means, observers::Observer};
use crate::{
    diagnostics::Diagnostic,
    error::{Error, Result},
    files,
    quant::{QuantTarget, Range},
};

/// The range of one value and where it comes from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The least number that must be represented.
    pub lo: f32,
    /// The greatest number that must be represented.
    pub hi: f32,
    /// The method that chose the range; empty where a person wrote it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// The least number seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f32>,
    /// The greatest number seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f32>,
    /// Mean of the numbers seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
    /// Standard deviation of the numbers seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<f64>,
    /// Samples seen.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub samples: u64,
    /// Numbers seen.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub count: u64,
    /// Exact zeros among them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub zeros: u64,
    /// NaNs among them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub nan: u64,
    /// Infinities among them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub infinite: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Entry {
    /// The range.
    pub fn range(&self) -> Range {
        Range::new(self.lo, self.hi)
    }

    /// What an observer chose for a target type.
    pub fn observed(observer: &Observer, target: QuantTarget) -> Result<Self> {
        let range = observer.range(target)?;
        let stats = observer.stats();
        let seen = stats.range();
        Ok(Self {
            lo: range.lo,
            hi: range.hi,
            method: observer.method().name.into(),
            min: seen.map(|r| r.lo),
            max: seen.map(|r| r.hi),
            mean: seen.map(|_| stats.mean()),
            std: seen.map(|_| stats.std()),
            samples: stats.samples,
            count: stats.count,
            zeros: stats.zeros,
            nan: stats.nan,
            infinite: stats.infinite,
        })
    }

    /// What both saw together. The range holds both ranges.
    fn merged(self, other: Self) -> Self {
        let range = self.range().union(other.range());
        let both =
            |a: Option<f32>, b: Option<f32>, pick: fn(f32, f32) -> f32| a.zip(b).map(|(a, b)| pick(a, b)).or(a).or(b);
        let total = (self.count + other.count).max(1) as f64;
        let (wa, wb) = (self.count as f64 / total, other.count as f64 / total);
        let mean = self.mean.zip(other.mean).map(|(a, b)| wa * a + wb * b);
        let square = |e: &Self| e.mean.zip(e.std).map(|(m, s)| s * s + m * m);
        let std =
            square(&self).zip(square(&other)).zip(mean).map(|((a, b), m)| (wa * a + wb * b - m * m).max(0.0).sqrt());
        Self {
            lo: range.lo,
            hi: range.hi,
            min: both(self.min, other.min, f32::min),
            max: both(self.max, other.max, f32::max),
            mean,
            std,
            samples: self.samples + other.samples,
            count: self.count + other.count,
            zeros: self.zeros + other.zeros,
            nan: self.nan + other.nan,
            infinite: self.infinite + other.infinite,
            method: if self.method == other.method { self.method } else { "merged".into() },
        }
    }
}

/// Ranges by value name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The entries; in the order of their names, so that the same ranges give the same file.
    pub ranges: BTreeMap<String, Entry>,
    /// The mean of each channel of what layers with weights read, for bias correction.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub input_means: BTreeMap<String, Means>,
}

impl Table {
    /// Reads a table from a YAML file.
    pub fn open(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|e| Error::io(path, "read the range table", e))?;
        let table: Self = serde_yaml::from_str(&text).map_err(|e| {
            Error::config(format!("this is no range table: {e}"))
                .file(path)
                .help("write `ranges:` with one `NAME: {lo: NUMBER, hi: NUMBER}` for each value")
        })?;
        for (name, means) in &table.input_means {
            means.check().map_err(|e| e.value(name).file(path))?;
        }
        match table.ranges.iter().find(|(_, e)| !e.range().is_valid()) {
            Some((name, e)) => {
                Err(Error::config(format!("the range from {} to {} is not finite and in order", e.lo, e.hi))
                    .value(name)
                    .file(path))
            }
            None => Ok(table),
        }
    }

    /// Writes the table as YAML, under its name only once it is complete.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_yaml::to_string(self).map_err(|e| Error::bug(format!("cannot write ranges as YAML: {e}")))?;
        files::write(path, "the range table", text.as_bytes())
    }

    /// Keeps shares of both ends of a value's range, because the model answers better so.
    pub fn narrow(&mut self, name: &str, lower: f32, upper: f32) {
        if let Some(entry) = self.ranges.get_mut(name) {
            (entry.lo, entry.hi) = (entry.lo * lower, entry.hi * upper);
            "output_error".clone_into(&mut entry.method);
        }
    }

    /// Puts in what an observer chose for a value.
    pub fn insert(&mut self, name: &str, observer: &Observer, target: QuantTarget) -> Result<()> {
        self.ranges.insert(name.into(), Entry::observed(observer, target)?);
        Ok(())
    }

    /// The range of a value.
    pub fn get(&self, name: &str) -> Option<Range> {
        self.ranges.get(name).map(Entry::range)
    }

    /// Takes in another table. A value in both gets the range that holds both: exact for `min_max`, and for the other
    /// methods wider than one run over all the data would choose, which the diagnostic says.
    pub fn merge(&mut self, other: Self) -> Vec<Diagnostic> {
        let mut widened = 0;
        for (name, theirs) in other.ranges {
            let merged = match self.ranges.remove(&name) {
                Some(mine) => {
                    widened += usize::from(mine.method != "min_max" || theirs.method != "min_max");
                    mine.merged(theirs)
                }
                None => theirs,
            };
            self.ranges.insert(name, merged);
        }
        for (name, theirs) in other.input_means {
            let both = match self.input_means.remove(&name) {
                Some(mine) => mine.merged(&theirs),
                None => Some(theirs),
            };
            self.input_means.extend(both.map(|b| (name, b)));
        }
        let text = format!("{widened} ranges of methods other than min_max were merged by taking the wider ends");
        let note =
            Diagnostic::note("merged_ranges", text).help("calibrate once over all the data to let the method choose");
        if widened > 0 { vec![note] } else { vec![] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::observers::{Options, by_name};

    fn table(values: &[f32], method: &str) -> Table {
        let mut observer = Observer::new(by_name(method).unwrap(), Options::default());
        observer.update(0, values);
        let mut table = Table::default();
        table.insert("x", &observer, QuantTarget::ACTIVATION).unwrap();
        table
    }

    #[test]
    fn saves_opens_and_merges() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.yaml");
        let (mut a, b) = (table(&[0.1, -0.3], "min_max"), table(&[0.7, 0.0], "min_max"));
        a.save(&path).unwrap();
        assert_eq!(Table::open(&path).unwrap(), a);
        assert!(a.merge(b).is_empty());
        let together = table(&[0.1, -0.3, 0.7, 0.0], "min_max");
        let (x, y) = (&a.ranges["x"], &together.ranges["x"]);
        assert_eq!((x.range(), x.count, x.zeros, x.samples), (y.range(), y.count, y.zeros, 2));
        assert!((x.std.unwrap() - y.std.unwrap()).abs() < 1e-6);
        assert_eq!(a.merge(table(&[1.0], "auto"))[0].code, "merged_ranges");
    }

    #[test]
    fn written_by_hand_and_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.yaml");
        let open = |text: &str| {
            fs::write(&path, text).unwrap();
            Table::open(&path)
        };
        assert_eq!(open("ranges:\n  x: {lo: 0, hi: 6}\n").unwrap().get("x"), Some(Range::new(0.0, 6.0)));
        for bad in [
            "ranges: {x: {lo: 2, hi: 1}}",
            "ranges: {x: {lo: .nan, hi: 1}}",
            "ranges: {x: {low: 2, hi: 1}}",
            "x",
            "\u{1}",
        ] {
            assert!(open(bad).is_err(), "{bad}");
        }
        assert!(Table::open(Path::new("/nowhere/table.yaml")).is_err());
    }
}
