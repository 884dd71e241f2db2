//! Samples that hold NaN or infinity: what models make of those is no example of anything.

use super::{Dataset, Source};
use crate::{
    diagnostics::{Diagnostic, count},
    error::{Error, Result},
    ir::Tensor,
};

/// A sample that holds numbers which are NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFinite<'a> {
    /// The sample.
    pub sample: usize,
    /// The first input with such numbers.
    pub input: &'a str,
    /// How many of its numbers are such.
    pub count: usize,
    /// How many numbers it has.
    pub of: usize,
    /// Whether they may be meant, in all inputs: masks hold negative infinity beside finite numbers.
    pub mask: bool,
}

impl Dataset {
    /// Those of the samples that hold numbers which are NaN or infinite, in their order. Pictures hold none.
    pub fn not_finite(&self, samples: &[usize]) -> Result<Vec<NotFinite<'_>>> {
        let mut found = Vec::new();
        if matches!(self.source, Source::Images(_)) {
            return Ok(found);
        }
        for &sample in samples {
            let mut odd: Option<NotFinite<'_>> = None;
            for (tensor, spec) in self.sample(sample)?.iter().zip(&self.specs).filter(|(t, _)| t.dtype().is_float()) {
                let (count, mask) = look(tensor)?;
                if count > 0 {
                    let of = tensor.len();
                    let one = odd.get_or_insert(NotFinite { sample, input: &spec.name, count, of, mask });
                    one.mask &= mask;
                }
            }
            found.extend(odd);
        }
        Ok(found)
    }

    /// The samples without those that hold NaN or infinity, which the diagnostic tells of. An error where none is left, unless
    /// all look like masks, which are meant so.
    pub fn finite(&self, samples: &[usize]) -> Result<(Vec<usize>, Option<Diagnostic>)> {
        let odd = self.not_finite(samples)?;
        let Some(first) = odd.first() else { return Ok((samples.to_vec(), None)) };
        if odd.len() == samples.len() {
            if odd.iter().all(|o| o.mask) {
                return Ok((samples.to_vec(), None));
            }
            let text = format!(
                "no finite sample is left: all {} hold NaN or infinity ({} of {} numbers in sample {})",
                samples.len(),
                first.count,
                first.of,
                first.sample
            );
            return Err(Error::data(text).value(first.input).help("look at how the data were made"));
        }
        let numbers: Vec<String> = odd.iter().take(3).map(|o| o.sample.to_string()).collect();
        let more = if odd.len() > numbers.len() { ", …" } else { "" };
        let all = count(samples.len(), "sample");
        let (verb, left) = if odd.len() == 1 { ("holds", "is") } else { ("hold", "are") };
        let text = format!(
            "{} of {all} {verb} NaN or infinity and {left} left out: number {}{more}",
            odd.len(),
            numbers.join(", ")
        );
        let left: Vec<usize> = samples.iter().copied().filter(|s| odd.iter().all(|o| o.sample != *s)).collect();
        Ok((left, Some(Diagnostic::warning("samples_left_out", text).help("look at how the data were made"))))
    }
}

/// How many numbers are not finite, and whether that is as in a mask.
fn look(tensor: &Tensor) -> Result<(usize, bool)> {
    let numbers = tensor.to_f32()?;
    let odd: Vec<f32> = numbers.iter().copied().filter(|v| !v.is_finite()).collect();
    Ok((odd.len(), odd.len() < numbers.len() && odd.iter().all(|v| *v == f32::NEG_INFINITY)))
}
