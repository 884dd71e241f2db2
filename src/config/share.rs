//! Shares of a whole, written as such or in percent: 0.01 or 1%.

use std::fmt;

use serde::{Deserializer, de::Visitor};

/// A share from its words, above 0 and at most 1.
pub fn parse(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.trim().strip_suffix('%') {
        Some(number) => (number, 0.01),
        None => (text, 1.0),
    };
    let share = number.trim().parse::<f64>().map_err(|_| "write a number with %, or a share: 1% or 0.01".to_owned())?;
    if unit == 1.0 && share >= 1.0 {
        return Err(format!("{share} may mean percent or the whole: write {share}%, or a share below 1"));
    }
    match share * unit {
        share if share > 0.0 && share <= 1.0 => Ok(share),
        share => Err(format!("{} % is not above 0 and at most 100 %", 100.0 * share)),
    }
}

/// A number, or words.
pub(super) fn read<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    d.deserialize_any(Share)
}

struct Share;

impl Visitor<'_> for Share {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a share as 0.01 or 1%")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<f64, E> {
        parse(text).map_err(|why| E::custom(format!("{text:?} is no share: {why}")))
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<f64, E> {
        Ok(n as f64)
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<f64, E> {
        Ok(n as f64)
    }

    fn visit_f64<E: serde::de::Error>(self, x: f64) -> Result<f64, E> {
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn in_words_and_as_a_number() {
        for (text, share) in [("0.5%", 0.005), ("0.01", 0.01), ("100 %", 1.0)] {
            assert_eq!(parse(text), Ok(share), "{text}");
        }
        for (text, why) in
            [("1", "may mean percent"), ("0%", "not above 0"), ("101%", "at most 100 %"), ("few", "1% or 0.01")]
        {
            assert!(parse(text).unwrap_err().contains(why), "{text}");
        }
        let read = |text: &str| Config::from_yaml(text).map(|c| c.max_loss);
        for (text, share) in
            [("max_loss: 0.5%", 0.005), ("max_loss: 0.02", 0.02), ("max_loss: 1", 1.0), ("max_loss: '2%'", 0.02)]
        {
            assert_eq!(read(text).unwrap(), share, "{text}");
        }
        let error = read("\nmax_loss: half\n").unwrap_err().to_string();
        assert!(error.contains("line 2: max_loss: \"half\" is no share: write a number with %"), "{error}");
    }
}
