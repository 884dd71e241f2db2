//! Round to nearest: every value gets the nearest code.

use super::{
    Round, RoundBlocks, WeightTask,
    blocks::{self, Blocks, Part},
};
use crate::{
    error::Result,
    quant::{QuantizedWeight, granularity::quantize_with},
};

/// It looks at the weight alone.
pub const READS: bool = false;

/// It rounds whole weights and channels.
pub const ROUND: Option<Round> = Some(round);
/// It rounds blocks.
pub const BLOCKS: Option<RoundBlocks> = Some(RoundBlocks { part: in_blocks, solves: false });

/// Rounds a weight to the nearest codes.
pub fn round(task: &WeightTask<'_>) -> Result<QuantizedWeight> {
    quantize_with(&task.weight.to_f32()?, task.weight.dims(), task.granularity, task.target, task.params.clone())
}

/// The nearest codes of all blocks, under the better of the two scales that [`blocks::starts`] has.
pub fn in_blocks(part: &Part<'_>) -> Result<Blocks> {
    Ok(part.each(|values, _, grid| {
        let [a, b] = blocks::starts(values, grid);
        let error = |(scale, zero)| blocks::error(values, &[], scale, zero, grid);
        if a != b && error(b) < error(a) { b } else { a }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::{DType, Tensor},
        quant::{Granularity, QParams, QuantTarget, pack},
        weights::by_name,
    };

    #[test]
    fn under_the_given_scales() {
        let weight = Tensor::from_f32(&[2, 2], &[1.27, -0.01, 2.54, 0.03]);
        let param = |scale| QParams { scale, zero_point: 0, dtype: DType::Int8 };
        let task = WeightTask {
            weight: &weight,
            target: QuantTarget::WEIGHT,
            granularity: Granularity::PerChannel(0),
            params: vec![param(0.01), param(0.02)],
            least: Vec::new(),
            pairs: None,
            reads: None,
        };
        let rounded = by_name("rtn").unwrap().round(&task).unwrap();
        assert_eq!(pack::unpack(&rounded.values).unwrap(), [127, -1, 127, 2]); // 1.5 to even
        assert_eq!(rounded.scales(), [0.01, 0.02]);
        assert!(by_name("nothing").is_err());
    }
}
