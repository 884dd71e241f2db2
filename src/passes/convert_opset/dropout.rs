//! Dropout: the mask became `bool` with version 10, the ratio an input with 12.

use super::step::Step;
use crate::{
    error::Result,
    ir::{Attr, DType, Tensor},
};

/// 7 → 10: the mask had the type of the data.
pub(super) fn bool_mask(step: &mut Step<'_>) -> Result<()> {
    let dtype = step.dtype(step.input(0)?);
    zero_mask(step, dtype)
}

/// 10 → 12: without `training_mode` the node is the identity, whatever the ratio.
pub(super) fn drop_ratio(step: &mut Step<'_>) -> Result<()> {
    step.take("ratio")?;
    zero_mask(step, DType::Bool)
}

/// What ONNX Runtime hands out as mask in inference: zeros up to version 10, ones from 12 on. Where somebody reads it,
/// the zeros stay.
fn zero_mask(step: &mut Step<'_>, dtype: DType) -> Result<()> {
    let x = step.input(0)?;
    let read = |&v: &_| !step.model.value(v).uses().is_empty();
    if let Some(mask) = step.node().output(1).filter(read) {
        let zero = Tensor::new(dtype, vec![1], vec![0; Tensor::raw_len(dtype, &[1])?])?;
        let shape = step.before("Shape", &[x], vec![]);
        let zeros = step.before("ConstantOfShape", &[shape], vec![Attr::new("value", zero)]);
        step.replace(mask, zeros);
    }
    step.model.truncate_outputs(step.node, 1);
    Ok(())
}
