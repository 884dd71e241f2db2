//! Tests of passes from text to text, in the syntax of [`crate::ir::text`].
//!
//! ```text
//! #[test]
//! fn relu_of_relu() {
//!     check(run, "(float[2] x) => (y) { a = Relu(x) y = Relu(a) }", "(float[2] x) => (y) { y = Relu(x) }");
//!     check_skipped(run, "(float[2] x) => (y) { y = Elu(x) }", "not_a_relu");
//! }
//! ```

use super::{Context, remove_dead};
use crate::{
    error::Result,
    ir::{Model, text},
};

/// A pass's `run`.
pub(crate) type Run = fn(&mut Model, &mut Context) -> Result<usize>;

/// Runs the pass on `before` until it changes nothing more, verifies the model, and compares it with `after`.
///
/// What nothing reads is removed from the result first, as the next pass does. Names of nodes and graphs, declared types
/// of inner values and the order of initializers may differ; numbers may differ by a relative 1e-6, since `after` is
/// written by hand.
pub(crate) fn check(run: Run, before: &str, after: &str) {
    check_with(run, &mut Context::default(), before, after);
}

/// As [`check`], under a context of the caller's.
pub(crate) fn check_with(run: Run, cx: &mut Context, before: &str, after: &str) {
    let mut model = text::parse(before).unwrap_or_else(|e| panic!("\"before\" does not parse: {e}"));
    let mut changes = 0;
    for round in 0.. {
        let n = run(&mut model, cx).unwrap_or_else(|e| panic!("the pass failed: {e}"));
        model.verify().unwrap_or_else(|e| panic!("the pass broke the model: {e}\n{}", text::print(&model)));
        changes += n;
        if n == 0 {
            break;
        }
        assert!(round < 10, "the pass does not come to an end:\n{}", text::print(&model));
    }
    assert!(changes > 0, "the pass says that it changed nothing; diagnostics: {:?}", cx.diagnostics);
    remove_dead::run(&mut model, cx).expect("removing what nothing reads cannot fail");
    let after = text::parse(after).unwrap_or_else(|e| panic!("\"after\" does not parse: {e}"));
    let (got, want) = (canonical(model), canonical(after));
    assert!(alike(&got, &want), "the pass made\n{got}\ninstead of\n{want}");
}

/// The pass must leave `before` as it is, and (unless `reason_code` is empty) say why in a diagnostic of that code.
pub(crate) fn check_skipped(run: Run, before: &str, reason_code: &str) {
    let mut model = text::parse(before).unwrap_or_else(|e| panic!("\"before\" does not parse: {e}"));
    let (untouched, mut cx) = (text::print(&model), Context::default());
    let changes = run(&mut model, &mut cx).unwrap_or_else(|e| panic!("the pass failed: {e}"));
    let now = text::print(&model);
    assert!(changes == 0 && now == untouched, "the pass made {changes} changes:\n{now}");
    let codes: Vec<_> = cx.diagnostics.iter().map(|d| d.code).collect();
    assert!(reason_code.is_empty() || codes.contains(&reason_code), "no {reason_code:?} among {codes:?}");
}

fn canonical(mut model: Model) -> String {
    for g in model.graph_ids() {
        model.graph_mut(g).name = None;
    }
    let options =
        text::PrintOptions { max_elements: None, node_names: false, value_info: false, sort_initializers: true };
    text::print_with(&model, &options)
}

/// Equal but for the last digits of numbers.
fn alike(a: &str, b: &str) -> bool {
    let split = |s| str::split(s, |c: char| c.is_whitespace() || "<>()[]{},:=".contains(c)).filter(|t| !t.is_empty());
    let close = |(a, b): (&str, &str)| {
        let numbers = || Some((a.parse::<f64>().ok()?, b.parse::<f64>().ok()?));
        a == b || numbers().is_some_and(|(a, b)| (a - b).abs() <= 1e-6 * a.abs().max(b.abs()))
    };
    split(a).count() == split(b).count() && split(a).zip(split(b)).all(close)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_nodes_go_and_the_rest_is_compared() {
        let before = "g (float[2] x) => (float[2] y) <float w = {0.1}, float[2] a> { [n] a = Add(x, w) y = Neg(a) dead = Exp(x) }";
        check(
            remove_dead::run,
            before,
            "(float[2] x) => (float[2] y) <float w = {0.100000001}> { a = Add(x, w) y = Neg(a) }",
        );
        check_skipped(remove_dead::run, "(float[2] x) => (y) { y = Neg(x) }", "");
    }

    #[test]
    #[should_panic(expected = "instead of")]
    fn a_difference_is_seen() {
        check(remove_dead::run, "(x) => (y) { y = Neg(x) dead = Exp(x) }", "(x) => (y) { y = Abs(x) }");
    }
}
