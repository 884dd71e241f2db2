//! How far one output of a model is from that of another, gathered sample by sample.

use serde::Serialize;

use super::{
    changes::Calls,
    parts::{Channels, Part},
};
use crate::{calibrate::observers::exact_sum::ExactSum, error::Result, ir::Tensor};

/// The metrics of one output over all samples. "Signal" is the original's output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputMetrics {
    /// The output's name.
    pub name: String,
    /// Signal to quantization noise over all samples together, `10 log10(Σ a² / Σ (a − b)²)`, in dB. Infinite where
    /// both are the same; NaN if there was no number to compare.
    pub sqnr_db: f64,
    /// The same for the sample with the least.
    pub worst_sqnr_db: f64,
    /// The number of that sample.
    pub worst_sample: Option<usize>,
    /// Noise as a share of the signal's power, at most 1, on average over samples: each counts alike, those with small answers too.
    #[serde(skip)]
    pub mean_noise: f64,
    /// The part with the most noise for its size, where channels are of very different size.
    pub part: Option<Part>,
    /// Cosine of the angle between both, `Σ ab / √(Σ a² Σ b²)`; 1 where both are zero.
    pub cosine: f64,
    /// The greatest `|a − b|`.
    pub max_error: f64,
    /// Its sample.
    pub max_error_sample: Option<usize>,
    /// The greatest `|a|`, to judge the error by.
    pub max_signal: f64,
    /// The axis along which classes lie; see [`super::classes`].
    pub class_axis: Option<usize>,
    /// Answers compared: rows along the class axis, or the single numbers of an output that is not floating point.
    pub answers: u64,
    /// How many of them have their greatest number at the same place; of several equal ones the first counts.
    pub same_answers: u64,
    /// The answers of an output that holds one for each sample.
    #[serde(skip)]
    pub calls: Calls,
    /// Numbers compared.
    pub count: u64,
    /// Numbers that are NaN or infinite in one and not the same in the other. They take part in nothing else.
    pub not_finite: u64,
    /// Numbers of the original that are NaN or infinite.
    pub original_not_finite: u64,
    /// Samples whose output has another shape, which are not compared.
    pub other_shapes: u64,
}

impl OutputMetrics {
    /// SQNR, dB: of the part with the least, where there are parts.
    pub fn least_sqnr(&self) -> f64 {
        self.part.as_ref().map_or(self.sqnr_db, |part| part.sqnr_db.min(self.sqnr_db))
    }

    /// Share of the same answers, 0 to 1; `None` where the output holds neither classes nor integers.
    pub fn agreement(&self) -> Option<f64> {
        (self.answers > 0).then(|| self.same_answers as f64 / self.answers as f64)
    }
}

/// What is gathered. Sums are exact, so the order of samples does not matter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gathered {
    signal: ExactSum,
    noise: ExactSum,
    product: ExactSum,
    other: ExactSum,
    worst: Option<(f64, usize)>,
    shares: ExactSum,
    channels: Channels,
    samples: u64,
    max_error: Option<(f64, usize)>,
    max_signal: f64,
    class_axis: Option<usize>,
    answers: u64,
    same_answers: u64,
    calls: Calls,
    count: u64,
    not_finite: u64,
    original_not_finite: u64,
    other_shapes: u64,
}

/// `10 log10(signal / noise)`.
pub(super) fn decibel(signal: f64, noise: f64) -> f64 {
    if noise > 0.0 { 10.0 * (signal / noise).log10() } else { f64::INFINITY }
}

/// The elements as numbers.
pub(super) fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    if tensor.dtype().is_float() {
        return tensor.to_f32();
    }
    Ok(tensor.to_i64()?.into_iter().map(|v| v as f32).collect())
}

/// The place of the greatest number of each row along `axis`; NaN counts as the least.
pub(super) fn answers(values: &[f32], dims: &[usize], axis: usize) -> Vec<usize> {
    let classes = dims[axis];
    let inner: usize = dims[axis + 1..].iter().product();
    let mut found = Vec::with_capacity(values.len() / classes.max(1));
    for block in values.chunks_exact((classes * inner).max(1)) {
        for i in 0..inner {
            let mut best = 0;
            for c in 1..classes {
                let (v, top) = (block[c * inner + i], block[best * inner + i]);
                if v > top || (top.is_nan() && !v.is_nan()) {
                    best = c;
                }
            }
            found.push(best);
        }
    }
    found
}

/// Whether there is one answer for each sample of the batch, which the first axis counts.
pub fn one_answer(dims: &[usize], axis: usize) -> bool {
    dims.iter().enumerate().all(|(i, &d)| d == 1 || i == axis || (i == 0 && axis > 0))
}

impl Gathered {
    /// Takes in both outputs of a sample.
    pub(crate) fn update(&mut self, sample: usize, a: &Tensor, b: &Tensor, axis: Option<usize>) -> Result<()> {
        if a.dims() != b.dims() {
            self.other_shapes += 1;
            return Ok(());
        }
        let (a_values, b_values) = (numbers(a)?, numbers(b)?);
        self.original_not_finite += a_values.iter().filter(|x| !x.is_finite()).count() as u64;
        let (mut signal, mut noise, mut product, mut other) = (0f64, 0f64, 0f64, 0f64);
        let (mut max_error, mut count, mut not_finite) = (-1f64, 0u64, 0u64);
        for (&x, &y) in a_values.iter().zip(&b_values) {
            if !(x.is_finite() && y.is_finite()) {
                not_finite += u64::from(!(x == y || (x.is_nan() && y.is_nan())));
                continue;
            }
            let (x, y) = (f64::from(x), f64::from(y));
            signal += x * x;
            other += y * y;
            product += x * y;
            noise += (x - y) * (x - y);
            max_error = max_error.max((x - y).abs());
            self.max_signal = self.max_signal.max(x.abs());
            count += 1;
        }
        self.signal.add(signal);
        self.noise.add(noise);
        self.product.add(product);
        self.other.add(other);
        self.count += count;
        self.not_finite += not_finite;
        if count > 0 {
            self.samples += 1;
            self.shares.add(if noise < signal { noise / signal } else { f64::from(u8::from(noise > 0.0)) });
            let here = (decibel(signal, noise), sample);
            // Of equal ones the first sample, whatever the order in which they come.
            if self.worst.is_none_or(|w| here.0 < w.0 || (here.0 == w.0 && here.1 < w.1)) {
                self.worst = Some(here);
            }
            let here = (max_error, sample);
            if self.max_error.is_none_or(|m| here.0 > m.0 || (here.0 == m.0 && here.1 < m.1)) {
                self.max_error = Some(here);
            }
        }
        if a.dtype().is_float() {
            self.channels.add(a.dims(), &a_values, &b_values);
        }
        if !a.dtype().is_float() {
            // Numbers that are answers by themselves.
            self.answers += a_values.len() as u64;
            self.same_answers += a_values.iter().zip(&b_values).filter(|(x, y)| x == y).count() as u64;
        } else if let Some(axis) = axis.filter(|&axis| a.dims().get(axis).is_some_and(|&classes| classes > 1)) {
            self.class_axis = Some(axis);
            let pairs = answers(&a_values, a.dims(), axis).into_iter().zip(answers(&b_values, b.dims(), axis));
            for (x, y) in pairs {
                self.answers += 1;
                self.same_answers += u64::from(x == y);
            }
            let classes = a.dims()[axis];
            if one_answer(a.dims(), axis) {
                let rows = a_values.chunks_exact(classes).zip(b_values.chunks_exact(classes));
                rows.for_each(|(x, y)| self.calls.add(x, y));
            }
        }
        Ok(())
    }

    pub(crate) fn metrics(self, name: String) -> OutputMetrics {
        let (signal, other) = (self.signal.value(), self.other.value());
        let norm = (signal * other).sqrt();
        let sqnr_db = if self.count > 0 { decibel(signal, self.noise.value()) } else { f64::NAN };
        OutputMetrics {
            name,
            sqnr_db,
            worst_sqnr_db: self.worst.map_or(f64::NAN, |w| w.0),
            worst_sample: self.worst.map(|w| w.1),
            mean_noise: self.shares.value() / self.samples.max(1) as f64,
            part: self.channels.worst(),
            cosine: match (norm > 0.0, signal == other) {
                (true, _) => (self.product.value() / norm).clamp(-1.0, 1.0),
                (false, true) => 1.0,
                (false, false) => 0.0,
            },
            max_error: self.max_error.map_or(0.0, |m| m.0),
            max_error_sample: self.max_error.map(|m| m.1),
            max_signal: self.max_signal,
            class_axis: self.class_axis,
            answers: self.answers,
            same_answers: self.same_answers,
            calls: self.calls.in_order(),
            count: self.count,
            not_finite: self.not_finite,
            original_not_finite: self.original_not_finite,
            other_shapes: self.other_shapes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(pairs: &[(&[f32], &[f32])], axis: Option<usize>) -> OutputMetrics {
        let mut g = Gathered::default();
        for (i, (a, b)) in pairs.iter().enumerate() {
            let tensor = |v: &[f32]| Tensor::from_f32(&[1, v.len()], v);
            g.update(i, &tensor(a), &tensor(b), axis).unwrap();
        }
        g.metrics("y".to_owned())
    }

    #[test]
    fn formulas() {
        let m = metrics(&[(&[3.0, 4.0], &[3.0, 4.5]), (&[0.0, 1.0], &[0.0, 1.0])], Some(1));
        assert!((m.sqnr_db - 10.0 * (26.0f64 / 0.25).log10()).abs() < 1e-9);
        assert_eq!((m.worst_sample, m.max_error, m.max_error_sample, m.max_signal), (Some(0), 0.5, Some(0), 4.0));
        assert!((m.mean_noise - 0.25 / 25.0 / 2.0).abs() < 1e-12);
        assert_eq!((m.answers, m.same_answers, m.agreement()), (2, 2, Some(1.0)));
        assert!((m.cosine - (9.0 + 18.0 + 1.0) / (26.0f64 * (9.0 + 20.25 + 1.0)).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn odd_numbers_are_counted_apart() {
        let inf = f32::INFINITY;
        let m = metrics(&[(&[f32::NAN, inf, 1.0, 2.0], &[f32::NAN, -inf, f32::NAN, 2.0])], Some(1));
        assert_eq!((m.not_finite, m.original_not_finite, m.count, m.sqnr_db), (2, 2, 1, inf.into()));
        assert_eq!(m.same_answers, 0);
        let same = metrics(&[(&[0.0, 0.0], &[0.0, 0.0])], None);
        assert_eq!((same.sqnr_db, same.cosine, same.agreement()), (f64::INFINITY, 1.0, None));
        let mut g = Gathered::default();
        g.update(0, &Tensor::from_i64(&[4], &[1, 2, 3, 4]), &Tensor::from_i64(&[4], &[1, 2, 0, 4]), None).unwrap();
        let whole = g.metrics("y".into());
        assert_eq!((whole.agreement(), whole.class_axis), (Some(0.75), None));
        let empty = metrics(&[(&[], &[])], Some(1));
        assert!(empty.sqnr_db.is_nan() && empty.agreement().is_none());
        let mut g = Gathered::default();
        g.update(0, &Tensor::from_f32(&[1], &[1.0]), &Tensor::from_f32(&[2], &[1.0, 1.0]), None).unwrap();
        assert_eq!(g.metrics("y".into()).other_shapes, 1);
    }

    #[test]
    fn answers_along_any_axis() {
        let values = [0.0, 5.0, 1.0, 1.0, 2.0, 9.0];
        assert_eq!(answers(&values, &[2, 3], 1), [1, 2]);
        assert_eq!(answers(&values, &[2, 3], 0), [1, 0, 1]);
        assert_eq!(answers(&[1.0, 1.0], &[2], 0), [0]);
        assert_eq!(answers(&[f32::NAN, 1.0], &[2], 0), [1]);
    }
}
