//! How far the answers of a quantized model may be from the original's where nothing is known of what they are used for.

use crate::{
    analysis::placement::Shapes,
    config::Config,
    ir::{Model, ValueId},
    validate::{OutputMetrics, classes::class_axis, noise::share, one_answer},
};

/// How much more noise, dB, vectors may have: what is compared by its angle with others, as embeddings are, forgives more than
/// what is looked at number by number. A sentence encoder with 17 dB finds as much as in float.
const VECTOR: f64 = 13.0;
/// Answers that tell how much noise a classifier bears, at least; how much more that may be, dB; and how many answers may
/// change for each that may be lost: those that change are close calls, a good part of which were wrong before.
const ANSWERS: usize = 48;
const FORGIVEN: f64 = 6.0;
const CHANGED: f64 = 1.5;
/// From this length on, the last axis of an output holds a vector for each place of a sequence.
const LONG: usize = 64;

/// Whether these are the dims of one vector, or of one for each place of a sequence. Maps have more axes.
fn is_vectors(dims: &[usize]) -> bool {
    let longer: Vec<usize> = dims.iter().copied().filter(|&d| d > 1).collect();
    longer.len() <= 1 || (dims.len() == 3 && longer.len() <= 2 && dims[2] >= LONG)
}

/// Whether an output is put together from others, or made of numbers between 0 and 1, as detectors' boxes and scores are:
/// not what vectors that are compared by angle are made of.
fn is_joined(model: &Model, mut value: ValueId) -> bool {
    while let Some((n, _)) = model.value(value).producer() {
        let node = model.node(n);
        match node.op_type.as_str() {
            "Concat" | "Sigmoid" => return node.in_onnx_domain(),
            "Reshape" | "Transpose" | "Flatten" | "Squeeze" | "Unsqueeze" | "Identity" | "Cast" => {}
            _ => return false,
        }
        let Some(next) = node.input(0) else { return false };
        value = next;
    }
    false
}

/// The noise that each output may have, as a share of its power.
pub(super) struct Budget {
    shares: Vec<f64>,
    /// Which outputs hold vectors.
    vectors: Vec<bool>,
    aim: f64,
    max_loss: f64,
    /// The share of answers that must stay the same.
    agreement: Option<f64>,
    /// Whether the answers may tell what noise does not matter.
    forgiving: bool,
}

/// Whether an output is that of a classifier, with one answer for each sample.
pub(super) fn classifies(model: &Model, shapes: &Shapes) -> bool {
    let one = |&v: &_| {
        let dims = shapes.dims(v).unwrap_or_default();
        class_axis(model, v, dims.len()).is_some_and(|axis| one_answer(dims, axis))
    };
    model.graph(model.main()).outputs().iter().any(one)
}

impl Budget {
    pub(super) fn of(model: &Model, shapes: &Shapes, config: &Config) -> Self {
        let is_vector = |&v: &_| {
            let dims = shapes.dims(v).unwrap_or_default();
            is_vectors(dims) && class_axis(model, v, dims.len()).is_none() && !is_joined(model, v)
        };
        Self::with(model.graph(model.main()).outputs().iter().map(is_vector).collect(), config)
    }

    fn with(vectors: Vec<bool>, config: &Config) -> Self {
        let aim = config.least_sqnr();
        let share = |vector: &bool| 10f64.powf(-(if *vector { aim - VECTOR } else { aim }) / 10.0);
        Self {
            shares: vectors.iter().map(share).collect(),
            vectors,
            aim,
            agreement: config.proof.min_agreement,
            forgiving: config.proof.min_sqnr.is_none(),
            max_loss: config
                .proof
                .max_drop
                .map_or(config.allowed_loss(), |drop| drop.clamp(1e-9, config.allowed_loss())),
        }
    }

    /// What it would be with another loss, before answers have told what noise does not matter.
    pub(super) fn with_loss(&self, config: &Config, max_loss: f64) -> Self {
        Self::with(self.vectors.clone(), &Config { max_loss: Some(max_loss), ..config.clone() })
    }

    /// Gives a classifier's output as much noise as changes no more answers than may be lost, as far as a plan's answers tell.
    /// Never less than before, and not without bound: what looks like classes may be looked at number by number.
    pub(super) fn forgive(&mut self, outputs: &[OutputMetrics]) {
        let plain = 10f64.powf(-self.aim / 10.0);
        for (least, output) in self.shares.iter_mut().zip(outputs) {
            // Vectors that are compared by angle do not mix sizes.
            if output.part.is_some() {
                *least = least.min(plain);
                continue;
            }
            let enough = self.forgiving && output.calls.len() >= ANSWERS;
            let Some(times) = enough.then(|| output.calls.times(CHANGED * self.max_loss)).flatten() else { continue };
            *least = (times * share(output)).clamp(*least, *least * 10f64.powf(FORGIVEN / 10.0));
        }
        if let &[only] = &self.shares[..]
            && outputs.len() == 1
            && !outputs[0].calls.is_empty()
        {
            self.aim = self.aim.min(-10.0 * only.log10());
        }
    }

    /// Noise of each output as a share of its budget.
    pub(super) fn scaled(&self, noise: &[f64]) -> Vec<f64> {
        noise.iter().zip(&self.shares).map(|(n, share)| n / share).collect()
    }

    /// The share of its budget that the output with most noise uses.
    pub(super) fn used(&self, noise: &[f64]) -> f64 {
        self.scaled(noise).into_iter().fold(0.0, f64::max)
    }

    /// The share of the budget that is used up with so many right answers in the place of the original's.
    pub(super) fn lost(&self, original: u64, quantized: u64) -> f64 {
        (original as f64 - quantized as f64) / (self.max_loss * original as f64)
    }

    /// The share of right answers that may be lost.
    pub(super) fn max_loss(&self) -> f64 {
        self.max_loss
    }

    /// The share of the budget that is used up where this share of answers stays the same: none without a gate on it.
    pub(super) fn changed(&self, agreement: Option<f64>) -> f64 {
        let Some((least, found)) = self.agreement.zip(agreement) else { return 0.0 };
        match (1.0 - found) / (1.0 - least) {
            used if used.is_finite() => used,
            _ if found < 1.0 => 2.0,
            _ => 0.0,
        }
    }

    /// What each output is to keep, dB.
    pub(super) fn aims(&self) -> Vec<f64> {
        self.shares.iter().map(|share| -10.0 * share.log10()).collect()
    }

    /// What is aimed at, dB.
    pub(super) fn aim(&self) -> f64 {
        self.aim
    }

    /// A share of the budget as dB, on the scale of outputs that are no vectors.
    pub(super) fn decibel(&self, used: f64) -> Option<f64> {
        (used > 0.0).then(|| self.aim - 10.0 * used.log10())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::{
            DType, Tensor,
            testing::{find, model},
        },
        validate::testing::Gathered,
    };

    #[test]
    fn vectors_and_maps() {
        for (dims, vectors) in [
            (&[1, 384][..], true),
            (&[1, 1, 1, 96], true),
            (&[1, 7, 384], true),
            (&[1, 7, 4], false),
            (&[1, 1, 64, 64], false),
            (&[8, 384], false),
        ] {
            assert_eq!(is_vectors(dims), vectors, "{dims:?}");
        }
    }

    #[test]
    fn the_output_that_uses_most_counts() {
        let m = model("float[1,1,8,8] x \n float[1,1,1,384] v \n a = Relu(x) \n b = Relu(v) \n return a, b");
        let mut shapes = Shapes::default();
        shapes.0.insert(find(&m, "a"), (DType::Float, vec![1, 1, 8, 8]));
        shapes.0.insert(find(&m, "b"), (DType::Float, vec![1, 1, 1, 384]));
        let mut config = Config::default();
        let budget = Budget::of(&m, &shapes, &config);
        assert!((budget.used(&[5e-4, 5e-4]) - 0.5).abs() < 1e-9);
        assert!((budget.used(&[5e-4, 2e-2]) - 1.0024).abs() < 1e-3);
        assert!((budget.decibel(0.5).unwrap() - 33.01).abs() < 0.01);
        assert_eq!(budget.decibel(0.0), None);
        // Boxes and scores are no vectors, however many there are.
        let m = model(
            "float[1,4,70] b \n float[1,6,70] s \n c = Concat<axis = 1>(b, s) \n v = Neg(c) \n \
             t = Transpose<perm = [0, 2, 1]>(c) \n return t, v",
        );
        let mut shapes = Shapes::default();
        shapes.0.insert(find(&m, "t"), (DType::Float, vec![1, 70, 70]));
        shapes.0.insert(find(&m, "v"), (DType::Float, vec![1, 10, 70]));
        let aims = Budget::of(&m, &shapes, &config).aims();
        assert!((aims[0] - 30.0).abs() < 1e-9 && (aims[1] - 17.0).abs() < 1e-9, "{aims:?}");
        assert!((budget.lost(200, 198) - 1.0).abs() < 1e-9 && budget.lost(200, 201) < 0.0);
        // A classifier's lead over noise says how much of it matters.
        let mut output = Gathered::default();
        for i in 0..64 {
            let lead = if i % 16 == 0 { 0.3 } else { 3.0 };
            let row = |noise: f32| Tensor::from_f32(&[1, 3], &[lead + noise, -noise, -noise]);
            output.update(i, &row(0.0), &row(0.05), Some(1)).unwrap();
        }
        let output = output.metrics("c".into());
        let mut one = Budget {
            shares: vec![1e-3],
            vectors: vec![false],
            aim: 30.0,
            max_loss: 0.01,
            agreement: Some(0.9),
            forgiving: true,
        };
        assert!((one.changed(Some(0.95)) - 0.5).abs() < 1e-9 && one.changed(None) == 0.0);
        assert!(output.calls.changed(1.0) < 0.01);
        one.forgive(std::slice::from_ref(&output));
        assert!(one.aim < 30.0 && one.aim >= 24.0, "{}", one.aim);
        assert!((one.decibel(1.0).unwrap() - one.aim).abs() < 1e-9);
        let mut strict = Budget {
            shares: vec![1e-3],
            vectors: vec![false],
            aim: 30.0,
            max_loss: 0.01,
            agreement: Some(1.0),
            forgiving: false,
        };
        assert_eq!([strict.changed(Some(1.0)), strict.changed(Some(0.99))], [0.0, 2.0]);
        strict.forgive(&[output]);
        assert_eq!(strict.shares, [1e-3]);
        // A tenth of the loss is 20 dB more, and a gate that asks for more is heard.
        config.max_loss = Some(0.001);
        assert!((Budget::of(&m, &shapes, &config).aim() - 50.0).abs() < 1e-9);
        config.proof.min_sqnr = Some(55.0);
        assert!((Budget::of(&m, &shapes, &config).aim() - 55.0).abs() < 1e-9);
    }
}
