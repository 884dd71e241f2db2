//! Lengths of time as people write them: `90s`, `10m`, `1h`.

use std::{fmt, time::Duration};

use serde::{Deserializer, de::Visitor};

/// Units by their names, in seconds.
const UNITS: [(&str, f64); 4] = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
/// More is a mistake, seconds: a month.
const LONGEST: f64 = 31.0 * 24.0 * 3600.0;

/// A length of time with its unit, as `90s` or `1.5h`.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let number = text.trim_end_matches(|c: char| c.is_alphabetic());
    let unit = &text[number.len()..];
    let known = UNITS.iter().find(|(name, _)| unit.eq_ignore_ascii_case(name));
    match (number.trim().parse::<f64>(), known) {
        (Ok(number), _) if number.is_nan() || number <= 0.0 => {
            Err(format!("{text} is no time: write one above 0, as 90s or 10m, or none for as long as it takes"))
        }
        (Ok(number), None) if unit.is_empty() => {
            Err(format!("{number} of what? write a number with its unit: {number}s or {number}m"))
        }
        (Ok(_), None) => Err(format!("there is no unit {unit:?}; write seconds, minutes or hours as 90s, 10m or 1h")),
        (Ok(number), Some((_, unit))) => match number * unit {
            seconds if seconds <= LONGEST => Ok(Duration::from_secs_f64(seconds)),
            _ => Err(format!("{text} is more than a month: leave it out for as long as it takes")),
        },
        (Err(_), _) => Err("write a number with its unit, as 90s, 10m or 1h".to_owned()),
    }
}

/// Words, or nothing for as long as it takes.
pub(super) fn read<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    d.deserialize_any(Time)
}

struct Time;

impl Visitor<'_> for Time {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time as 90s or 10m")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        parse(text).map(|_| Some(text.trim().to_owned())).map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Self::Value, E> {
        self.visit_str(&n.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Self::Value, E> {
        self.visit_str(&n.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, x: f64) -> Result<Self::Value, E> {
        self.visit_str(&x.to_string())
    }
}

/// The same in words that [`parse`] reads again, rounded to what people care for.
pub fn words(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 10.0 => format!("{s:.1}s"),
        s if s < 120.0 => format!("{s:.0}s"),
        s if s < 7200.0 => format!("{:.0}m", s / 60.0),
        s => format!("{:.1}h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        for (text, seconds) in [("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0), (" 250 ms ", 0.25), ("2M", 120.0)] {
            assert_eq!(parse(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for (text, said) in [
            ("10", "10s or 10m"),
            ("10 days", "no unit \"days\""),
            ("", "as 90s"),
            ("s", "as 90s"),
            ("0s", "0s is no time: write one above 0"),
            ("0", "0 is no time: write one above 0"),
            ("-3m", "-3m is no time"),
            ("1e9h", "a month"),
            ("NaNs", "as 90s"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.contains(said), "{text}: {e}");
        }
        let read = |text: &str| crate::config::Config::from_yaml(text).map(|c| c.time_budget);
        assert_eq!(read("time_budget: 10m").unwrap().as_deref(), Some("10m"));
        assert_eq!(read("time_budget: null").unwrap(), None);
        let error = read("\ntime_budget: 10").unwrap_err().to_string();
        assert!(error.contains("line 2: time_budget: 10 of what? write a number with its unit: 10s or 10m"), "{error}");
        for text in ["5.0s", "90s", "10m", "2.5h"] {
            assert_eq!(words(parse(text).unwrap()), text);
        }
    }
}
