//! How many answers of a classifier noise will change, told from few samples.
//!
//! Whether an answer changes is yes or no, and among a few dozen answers hardly one does. But each answer shows how far
//! its greatest number leads and how strong the noise is: with normal noise of variance `s²` at each number, a lead of `d` is lost
//! with the probability `Φ(-d / √(2 s²))`. The mean of that over the answers is the share that is expected to change.

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Call {
    /// By how much the greatest number leads.
    lead: f64,
    /// The variance of the noise of a number, and how many numbers that is of.
    noise: f64,
    numbers: usize,
}

/// The answers of an output.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Calls(Vec<Call>);

/// Numbers of a row that noise is looked at: the greatest, among which the answer is decided.
const CONTENDERS: usize = 16;
/// The noise of all answers counts in each as much as this many numbers of its own.
const SHARED: f64 = 8.0;

impl Calls {
    /// Takes in a row of numbers, one for each class, of both models.
    pub(super) fn add(&mut self, a: &[f32], b: &[f32]) {
        if a.len() < 2 || a.iter().chain(b).any(|v| !v.is_finite()) {
            return;
        }
        let sum: f32 = a.iter().sum();
        // Probabilities say as logarithms how near two of them are.
        let shares = (sum - 1.0).abs() < 1e-2 && a.iter().chain(b).all(|&v| v >= 0.0);
        let number = |v: f32| if shares { f64::from(v).max(1e-30).ln() } else { f64::from(v) };
        let mut pairs: Vec<(f64, f64)> = a.iter().zip(b).map(|(&x, &y)| (number(x), number(y))).collect();
        pairs.sort_by(|x, y| y.0.total_cmp(&x.0));
        pairs.truncate(CONTENDERS);
        let n = pairs.len() as f64;
        // What moves all numbers alike changes no answer.
        let mean = pairs.iter().map(|(x, y)| y - x).sum::<f64>() / n;
        let noise = pairs.iter().map(|(x, y)| (y - x - mean).powi(2)).sum::<f64>() / (n - 1.0);
        self.0.push(Call { lead: pairs[0].0 - pairs[1].0, noise, numbers: pairs.len() });
    }

    /// The same whatever the order in which the samples came.
    pub(super) fn in_order(mut self) -> Self {
        self.0.sort_by(|a, b| a.lead.total_cmp(&b.lead).then(a.noise.total_cmp(&b.noise)));
        self
    }

    /// How many answers there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The share of answers, 0 to 1, that are expected to change if the power of the noise were this many times what it is.
    pub fn changed(&self, times: f64) -> f64 {
        let mean = |all: Vec<f64>| all.iter().sum::<f64>() / all.len().max(1) as f64;
        let all = mean(self.0.iter().map(|c| c.noise).collect());
        mean(
            self.0
                .iter()
                .map(|c| {
                    let n = c.numbers as f64;
                    let noise = times * (n * c.noise + SHARED * all) / (n + SHARED);
                    if noise > 0.0 { 0.5 * libm::erfc(c.lead / (2.0 * noise.sqrt())) } else { 0.0 }
                })
                .collect(),
        )
    }

    /// How many times the power of the noise could be what it is for this share of answers to change. `None` where there is no
    /// noise to tell it by.
    pub fn times(&self, share: f64) -> Option<f64> {
        if self.0.iter().all(|c| c.noise <= 0.0) {
            return None;
        }
        let (mut low, mut high) = (1e-6f64, 1e6f64);
        for _ in 0..50 {
            let middle = (low * high).sqrt();
            match self.changed(middle) <= share {
                true => low = middle,
                false => high = middle,
            }
        }
        Some(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of ten numbers with noise of this strength, and how many answers of 20000 others change.
    fn calls(noise: f32, probabilities: bool) -> (Calls, f64) {
        let mut state = 7u32;
        let mut random = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / (1u32 << 24) as f32
        };
        // Sums of twelve uniform numbers are near enough to normal.
        let mut normal = move || (0..12).map(|_| random()).sum::<f32>() - 6.0;
        let (mut few, mut changed) = (Calls::default(), 0);
        for i in 0..20_000 {
            let a: Vec<f32> = (0..10).map(|_| 2.0 * normal()).collect();
            let b: Vec<f32> = a.iter().map(|v| v + noise * normal()).collect();
            let best = |v: &[f32]| (0..10).max_by(|&i, &j| v[i].total_cmp(&v[j]));
            changed += usize::from(best(&a) != best(&b));
            if i < 400 {
                let soft = |v: &[f32]| {
                    let sum: f32 = v.iter().map(|x| x.exp()).sum();
                    v.iter().map(|x| x.exp() / sum).collect::<Vec<f32>>()
                };
                if probabilities { few.add(&soft(&a), &soft(&b)) } else { few.add(&a, &b) }
            }
        }
        (few, changed as f64 / 20_000.0)
    }

    #[test]
    fn a_few_answers_tell_how_many_change() {
        for (noise, probabilities) in [(0.02, false), (0.1, false), (0.1, true)] {
            let (few, changed) = calls(noise, probabilities);
            let told = few.changed(1.0);
            assert!((told / changed - 1.0).abs() < 0.35, "{noise}: {told} for {changed}");
            // Twice the amplitude is four times the power, and the way back leads there.
            let more = few.changed(4.0);
            assert!((few.times(more).unwrap() / 4.0 - 1.0).abs() < 1e-3);
            assert!(more > 1.6 * told && more < 2.4 * told, "{more} {told}");
        }
    }

    #[test]
    fn what_moves_all_alike_changes_nothing() {
        let mut calls = Calls::default();
        calls.add(&[1.0, 2.0], &[2.0, 3.0]);
        calls.add(&[1.0, f32::NAN], &[2.0, 3.0]);
        assert_eq!((calls.len(), calls.changed(1.0), calls.times(0.01)), (1, 0.0, None));
        assert!(Calls::default().is_empty());
    }
}
