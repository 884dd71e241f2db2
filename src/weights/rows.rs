//! One output's weights with what it reads: the error of its codes at the layer's output.

use super::{
    WeightTask,
    moments::{Half, Reads},
};
use crate::{
    error::Result,
    quant::{
        arith::dot,
        granularity::QuantizedWeight,
        pack,
        saturation::{ANY_CODE, can_saturate},
    },
};

/// Rows whose products with a matrix are computed together: a row of the matrix is read once for all of them.
pub const TOGETHER: usize = 8;

/// The weights of one output in the order of its depth.
#[derive(Debug, Clone)]
pub struct Row {
    /// The output.
    pub out: usize,
    /// The weights.
    pub weights: Vec<f32>,
    /// The distance of two codes.
    pub steps: Vec<f32>,
    /// The codes of 0.
    pub zeros: Vec<i32>,
    /// The codes.
    pub codes: Vec<i32>,
    /// For each place the one whose product is added to its own with 16 bits; empty where no pair can saturate.
    pub partners: Vec<Option<usize>>,
}

impl Row {
    /// What the codes are off.
    pub fn errors(&self) -> Vec<f32> {
        let real = self.codes.iter().zip(&self.zeros).zip(&self.steps).map(|((c, z), s)| (c - z) as f32 * s);
        self.weights.iter().zip(real).map(|(w, r)| w - r).collect()
    }

    /// Whether the pair at this place saturates with this code there.
    pub fn saturates(&self, at: usize, code: i32) -> bool {
        let partner = self.partners.get(at).copied().flatten();
        partner.is_some_and(|p| can_saturate([code, self.codes[p]], ANY_CODE))
    }
}

/// A weight as rows.
pub struct Rows<'a> {
    reads: &'a Reads,
    values: Vec<f32>,
    partners: Vec<Option<usize>>,
}

impl<'a> Rows<'a> {
    /// `None` where nothing is known of what the layer reads, or it does not fit the weight.
    pub fn of(task: &'a WeightTask<'a>) -> Result<Option<Self>> {
        let Some(reads) = task.reads else { return Ok(None) };
        let layout = reads.layout;
        let fits = task.weight.len() == layout.outs * layout.depth && !task.weight.is_empty();
        if !fits || layout.groups == 0 || !layout.outs.is_multiple_of(layout.groups) {
            return Ok(None);
        }
        let partners = task.pairs.map(|p| p.partners(task.weight.len())).unwrap_or_default();
        Ok(Some(Self { reads, values: task.weight.to_f32()?, partners }))
    }

    /// How many outputs there are.
    pub fn count(&self) -> usize {
        self.reads.layout.outs
    }

    /// One output with the codes that it has.
    pub fn row(&self, out: usize, q: &QuantizedWeight, codes: &[i32], channel: &dyn Fn(usize) -> usize) -> Row {
        let layout = self.reads.layout;
        let places: Vec<usize> = (0..layout.depth).map(|j| layout.place(out, j)).collect();
        let params: Vec<_> = places.iter().map(|&p| q.params[channel(p)]).collect();
        let partner = |&p: &usize| {
            let (other, j) = layout.find(self.partners[p]?);
            (other == out).then_some(j)
        };
        Row {
            out,
            weights: places.iter().map(|&p| self.values[p]).collect(),
            steps: params.iter().map(|p| p.scale).collect(),
            zeros: params.iter().map(|p| p.zero_point).collect(),
            codes: places.iter().map(|&p| codes[p]).collect(),
            partners: if self.partners.is_empty() { Vec::new() } else { places.iter().map(partner).collect() },
        }
    }

    /// What was seen of an output's inputs in one half of the data.
    pub fn half(&self, half: usize, out: usize) -> &Half {
        self.reads.moments.half(half, self.reads.layout.group(out))
    }

    /// The outputs in groups that are best computed together.
    pub fn batches(&self) -> Vec<std::ops::Range<usize>> {
        let layout = self.reads.layout;
        let each = layout.outs / layout.groups;
        let of_group =
            |g: usize| (0..each).step_by(TOGETHER).map(move |at| g * each + at..g * each + each.min(at + TOGETHER));
        (0..layout.groups).flat_map(of_group).collect()
    }

    /// The codes of all outputs in the places of the weight.
    pub fn join(&self, rows: &[Row], q: &QuantizedWeight) -> Result<QuantizedWeight> {
        let mut codes = vec![0; self.values.len()];
        for row in rows {
            for (j, &code) in row.codes.iter().enumerate() {
                codes[self.reads.layout.place(row.out, j)] = code;
            }
        }
        let dtype = q.values.dtype();
        Ok(QuantizedWeight { values: pack::pack(dtype, q.values.dims(), &codes)?, ..q.clone() })
    }
}

impl Half {
    /// For rows with these weights and errors, half of the slope of the squared error of the output: `G e - pull w`.
    pub fn slopes(&self, rows: &[(&[f32], &[f32])]) -> Vec<Vec<f32>> {
        let mut slopes: Vec<Vec<f32>> =
            rows.iter().map(|(w, _)| self.pull.iter().zip(*w).map(|(p, w)| -p * w).collect()).collect();
        for j in 0..self.pull.len() {
            let gram = self.gram.row(j);
            slopes.iter_mut().zip(rows).for_each(|(slope, (_, e))| slope[j] += dot(gram, e));
        }
        slopes
    }

    /// The squared error of the output with these errors, but for a constant: `e'Ge - 2 e'(pull w)`.
    pub fn cost(&self, weights: &[f32], errors: &[f32], slope: &[f32]) -> f64 {
        let parts = errors.iter().zip(slope).zip(self.pull.iter().zip(weights));
        parts.map(|((&e, &s), (p, w))| f64::from(e) * (f64::from(s) - f64::from(p * w))).sum()
    }
}
