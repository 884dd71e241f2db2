//! Products of rows with weights: float, and in integers as ONNX Runtime's CPU kernel of `DynamicQuantizeLSTM` computes them.
//!
//! There, data and state become uint8 by the rule of `DynamicQuantizeLinear`, separately for each product that the kernel
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

use super::super::kernels::{self, dynamic_params};
use crate::quant::arith::dot;

/// A matrix.
#[derive(Debug)]
pub(super) struct Weight {
    pub(super) depth: usize,
    pub(super) columns: usize,
    pub(super) numbers: Numbers,
}

impl Weight {
    /// Cuts the columns from `column` on off; `None` for codes.
    pub(super) fn split_off(&mut self, column: usize) -> Option<Self> {
        let rest = self.columns.checked_sub(column)?;
        let Numbers::Float(numbers) = &mut self.numbers else { return None };
        let numbers = Numbers::Float(numbers.split_off(column * self.depth));
        self.columns = column;
        Some(Self { columns: rest, depth: self.depth, numbers })
    }
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

/// Products of rows of numbers, quantized together, with a weight.
#[derive(Debug, Default)]
pub(super) struct Product {
    codes: Vec<u8>,
    sums: Vec<i32>,
    multipliers: Vec<f32>,
}

impl Product {
    /// Adds the product of the rows of `x` with `weight` to the first columns of the rows of `out`, which are `width` wide.
    pub(super) fn add(&mut self, x: &[f32], weight: &Weight, out: &mut [f32], width: usize) {
        let Weight { depth, columns, ref numbers } = *weight;
        if depth == 0 || columns == 0 || width < columns {
            return;
        }
        let (codes, scales) = match numbers {
            Numbers::Quantized { codes, scales } => (codes, scales),
            Numbers::Float(numbers) => {
                for (row, out) in x.chunks_exact(depth).zip(out.chunks_exact_mut(width)) {
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
        for (row, out) in self.codes.chunks_exact(depth).zip(out.chunks_exact_mut(width)) {
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
