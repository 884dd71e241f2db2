//! Sizes of models in words: 8MB, or 30% of the original.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, Serializer};

/// How large a model may be.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "Words")]
pub enum Size {
    /// In bytes, weights in other files counted.
    Bytes(u64),
    /// As a share of the original.
    Share(f64),
}

impl Size {
    /// In bytes, for an original of so many.
    pub fn bytes(self, original: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(share) => (share * original as f64) as u64,
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Share(share) => write!(f, "{}%", 100.0 * share),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// A size as files have it: in words, or a number of bytes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Bytes(u64),
    Words(String),
}

impl TryFrom<Words> for Size {
    type Error = String;

    fn try_from(words: Words) -> Result<Self, String> {
        match words {
            Words::Bytes(bytes) => bytes.to_string().parse(),
            Words::Words(text) => text.parse(),
        }
    }
}

/// Units of sizes, of 1000 as reports have them and of 1024.
const UNITS: [(&str, f64); 10] = [
    ("", 1.0),
    ("b", 1.0),
    ("k", 1e3),
    ("kb", 1e3),
    ("m", 1e6),
    ("mb", 1e6),
    ("gb", 1e9),
    ("kib", 1024.0),
    ("mib", 1_048_576.0),
    ("gib", 1_073_741_824.0),
];

impl FromStr for Size {
    type Err = String;

    /// `8MB`, `800kB`, or a share of the original as `30%`.
    fn from_str(text: &str) -> Result<Self, String> {
        let example = "write a size as 8MB or 800kB, or a share of the original as 30%";
        let text = text.trim();
        if let Some(number) = text.strip_suffix('%') {
            let share = number.trim().parse::<f64>().map_err(|_| example.to_owned())? / 100.0;
            return match share {
                s if s > 0.0 && s <= 1.0 => Ok(Self::Share(s)),
                s => Err(format!("{} % is not above 0 and at most 100 %; {example}", 100.0 * s)),
            };
        }
        let number = text.trim_end_matches(|c: char| c.is_alphabetic());
        let unit = &text[number.len()..];
        let known = UNITS.iter().find(|(name, _)| unit.eq_ignore_ascii_case(name));
        match (number.trim().parse::<f64>(), known) {
            (Ok(_), None) => Err(format!("there is no unit {unit:?}; {example}")),
            (Ok(number), Some((_, unit))) => match number * unit {
                bytes if (1.0..=1e15).contains(&bytes) => Ok(Self::Bytes(bytes as u64)),
                bytes => Err(format!("{bytes} bytes are no size of a model; {example}")),
            },
            (Err(_), _) => Err(example.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_words() {
        for (text, size) in [
            ("8MB", Size::Bytes(8_000_000)),
            ("1.5 mib", Size::Bytes(1_572_864)),
            ("800kB", Size::Bytes(800_000)),
            ("12345", Size::Bytes(12_345)),
            ("30%", Size::Share(0.3)),
        ] {
            assert_eq!(text.parse(), Ok(size), "{text}");
        }
        for (text, said) in [
            ("8 elephants", "no unit \"elephants\"; write a size as 8MB"),
            ("", "write a size as 8MB"),
            ("MB", "write a size"),
            ("0MB", "0 bytes are no size"),
            ("-3MB", "no size"),
            ("130%", "at most 100 %"),
            ("0%", "not above 0"),
            ("x%", "30%"),
        ] {
            let e = text.parse::<Size>().unwrap_err();
            assert!(e.contains(said), "{text}: {e}");
        }
        assert_eq!((Size::Share(0.3).bytes(1000), Size::Bytes(7).bytes(1000)), (300, 7));
        for text in ["2500", "8MB", "12.5%"] {
            let size: Size = text.parse().unwrap();
            assert_eq!(serde_yaml::from_str::<Size>(&serde_yaml::to_string(&size).unwrap()).unwrap(), size, "{text}");
        }
        assert_eq!(serde_yaml::from_str::<Size>("2500").unwrap(), Size::Bytes(2500));
    }
}
