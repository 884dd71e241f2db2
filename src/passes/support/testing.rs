//! Tests of passes: text in, text out; see [`crate::ir::testing`].

use crate::{
    error::Result,
    ir::{Model, testing},
    passes::{Context, remove_dead},
};

/// The nodes after a pass has run until it finds nothing more, and dead ones are removed.
pub fn after(pass: fn(&mut Model, &mut Context) -> Result<usize>, before: &str) -> String {
    after_at(18, pass, before)
}

/// As [`after`], for a model of some opset.
pub fn after_at(opset: i64, pass: fn(&mut Model, &mut Context) -> Result<usize>, before: &str) -> String {
    let mut model = testing::model(before);
    model.set_opset("", opset);
    let mut cx = Context::default();
    let mut rounds = 0;
    while pass(&mut model, &mut cx).expect("the pass fails") > 0 {
        model.verify().expect("the pass leaves a sound model");
        remove_dead::run(&mut model, &mut cx).expect("removing dead nodes does not fail");
        rounds += 1;
        assert!(rounds < 10, "the pass does not end");
    }
    testing::text(&model)
}
