//! What a tuned model shall keep to: loss, speed and size.

use crate::{
    config::Size,
    error::{Error, Result},
    report::tune::{Budgets, Figures},
};

/// What is asked for; any of them, or nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Aims {
    /// The most loss, as a share: 0.01 is a percent.
    pub max_loss: Option<f64>,
    /// How many times as fast as the original at least.
    pub min_speedup: Option<f64>,
    /// The most bytes.
    pub max_size: Option<Size>,
}

/// How many times as fast: `2` or `2x`.
pub fn parse_speedup(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches(['x', 'X']);
    match number.trim().parse::<f64>() {
        Ok(times) if times > 0.0 && times <= 1000.0 => Ok(times),
        Ok(times) => Err(format!("{times} is not above 0 and at most 1000; write 2 for twice as fast")),
        Err(_) => Err("write how many times as fast as the original, as 2 or 1.5x".to_owned()),
    }
}

impl Aims {
    /// As numbers for an original of so many bytes. Where nothing is asked for, the loss is what the configuration says.
    pub(super) fn budgets(&self, original_bytes: u64, usual_loss: f64) -> Result<Budgets> {
        let bytes = self.max_size.map(|size| size.bytes(original_bytes));
        if let Some(loss) = self.max_loss.filter(|l| !(*l > 0.0 && *l <= 1.0)) {
            return Err(Error::config(format!("max_loss is {loss}, must be above 0 and at most 1"))
                .help("write a share: 0.01 for a percent"));
        }
        let nothing = self.max_loss.is_none() && self.min_speedup.is_none() && bytes.is_none();
        let loss = self.max_loss.or(nothing.then_some(usual_loss));
        Ok(Budgets { loss, speed: self.min_speedup, bytes })
    }
}

/// Which of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    Loss,
    Speed,
    Size,
}

pub(super) const ALL: [Aim; 3] = [Aim::Loss, Aim::Speed, Aim::Size];

/// Losses are shares with rounding errors.
const EPS: f64 = 1e-10;

impl Aim {
    /// How far a point is from the budget: 1 is just within, 2 twice of what is allowed; `None` without a budget.
    pub(super) fn used(self, budgets: &Budgets, f: &Figures) -> Option<f64> {
        match self {
            // A loss of nothing is within any budget, and a budget may be tiny.
            Self::Loss => budgets
                .loss
                .map(|most| if f.loss <= most + EPS { f.loss / most } else { (f.loss / most).max(1.0 + EPS) }),
            Self::Speed => budgets.speed.map(|least| least / f.speed.max(1e-9)),
            Self::Size => budgets.bytes.map(|most| f.bytes as f64 / (most as f64).max(1.0)),
        }
    }

    /// Whether a point is within the budget.
    pub(super) fn holds(self, budgets: &Budgets, f: &Figures) -> bool {
        self.used(budgets, f).is_none_or(|used| used <= 1.0 + EPS)
    }

    /// The budget that a point would just be within, as its flag.
    pub(super) fn flag_for(self, f: &Figures) -> String {
        match self {
            Self::Loss => format!("--max-loss {}%", up(100.0 * f.loss)),
            Self::Speed => format!("--min-speedup {}", (f.speed * 100.0).floor() / 100.0),
            Self::Size => format!("--max-size {}kB", f.bytes.div_ceil(1000)),
        }
    }
}

/// Rounded up to three digits, so that what has it is within.
fn up(x: f64) -> f64 {
    if x <= 0.0 {
        return 0.001;
    }
    let unit = 10f64.powf(x.log10().floor() - 2.0);
    let rounded = (x / unit - 1e-9).ceil() * unit;
    // Without the digits that a product of tenths brings.
    format!("{rounded:.6}").parse().unwrap_or(rounded)
}

/// Whether a point is within all budgets.
pub(super) fn fits(budgets: &Budgets, f: &Figures) -> bool {
    ALL.iter().all(|aim| aim.holds(budgets, f))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds() {
        assert_eq!((parse_speedup("2"), parse_speedup("1.5x")), (Ok(2.0), Ok(1.5)));
        for bad in ["", "fast", "0", "-1", "nan", "2000x"] {
            assert!(parse_speedup(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_asked_for() {
        let nothing = Aims::default().budgets(1000, 0.01).unwrap();
        assert_eq!(nothing, Budgets { loss: Some(0.01), speed: None, bytes: None });
        let size = Aims { max_size: Some(Size::Share(0.3)), ..Aims::default() };
        assert_eq!(size.budgets(1000, 0.01).unwrap(), Budgets { loss: None, speed: None, bytes: Some(300) });
        assert!(Aims { max_loss: Some(0.0), ..Aims::default() }.budgets(1000, 0.01).is_err());
        assert!((up(0.12345) - 0.124).abs() < 1e-12 && (up(3.0) - 3.0).abs() < 1e-12);
    }
}
