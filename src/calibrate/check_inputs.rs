//! What looks wrong in calibration data, from the statistics of the inputs alone.

use super::observers::TensorStats;
use crate::diagnostics::{Diagnostic, count};

/// Fewer samples than this leave ranges to chance.
const FEW: u64 = 16;

/// Looks at each floating point input's statistics. `inputs` are `(name, statistics)`.
pub fn check_inputs<'a>(inputs: impl IntoIterator<Item = (&'a str, &'a TensorStats)>) -> Vec<Diagnostic> {
    inputs.into_iter().flat_map(|(name, stats)| check_input(name, stats)).collect()
}

/// Says so if there are too few samples to trust ranges.
pub fn check_count(samples: usize) -> Option<Diagnostic> {
    let few = (samples as u64) < FEW;
    few.then(|| {
        let text = format!("calibration ran on {}: the ranges may not hold on other data", count(samples, "sample"));
        Diagnostic::warning("few_samples", text).help("use 100 or more samples that look like what the model will see")
    })
}

fn check_input(name: &str, stats: &TensorStats) -> Vec<Diagnostic> {
    let mut found = stats.diagnose(name);
    found.retain(|d| d.code != "saturating"); // pixels do, and rightly so
    let Some(range) = stats.range() else { return found };
    let whole = stats.fractional == 0;
    // Pixels that were resized are not whole, and may overshoot a little.
    let like_pixels = range.lo >= 0.0 && range.hi <= 256.0 && stats.count >= 256;
    if like_pixels && (whole && range.hi > 127.0 || !whole && range.hi - range.lo > 64.0) {
        let kind = if whole { "are whole, from" } else { "reach from" };
        let (lo, hi) = (range.lo, range.hi);
        let text = format!("its numbers {kind} {lo} to {hi}: they look like pixels that nobody normalised");
        found.push(Diagnostic::note("unnormalised_input", text).on(name).help(
            "right if the model scales its input itself; else bring the data to what it was trained on (--mean, --std)",
        ));
    } else if range.lo.abs().max(range.hi) > 1e4 {
        let text = format!("its numbers reach from {} to {}", range.lo, range.hi);
        found.push(
            Diagnostic::note("large_input", text)
                .on(name)
                .help("check the data's units; numbers of very different size share one scale badly"),
        );
    } else if !whole && range.hi > range.lo && range.hi - range.lo < 1.0 / 127.0 {
        let text = format!("its numbers are all within {} of each other", range.hi - range.lo);
        found.push(Diagnostic::note("small_input", text).on(name).help("was it scaled twice?"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(values: &[f32]) -> Vec<&'static str> {
        let mut stats = TensorStats::default();
        stats.update(values);
        check_inputs([("x", &stats)]).iter().map(|d| d.code).collect()
    }

    #[test]
    fn finds_what_is_odd_and_only_that() {
        let pixels: Vec<f32> = (0..1000).map(|i| (i * 37 % 256) as f32).collect();
        let of = |f: fn(f32) -> f32| codes(&pixels.iter().map(|&p| f(p)).collect::<Vec<_>>());
        assert_eq!(of(|p| p), ["unnormalised_input"]);
        assert_eq!(of(|p| p * 0.993), ["unnormalised_input"]);
        assert!(of(|p| p / 255.0).is_empty() && of(|p| p / 5.1).is_empty());
        assert!(of(|p| p / 127.5 - 1.0).is_empty());
        assert_eq!(of(|p| p / 255.0 / 255.0), ["small_input"]);
        assert_eq!(of(|p| p * 1e4), ["large_input"]);
        assert_eq!(of(|_| 0.0), ["dead_tensor"]);
        assert!(check_count(3).is_some() && check_count(100).is_none());
    }
}
