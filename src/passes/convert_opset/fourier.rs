//! DFT: the axis became an input with version 20.

use super::step::Step;
use crate::{error::Result, ir::Tensor};

/// 17 → 20: the old default is axis 1, the new one -2.
pub(super) fn axis_to_input(step: &mut Step<'_>) -> Result<()> {
    let axis = step.take_int("axis")?.unwrap_or(1);
    let v = step.constant("axis", Tensor::from_i64(&[], &[axis]));
    step.model.set_input(step.node, 2, Some(v));
    Ok(())
}
