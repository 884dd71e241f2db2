//! What one step of a recurrent layer makes of the sums of its gates: ONNX Runtime's kernels of RNN, GRU and LSTM.

use super::{
    activation::Activation,
    product::{Product, Weight},
};

/// One direction's cell.
#[derive(Debug)]
pub(super) struct Cell<'a> {
    pub(super) form: Form<'a>,
    /// As many as the form has.
    pub(super) activations: &'a [Activation],
    pub(super) clip: f32,
    /// Of the data's product, then of the state's: `[2, gates, hidden]`.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) hidden: usize,
}

/// The three operators.
#[derive(Debug)]
pub(super) enum Form<'a> {
    /// One gate, which becomes the state.
    Rnn,
    /// Gates: update, reset, candidate.
    Gru {
        /// The reset gate scales the candidate's product with the state, not the state before that product.
        linear_before_reset: bool,
        /// The state's weight for the candidate.
        candidate: Weight,
    },
    /// Gates: input, output, forget, candidate.
    Lstm {
        /// The forget gate is what the input gate leaves.
        input_forget: bool,
        /// Of the input, output and forget gate: `[3, hidden]`.
        peepholes: Option<&'a [f32]>,
    },
}

impl Form<'_> {
    /// Parts of the weights' columns.
    fn gates(&self) -> usize {
        match self {
            Self::Rnn => 1,
            Self::Gru { .. } => 3,
            Self::Lstm { .. } => 4,
        }
    }
}

/// Memory of [`Cell::step`].
#[derive(Debug, Default)]
pub(super) struct Scratch {
    product: Product,
    reset: Vec<f32>,
}

impl Cell<'_> {
    /// Sums of a row.
    pub(super) fn columns(&self) -> usize {
        self.form.gates() * self.hidden
    }

    /// From the sums of the gates of a row to its state (and cell) after the step. The sums hold the products with the data
    /// and the state; only for the candidate of a GRU the latter is still missing.
    pub(super) fn step(&self, sums: &mut [f32], c: &mut [f32], h: &mut [f32], scratch: &mut Scratch) {
        match &self.form {
            Form::Rnn => self.rnn(sums, h),
            Form::Gru { linear_before_reset, candidate } => {
                self.gru(sums, h, *linear_before_reset, candidate, scratch);
            }
            Form::Lstm { input_forget, peepholes } => self.lstm(sums, c, h, *input_forget, *peepholes),
        }
    }

    fn activation(&self, i: usize) -> Activation {
        self.activations.get(i).copied().unwrap_or(Activation::Tanh)
    }

    fn clipped(&self, x: f32) -> f32 {
        x.min(self.clip).max(-self.clip)
    }

    /// The bias of one of the two products.
    fn bias_of(&self, product: usize, gate: usize, i: usize) -> f32 {
        self.bias.map_or(0.0, |b| b[(product * self.form.gates() + gate) * self.hidden + i])
    }

    fn bias(&self, gate: usize, i: usize) -> f32 {
        self.bias_of(0, gate, i) + self.bias_of(1, gate, i)
    }

    fn rnn(&self, sums: &[f32], h: &mut [f32]) {
        let f = self.activation(0);
        for (i, (h, sum)) in h.iter_mut().zip(sums).enumerate() {
            *h = f.of(self.clipped(sum + self.bias(0, i)));
        }
    }

    fn gru(&self, sums: &mut [f32], h: &mut [f32], linear_before_reset: bool, weight: &Weight, scratch: &mut Scratch) {
        let n = self.hidden;
        let (f, g) = (self.activation(0), self.activation(1));
        let (gates, candidate) = sums.split_at_mut(2 * n);
        let (update, reset) = gates.split_at_mut(n);
        for (i, (update, reset)) in update.iter_mut().zip(&mut *reset).enumerate() {
            *update = f.of(self.clipped(*update + self.bias(0, i)));
            *reset = f.of(self.clipped(*reset + self.bias(1, i)));
        }
        let Scratch { product, reset: other } = scratch;
        other.clear();
        if linear_before_reset {
            other.extend((0..n).map(|i| self.bias_of(1, 2, i)));
            product.add(h, weight, other, n);
            candidate.iter_mut().zip(&*reset).zip(&*other).for_each(|((sum, r), part)| *sum += r * part);
        } else {
            other.extend(h.iter().zip(&*reset).map(|(h, r)| h * r));
            product.add(other, weight, candidate, n);
        }
        for (i, (h, (update, sum))) in h.iter_mut().zip(update.iter().zip(&*candidate)).enumerate() {
            let bias = if linear_before_reset { self.bias_of(0, 2, i) } else { self.bias(2, i) };
            let new = g.of(self.clipped(sum + bias));
            *h = (1.0 - update) * new + update * *h;
        }
    }

    fn lstm(&self, sums: &[f32], c: &mut [f32], h: &mut [f32], input_forget: bool, peepholes: Option<&[f32]>) {
        let n = self.hidden;
        let [f, g, out] = [0, 1, 2].map(|i| self.activation(i));
        for (i, (c, h)) in c.iter_mut().zip(h).enumerate() {
            let peep = |gate: usize, c: f32| peepholes.map_or(0.0, |p| p[gate * n + i] * c);
            let gate = |f: Activation, gate: usize, peep: f32| {
                f.of(self.clipped(sums[gate * n + i] + peep + self.bias(gate, i)))
            };
            let input = gate(f, 0, peep(0, *c));
            let forget = if input_forget { 1.0 - input } else { gate(f, 2, peep(2, *c)) };
            *c = *c * forget + input * gate(g, 3, 0.0);
            let output = gate(f, 1, peep(1, *c));
            *h = out.of(*c) * output;
        }
    }
}
