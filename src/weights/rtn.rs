//! Round to nearest: each channel's largest value gets the last code, every value the nearest code.

use super::WeightTask;
use crate::{
    error::Result,
    quant::{
        QParams, QuantizedWeight, Range,
        granularity::{channel_params, quantize_with},
    },
};

/// Rounds a weight to the nearest codes.
pub fn round(task: &WeightTask<'_>) -> Result<QuantizedWeight> {
    let values = task.weight.to_f32()?;
    let dims = task.weight.dims();
    let mut params = channel_params(&values, dims, task.granularity, task.target)?;
    if let Some(scales) = task.scales {
        let zero_point = task.target.params(Range::new(-1.0, 1.0))?.zero_point;
        let given = |&scale: &f32| QParams { scale, zero_point, dtype: task.target.dtype };
        params = scales.iter().map(given).collect();
    }
    quantize_with(&values, dims, task.granularity, task.target, params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::Tensor,
        quant::{Granularity, QuantTarget, pack},
        weights::by_name,
    };

    #[test]
    fn own_scales_and_given_ones() {
        let weight = Tensor::from_f32(&[2, 2], &[1.27, -0.01, 2.54, 0.03]);
        let mut task = WeightTask {
            weight: &weight,
            target: QuantTarget::WEIGHT,
            granularity: Granularity::PerChannel(0),
            scales: None,
        };
        let round = by_name("rtn").unwrap().round;
        let own = round(&task).unwrap();
        assert_eq!(pack::unpack(&own.values).unwrap(), [127, -1, 127, 2]); // 1.5 to even
        task.scales = Some(&[0.02, 0.02]);
        let given = round(&task).unwrap();
        assert_eq!(pack::unpack(&given.values).unwrap()[2], 127);
        assert_eq!(given.scales(), [0.02, 0.02]);
        assert!(by_name("nothing").is_err());
    }
}
