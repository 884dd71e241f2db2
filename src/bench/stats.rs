//! Medians and what can be said of them.

use serde::Serialize;

/// A median and an interval around it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Interval {
    /// The middle.
    pub median: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// The chance that the interval of [`ratio`] misses the true median.
const DOUBT: f64 = 0.05;

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The value at this share of the way through sorted values, between neighbours in proportion.
fn at(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = share * last as f64;
    let below = (place.floor() as usize).min(last);
    let above = (below + 1).min(last);
    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}

/// Median and quartiles.
pub(super) fn quartiles(values: &[f64]) -> Interval {
    let sorted = sorted(values);
    Interval { median: at(&sorted, 0.5), low: at(&sorted, 0.25), high: at(&sorted, 0.75) }
}

/// What a tenth of the values stay under.
pub(super) fn undisturbed(values: &[f64]) -> f64 {
    at(&sorted(values), 0.1)
}

/// How many times as fast as the first the second is: the median over rounds of the ratio of their times, and the interval
/// that holds the true median with 95 % certainty. That is counted, not assumed to be of any distribution: the true
/// median lies under each value, or over it, with chance one half. Under six rounds it is all that was seen.
pub fn ratio(first: &[f64], second: &[f64]) -> Interval {
    let sorted = sorted(&first.iter().zip(second).map(|(a, b)| a / b).collect::<Vec<_>>());
    let n = sorted.len();
    if n == 0 {
        return Interval { median: f64::NAN, low: f64::NAN, high: f64::NAN };
    }
    // The most values that may be cut at each end: P(fewer than `cut + 1` of n fair coins show heads) <= DOUBT / 2.
    let (mut cut, mut chance, mut term) = (0, 0.0, 0.5f64.powi(i32::try_from(n).unwrap_or(i32::MAX)));
    for k in 0..n / 2 {
        chance += term;
        if chance > DOUBT / 2.0 {
            break;
        }
        cut = k;
        term *= (n - k) as f64 / (k + 1) as f64;
    }
    Interval { median: at(&sorted, 0.5), low: sorted[cut], high: sorted[n - 1 - cut] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_sign_test() {
        let interval = |n: usize| {
            let second = vec![1.0; n];
            let first: Vec<f64> = (0..n).map(|i| ((i * 7) % n) as f64).collect();
            let r = ratio(&first, &second);
            (r.low as usize, r.high as usize)
        };
        // From tables of the binomial distribution: with n = 5 none may be cut, with 9 one, with 12 two, with 15 three.
        assert_eq!([5, 6, 9, 12, 15].map(interval), [(0, 4), (0, 5), (1, 7), (2, 9), (3, 11)]);
        assert_eq!(ratio(&[2.0, 4.0, 9.0], &[1.0, 2.0, 3.0]).median, 2.0);
        assert!(ratio(&[], &[]).median.is_nan());
    }

    #[test]
    fn quartiles_lie_between_values() {
        let q = quartiles(&[4.0, 1.0, 2.0, 3.0]);
        assert_eq!((q.low, q.median, q.high), (1.75, 2.5, 3.25));
        // Two of three runs were interrupted.
        let runs: Vec<f64> = (0..30).map(|i| if i % 3 == 0 { 1.0 } else { 5.0 }).collect();
        assert_eq!((undisturbed(&runs), undisturbed(&[7.0])), (1.0, 7.0));
    }
}
