//! Rounds each weight up or down so that the layer's output is off by as little as can be, instead of the weight.
//!
//! The aim is that of Markus Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020): the
//! mean squared error of one layer's output on calibration data, under fixed scales. The paper relaxes it and descends
//! along gradients with an annealed penalty, on inputs that it keeps. For a linear layer the aim is an exact quadratic
//! form `e'Ge` of the rounding errors, with the second moments `G` of what the layer reads, which GPTQ (Frantar et al.,
//! 2022) and QuantEase (Behdin et al., 2023) build on as well. So here one code at a time is moved by one step where that
//! lowers the form, along the depth again and again, until no step does (coordinate descent). That needs no inputs kept
//! and no random numbers, and takes milliseconds where gradients take minutes; like them it finds a local minimum, not the
//! best of all codes.
//!
//! Where the layer's bias takes back the mean (pass `correct_bias`), `G` is about the mean. Where its input is quantized,
//! the form has a linear part, since smaller weights pass less of that noise on.
//!
//! Half of the data is fitted to. An output keeps its codes only if they are better on the other half, too, and is then
//! fitted to both.

use rayon::prelude::*;

use super::{
    WeightTask,
    moments::Half,
    rows::{Row, Rows},
    rtn,
};
use crate::{error::Result, quant::{QuantizedWeight, pack}};

/// It looks at what the layer reads.
pub const READS: bool = true;

/// Times that all codes are tried at most. Few layers need more than ten.
const SWEEPS: usize = 40;
/// A step must gain this share of what it could gain at most, so that rounding of the sums makes no endless loop.
const LEAST_GAIN: f32 = 1e-3;

/// See the file's documentation. Without data it rounds to nearest.
pub fn round(task: &WeightTask<'_>) -> Result<QuantizedWeight> {
    let start = rtn::round(task)?;
    let Some(rows) = Rows::of(task)? else { return Ok(start) };
    let codes = pack::unpack(&start.values)?;
    let limits = task.target.codes()?;
    let (channels, inner) = task.granularity.layout(task.weight.dims())?;
    let channel = |place: usize| place / inner % channels;
    let batch = |outs: std::ops::Range<usize>| {
        let [first, second] = [0, 1].map(|half| rows.half(half, outs.start));
        let mut batch: Vec<Row> = outs.map(|out| rows.row(out, &start, &codes, &channel)).collect();
        let kept = fit(&mut batch, first, second, limits);
        (batch, kept)
    };
    let fitted: Vec<(Vec<Row>, usize)> = rows.batches().into_par_iter().map(batch).collect();
    let kept: usize = fitted.iter().map(|(_, kept)| kept).sum();
    log::debug!("adaround: {kept} of {} outputs fitted", rows.count());
    let all: Vec<Row> = fitted.into_iter().flat_map(|(rows, _)| rows).collect();
    rows.join(&all, &start)
}

/// Fits outputs that read the same. Returns how many of them keep what was found.
fn fit(rows: &mut [Row], first: &Half, second: &Half, limits: (i32, i32)) -> usize {
    let before: Vec<(Vec<i32>, Vec<f32>)> = rows.iter().map(|r| (r.codes.clone(), r.errors())).collect();
    let slopes = |half: &Half, rows: &[Row], errors: &[&[f32]]| {
        let pairs: Vec<_> = rows.iter().zip(errors).map(|(r, e)| (&r.weights[..], *e)).collect();
        half.slopes(&pairs)
    };
    let nearest: Vec<&[f32]> = before.iter().map(|b| &b.1[..]).collect();
    let (mut own, other) = (slopes(first, rows, &nearest), slopes(second, rows, &nearest));
    let mut errors: Vec<Vec<f32>> = nearest.iter().map(|e| e.to_vec()).collect();
    for ((row, errors), slope) in rows.iter_mut().zip(&mut errors).zip(&mut own) {
        descend(row, errors, &mut [(first, 1.0)], slope, limits);
    }
    let found: Vec<&[f32]> = errors.iter().map(Vec::as_slice).collect();
    let checked = slopes(second, rows, &found);
    let total = (first.rows() + second.rows()) as f32;
    let shares = [first.rows() as f32 / total, second.rows() as f32 / total];
    let mut kept = 0;
    for (i, row) in rows.iter_mut().enumerate() {
        let cost = |errors: &[f32], slope: &[f32]| second.cost(&row.weights, errors, slope);
        let (was, is) = (cost(&before[i].1, &other[i]), cost(&errors[i], &checked[i]));
        if is >= was || row.codes == before[i].0 {
            row.codes.clone_from(&before[i].0);
            continue;
        }
        kept += 1;
        let mut both: Vec<f32> = own[i].iter().zip(&checked[i]).map(|(a, b)| a * shares[0] + b * shares[1]).collect();
        descend(row, &mut errors[i], &mut [(first, shares[0]), (second, shares[1])], &mut both, limits);
    }
    kept
}

/// Moves one code at a time by one step where that lowers the cost, until none does. `slope` is half of the cost's slope
/// along the errors, and is kept up to date as they are.
fn descend(row: &mut Row, errors: &mut [f32], halves: &mut [(&Half, f32)], slope: &mut [f32], limits: (i32, i32)) {
    let curve: Vec<f32> = (0..errors.len()).map(|j| halves.iter().map(|(h, share)| h.gram.row(j)[j] * share).sum()).collect();
    for _ in 0..SWEEPS {
        let mut moved = false;
        for j in 0..errors.len() {
            // One step changes the cost by step * (step * curve - 2 * |slope|).
            let step = row.steps[j];
            if slope[j].abs() <= step * curve[j] * (0.5 + LEAST_GAIN) {
                continue;
            }
            let by = if slope[j] > 0.0 { 1 } else { -1 };
            let code = row.codes[j] + by;
            if code < limits.0 || code > limits.1 || row.saturates(j, code) {
                continue;
            }
            row.codes[j] = code;
            let change = by as f32 * step;
            errors[j] -= change;
            for (half, share) in halves.iter() {
                let change = change * share;
                slope.iter_mut().zip(half.gram.row(j)).for_each(|(s, g)| *s -= change * g);
            }
            moved = true;
        }
        if !moved {
            break;
        }
    }
}
