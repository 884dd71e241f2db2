//! Shares of a whole, written as such or in percent: 0.01 or 1%.

use std::fmt;

use serde::{Deserializer, Serializer, de::Visitor};

/// A share from its words, above 0 and at most 1.
pub fn parse(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.trim().strip_suffix('%') {
        Some(number) => (number, 0.01),
        None => (text, 1.0),
    };
    let number = number
        .trim()
        .parse::<f64>()
        .ok()
        .filter(|x| x.is_finite())
        .ok_or("write a number with %, or a share: 1% or 0.01")?;
    match unit {
        1.0 => of_number(number),
        _ if number > 0.0 && number <= 100.0 => Ok(number * unit),
        _ => Err(format!("{number} % is not above 0 and at most 100 %")),
    }
}

/// A share from a number without a unit.
fn of_number(x: f64) -> Result<f64, String> {
    match x {
        x if x > 0.0 && x < 1.0 => Ok(x),
        x if (1.0..=100.0).contains(&x) => {
            Err(format!("{x} may mean percent or the whole: write {x}%, or a share below 1"))
        }
        x => Err(format!("{x} is not above 0 and below 1: write a share as 1% or 0.01")),
    }
}

/// The whole as 100%, since 1 alone may mean percent.
pub(super) fn write<S: Serializer>(share: &Option<f64>, s: S) -> Result<S::Ok, S::Error> {
    match share {
        Some(1.0) => s.serialize_str("100%"),
        Some(share) => s.serialize_f64(*share),
        None => s.serialize_none(),
    }
}

/// A number, or words, or null.
pub(super) fn read<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
    d.deserialize_any(Share)
}

struct Share;

impl Visitor<'_> for Share {
    type Value = Option<f64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a share as 0.01 or 1%")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Option<f64>, E> {
        Ok(None)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Option<f64>, E> {
        parse(text).map(Some).map_err(|why| E::custom(format!("{text:?} is no share: {why}")))
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Option<f64>, E> {
        self.visit_f64(n as f64)
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Option<f64>, E> {
        self.visit_f64(n as f64)
    }

    fn visit_f64<E: serde::de::Error>(self, x: f64) -> Result<Option<f64>, E> {
        of_number(x).map(Some).map_err(E::custom)
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
        for (text, why) in [
            ("1", "write 1%,"),
            ("0%", "not above 0"),
            ("101%", "at most 100 %"),
            ("few", "1% or 0.01"),
            ("1000", "write a share as 1% or 0.01"),
            ("-1", "-1 is not above 0"),
            ("inf", "write a number with %"),
            ("nan%", "write a number with %"),
        ] {
            assert!(parse(text).unwrap_err().contains(why), "{text}");
        }
        let read = |text: &str| Config::from_yaml(text).map(|c| c.max_loss);
        for (text, share) in [
            ("max_loss: 0.5%", Some(0.005)),
            ("max_loss: 0.02", Some(0.02)),
            ("max_loss: 100%", Some(1.0)),
            ("max_loss: null", None),
        ] {
            assert_eq!(read(text).unwrap(), share, "{text}");
        }
        for text in ["max_loss: 1", "max_loss: 1.0"] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("line 1: max_loss: 1 may mean percent or the whole: write 1%"), "{error}");
        }
        let whole = Config { max_loss: Some(1.0), ..Config::default() };
        assert_eq!(Config::from_yaml(&whole.to_yaml().unwrap()).unwrap(), whole);
        let error = read("\nmax_loss: half\n").unwrap_err().to_string();
        assert!(error.contains("line 2: max_loss: \"half\" is no share: write a number with %"), "{error}");
    }
}
