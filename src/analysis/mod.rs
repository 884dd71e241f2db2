//! What can be known about a model before anything is changed.

pub mod constants;
pub mod factors;
pub mod placement;
pub mod stand_ins;
pub mod types;
