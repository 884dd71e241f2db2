//! Takes away empty inputs at the end of a node's list: they say the same as a shorter list, which more runtimes read.
//!
//! ```text
//! before: y = Conv(x, w, "")      after: y = Conv(x, w)
//! ```

use super::Context;
use crate::{error::Result, ir::Model};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut changes = 0;
    for n in model.all_nodes() {
        let inputs = model.node(n).inputs();
        let len = inputs.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        if len < inputs.len() {
            model.truncate_inputs(n, len);
            changes += 1;
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::run;
    use crate::passes::testing::{check, check_skipped};

    #[test]
    fn only_those_at_the_end() {
        check(
            run,
            r#"(float[1,1,4,4] x, float[1,1,3,3] w) => (y) { y = Conv(x, w, "") }"#,
            "(float[1,1,4,4] x, float[1,1,3,3] w) => (y) { y = Conv(x, w) }",
        );
        check(
            run,
            r#"(float[4] x, float m) => (y) { y = Clip(x, "", m, "") }"#,
            r#"(float[4] x, float m) => (y) { y = Clip(x, "", m) }"#,
        );
        check_skipped(run, r#"(float[4] x, float m) => (y) { y = Clip(x, "", m) }"#, "");
    }
}
