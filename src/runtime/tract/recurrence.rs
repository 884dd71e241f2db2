//! The arithmetic of `DynamicQuantizeLSTM`, as ONNX Runtime's CPU kernel computes it.
//!
//! (And that of a float LSTM: the same, with float products.) Data and state become uint8 by the rule of `DynamicQuantizeLinear`, separately for each product that the kernel
//! computes. Which numbers share a scale (found by experiment, release 1.32):
//!
//! * The data: all steps, rows and elements that any sequence reaches, in one; so the first step's codes depend on the last
//!   step's data, and both directions see the same ones.
//! * The state: all rows of the batch, anew at each step and for each direction. With several threads ONNX
//!   Runtime cuts a batch (of two rows and more, or of five and more where the state is wider than 256) into as many parts,
//!   each with its own scale; here it is one part, as with one thread.
//!
//! Products are summed up in int32 and scaled in float; gates and states are float all along. What is left is the last digit
//! of `exp` and `tanh`, for which ONNX Runtime has its own polynomials; now and then it moves a code by one.

use super::kernels;

/// Which way a direction of the layer runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the first step on.
    Forward,
    /// From the last step of each sequence back.
    Reverse,
}

/// A function of the gates or the states, with its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Activation {
    Affine(f32, f32),
    Relu,
    LeakyRelu(f32),
    ThresholdedRelu(f32),
    Tanh,
    ScaledTanh(f32, f32),
    Sigmoid,
    HardSigmoid(f32, f32),
    Elu(f32),
    Softsign,
    Softplus,
}

impl Activation {
    /// By its name, in upper or lower case. It takes as many numbers from the lists as it has parameters; ONNX Runtime's
    /// defaults stand for those that are missing.
    pub(super) fn new(
        name: &str,
        alphas: &mut impl Iterator<Item = f32>,
        betas: &mut impl Iterator<Item = f32>,
    ) -> Option<Self> {
        let mut alpha = |default| alphas.next().unwrap_or(default);
        let mut beta = |default| betas.next().unwrap_or(default);
        Some(match name.to_ascii_lowercase().as_str() {
            "affine" => Self::Affine(alpha(0.0), beta(0.0)),
            "relu" => Self::Relu,
            "leakyrelu" => Self::LeakyRelu(alpha(0.01)),
            "thresholdedrelu" => Self::ThresholdedRelu(alpha(0.0)),
            "tanh" => Self::Tanh,
            "scaledtanh" => Self::ScaledTanh(alpha(0.0), beta(0.0)),
            "sigmoid" => Self::Sigmoid,
            "hardsigmoid" => Self::HardSigmoid(alpha(0.2), beta(0.5)),
            "elu" => Self::Elu(alpha(1.0)),
            "softsign" => Self::Softsign,
            "softplus" => Self::Softplus,
            _ => return None,
        })
    }

    fn of(self, x: f32) -> f32 {
        match self {
            Self::Affine(alpha, beta) => alpha * x + beta,
            Self::Relu => x.max(0.0),
            Self::LeakyRelu(alpha) => {
                if x >= 0.0 {
                    x
                } else {
                    alpha * x
                }
            }
            Self::ThresholdedRelu(alpha) => {
                if x > alpha {
                    x
                } else {
                    0.0
                }
            }
            Self::Tanh => x.tanh(),
            Self::ScaledTanh(alpha, beta) => alpha * (beta * x).tanh(),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::HardSigmoid(alpha, beta) => (alpha * x + beta).clamp(0.0, 1.0),
            Self::Elu(alpha) => {
                if x >= 0.0 {
                    x
                } else {
                    alpha * x.exp_m1()
                }
            }
            Self::Softsign => x / (1.0 + x.abs()),
            Self::Softplus => {
                if x > 0.0 {
                    x + (-x).exp().ln_1p()
                } else {
                    x.exp().ln_1p()
                }
            }
        }
    }
}

/// A matrix.
#[derive(Debug)]
pub(super) struct Weight {
    pub(super) depth: usize,
    pub(super) columns: usize,
    pub(super) numbers: Numbers,
}

/// The elements of a matrix.
#[derive(Debug)]
pub(super) enum Numbers {
    /// `[columns, depth]`: what a float layer has.
    Float(Vec<f32>),
    /// `[depth, columns]`.
    Quantized {
        /// Less the zero point.
        codes: Vec<i16>,
        /// One, or one for each column.
        scales: Vec<f32>,
    },
}

/// Scale and zero point of `DynamicQuantizeLinear`: all numbers and 0 over the codes of uint8.
pub(super) fn dynamic_params(x: &[f32]) -> (f32, u8) {
    let (lo, hi) = x.iter().fold((0.0f32, 0.0f32), |(lo, hi), &v| (lo.min(v), hi.max(v)));
    let scale = if hi == lo { 1.0 } else { (hi - lo) / 255.0 };
    let zero_point = (0.0 - lo / scale).clamp(0.0, 255.0).round_ties_even();
    (scale, zero_point as u8)
}

/// Products of rows of numbers, quantized together, with a weight.
#[derive(Debug, Default)]
struct Product {
    codes: Vec<u8>,
    sums: Vec<i32>,
    multipliers: Vec<f32>,
}

impl Product {
    /// Adds the product of the rows of `x` with `weight` to the rows of `out`.
    fn add(&mut self, x: &[f32], weight: &Weight, out: &mut [f32]) {
        let Weight { depth, columns, ref numbers } = *weight;
        if depth == 0 || columns == 0 {
            return;
        }
        let (codes, scales) = match numbers {
            Numbers::Quantized { codes, scales } => (codes, scales),
            Numbers::Float(numbers) => {
                for (row, out) in x.chunks_exact(depth).zip(out.chunks_exact_mut(columns)) {
                    for (out, weights) in out.iter_mut().zip(numbers.chunks_exact(depth)) {
                        *out += dot(row, weights);
                    }
                }
                return;
            }
        };
        let (scale, zero_point) = dynamic_params(x);
        self.codes.resize(x.len(), 0);
        kernels::quantize(x, &mut self.codes, scale, zero_point.into());
        self.sums.resize(columns, 0);
        self.multipliers.clear();
        self.multipliers.extend(scales.iter().map(|s| scale * s));
        for (row, out) in self.codes.chunks_exact(depth).zip(out.chunks_exact_mut(columns)) {
            self.sums.fill(0);
            for (&code, weights) in row.iter().zip(codes.chunks_exact(columns)) {
                let code = i32::from(code) - i32::from(zero_point);
                if code != 0 {
                    self.sums.iter_mut().zip(weights).for_each(|(sum, &w)| *sum += code * i32::from(w));
                }
            }
            match self.multipliers[..] {
                [one] => out.iter_mut().zip(&self.sums).for_each(|(o, &s)| *o += s as f32 * one),
                _ => {
                    let scaled = self.sums.iter().zip(&self.multipliers).map(|(&s, m)| s as f32 * m);
                    out.iter_mut().zip(scaled).for_each(|(o, s)| *o += s);
                }
            }
        }
    }
}

/// Eight sums side by side, which the compiler turns into vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f32>() + rest
}

/// What one step does with the sums of a row.
#[derive(Debug)]
pub(super) struct Cell<'a> {
    /// Of the gates, of the candidate, of the cell on its way out.
    pub(super) activations: [Activation; 3],
    pub(super) clip: f32,
    /// The forget gate is what the input gate leaves.
    pub(super) input_forget: bool,
    /// Of the data's product, then of the state's: `[2, 4, hidden]`.
    pub(super) bias: Option<&'a [f32]>,
    /// Of the input, output and forget gate: `[3, hidden]`.
    pub(super) peepholes: Option<&'a [f32]>,
    pub(super) hidden: usize,
}

impl Cell<'_> {
    /// From the sums of the gates (input, output, forget, candidate) and the cell before to the cell and the state after.
    fn step(&self, sums: &[f32], c: &mut [f32], h: &mut [f32]) {
        let n = self.hidden;
        let [f, g, out] = self.activations;
        let clip = |x: f32| x.min(self.clip).max(-self.clip);
        for (i, (c, h)) in c.iter_mut().zip(h).enumerate() {
            let bias = |gate: usize| self.bias.map_or(0.0, |b| b[gate * n + i] + b[(gate + 4) * n + i]);
            let peep = |gate: usize, c: f32| self.peepholes.map_or(0.0, |p| p[gate * n + i] * c);
            let input = f.of(clip(sums[i] + peep(0, *c) + bias(0)));
            let forget =
                if self.input_forget { 1.0 - input } else { f.of(clip(sums[2 * n + i] + peep(2, *c) + bias(2))) };
            let candidate = g.of(clip(sums[3 * n + i] + bias(3)));
            *c = *c * forget + input * candidate;
            let output = f.of(clip(sums[n + i] + peep(1, *c) + bias(1)));
            *h = out.of(*c) * output;
        }
    }
}

/// One direction of a layer over a batch of sequences.
#[derive(Debug)]
pub(super) struct Sequence<'a> {
    pub(super) cell: &'a Cell<'a>,
    pub(super) data: &'a Weight,
    pub(super) state: &'a Weight,
    /// Of each row, at most the steps of the data.
    pub(super) lengths: &'a [usize],
    pub(super) direction: Direction,
    /// A row that has come to its end keeps its state, which counts for the range of the others; else it is zero.
    pub(super) keeps_state: bool,
    /// State and cell, `[batch, hidden]`.
    pub(super) h: Vec<f32>,
    pub(super) c: Vec<f32>,
}

impl Sequence<'_> {
    /// Runs over data `[steps, batch, inputs]`, hands out the state of each step and row, and returns the last states and
    /// cells.
    pub(super) fn run(&mut self, x: &[f32], mut each: impl FnMut(usize, usize, &[f32])) -> [Vec<f32>; 2] {
        let (batch, hidden, columns) = (self.lengths.len(), self.cell.hidden, 4 * self.cell.hidden);
        let most = self.lengths.iter().copied().max().unwrap_or(0);
        let width = self.data.depth;
        let mut ends = [vec![0.0; batch * hidden], vec![0.0; batch * hidden]];
        let mut product = Product::default();
        let mut sums = vec![0.0; most * batch * columns];
        product.add(&x[..most * batch * width], self.data, &mut sums);
        let mut now = vec![0.0; batch * columns];
        for step in 0..most {
            let at = |row: usize| match self.direction {
                Direction::Reverse if step < self.lengths[row] => self.lengths[row] - 1 - step,
                _ => step,
            };
            for (row, now) in now.chunks_exact_mut(columns.max(1)).enumerate() {
                let from = (at(row) * batch + row) * columns;
                now.copy_from_slice(&sums[from..from + columns]);
            }
            product.add(&self.h, self.state, &mut now);
            for row in 0..batch {
                let own = row * hidden..(row + 1) * hidden;
                let h = &mut self.h[own.clone()];
                if step >= self.lengths[row] {
                    if !self.keeps_state {
                        h.fill(0.0);
                    }
                    continue;
                }
                let c = &mut self.c[own.clone()];
                self.cell.step(&now[row * columns..(row + 1) * columns], c, h);
                each(at(row), row, h);
                if step + 1 == self.lengths[row] {
                    ends[0][own.clone()].copy_from_slice(h);
                    ends[1][own].copy_from_slice(c);
                }
            }
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_always_holds_zero() {
        assert_eq!(dynamic_params(&[0.0, 0.0]), (1.0, 0));
        assert_eq!(dynamic_params(&[]), (1.0, 0));
        assert_eq!(dynamic_params(&[1.0, 2.55]), (2.55 / 255.0, 0));
        assert_eq!(dynamic_params(&[-1.0, -2.55]), (2.55 / 255.0, 255));
        assert_eq!(dynamic_params(&[-1.0, 1.0]), (2.0 / 255.0, 127)); // in f32, 1 / (2 / 255) is just under 127.5
    }

    #[test]
    fn activations_take_their_numbers_in_turn() {
        let (mut alphas, mut betas) = ([0.5, 2.0].into_iter(), [0.25].into_iter());
        let mut next = |name| Activation::new(name, &mut alphas, &mut betas);
        assert_eq!(next("Sigmoid"), Some(Activation::Sigmoid));
        assert_eq!(next("HardSigmoid"), Some(Activation::HardSigmoid(0.5, 0.25)));
        assert_eq!(next("elu"), Some(Activation::Elu(2.0)));
        assert_eq!(next("LeakyRelu"), Some(Activation::LeakyRelu(0.01)));
        assert_eq!(next("Swish"), None);
    }
}
