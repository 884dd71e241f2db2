//! TopK: `k` became an input with version 10.

use super::step::Step;
use crate::error::{Error, Result};

/// 1 → 10; the flags of version 11 default to the old meaning.
pub(super) fn to_input(step: &mut Step<'_>) -> Result<()> {
    let k = step.take_int("k")?.ok_or_else(|| Error::malformed("lacks attribute \"k\""))?;
    let v = step.ints("k", &[k]);
    step.model.set_input(step.node, 1, Some(v));
    Ok(())
}
