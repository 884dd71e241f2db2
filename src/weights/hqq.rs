//! Half-quadratic quantization: scales (or zero points) under which most weights are nearly right, at the expense of a few.
//!
//! Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023): the errors are counted by a norm with
//! p = 0.7, under which few large ones are better than many small ones, and split off by a second variable: once it is shrunk
//! ([`shrunk`]), what remains is least squares. The paper moves zero points in real numbers; codes of DequantizeLinear have
//! whole ones, so a block moves its zero point to the nearest of those, and where that stays, or is fixed, its scale.
//! It needs no data. Nothing is taken that has a greater squared error than what [`super::rtn`] starts with, where weights count as
//! much as what they are multiplied with, if that is known.

use super::{
    Round, RoundBlocks,
    blocks::{self, Blocks, Grid, Part},
    rtn,
};
use crate::error::Result;

/// It looks at what the layer reads.
pub const READS: bool = true;

/// It is for blocks.
pub const ROUND: Option<Round> = None;
/// It rounds blocks.
pub const BLOCKS: Option<RoundBlocks> = Some(RoundBlocks { part: in_blocks, solves: false });

/// The paper's numbers: norm, weight of the split and by how much it grows, and steps.
const P: f32 = 0.7;
const BETA: f32 = 10.0;
const GROWTH: f32 = 1.01;
const STEPS: usize = 20;

/// See the file's documentation.
pub fn in_blocks(part: &Part<'_>) -> Result<Blocks> {
    part.nearer(part.each(choose), || rtn::in_blocks(part))
}

fn choose(values: &[f32], matters: &[f32], grid: Grid) -> (f32, i32) {
    let most = values.iter().fold(0f32, |m, w| m.max(w.abs()));
    if most == 0.0 {
        return blocks::starts(values, grid)[0];
    }
    let mut best: Option<(f32, (f32, i32))> = None;
    for start in blocks::starts(values, grid) {
        let (mut now, mut beta) = (start, BETA);
        for _ in 0..=STEPS {
            let cost = blocks::error(values, matters, now.0, now.1, grid);
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, now));
            }
            let next = step(values, now, beta, most, grid);
            if next == now || !next.0.is_normal() {
                break;
            }
            now = next;
            beta *= GROWTH;
        }
    }
    best.map_or(blocks::starts(values, grid)[0], |(_, found)| found)
}

/// One step of both variables.
fn step(values: &[f32], (scale, zero): (f32, i32), beta: f32, unit: f32, grid: Grid) -> (f32, i32) {
    let (mut above, mut below, mut shift) = (0f32, 0f32, 0f32);
    for &w in values {
        let q = blocks::code(w, 1.0 / scale, zero, grid);
        let real = (q - zero) as f32 * scale;
        // Weights as if the greatest were 1, as those are that the paper's numbers are for.
        let kept = w - shrunk((w - real) / unit, beta) * unit;
        let whole = (q - zero) as f32;
        above += kept * whole;
        below += whole * whole;
        shift += q as f32 - kept / scale;
    }
    let moved = ((shift / values.len() as f32).round() as i32).clamp(grid.lo, grid.hi);
    match grid.zero {
        None if moved != zero => (scale, moved),
        _ => (if below > 0.0 { above / below } else { scale }, zero),
    }
}

/// The generalized soft threshold of the paper.
fn shrunk(x: f32, beta: f32) -> f32 {
    let size = x.abs();
    if size == 0.0 { 0.0 } else { x.signum() * (size - size.powf(P - 1.0) / beta).max(0.0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ir::DType;

    #[test]
    fn a_few_large_weights_cost_the_many_less() {
        // 31 small weights and one that is ten times as large.
        let values: Vec<f32> = (0..32).map(|i| if i == 5 { 10.0 } else { (i as f32 * 0.7).sin() }).collect();
        for symmetric in [true, false] {
            let grid = Grid::of(DType::Int4, symmetric).unwrap();
            let first = blocks::starts(&values, grid)[0];
            let found = choose(&values, &[], grid);
            let cost = |p: (f32, i32)| blocks::error(&values, &[], p.0, p.1, grid);
            assert!(cost(found) < cost(first), "{symmetric}: {found:?} {first:?}");
        }
    }

    proptest! {
        #[test]
        fn never_worse_than_the_start(values in prop::collection::vec(-3f32..3.0, 1..40), symmetric: bool) {
            let grid = Grid::of(DType::Int2, symmetric).unwrap();
            let (scale, zero) = choose(&values, &[], grid);
            let found = blocks::error(&values, &[], scale, zero, grid);
            for (scale, zero) in blocks::starts(&values, grid) {
                prop_assert!(found <= blocks::error(&values, &[], scale, zero, grid) * 1.001);
            }
        }
    }
}
