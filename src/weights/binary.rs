//! Weights as a sign times a scale: of one bit.
//!
//! Rastegari et al., "XNOR-Net" (2016), section 3.1: the scale with the least squared error is the mean of the magnitudes.
//! Weights that are trained so already come out as they are; others lose most of what they say.

use super::{
    Round, RoundBlocks,
    blocks::{Blocks, Part},
};
use crate::error::{Error, Result};

/// It looks at the weight alone.
pub const READS: bool = false;

/// It is for blocks.
pub const ROUND: Option<Round> = None;
/// It rounds blocks.
pub const BLOCKS: Option<RoundBlocks> = Some(RoundBlocks { part: in_blocks, solves: false });

/// See the file's documentation: codes one below and one above the zero point, which only blocks of zeros have.
pub fn in_blocks(part: &Part<'_>) -> Result<Blocks> {
    let zero = part.layer.grid.zero.ok_or_else(|| Error::bug("signs have no zero point of their own"))?;
    let mut found = Blocks { codes: Vec::with_capacity(part.weights.len()), scales: Vec::new(), zeros: Vec::new() };
    for block in part.outputs().flat_map(|row| row.chunks(part.layer.block)) {
        let scale = magnitude(block.iter().map(|w| w.abs()));
        found.codes.extend(block.iter().map(|&w| match scale {
            // Where all is 0, neither sign is right.
            None => zero,
            Some(_) if w.is_sign_negative() => zero - 1,
            Some(_) => zero + 1,
        }));
        found.scales.push(scale.unwrap_or(1.0));
        found.zeros.push(zero);
    }
    Ok(found)
}

/// The mean of magnitudes; exactly theirs where all are the same. `None` where there are none, or none but 0.
pub(super) fn magnitude(all: impl Iterator<Item = f32> + Clone) -> Option<f32> {
    let first = all.clone().next().unwrap_or(0.0);
    if first.is_normal() && all.clone().all(|m| m == first) {
        return Some(first);
    }
    let (sum, count) = all.fold((0f64, 0usize), |(sum, n), m| (sum + f64::from(m), n + 1));
    let mean = (sum / count.max(1) as f64) as f32;
    mean.is_normal().then_some(mean)
}
