//! Pad: the amounts and the value became inputs with version 11.

use super::step::Step;
use crate::error::{Error, Result};

/// 2 → 11: `pads` and `value`.
pub(super) fn to_inputs(step: &mut Step<'_>) -> Result<()> {
    let x = step.input(0)?;
    let pads = step.take_ints("pads")?.ok_or_else(|| Error::malformed("lacks attribute \"pads\""))?;
    let value = step.take_float("value")?.unwrap_or(0.0);
    let pads = step.ints("pads", &pads);
    step.model.set_input(step.node, 1, Some(pads));
    if value != 0.0 && matches!(step.word("mode")?, None | Some("constant")) {
        let value = step.scalar("value", value, x)?;
        step.model.set_input(step.node, 2, Some(value));
    }
    Ok(())
}
