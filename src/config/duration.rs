//! Lengths of time as people write them: `90s`, `10m`, `1h`.

use std::time::Duration;

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
        (Ok(number), None) if unit.is_empty() => {
            Err(format!("{number} of what? write a number with its unit: {number}s or {number}m"))
        }
        (Ok(_), None) => Err(format!("there is no unit {unit:?}; write seconds, minutes or hours as 90s, 10m or 1h")),
        (Ok(number), Some((_, unit))) => match number * unit {
            seconds if seconds > 0.0 && seconds <= LONGEST => Ok(Duration::from_secs_f64(seconds)),
            seconds => Err(format!("{seconds} seconds are not above 0 and at most {LONGEST}, a month")),
        },
        (Err(_), _) => Err("write a number with its unit, as 90s, 10m or 1h".to_owned()),
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
            ("0s", "not above 0"),
            ("-3m", "not above 0"),
            ("1e9h", "a month"),
            ("NaNs", "as 90s"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.contains(said), "{text}: {e}");
        }
        for text in ["5.0s", "90s", "10m", "2.5h"] {
            assert_eq!(words(parse(text).unwrap()), text);
        }
    }
}
