//! Labels and the answers of an output: what is right, and whether the labels speak of this output at all.

use serde::Serialize;

use super::metrics::{answers, numbers};
use crate::{diagnostics::count, error::Result, ir::Tensor};

/// The labels of one sample.
pub(super) struct Labels {
    numbers: Vec<i64>,
    /// One that is no whole number.
    broken: Option<f32>,
}

impl Labels {
    pub(super) fn of(tensor: &Tensor) -> Result<Self> {
        if !tensor.dtype().is_float() {
            return Ok(Self { numbers: tensor.to_i64()?, broken: None });
        }
        // Some files keep whole numbers as floating point.
        let all = tensor.to_f32()?;
        let broken = all.iter().copied().find(|x| x.fract() != 0.0);
        Ok(Self { numbers: all.into_iter().map(|x| x as i64).collect(), broken })
    }
}

/// Why labels say nothing of an output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Misfit {
    /// The fact with both numbers.
    pub text: String,
    /// What to do.
    pub help: &'static str,
    /// Whether it is the labels that are wrong, whatever the model.
    pub wrong: bool,
}

const HELP: &str = "labels are class numbers from 0 on; rename the array if it holds something else";

impl Misfit {
    fn wrong(text: String) -> Option<Self> {
        Some(Self { text, help: HELP, wrong: true })
    }
}

/// Right answers of two models at one output, over all samples.
#[derive(Default)]
pub(super) struct Labelled {
    /// Labels compared.
    pub count: u64,
    /// Right answers of each model.
    pub right: [u64; 2],
    /// The first sample that does not fit, and why.
    misfit: Option<(usize, Misfit)>,
    /// Classes, if each sample so far has a single 1 among as many 0 as there are other classes.
    one_hot: Option<usize>,
    /// Whether some sample has not.
    mixed: bool,
}

impl Labelled {
    /// Takes in the answers of both models to one sample. `axis` holds the classes.
    pub(super) fn update(
        &mut self,
        sample: usize,
        [a, b]: [&Tensor; 2],
        axis: Option<usize>,
        labels: &Labels,
    ) -> Result<()> {
        if a.is_empty() || labels.numbers.is_empty() || a.dims() != b.dims() {
            return Ok(());
        }
        let axis = axis.filter(|&axis| a.dims().get(axis).is_some_and(|&classes| classes > 1));
        if let Some(misfit) = self.look(a, axis, labels) {
            if self.misfit.as_ref().is_none_or(|(first, _)| sample < *first) {
                self.misfit = Some((sample, misfit));
            }
            return Ok(());
        }
        self.count += labels.numbers.len() as u64;
        for (right, output) in self.right.iter_mut().zip([a, b]) {
            *right += rights(output, axis.filter(|&axis| rows(a, axis) == labels.numbers.len()), &labels.numbers)?;
        }
        Ok(())
    }

    /// Whether labels fit an output, and whether they look like one number for each class.
    fn look(&mut self, output: &Tensor, axis: Option<usize>, labels: &Labels) -> Option<Misfit> {
        let (all, answers) = (&labels.numbers, axis.map_or(output.len(), |axis| rows(output, axis)));
        if let Some(x) = labels.broken {
            return Misfit::wrong(format!("a label is {x}, which is no whole number"));
        }
        if let Some(axis) = axis.filter(|_| all.len() == answers) {
            let classes = output.dims()[axis];
            let odd = all.iter().find(|&&l| usize::try_from(l).map_or(true, |l| l >= classes))?;
            return Misfit::wrong(format!("a label is {odd}, the output has {classes} classes: 0 to {}", classes - 1));
        }
        if all.len() != output.len() {
            let text =
                format!("a sample has {}, the output gives {}", count(all.len(), "label"), count(answers, "answer"));
            return Some(Misfit { text, help: HELP, wrong: false });
        }
        if !output.dtype().is_float() {
            return None;
        }
        if let Some(odd) = all.iter().find(|l| !matches!(l, 0 | 1)) {
            let text = format!("a label is {odd}, the output has one number for each label, which says 0 or 1");
            return Misfit::wrong(text);
        }
        let classes = axis.map_or(1, |axis| output.dims()[axis]);
        let hot = classes > 1 && all.chunks(classes).all(|row| row.iter().sum::<i64>() == 1);
        self.mixed |= !hot;
        self.one_hot = Some(classes);
        None
    }

    /// Why these labels give no accuracy of this output.
    pub(super) fn misfit(&self) -> Option<Misfit> {
        if let Some((sample, m)) = &self.misfit {
            return Some(Misfit { text: format!("sample {sample}: {}", m.text), ..m.clone() });
        }
        let classes = self.one_hot.filter(|_| !self.mixed)?;
        Some(Misfit {
            text: format!("labels have {classes} numbers for each answer, a single 1 among them: they are one-hot"),
            help: "save class numbers instead: numpy.argmax(labels, axis=-1)",
            wrong: true,
        })
    }
}

fn rows(output: &Tensor, axis: usize) -> usize {
    output.len() / output.dims()[axis].max(1)
}

/// How many answers are right: places of the greatest number along the axis; without one, numbers above 0.5, or whole
/// numbers themselves.
fn rights(output: &Tensor, axis: Option<usize>, labels: &[i64]) -> Result<u64> {
    let answers: Vec<i64> = match axis {
        Some(axis) => answers(&numbers(output)?, output.dims(), axis).into_iter().map(|a| a as i64).collect(),
        None if output.dtype().is_float() => numbers(output)?.into_iter().map(|v| i64::from(v > 0.5)).collect(),
        None => output.to_i64()?,
    };
    Ok(answers.iter().zip(labels).filter(|(a, l)| a == l).count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(samples: &[&[f32]], dims: &[usize], axis: Option<usize>) -> Labelled {
        let mut all = Labelled::default();
        let count: usize = dims.iter().product();
        let output = Tensor::from_f32(dims, &(0..count).map(|i| i as f32).collect::<Vec<_>>());
        for (i, labels) in samples.iter().enumerate() {
            let labels = Labels::of(&Tensor::from_f32(&[labels.len()], labels)).unwrap();
            all.update(i, [&output, &output], axis, &labels).unwrap();
        }
        all
    }

    fn text(samples: &[&[f32]], dims: &[usize], axis: Option<usize>) -> (String, bool) {
        let m = labelled(samples, dims, axis).misfit().expect("must not fit");
        (m.text, m.wrong)
    }

    #[test]
    fn labels_that_fit() {
        let l = labelled(&[&[3.0], &[0.0]], &[1, 4], Some(1));
        assert_eq!((l.count, l.right, l.misfit()), (2, [1, 1], None));
        let l = labelled(&[&[1.0, 0.0]], &[2, 1], None);
        assert_eq!((l.count, l.right), (2, [0, 0]));
        // Several classes may be right at once: no answer of its own for each number, and not one-hot.
        let l = labelled(&[&[1.0, 0.0, 1.0], &[0.0, 1.0, 0.0]], &[1, 3], Some(1));
        assert_eq!((l.count, l.misfit()), (6, None));
    }

    #[test]
    fn one_number_for_each_label() {
        let probability = Tensor::from_f32(&[4, 1], &[0.2, 0.7, 0.5, 0.9]);
        let mut all = Labelled::default();
        let labels = Labels::of(&Tensor::from_i64(&[4], &[0, 1, 1, 1])).unwrap();
        all.update(0, [&probability, &probability], Some(1), &labels).unwrap();
        assert_eq!((all.count, all.right, all.misfit()), (4, [3, 3], None));
        let few = Labels::of(&Tensor::from_i64(&[2], &[0, 1])).unwrap();
        all.update(1, [&probability, &probability], Some(1), &few).unwrap();
        assert!(!all.misfit().unwrap().wrong);
        assert_eq!(rights(&Tensor::from_i64(&[2], &[4, 5]), None, &[4, 4]).unwrap(), 1);
    }

    #[test]
    fn labels_that_do_not() {
        let classes = |label: f32| text(&[&[0.0], &[label]], &[1, 4], Some(1));
        assert_eq!(classes(4.0), ("sample 1: a label is 4, the output has 4 classes: 0 to 3".to_owned(), true));
        assert!(classes(-1.0).0.contains("a label is -1"));
        assert!(classes(0.5).0.contains("a label is 0.5, which is no whole number"));
        assert!(classes(f32::NAN).0.contains("a label is NaN"));
        assert!(text(&[&[0.0, 1.0, 0.0, 0.0]], &[1, 4], Some(1)).0.contains("one-hot"));
        assert!(text(&[&[7.0]], &[1, 1], None).0.contains("a label is 7, the output has one number"));
        let counts = text(&[&[1.0, 1.0]], &[1, 4], Some(1));
        assert_eq!(counts, ("sample 0: a sample has 2 labels, the output gives 1 answer".to_owned(), false));
    }
}
