//! Clip: the bounds became inputs with version 11.

use super::step::Step;
use crate::error::Result;

/// 6 → 11: `min` and `max`; the old defaults, the bounds of `float`, are the new form's absent inputs.
pub(super) fn to_inputs(step: &mut Step<'_>) -> Result<()> {
    let x = step.input(0)?;
    for (i, name, default) in [(1, "min", f32::MIN), (2, "max", f32::MAX)] {
        if let Some(bound) = step.take_float(name)?.filter(|&bound| bound != default) {
            let v = step.scalar(name, bound, x)?;
            step.model.set_input(step.node, i, Some(v));
        }
    }
    Ok(())
}
