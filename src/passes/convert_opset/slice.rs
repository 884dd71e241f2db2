//! Slice: everything became an input with version 10.

use super::step::Step;
use crate::error::{Error, Result};

/// 1 → 10: `starts`, `ends` and `axes`.
pub(super) fn to_inputs(step: &mut Step<'_>) -> Result<()> {
    for (i, name) in [(1, "starts"), (2, "ends"), (3, "axes")] {
        match step.take_ints(name)? {
            Some(values) => {
                let v = step.ints(name, &values);
                step.model.set_input(step.node, i, Some(v));
            }
            None if name == "axes" => {}
            None => return Err(Error::malformed(format!("lacks attribute {name:?}"))),
        }
    }
    Ok(())
}
