//! Tests of rules: the example in the documentation of each, and text to text.

use super::{Context, Form, LINTS, Lint, repair};
use crate::{
    ir::{Model, text},
    passes::{self, testing},
    target::Target,
};

fn target() -> Target {
    Target::load("onnxruntime-cpu").expect("built in")
}

/// How many findings a rule has in a model that this text describes.
pub(super) fn findings(lint: &Lint, text: &str) -> Vec<String> {
    let model = text::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let target = target();
    let cx = Context::of(&model, &target, Form::Qdq);
    (lint.find)(&cx).unwrap().iter().map(|f| f.sentence(&cx)).collect()
}

/// Mends a model with one rule. The name is that of a rule.
fn mend(name: &'static str, model: &mut Model) -> usize {
    let lint = super::by_name(name).expect("a rule");
    let (fixed, _) = repair(model, &target(), Form::Qdq, &[lint]).unwrap();
    fixed.iter().map(|f| f.findings.len()).sum()
}

/// The `before:` and `after:` of a file's documentation.
fn example(text: &str) -> (String, Option<String>) {
    let lines = text.lines().map_while(|l| l.strip_prefix("//!"));
    let code: Vec<&str> =
        lines.skip_while(|l| l.trim() != "```text").skip(1).take_while(|l| l.trim() != "```").collect();
    let code = code.join("\n");
    let code = code.trim().strip_prefix("before:").expect("an example begins with before:");
    match code.split_once("\n after:") {
        Some((before, after)) => (before.to_owned(), Some(after.to_owned())),
        None => (code.to_owned(), None),
    }
}

macro_rules! examples {
    ($($name:ident),* $(,)?) => {
        const RUNS: &[(&str, testing::Run)] = &[$((stringify!($name), |model: &mut Model, _: &mut passes::Context| Ok(mend(stringify!($name), model)))),*];
    };
}

examples! {
    unused_constants, old_opset, bad_zero_points, bad_scales, contrib_pairs, wrong_axis, int8_activations, constant_types,
    pairs_around_clamps, symmetric_clamps, unequal_scales, turned_weights, mixed_readers, bias_scales, idle_pairs, slow_kernels,
    weights_at_run_time, leftovers,
}

#[test]
fn each_rule_does_what_its_file_says() {
    let failed: Vec<&str> =
        LINTS.iter().map(|lint| lint.name).filter(|name| std::panic::catch_unwind(|| holds(name)).is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// Holds a rule against its example.
fn holds(name: &str) {
    {
        let lint = super::by_name(name).expect("a rule");
        let (before, after) = example(lint.text);
        let run = RUNS.iter().find(|(name, _)| *name == lint.name);
        match after {
            Some(after) => {
                assert!(!findings(lint, &before).is_empty(), "{} finds nothing in its example", lint.name);
                testing::check(run.expect("it has an example with a repair").1, &before, &after);
                assert!(findings(lint, &after).is_empty(), "{} finds something in what it made", lint.name);
            }
            // What depends on the processor has tests of its own.
            None if lint.name == "saturating_sums" => {}
            None => assert!(!findings(lint, &before).is_empty(), "{} finds nothing in its example", lint.name),
        }
    }
}
