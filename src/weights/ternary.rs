//! Weights as -1, 0 or 1 times a scale.
//!
//! Li, Zhang and Liu, "Ternary Weight Networks" (2016), section 2.2: what is under 0.7 times the mean magnitude becomes 0, and the scale
//! is the mean magnitude of the rest. Weights that are trained so already come out as they are.

use super::{
    Round, RoundBlocks,
    binary::magnitude,
    blocks::{Blocks, Part},
};
use crate::error::{Error, Result};

/// It looks at the weight alone.
pub const READS: bool = false;

/// It is for blocks.
pub const ROUND: Option<Round> = None;
/// It rounds blocks.
pub const BLOCKS: Option<RoundBlocks> = Some(RoundBlocks { part: in_blocks, solves: false });

/// The paper's share of the mean magnitude.
const THRESHOLD: f64 = 0.7;

/// See the file's documentation.
pub fn in_blocks(part: &Part<'_>) -> Result<Blocks> {
    let zero = part.layer.grid.zero.ok_or_else(|| Error::bug("ternary weights have no zero point of their own"))?;
    let mut found = Blocks { codes: Vec::with_capacity(part.weights.len()), scales: Vec::new(), zeros: Vec::new() };
    for block in part.outputs().flat_map(|row| row.chunks(part.layer.block)) {
        let threshold = threshold(block);
        let scale = magnitude(block.iter().map(|w| w.abs()).filter(|m| *m > threshold));
        found.codes.extend(block.iter().map(|&w| match w {
            _ if w.abs() <= threshold || scale.is_none() => zero,
            _ if w < 0.0 => zero - 1,
            _ => zero + 1,
        }));
        found.scales.push(scale.unwrap_or(1.0));
        found.zeros.push(zero);
    }
    Ok(found)
}

/// What becomes 0. Where all that is not 0 has one magnitude, that stays, however little of it there is.
fn threshold(block: &[f32]) -> f32 {
    let mut others = block.iter().map(|w| w.abs()).filter(|m| *m > 0.0);
    let Some(first) = others.next() else { return 0.0 };
    if others.all(|m| m == first) {
        return 0.0;
    }
    let mean = block.iter().map(|w| f64::from(w.abs())).sum::<f64>() / block.len().max(1) as f64;
    (THRESHOLD * mean) as f32
}

#[cfg(test)]
mod tests {
    use crate::{
        ir::{DType, Tensor},
        quant::pack,
        weights::{Grid, Layer, Layout, by_name},
    };

    #[test]
    fn blocks_of_zeros_stay_zeros() {
        for algorithm in ["binary", "ternary"] {
            let (codes, scales) = rounded(algorithm, &[0.0, -0.0, 1.5, -1.5, 1e-41, -1e-41], 2);
            assert_eq!(codes, [0, 0, 1, -1, 0, 0], "{algorithm}");
            assert_eq!(scales, [1.0, 1.5, 1.0], "{algorithm}");
        }
    }

    fn rounded(algorithm: &str, weights: &[f32], block: usize) -> (Vec<i32>, Vec<f32>) {
        let layout = Layout { outs: 1, depth: weights.len(), groups: 1, depth_first: false };
        let layer = Layer::new(layout, block, Grid::of(DType::Int2, true).unwrap(), None);
        let weight = Tensor::from_f32(&[1, weights.len()], weights);
        let found = layer.rounded(&weight, by_name(algorithm).unwrap(), true).unwrap();
        (pack::unpack(&found.codes).unwrap(), found.scales.to_f32().unwrap())
    }

    #[test]
    fn by_the_papers_rules() {
        assert_eq!(rounded("binary", &[1.0, -3.0, 2.0, -2.0], 4), (vec![1, -1, 1, -1], vec![2.0]));
        // 0.7 times the mean magnitude of 1.5 is 1.05.
        assert_eq!(rounded("ternary", &[1.0, -3.0, 1.0, -1.0], 4), (vec![0, -1, 0, 0], vec![3.0]));
        assert_eq!(rounded("ternary", &[0.0, 0.0], 2), (vec![0, 0], vec![1.0]));
    }

    #[test]
    fn trained_weights_come_out_exactly() {
        let a = 0.123_456_79_f32;
        assert_eq!(rounded("binary", &[a, -a, -a], 16), (vec![1, -1, -1], vec![a]));
        // A single one among many zeros, far below the paper's threshold.
        assert_eq!(rounded("ternary", &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -a], 16).0[7], -1);
        assert_eq!(rounded("ternary", &[a, 0.0, -a, 0.0], 16), (vec![1, 0, -1, 0], vec![a]));
    }
}
