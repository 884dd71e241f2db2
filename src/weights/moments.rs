//! What a layer reads, in second moments: how a change of its weights changes its output on average.

use std::sync::Arc;

use rayon::prelude::*;

use super::gram::Gram;
use crate::quant::arith::dot;

/// How the elements of a weight meet what the layer reads: each output adds products along the depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Layout {
    /// Outputs of all groups together.
    pub outs: usize,
    /// Products that one output adds.
    pub depth: usize,
    /// Groups of outputs that read different inputs.
    pub groups: usize,
    /// The weight is laid out `[depth, outs]`, else `[outs, depth]`.
    pub depth_first: bool,
}

impl Layout {
    /// Where the element stands that this output multiplies its input number `j` with.
    pub fn place(&self, out: usize, j: usize) -> usize {
        if self.depth_first { j * self.outs + out } else { out * self.depth + j }
    }

    /// The opposite of [`Self::place`].
    pub fn find(&self, place: usize) -> (usize, usize) {
        if self.depth_first { (place % self.outs, place / self.outs) } else { (place / self.depth, place % self.depth) }
    }

    /// The group of an output.
    pub fn group(&self, out: usize) -> usize {
        out * self.groups / self.outs.max(1)
    }
}

/// What some weight meets.
#[derive(Debug, Clone)]
pub struct Reads {
    /// How.
    pub layout: Layout,
    /// What; layers that read the same have it together.
    pub moments: Arc<Moments>,
}

impl Reads {
    /// The same where each place of the depth is divided by a factor: by so much less is read there.
    #[must_use]
    pub fn divided(&self, by: &[f32]) -> Self {
        Self { layout: self.layout, moments: Arc::new(self.moments.divided(by)) }
    }

    /// How much each output becomes less, on average, by other numbers in the weight's place and by the rounding of what is
    /// read.
    pub fn shift(&self, weight: &[f32], rounded: &[f32]) -> Vec<f64> {
        let Layout { outs, depth, .. } = self.layout;
        let shift = |out: usize| {
            let halves = [0, 1].map(|half| self.moments.half(half, self.layout.group(out)));
            let rows: usize = halves.iter().map(|h| h.rows).sum();
            let place = |j: usize| {
                let place = self.layout.place(out, j);
                let get = |values: &[f32]| f64::from(values.get(place).copied().unwrap_or(0.0));
                let sum = |of: fn(&Half) -> &[f64]| halves.iter().map(|h| of(h)[j]).sum::<f64>();
                (get(weight) - get(rounded)) * sum(|h| &h.sums) - get(weight) * sum(|h| &h.noise)
            };
            (0..depth).map(place).sum::<f64>() / rows.max(1) as f64
        };
        (0..outs).into_par_iter().map(shift).collect()
    }
}

/// Second moments of what a layer reads, from two halves of the data: one to fit to, and one to see whether that helps.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    depth: usize,
    halves: [Vec<Half>; 2],
}

/// One half of the data, for one group.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Half {
    rows: usize,
    sums: Vec<f64>,
    noise: Vec<f64>,
    /// Means of products once it is finished, with something added to the diagonal.
    pub gram: Gram,
}

/// This share of the mean of the diagonal is added to it: directions in which the data hardly vary are not sure to be so in
/// other data.
const DAMPING: f64 = 0.005;

impl Moments {
    /// Moments that have seen nothing.
    pub fn new(depth: usize, groups: usize) -> Self {
        let half = Half { rows: 0, sums: vec![0.0; depth], noise: vec![0.0; depth], gram: Gram::new(depth) };
        Self { depth, halves: [vec![half.clone(); groups], vec![half; groups]] }
    }

    /// Bytes that they take.
    pub fn bytes(depth: usize, groups: usize) -> usize {
        Gram::bytes(depth).saturating_mul(groups).saturating_mul(2)
    }

    /// Takes in for a half, 0 or 1, what was read as it will be read, quantized where it will be: rows of the depth, one
    /// behind the other, first all of the first group. `noise` is what quantizing adds, summed up over the rows for each
    /// group and place of the depth; it may be empty.
    pub fn add(&mut self, half: usize, rows: &[f32], noise: &[f64]) {
        let (depth, groups) = (self.depth, self.halves[half].len());
        let each = rows.len() / (groups * depth).max(1) * depth;
        if each == 0 {
            return;
        }
        let add = |(g, half): (usize, &mut Half)| {
            let rows = &rows[g * each..(g + 1) * each];
            half.rows += each / depth;
            for row in rows.chunks_exact(depth) {
                half.sums.iter_mut().zip(row).for_each(|(s, &x)| *s += f64::from(x));
            }
            let noise = noise.chunks_exact(depth).nth(g).unwrap_or_default();
            half.noise.iter_mut().zip(noise).for_each(|(s, x)| *s += x);
            half.gram.add(rows);
        };
        self.halves[half].par_iter_mut().enumerate().for_each(add);
    }

    /// Makes means of the sums. `centered` where the layer's bias takes back what the mean of its output is off. Returns
    /// whether all is finite and there was anything in both halves.
    pub fn finish(&mut self, centered: bool) -> bool {
        self.halves.iter_mut().all(|groups| groups.par_iter_mut().map(|half| half.finish(centered)).all(|sound| sound))
    }

    fn divided(&self, by: &[f32]) -> Self {
        let list = |of: &[f64]| of.iter().zip(by).map(|(x, by)| x / f64::from(*by)).collect();
        let half =
            |h: &Half| Half { rows: h.rows, sums: list(&h.sums), noise: list(&h.noise), gram: h.gram.divided(by) };
        Self { depth: self.depth, halves: [0, 1].map(|k| self.halves[k].iter().map(half).collect()) }
    }

    /// One half of the data of a group.
    pub(super) fn half(&self, half: usize, group: usize) -> &Half {
        &self.halves[half][group]
    }
}

impl Half {
    fn finish(&mut self, centered: bool) -> bool {
        if self.rows == 0 {
            return false;
        }
        let count = self.rows as f64;
        let mean = |sum: &f64| if centered { sum / count } else { 0.0 };
        let means: Vec<f64> = self.sums.iter().map(mean).collect();
        self.gram.mirror();
        for (i, own) in means.iter().enumerate() {
            for (g, other) in self.gram.row_mut(i).iter_mut().zip(&means) {
                *g = (f64::from(*g) / count - own * other) as f32;
            }
        }
        let trace: f64 = self.gram.diagonal().map(f64::from).sum();
        let damping = (DAMPING * trace / means.len().max(1) as f64) as f32;
        for i in 0..means.len() {
            self.gram.row_mut(i)[i] += damping;
        }
        trace.is_finite()
    }

    /// For rows of errors, half of the slope of the squared error of their outputs: `G e`.
    pub fn slopes(&self, errors: &[&[f32]]) -> Vec<Vec<f32>> {
        let depth = self.sums.len();
        let mut slopes = vec![vec![0f32; depth]; errors.len()];
        for j in 0..depth {
            let gram = self.gram.row(j);
            slopes.iter_mut().zip(errors).for_each(|(slope, e)| slope[j] = dot(gram, e));
        }
        slopes
    }
}

/// The halves with the share of the rows that each has.
pub(super) fn with_shares(halves: [&Half; 2]) -> [(&Half, f32); 2] {
    let total = (halves[0].rows + halves[1].rows) as f32;
    halves.map(|h| (h, h.rows as f32 / total))
}

/// The squared error of an output, from its weights' errors and the slope.
pub(super) fn cost(errors: &[f32], slope: &[f32]) -> f64 {
    errors.iter().zip(slope).map(|(&e, &s)| f64::from(e) * f64::from(s)).sum()
}
