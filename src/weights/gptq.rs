//! Rounds the weights of an output one after the other, and lets those that are still to come make up for each error.
//!
//! Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022): for a linear
//! layer the error of its output is `e'Ge`, with the second moments `G` of what it reads, and the best answer to an error at
//! one place is known in closed form, from the inverse of `G` ([`super::factor`]). Places go in the order of how much they are
//! read, the most first ("act-order"); the scales of the blocks are those of [`super::mse`], chosen before. What is found is
//! then improved code by code, as [`super::adaround`] does.
//!
//! It is fitted to half of the data, and an output keeps it only if it is better on the other half, too; then it is fitted to
//! both. So too few data for the depth do no harm: those outputs get the codes of `mse`.

use rayon::prelude::*;

use super::{
    Round, RoundBlocks,
    adaround::descend,
    blocks::{Blocks, Grid, Part, code},
    factor::Factor,
    moments::{Half, with_shares},
    mse,
    rows::{Row, TOGETHER, costs},
};
use crate::error::Result;

/// It looks at what the layer reads.
pub const READS: bool = true;

/// It is for blocks: for 8 bits, `adaround` does as well.
pub const ROUND: Option<Round> = None;
/// It rounds blocks.
pub const BLOCKS: Option<RoundBlocks> = Some(RoundBlocks { part: in_blocks, solves: true });

/// See the file's documentation.
pub fn in_blocks(part: &Part<'_>) -> Result<Blocks> {
    let mut found = mse::in_blocks(part)?;
    let Some(halves) = part.layer.halves() else { return Ok(found) };
    let both = with_shares(halves);
    let Some([one, all]) = part.factors else { return Ok(found) };
    let grid = part.layer.grid;
    let mut rows = part.rows(&found);
    let kept: usize = rows
        .par_chunks_mut(TOGETHER)
        .map(|batch| {
            let tried: Vec<Row> = batch.iter().map(|row| fitted(row, one, &[(halves[0], 1.0)], grid)).collect();
            let checked = [costs(batch, halves[1]), costs(&tried, halves[1])];
            let better = |i: &usize| checked[1][*i] < checked[0][*i];
            let kept: Vec<usize> = (0..batch.len()).filter(better).collect();
            for &i in &kept {
                batch[i] = fitted(&batch[i], all, &both, grid);
            }
            kept.len()
        })
        .sum();
    log::debug!("gptq: {kept} of {} outputs", rows.len());
    found.codes = rows.into_iter().flat_map(|row| row.codes).collect();
    Ok(found)
}

/// An output with codes that make up for each other's errors.
fn fitted(row: &Row, factor: &Factor, halves: &[(&Half, f32)], grid: Grid) -> Row {
    let mut row = row.clone();
    let mut left: Vec<f32> = factor.order.iter().map(|&j| row.weights[j]).collect();
    for p in (0..left.len()).rev() {
        let (j, inverse) = (factor.order[p], factor.row(p));
        let (step, zero) = (row.steps[j], row.zeros[j]);
        row.codes[j] = code(left[p], 1.0 / step, zero, grid);
        let error = (left[p] - (row.codes[j] - zero) as f32 * step) / inverse[p];
        left[..p].iter_mut().zip(inverse).for_each(|(w, i)| *w -= error * i);
    }
    let mut errors = row.errors();
    let depth = errors.len();
    let mut slope = vec![0f32; depth];
    for (half, share) in halves {
        let own = half.slopes(&[&errors]);
        slope.iter_mut().zip(&own[0]).for_each(|(s, o)| *s += share * o);
    }
    descend(&mut row, &mut errors, halves, &mut slope, (grid.lo, grid.hi));
    row
}
