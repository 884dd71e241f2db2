//! Rounds each weight up or down so that the layer's output is off by as little as can be, instead of the weight.
//!
//! The aim is that of Markus Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020): the
//! least mean squared error of a layer's output on calibration data. The paper relaxes it and descends along gradients
//! with an annealed penalty, on inputs that it keeps. For a linear layer the aim is exactly a quadratic form `e'Ge` of the
//! rounding errors, with the second moments `G` of what the layer reads; Frantar et al., "GPTQ" (2022), and Behdin et al.,
//! "QuantEase" (2023), build on it as well. So here one code at a time is moved by one step where that lowers the form,
//! along the depth again and again, until no step does: coordinate descent. That keeps no inputs, draws no random numbers
//! and takes milliseconds for a layer; as with gradients, what it ends in need not be the best of all codes. Unlike in the
//! paper, a code may move by more than one step in the end.
//!
//! Where several outputs have a scale in common, that is chosen first, as [`super::mse`] does: a coarse scale leaves nothing to
//! win by other codes. For scales of single outputs that changes nothing to speak of.
//!
//! Where the layer's bias takes back the mean (pass `correct_bias`), `G` is about the mean: by log probabilities, MobileNet v1
//! (0.25) gains 2.0 dB with that, and 0.4 dB without. Half of the data is fitted to. An output keeps its codes only if they are better on the
//! other half, too, and is then fitted to both.

use rayon::prelude::*;

use super::{
    Round, RoundBlocks, WeightTask,
    blocks::{Blocks, Part},
    moments::{Half, cost, with_shares},
    mse,
    rows::{Row, Rows, TOGETHER},
    rtn,
};
use crate::{
    error::Result,
    quant::{QuantizedWeight, granularity::quantize_with, pack},
};

/// It looks at what the layer reads.
pub const READS: bool = true;

/// Times that all codes are tried at most. Few layers need more than ten.
const SWEEPS: usize = 40;
/// A step must gain more than this share of what it would gain at best, so that rounding of the sums makes no endless loop.
const LEAST_GAIN: f32 = 1e-3;

/// It rounds whole weights and channels.
pub const ROUND: Option<Round> = Some(round);
/// It rounds blocks.
pub const BLOCKS: Option<RoundBlocks> = Some(RoundBlocks { part: in_blocks, solves: false });

/// See the file's documentation: under the scales of [`mse`]. Without data those alone.
pub fn in_blocks(part: &Part<'_>) -> Result<Blocks> {
    let mut found = mse::in_blocks(part)?;
    let Some([first, second]) = part.layer.halves() else { return Ok(found) };
    let limits = (part.layer.grid.lo, part.layer.grid.hi);
    let mut rows = part.rows(&found);
    rows.par_chunks_mut(TOGETHER).for_each(|batch| {
        fit(batch, first, second, limits);
    });
    found.codes = rows.into_iter().flat_map(|row| row.codes).collect();
    Ok(found)
}

/// See the file's documentation. Without data it rounds to nearest.
pub fn round(task: &WeightTask<'_>) -> Result<QuantizedWeight> {
    let Some(rows) = Rows::of(task)? else { return rtn::round(task) };
    let params = mse::params(task, &rows, 2)?;
    let start = quantize_with(&rows.values, task.weight.dims(), task.granularity, task.target, params)?;
    let codes = pack::unpack(&start.values)?;
    let limits = task.target.codes()?;
    let batch = |outs: std::ops::Range<usize>| {
        let [first, second] = [0, 1].map(|half| rows.half(half, outs.start));
        let mut batch: Vec<Row> = outs.map(|out| rows.row(out, &start.params, &codes)).collect();
        let kept = fit(&mut batch, first, second, limits);
        (batch, kept)
    };
    let fitted: Vec<(Vec<Row>, usize)> = rows.batches().into_par_iter().map(batch).collect();
    let kept: usize = fitted.iter().map(|(_, kept)| kept).sum();
    log::debug!("adaround: {kept} of {} outputs have other codes than the nearest", rows.count());
    let all: Vec<Row> = fitted.into_iter().flat_map(|(rows, _)| rows).collect();
    rows.join(&all, &start)
}

/// Fits outputs that read the same. Returns how many of them keep what was found.
fn fit(rows: &mut [Row], first: &Half, second: &Half, limits: (i32, i32)) -> usize {
    let before: Vec<(Vec<i32>, Vec<f32>)> = rows.iter().map(|r| (r.codes.clone(), r.errors())).collect();
    let nearest: Vec<&[f32]> = before.iter().map(|b| &b.1[..]).collect();
    let (mut own, other) = (first.slopes(&nearest), second.slopes(&nearest));
    let mut errors: Vec<Vec<f32>> = nearest.iter().map(|e| e.to_vec()).collect();
    for ((row, errors), slope) in rows.iter_mut().zip(&mut errors).zip(&mut own) {
        descend(row, errors, &[(first, 1.0)], slope, limits);
    }
    let found: Vec<&[f32]> = errors.iter().map(Vec::as_slice).collect();
    let checked = second.slopes(&found);
    let halves = with_shares([first, second]);
    let shares = halves.map(|(_, share)| share);
    let mut kept = 0;
    for (i, row) in rows.iter_mut().enumerate() {
        let (was, is) = (cost(&before[i].1, &other[i]), cost(&errors[i], &checked[i]));
        if is.partial_cmp(&was) != Some(std::cmp::Ordering::Less) {
            row.codes.clone_from(&before[i].0);
            continue;
        }
        kept += 1;
        let mut both: Vec<f32> = own[i].iter().zip(&checked[i]).map(|(a, b)| a * shares[0] + b * shares[1]).collect();
        descend(row, &mut errors[i], &halves, &mut both, limits);
    }
    kept
}

/// Moves one code at a time by one step where that lowers the cost, until none does. `slope` is half of the cost's slope
/// along the errors, and is kept up to date as they are.
pub(super) fn descend(
    row: &mut Row,
    errors: &mut [f32],
    halves: &[(&Half, f32)],
    slope: &mut [f32],
    limits: (i32, i32),
) {
    let curve = |j: usize| halves.iter().map(|(half, share)| half.gram.row(j)[j] * share).sum();
    let curve: Vec<f32> = (0..errors.len()).map(curve).collect();
    for _ in 0..SWEEPS {
        let mut moved = false;
        for j in 0..errors.len() {
            // One step changes the cost by step * (step * curve - 2 * |slope|).
            let step = row.steps[j];
            if slope[j].abs() <= step.abs() * curve[j] * (0.5 + LEAST_GAIN) {
                continue;
            }
            let by = if (slope[j] > 0.0) == (step > 0.0) { 1 } else { -1 };
            let code = row.codes[j] + by;
            if code < limits.0 || code > limits.1 || row.saturates(j, code) {
                continue;
            }
            row.codes[j] = code;
            let change = by as f32 * step;
            errors[j] -= change;
            for (half, share) in halves {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        ir::{DType, Tensor},
        quant::{Granularity, QParams, QuantTarget, saturation::Pairs},
        weights::{Layout, Moments, Reads},
    };

    /// What a matrix product `[depth, outs]` reads, row after row for each half.
    fn reads(depth: usize, outs: usize, halves: [&[f32]; 2], centered: bool) -> Reads {
        let mut moments = Moments::new(depth, 1);
        for (half, rows) in halves.into_iter().enumerate() {
            moments.add(half, rows, &[]);
        }
        assert!(moments.finish(centered));
        Reads { layout: Layout { outs, depth, groups: 1, depth_first: true }, moments: Arc::new(moments) }
    }

    fn task<'a>(weight: &'a Tensor, scale: f32, reads: Option<&'a Reads>) -> WeightTask<'a> {
        let params = vec![QParams { scale, zero_point: 0, dtype: DType::Int8 }; weight.dims()[1]];
        let granularity = Granularity::PerChannel(1);
        WeightTask { weight, target: QuantTarget::WEIGHT, granularity, params, least: Vec::new(), pairs: None, reads }
    }

    fn codes(task: &WeightTask<'_>) -> Vec<i32> {
        pack::unpack(&round(task).unwrap().values).unwrap()
    }

    #[test]
    fn errors_of_what_always_comes_together_make_up_for_each_other() {
        let weight = Tensor::from_f32(&[2, 1], &[0.4, 0.4]);
        let together = [1.0, 1.0, -2.0, -2.0, 0.5, 0.5];
        let known = reads(2, 1, [&together, &together], true);
        assert_eq!(codes(&task(&weight, 1.0, None)), [0, 0]);
        assert_eq!(codes(&task(&weight, 1.0, Some(&known))), [1, 0]);
        // Not if that is so in one half of the data only.
        let apart = [1.0, -1.0, -2.0, 2.0, 0.5, -0.5];
        let known = reads(2, 1, [&together, &apart], true);
        assert_eq!(codes(&task(&weight, 1.0, Some(&known))), [0, 0]);
        // What is always the same has no variance, but a square.
        let same = [1.0, 1.0, 1.0, 1.0];
        assert_eq!(codes(&task(&weight, 1.0, Some(&reads(2, 1, [&same, &same], true)))), [0, 0]);
        assert_eq!(codes(&task(&weight, 1.0, Some(&reads(2, 1, [&same, &same], false)))), [1, 0]);
    }

    #[test]
    fn no_code_leaves_its_type_and_no_pair_saturates() {
        let weight = Tensor::from_f32(&[2, 1], &[127.4, 127.4]);
        let together = [1.0, 1.0, -2.0, -2.0];
        let known = reads(2, 1, [&together, &together], true);
        assert_eq!(codes(&task(&weight, 1.0, Some(&known))), [127, 127]);
        let weight = Tensor::from_f32(&[2, 1], &[64.4, 64.4]);
        let pairs = Pairs::along(&[2, 1], &[0]).unwrap();
        let mut task = task(&weight, 1.0, Some(&known));
        assert_eq!(codes(&task), [65, 64]);
        task.pairs = Some(&pairs);
        assert_eq!(codes(&task), [64, 64]);
    }

    #[test]
    fn a_weight_that_does_not_fit_gets_the_nearest_codes() {
        let known = reads(2, 1, [&[1.0, 1.0], &[1.0, 1.0]], false);
        let weight = Tensor::from_f32(&[3, 1], &[0.4, 0.4, 0.6]);
        assert_eq!(codes(&task(&weight, 1.0, Some(&known))), [0, 0, 1]);
    }

    proptest! {
        #[test]
        fn never_worse_on_the_half_that_is_checked(
            w in prop::collection::vec(-9f32..9.0, 6 * 2), rows in prop::collection::vec(-1f32..1.0, 6 * 20), lean in 0f32..2.0,
        ) {
            // Rows that have something in common.
            let rows: Vec<f32> = rows.chunks(6).flat_map(|r| r.iter().map(|x| x + lean * r[0]).collect::<Vec<_>>()).collect();
            let known = reads(6, 2, [&rows[..60], &rows[60..]], false);
            let weight = Tensor::from_f32(&[6, 2], &w);
            let task = task(&weight, 0.5, Some(&known));
            let both = |q: &QuantizedWeight| -> Vec<f64> {
                let real = q.dequantized().unwrap();
                let error = |out: usize, row: &[f32]| {
                    row.iter().enumerate().map(|(j, x)| f64::from((w[j * 2 + out] - real[j * 2 + out]) * x)).sum::<f64>().powi(2)
                };
                (0..2).map(|out| rows.chunks(6).map(|row| error(out, row)).sum()).collect()
            };
            let (nearest, fitted) = (both(&rtn::round(&task).unwrap()), both(&round(&task).unwrap()));
            for (n, f) in nearest.iter().zip(&fitted) {
                // The diagonal has a little added, which is no error of the data.
                prop_assert!(*f <= n * 1.1 + 0.02, "{n} {f}");
            }
        }
    }
}
