//! Weights in few bits, in blocks: each output's weights, along the depth, in runs of some that share scale and zero point.
//!
//! A layer's outputs are rounded some at a time, so that a weight of any size takes little memory beside its codes. What
//! an algorithm makes of them is [`Blocks`]; those that look at one block alone begin with [`starts`].

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use rayon::prelude::*;

use super::{
    Algorithm, Layout, Reads,
    factor::Factor,
    moments::{Half, with_shares},
    rows::{self, Row, TOGETHER},
};
use crate::{
    error::{Error, Result},
    ir::{DType, Tensor},
    quant::{QParams, QuantTarget, Range as Numbers, pack, params::type_range},
};

/// Weights that are rounded at a time, by one thread.
const AT_A_TIME: usize = 1 << 21;
/// Outputs at a time, at least: neighbours in a row of a weight that has the depth first.
const FEWEST: usize = 64;
/// 1.5 times 2^23: adding it and taking it away again rounds half to even, for numbers below 2^22.
const TO_WHOLE: f32 = 12_582_912.0;

/// The codes that a weight may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Type, and whether all zero points are in its middle.
    pub target: QuantTarget,
    /// The least code.
    pub lo: i32,
    /// The greatest.
    pub hi: i32,
    /// The zero point of all blocks, where they have the same.
    pub zero: Option<i32>,
}

impl Grid {
    /// All codes of the type: symmetric ones have no other greatest magnitude on one side than what the type has.
    pub fn of(dtype: DType, symmetric: bool) -> Result<Self> {
        let (lo, hi) = type_range(dtype)?;
        let zero = symmetric.then_some((lo + hi + 1) / 2);
        Ok(Self { target: QuantTarget { dtype, symmetric, reduce_range: false }, lo, hi, zero })
    }
}

/// A layer whose weight is to be rounded.
pub struct Layer<'a> {
    /// How the weight's elements lie.
    pub layout: Layout,
    /// Weights that share a scale; the last of an output may be fewer.
    pub block: usize,
    /// The codes.
    pub grid: Grid,
    /// What the layer reads, if that is known.
    pub reads: Option<&'a Reads>,
}

/// Some outputs of a layer.
pub struct Part<'a> {
    /// The layer.
    pub layer: &'a Layer<'a>,
    /// Each output's weights.
    pub weights: &'a [f32],
    /// What is known of what the layer reads, solved, for algorithms that ask for it: from the first half of the data, and from
    /// all of them.
    pub(super) factors: Option<&'a [Factor; 2]>,
}

/// Codes, scales and zero points: `real = scale * (code - zero point)`. Scales may be negative, but are never 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocks {
    /// One for each weight.
    pub codes: Vec<i32>,
    /// One for each block of each output.
    pub scales: Vec<f32>,
    /// The same.
    pub zeros: Vec<i32>,
}

/// A whole weight.
#[derive(Debug, Clone)]
pub struct BlockedWeight {
    /// `[depth, outs]` or `[outs, depth]`, as the weight.
    pub codes: Tensor,
    /// float, `[blocks, outs]` or `[outs, blocks]`.
    pub scales: Tensor,
    /// Of the codes' type, like the scales; none where all are 0.
    pub zeros: Option<Tensor>,
}

/// Types and dims of the parts of a [`BlockedWeight`].
#[derive(Debug, Clone)]
pub struct Like {
    /// The codes.
    pub codes: (DType, Vec<usize>),
    /// The scales.
    pub scales: (DType, Vec<usize>),
    /// The zero points; none where all are 0.
    pub zeros: Option<(DType, Vec<usize>)>,
}

impl<'a> Layer<'a> {
    /// A layer with one block or more for each output.
    pub fn new(layout: Layout, block: usize, grid: Grid, reads: Option<&'a Reads>) -> Self {
        let reads = reads.filter(|r| r.layout == layout && layout.groups == 1);
        Self { layout, block: block.clamp(1, layout.depth.max(1)), grid, reads }
    }

    /// Blocks of an output.
    pub fn blocks(&self) -> usize {
        self.layout.depth.div_ceil(self.block)
    }

    /// What was seen of the inputs, in the two halves of the data.
    pub(super) fn halves(&self) -> Option<[&'a Half; 2]> {
        self.reads.map(|r| [0, 1].map(|half| r.moments.half(half, 0)))
    }

    /// How much each place of the depth matters: the mean square of what is multiplied with it. Empty where that is not known.
    pub fn importance(&self) -> Vec<f32> {
        let Some(halves) = self.halves() else { return Vec::new() };
        let [a, b] = halves.map(|h| h.gram.diagonal().collect::<Vec<f32>>());
        a.iter().zip(&b).map(|(a, b)| a + b).collect()
    }

    /// Types and dims of the parts of the rounded weight.
    pub fn like(&self, outs_first: bool) -> Like {
        let dims =
            |along: usize| if outs_first { vec![self.layout.outs, along] } else { vec![along, self.layout.outs] };
        let dtype = self.grid.target.dtype;
        let zeros = (self.grid.zero != Some(0)).then(|| (dtype, dims(self.blocks())));
        Like { codes: (dtype, dims(self.layout.depth)), scales: (DType::Float, dims(self.blocks())), zeros }
    }

    /// Rounds the whole weight; `outs_first` says in which order the codes shall lie. Errors: the weight has numbers that
    /// are not finite, or another count than the layout asks for.
    pub fn rounded(&self, weight: &Tensor, algorithm: &Algorithm, outs_first: bool) -> Result<BlockedWeight> {
        let Layout { outs, depth, .. } = self.layout;
        let blocks = self.blocks();
        let round = algorithm.blocks.ok_or_else(|| Error::bug(format!("{} has no blocks", algorithm.name)))?;
        let factors = self.halves().filter(|_| round.solves).and_then(Factor::of_halves);
        let numbers = Numbers32::of(weight, outs * depth)?;
        let bits = self.grid.target.dtype.bits();
        let whole = Whole {
            codes: vec![0u8; (outs * depth * bits).div_ceil(8)],
            scales: vec![0f32; outs * blocks],
            zeros: vec![0i32; if self.grid.zero.is_some() { 0 } else { outs * blocks }],
        };
        let whole = Mutex::new(whole);
        let step = (AT_A_TIME / depth.max(1)).max(FEWEST).min(outs.div_ceil(rayon::current_num_threads()).max(1));
        let parts: Vec<Range<usize>> = (0..outs).step_by(step).map(|at| at..outs.min(at + step)).collect();
        parts.into_par_iter().try_for_each(|part| {
            let weights = numbers.rows(self.layout, part.clone());
            if let Some(odd) = weights.iter().position(|w| !w.is_finite()) {
                let at = self.layout.place(part.start + odd / depth, odd % depth);
                return Err(Error::data(format!("its element {at} is {}, which has no code", weights[odd]))
                    .help("keep the node in float with --keep-float, or mend the weight"));
            }
            let found = (round.part)(&Part { layer: self, weights: &weights, factors: factors.as_ref() })?;
            let mut whole = whole.lock().unwrap_or_else(PoisonError::into_inner);
            whole.put(self, part, &found, outs_first);
            Ok(())
        })?;
        whole.into_inner().unwrap_or_else(PoisonError::into_inner).finish(self, outs_first)
    }
}

/// A weight as it comes out.
struct Whole {
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<i32>,
}

impl Whole {
    fn put(&mut self, layer: &Layer<'_>, outs: Range<usize>, found: &Blocks, outs_first: bool) {
        let (Layout { outs: all, depth, .. }, blocks) = (layer.layout, layer.blocks());
        let bits = layer.grid.target.dtype.bits();
        let (per_byte, mask) = (8 / bits.min(8), ((1u32 << bits) - 1) as u8);
        let many = outs.len();
        let mut put = |at: usize, code: i32| self.codes[at / per_byte] |= (code as u8 & mask) << (at % per_byte * bits);
        if outs_first {
            found.codes.iter().enumerate().for_each(|(i, &code)| put(outs.start * depth + i, code));
        } else {
            for from in (0..depth).step_by(LINES) {
                for o in 0..many {
                    let codes = &found.codes[o * depth + from..o * depth + depth.min(from + LINES)];
                    codes.iter().enumerate().for_each(|(i, &code)| put((from + i) * all + outs.start + o, code));
                }
            }
        }
        for (o, b) in (0..many).flat_map(|o| (0..blocks).map(move |b| (o, b))) {
            let at = if outs_first { (outs.start + o) * blocks + b } else { b * all + outs.start + o };
            self.scales[at] = found.scales[o * blocks + b];
            if let Some(zero) = self.zeros.get_mut(at) {
                *zero = found.zeros[o * blocks + b];
            }
        }
    }

    fn finish(self, layer: &Layer<'_>, outs_first: bool) -> Result<BlockedWeight> {
        let Like { codes: (dtype, dims), scales: (_, blocks), zeros } = layer.like(outs_first);
        let zeros = zeros.map(|(dtype, dims)| match layer.grid.zero {
            Some(zero) => pack::pack(dtype, &dims, &vec![zero; self.scales.len()]),
            None => pack::pack(dtype, &dims, &self.zeros),
        });
        Ok(BlockedWeight {
            codes: Tensor::new(dtype, dims, self.codes)?,
            scales: Tensor::from_f32(&blocks, &self.scales),
            zeros: zeros.transpose()?,
        })
    }
}

/// A weight's numbers, read where they stand.
pub(super) struct Numbers32 {
    bytes: bytes::Bytes,
    dtype: DType,
}

impl Numbers32 {
    pub(super) fn of(weight: &Tensor, count: usize) -> Result<Self> {
        if weight.len() != count || !matches!(weight.dtype(), DType::Float | DType::Float16 | DType::Bfloat16) {
            let found = format!("{} of {}", weight.len(), weight.dtype());
            return Err(Error::malformed(format!("{count} weights of float are needed, there are {found}")));
        }
        Ok(Self { bytes: weight.bytes()?, dtype: weight.dtype() })
    }

    /// Numbers that stand one behind the other.
    fn run(&self, from: usize, into: &mut [f32]) {
        let size = self.dtype.bits() / 8;
        let bytes = &self.bytes[from * size..(from + into.len()) * size];
        match self.dtype {
            DType::Float16 => into.iter_mut().zip(bytes.chunks_exact(2)).for_each(|(x, b)| {
                *x = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
            }),
            DType::Bfloat16 => into.iter_mut().zip(bytes.chunks_exact(2)).for_each(|(x, b)| {
                *x = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }),
            _ => into.iter_mut().zip(bytes.chunks_exact(4)).for_each(|(x, b)| {
                *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }),
        }
    }

    /// The weights of some outputs, one after the other.
    pub(super) fn rows(&self, layout: Layout, outs: Range<usize>) -> Vec<f32> {
        let (many, depth) = (outs.len(), layout.depth);
        let mut rows = vec![0f32; many * depth];
        if !layout.depth_first {
            self.run(outs.start * depth, &mut rows);
            return rows;
        }
        // A few rows of the weight at a time, so that what is written lies together.
        let mut lines = vec![0f32; LINES * many];
        for from in (0..depth).step_by(LINES) {
            let count = LINES.min(depth - from);
            for (i, line) in lines.chunks_exact_mut(many).take(count).enumerate() {
                self.run((from + i) * layout.outs + outs.start, line);
            }
            for (o, row) in rows.chunks_exact_mut(depth).enumerate() {
                row[from..from + count].iter_mut().enumerate().for_each(|(i, w)| *w = lines[i * many + o]);
            }
        }
        rows
    }
}

/// Rows of a weight that are turned at a time.
const LINES: usize = 16;

impl Part<'_> {
    /// Each output's weights.
    pub fn outputs(&self) -> impl Iterator<Item = &[f32]> {
        self.weights.chunks_exact(self.layer.layout.depth.max(1))
    }

    /// Rounds each block by itself: `choose` finds scale and zero point for the weights and how much each of them matters.
    pub fn each(&self, choose: impl Fn(&[f32], &[f32], Grid) -> (f32, i32)) -> Blocks {
        let (grid, importance) = (self.layer.grid, self.layer.importance());
        let count = self.weights.len();
        let mut found = Blocks { codes: Vec::with_capacity(count), scales: Vec::new(), zeros: Vec::new() };
        for row in self.outputs() {
            for (b, block) in row.chunks(self.layer.block).enumerate() {
                let at = b * self.layer.block;
                let matters = importance.get(at..at + block.len()).unwrap_or_default();
                let (scale, zero) = choose(block, matters, grid);
                found.codes.extend(block.iter().map(|&w| code(w, 1.0 / scale, zero, grid)));
                found.scales.push(scale);
                found.zeros.push(zero);
            }
        }
        found
    }

    /// Of each output those codes with which it is nearer to what it was, as far as it is known what the layer reads: blocks that
    /// were chosen one by one may err in step.
    pub(super) fn nearer(&self, mut found: Blocks, other: impl FnOnce() -> Result<Blocks>) -> Result<Blocks> {
        let Some(halves) = self.layer.halves() else { return Ok(found) };
        let other = other()?;
        let halves = with_shares(halves);
        let costs = |blocks: &Blocks| -> Vec<f64> {
            let cost_of = |batch: &[Row]| {
                let mut costs = vec![0.0; batch.len()];
                for (half, share) in halves {
                    let own = rows::costs(batch, half);
                    costs.iter_mut().zip(own).for_each(|(sum, c)| *sum += f64::from(share) * c);
                }
                costs
            };
            self.rows(blocks).par_chunks(TOGETHER).flat_map_iter(cost_of).collect()
        };
        let (depth, each) = (self.layer.layout.depth, self.layer.blocks());
        for (out, (ours, theirs)) in costs(&found).into_iter().zip(costs(&other)).enumerate() {
            if theirs < ours {
                let (codes, blocks) = (out * depth..(out + 1) * depth, out * each..(out + 1) * each);
                found.codes[codes.clone()].copy_from_slice(&other.codes[codes]);
                found.scales[blocks.clone()].copy_from_slice(&other.scales[blocks.clone()]);
                found.zeros[blocks.clone()].copy_from_slice(&other.zeros[blocks]);
            }
        }
        Ok(found)
    }

    /// Each output with its codes among `blocks`, as algorithms take it that look at whole outputs.
    pub(super) fn rows(&self, blocks: &Blocks) -> Vec<Row> {
        let (each, block) = (self.layer.blocks(), self.layer.block);
        let row = |(out, weights): (usize, &[f32])| {
            let depth = weights.len();
            let of = |j: usize| out * each + j / block;
            Row {
                out,
                weights: weights.to_vec(),
                steps: (0..depth).map(|j| blocks.scales[of(j)]).collect(),
                zeros: (0..depth).map(|j| blocks.zeros[of(j)]).collect(),
                codes: blocks.codes[out * depth..(out + 1) * depth].to_vec(),
                partners: Vec::new(),
            }
        };
        self.outputs().enumerate().map(row).collect()
    }
}

/// The nearest code.
pub fn code(w: f32, per_step: f32, zero: i32, grid: Grid) -> i32 {
    let (lo, hi) = ((grid.lo - zero) as f32, (grid.hi - zero) as f32);
    let whole = ((w * per_step).clamp(lo, hi) + TO_WHOLE) - TO_WHOLE;
    whole as i32 + zero
}

/// Numbers that are added up side by side.
const LANES: usize = 8;

/// What the nearest codes are off, squared and added up; each weight counts as much as it matters.
pub fn error(values: &[f32], matters: &[f32], scale: f32, zero: i32, grid: Grid) -> f32 {
    let per_step = 1.0 / scale;
    let (lo, hi) = ((grid.lo - zero) as f32, (grid.hi - zero) as f32);
    let off = |w: f32| {
        let whole = ((w * per_step).max(lo).min(hi) + TO_WHOLE) - TO_WHOLE;
        let e = w - whole * scale;
        e * e
    };
    let mut sums = [0f32; LANES];
    let values = values.chunks_exact(LANES);
    let rest = values.remainder();
    let last = if matters.is_empty() {
        for chunk in values {
            sums.iter_mut().zip(chunk).for_each(|(sum, &w)| *sum += off(w));
        }
        rest.iter().map(|&w| off(w)).sum::<f32>()
    } else {
        let matters = matters.chunks_exact(LANES);
        let beside = matters.remainder();
        for (chunk, m) in values.zip(matters) {
            for ((sum, &w), m) in sums.iter_mut().zip(chunk).zip(m) {
                *sum += off(w) * m;
            }
        }
        rest.iter().zip(beside).map(|(&w, m)| off(w) * m).sum()
    };
    sums.iter().sum::<f32>() + last
}

/// Scales and zero points to begin with. Symmetric codes have one more on the negative side: either the weight of the greatest
/// magnitude gets it, by a negative scale if need be, or it gets the greatest code and nothing is cut off on either side.
pub fn starts(values: &[f32], grid: Grid) -> [(f32, i32); 2] {
    let Some(zero) = grid.zero else {
        let range = values.iter().fold(Numbers::new(0.0, 0.0), |r, &w| r.union(Numbers::new(w, w)));
        let params =
            grid.target.params(range).unwrap_or(QParams { scale: 1.0, zero_point: 0, dtype: grid.target.dtype });
        return [(params.scale, params.zero_point); 2];
    };
    let most = values.iter().fold(0f32, |most, &w| if w.abs() > most.abs() { w } else { most });
    let whole = |scale: f32| if scale.is_normal() { scale } else { 1.0 };
    [most / (grid.lo - zero) as f32, most.abs() / (grid.hi - zero).max(1) as f32].map(|scale| (whole(scale), zero))
}
