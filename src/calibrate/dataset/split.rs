//! Which samples calibration sees and which prove the result.

use crate::diagnostics::{Diagnostic, count};

/// Below this many samples none is held out: ranges need them more.
const ENOUGH: usize = 20;
/// One sample in this many is held out.
const EVERY: usize = 8;
/// The proof runs two models on each of its samples; more tell little more.
const MOST: usize = 32;

/// Numbers of samples, each list in ascending order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// Those that ranges are taken from.
    pub calibration: Vec<usize>,
    /// Those that the result is proved on.
    pub validation: Vec<usize>,
    /// Whether no sample is in both.
    pub held_out: bool,
}

/// Splits `len` samples. Depends on nothing but the number. With enough samples one in eight is held out, at most 32,
/// evenly spread; else all serve for both, which the diagnostic says.
pub fn split(len: usize) -> (Split, Option<Diagnostic>) {
    if len < ENOUGH {
        let all: Vec<usize> = (0..len).collect();
        let text = format!("the result is proved on the same {} that calibration saw", count(len, "sample"));
        let note = Diagnostic::note("no_samples_held_out", text).help(format!("give {ENOUGH} samples or more"));
        return (Split { calibration: all.clone(), validation: all, held_out: false }, Some(note));
    }
    let count = (len / EVERY).min(MOST);
    let validation: Vec<usize> = (0..count).map(|i| (2 * i + 1) * len / (2 * count)).collect();
    let calibration = (0..len).filter(|i| validation.binary_search(i).is_err()).collect();
    (Split { calibration, validation, held_out: true }, None)
}

/// [`split`] of samples with these numbers.
pub fn split_of(samples: &[usize]) -> (Split, Option<Diagnostic>) {
    let (Split { calibration, validation, held_out }, note) = split(samples.len());
    let [calibration, validation] = [calibration, validation].map(|of| of.into_iter().map(|i| samples[i]).collect());
    (Split { calibration, validation, held_out }, note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_with_numbers_of_their_own() {
        let odd: Vec<usize> = (0..40).map(|i| 2 * i + 1).collect();
        let (s, note) = split_of(&odd);
        assert!(note.is_none() && s.held_out);
        assert_eq!((s.calibration.len(), s.validation.len()), (35, 5));
        assert!(s.calibration.iter().chain(&s.validation).all(|i| odd.contains(i)));
    }

    #[test]
    fn sizes() {
        for len in 0..2000 {
            let (s, note) = split(len);
            assert_eq!(note.is_some(), len < 20);
            if s.held_out {
                assert_eq!(s.calibration.len() + s.validation.len(), len);
                assert_eq!(s.validation.len(), (len / 8).min(32));
                assert!(s.validation.windows(2).all(|w| w[0] < w[1]) && s.validation.iter().all(|&i| i < len));
            } else {
                assert_eq!((s.calibration.len(), s.validation.len()), (len, len));
            }
        }
    }
}
