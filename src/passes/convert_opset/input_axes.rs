//! Attributes that became an optional second input: `axes` of the reductions, Squeeze and Unsqueeze, `split` of Split.

use super::step::Step;
use crate::error::{Error, Result};

/// ReduceSum and Squeeze 11 → 13, the other reductions 13 → 18. An empty list meant all axes, as an absent one does.
pub(super) fn optional(step: &mut Step<'_>) -> Result<()> {
    attribute_to_input(step, "axes").map(|_| ())
}

/// Unsqueeze 11 → 13.
pub(super) fn required(step: &mut Step<'_>) -> Result<()> {
    if attribute_to_input(step, "axes")? { Ok(()) } else { Err(Error::malformed("lacks attribute \"axes\"")) }
}

/// Split 11 → 13.
pub(super) fn split_sizes(step: &mut Step<'_>) -> Result<()> {
    attribute_to_input(step, "split").map(|_| ())
}

/// Split 13 → 18: equal parts ask for their number.
pub(super) fn split_count(step: &mut Step<'_>) -> Result<()> {
    if step.node().input(1).is_none() {
        let parts = step.node().outputs().len();
        step.set("num_outputs", i64::try_from(parts).unwrap_or(i64::MAX));
    }
    Ok(())
}

fn attribute_to_input(step: &mut Step<'_>, name: &str) -> Result<bool> {
    let Some(values) = step.take_ints(name)?.filter(|v| !v.is_empty()) else { return Ok(false) };
    let v = step.ints(name, &values);
    step.model.set_input(step.node, 1, Some(v));
    Ok(true)
}
