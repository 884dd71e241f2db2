//! What several rules share.

pub mod biases;
pub mod clamps;
pub mod pairs;
pub mod weights;
