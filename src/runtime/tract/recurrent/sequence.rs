//! One direction of a recurrent layer over a batch of sequences, step by step.

use super::{
    cell::{Cell, Scratch},
    product::{Product, Weight},
};

/// Which way a direction of the layer runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the first step on.
    Forward,
    /// From the last step of each sequence back.
    Reverse,
}

/// One direction of a layer over a batch of sequences.
#[derive(Debug)]
pub(super) struct Sequence<'a> {
    pub(super) cell: &'a Cell<'a>,
    pub(super) data: &'a Weight,
    /// Of as many columns as the cell wants of the state before it steps.
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
        let (batch, hidden, columns) = (self.lengths.len(), self.cell.hidden, self.cell.columns());
        let most = self.lengths.iter().copied().max().unwrap_or(0);
        let width = self.data.depth;
        let mut ends = [vec![0.0; batch * hidden], vec![0.0; batch * hidden]];
        let (mut product, mut scratch) = (Product::default(), Scratch::default());
        let mut sums = vec![0.0; most * batch * columns];
        product.add(&x[..most * batch * width], self.data, &mut sums, columns);
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
            product.add(&self.h, self.state, &mut now, columns);
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
                self.cell.step(&mut now[row * columns..(row + 1) * columns], c, h, &mut scratch);
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
