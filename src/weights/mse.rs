//! Chooses the scale of each channel for the least error of the layer's output: smaller scales cut the largest weights off
//! and make all others finer.
//!
//! The error is `e'Ge` with the second moments `G` of what the layer reads; see [`super::adaround`], which moves codes under
//! fixed scales. It is scales for whole weights that gain: with them MobileNet v1 (0.25) goes from 12 to 55 % of right answers
//! (61 % in float). Where each output has its own scale, 8 bits are fine enough that cutting the largest weight off hardly ever
//! pays.
//!
//! Scales are chosen on half of the data, and kept only if they are better on the other half, too.

use rayon::prelude::*;

use super::{
    Round, RoundBlocks, WeightTask,
    blocks::{self, Blocks, Grid, Part},
    moments::cost,
    rows::{Row, Rows},
    rtn,
};
use crate::{
    error::Result,
    quant::{QParams, QuantizedWeight, Range, arith::Quantizer, float8::Float8, granularity::quantize_with},
};

/// It looks at what the layer reads.
pub const READS: bool = true;

/// Shares of the first scale that are tried: these, and then two rounds of neighbours of the best.
const TRIED: [f32; 11] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.14, 0.1];
/// How far the neighbours are, by round.
const FINER: [f32; 2] = [0.05, 0.025];
/// A scale of many outputs is chosen by so many of them, evenly spread.
const MOST_OUTPUTS: usize = 64;

/// Shares of a block's first scale that are tried.
const OF_BLOCKS: [f32; 8] = [1.0, 0.96, 0.92, 0.88, 0.83, 0.77, 0.68, 0.52];
/// Times that a block's scale is fitted to the codes that it gave.
const FITS: usize = 2;

/// It rounds whole weights and channels.
pub const ROUND: Option<Round> = Some(round);
/// It rounds blocks.
pub const BLOCKS: Option<RoundBlocks> = Some(RoundBlocks { part: in_blocks, solves: false });

/// The nearest codes of all blocks under the scales that cost least: by what each place of the depth reads on average where
/// that is known, else by the weights alone.
pub fn in_blocks(part: &Part<'_>) -> Result<Blocks> {
    part.nearer(part.each(choose), || rtn::in_blocks(part))
}

/// The scale and zero point of a block that cost least.
pub(super) fn choose(values: &[f32], matters: &[f32], grid: Grid) -> (f32, i32) {
    let starts = blocks::starts(values, grid);
    let one = if starts[0] == starts[1] { 1 } else { 2 };
    let cost = |(scale, zero): (f32, i32)| blocks::error(values, matters, scale, zero, grid);
    let mut best = (cost(starts[0]), starts[0]);
    let mut take = |tried: (f32, i32)| {
        let found = (cost(tried), tried);
        if tried.0.is_normal() && found.0 < best.0 {
            best = found;
        }
    };
    let all = values.iter().fold(Range::new(0.0, 0.0), |r, &w| Range::new(r.lo.min(w), r.hi.max(w)));
    for &(scale, zero) in &starts[..one] {
        for share in OF_BLOCKS {
            match grid.zero {
                Some(_) => take((scale * share, zero)),
                // A range that is cut at one end has another zero point.
                None => cut(all, share, grid).into_iter().for_each(&mut take),
            }
        }
    }
    for _ in 0..FITS {
        let fitted = fitted(values, matters, best.1, grid);
        let found = (cost(fitted), fitted);
        if !fitted.0.is_normal() || found.0.partial_cmp(&best.0) != Some(std::cmp::Ordering::Less) {
            break;
        }
        best = found;
    }
    best.1
}

/// Ranges of which both ends, or one, are brought nearer to 0.
fn cut(all: Range, share: f32, grid: Grid) -> [(f32, i32); 3] {
    [(share, share), (share, 1.0), (1.0, share)].map(|(lo, hi)| {
        let (lo, hi) = (all.lo * lo, all.hi * hi);
        let scale = (hi - lo) / (grid.hi - grid.lo) as f32;
        let zero = grid.lo as f32 - lo / scale;
        (scale, (zero.round() as i32).clamp(grid.lo, grid.hi))
    })
}

/// The scale that suits the nearest codes best: least squares.
fn fitted(values: &[f32], matters: &[f32], (scale, zero): (f32, i32), grid: Grid) -> (f32, i32) {
    let (mut above, mut below) = (0f32, 0f32);
    for (i, &w) in values.iter().enumerate() {
        let q = (blocks::code(w, 1.0 / scale, zero, grid) - zero) as f32;
        let m = matters.get(i).copied().unwrap_or(1.0);
        above += m * w * q;
        below += m * q * q;
    }
    (if below > 0.0 { above / below } else { scale }, zero)
}

/// See the file's documentation. Without data it rounds to nearest.
pub fn round(task: &WeightTask<'_>) -> Result<QuantizedWeight> {
    let Some(rows) = Rows::of(task)? else { return rtn::round(task) };
    let params = params(task, &rows, 1)?;
    quantize_with(&rows.values, task.weight.dims(), task.granularity, task.target, params)
}

/// The parameters of all channels; those of channels with fewer than `fewest` outputs are not looked at.
pub(super) fn params(task: &WeightTask<'_>, rows: &Rows<'_>, fewest: usize) -> Result<Vec<QParams>> {
    // There is nothing to choose where outputs have scales in common along their depth.
    let Some(channels) = rows.channels() else { return Ok(task.params.clone()) };
    let float = Float8::of(task.target.dtype);
    let limits = if float.is_some() { (0, 0) } else { task.target.codes()? };
    let search = |(c, outs): (usize, &Vec<usize>)| {
        let first = task.params[c];
        if outs.len() < fewest.max(1) {
            return first;
        }
        // No pair of any output may saturate.
        let few = if task.pairs.is_some() { outs.len() } else { outs.len().min(MOST_OUTPUTS) };
        let some = (0..few).map(|i| rows.row(outs[i * outs.len() / few], &task.params, &[])).collect();
        let least = task.least.get(c).copied().unwrap_or(0.0);
        let channel = Channel { rows, some, first, least, limits, float, paired: task.pairs.is_some() };
        channel.best()
    };
    let params: Vec<QParams> = channels.par_iter().enumerate().map(search).collect();
    let finer = params.iter().zip(&task.params).filter(|(new, old)| new.scale != old.scale).count();
    log::debug!("mse: {finer} of {} scales are finer", params.len());
    Ok(params)
}

/// Outputs that share a scale.
struct Channel<'a> {
    rows: &'a Rows<'a>,
    some: Vec<Row>,
    first: QParams,
    least: f32,
    limits: (i32, i32),
    /// The type, where it is one of floats.
    float: Option<Float8>,
    paired: bool,
}

impl Channel<'_> {
    /// The scale that is best.
    fn best(&self) -> QParams {
        let mut tried = self.costs(0, &TRIED);
        for distance in FINER {
            let best = least(&tried);
            tried.extend(self.costs(0, &[best - distance, (best + distance).min(1.0)]));
        }
        let best = least(&tried);
        match self.costs(1, &[1.0, best])[..] {
            [(was, _), (is, _)] if is < was => QParams { scale: self.first.scale * best, ..self.first },
            _ => self.first,
        }
    }

    /// What these shares of the first scale cost on one half of the data; infinitely much where they may not be.
    fn costs(&self, half: usize, shares: &[f32]) -> Vec<(f64, f32)> {
        let of_row = |row: &Row| {
            let errors: Vec<Option<Vec<f32>>> = shares.iter().map(|&share| self.errors(row, share)).collect();
            let allowed: Vec<&[f32]> = errors.iter().flatten().map(Vec::as_slice).collect();
            let slopes = self.rows.half(half, row.out).slopes(&allowed);
            let mut costs = allowed.iter().zip(&slopes).map(|(e, slope)| cost(e, slope));
            let each = errors.iter().map(|e| e.as_ref().and_then(|_| costs.next()).unwrap_or(f64::INFINITY));
            each.collect::<Vec<f64>>()
        };
        let of_rows: Vec<Vec<f64>> = self.some.par_iter().map(of_row).collect();
        let total = |(i, &share): (usize, &f32)| (of_rows.iter().map(|costs| costs[i]).sum(), share);
        shares.iter().enumerate().map(total).collect()
    }

    /// What the nearest codes under a scale are off; `None` if it may not be.
    fn errors(&self, row: &Row, share: f32) -> Option<Vec<f32>> {
        let params = QParams { scale: self.first.scale * share, ..self.first };
        if share < 1.0 && (params.scale < self.least || !params.scale.is_normal()) {
            return None;
        }
        if let Some(float) = self.float {
            let rounded = |w: f32| float.rounded(w / params.scale) * params.scale;
            return Some(row.weights.iter().map(|&w| w - rounded(w)).collect());
        }
        let q = Quantizer::within(params, self.limits);
        let codes: Vec<i32> = row.weights.iter().map(|&w| q.code(w)).collect();
        let errors = row.weights.iter().zip(&codes).map(|(w, &c)| w - q.real(c)).collect();
        if self.paired {
            let row = Row { codes, ..row.clone() };
            let saturates = |j: usize| row.saturates(j, row.codes[j]);
            return (!(0..row.codes.len()).any(saturates)).then_some(errors);
        }
        Some(errors)
    }
}

/// The share that costs least; the first of several.
fn least(tried: &[(f64, f32)]) -> f32 {
    tried.iter().fold((f64::INFINITY, 1.0), |best, &t| if t.0 < best.0 { t } else { best }).1
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        ir::{DType, Tensor},
        quant::{Granularity, QuantTarget, pack, saturation::Pairs},
        weights::{Layout, Moments, Reads},
    };

    /// Two inputs, of which the second is hardly ever there.
    fn reads() -> Reads {
        let mut moments = Moments::new(2, 1);
        let rows = [1.0, 0.001, -1.0, 0.001, 0.5, -0.001, -0.5, 0.0];
        (0..2).for_each(|half| moments.add(half, &rows, &[]));
        assert!(moments.finish(false));
        Reads { layout: Layout { outs: 2, depth: 2, groups: 1, depth_first: true }, moments: Arc::new(moments) }
    }

    #[test]
    fn a_large_weight_that_does_not_count_is_cut_off() {
        let weight = Tensor::from_f32(&[2, 2], &[0.63, 0.37, 7.0, 0.0]);
        let known = reads();
        let mut task = WeightTask {
            weight: &weight,
            target: QuantTarget { dtype: DType::Int4, ..QuantTarget::WEIGHT },
            granularity: Granularity::PerTensor,
            params: vec![QParams { scale: 1.0, zero_point: 0, dtype: DType::Int4 }],
            least: Vec::new(),
            pairs: None,
            reads: None,
        };
        assert_eq!(round(&task).unwrap().scales(), [1.0]);
        task.reads = Some(&known);
        let q = round(&task).unwrap();
        assert!(q.scales()[0] < 0.75, "{:?}", q.params);
        assert_eq!(pack::unpack(&q.values).unwrap(), [1, 1, 7, 0]);
        // A bias wants its scale; and neighbours must not saturate.
        task.least = vec![1.0];
        assert_eq!(round(&task).unwrap().scales(), [1.0]);
        task.least = Vec::new();
        let weight = Tensor::from_f32(&[2, 2], &[0.4, 64.0, 0.0, 64.0]);
        let pairs = Pairs::along(&[2, 2], &[0]).unwrap();
        let params = vec![QParams { scale: 1.0, zero_point: 0, dtype: DType::Int8 }];
        let mut task = WeightTask { weight: &weight, target: QuantTarget::WEIGHT, params, ..task };
        assert!(round(&task).unwrap().scales()[0] < 1.0);
        task.pairs = Some(&pairs);
        assert_eq!(round(&task).unwrap().scales(), [1.0]);
    }
}
