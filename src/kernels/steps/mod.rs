//! The steps of loading a model, in the runtime's order.

mod chains;
mod clamps;
mod codes;
mod conditions;
mod fold;
mod gemm;
mod groups;
mod layout;
mod merge;
mod pairs;
mod propagate;
mod requantize;
mod transposes;
mod unique;
mod weight_only;

use super::scratch::Scratch;

/// All steps. Each works on the main graph and its subgraphs.
pub(super) fn run(s: &mut Scratch) {
    unique::run(s);
    fold::run(s);
    merge::run(s);
    pairs::run(s);
    gemm::run(s);
    transposes::run(s);
    unique::run(s);
    propagate::run(s);
    requantize::run(s);
    unique::run(s);
    conditions::run(s);
    fold::run(s);
    pairs::run(s);
    merge::run(s);
    clamps::run(s);
    transposes::run(s);
    codes::run(s);
    groups::run(s);
    weight_only::run(s);
    chains::run(s);
    layout::run(s);
}
