//! What can be known about a model without running it.

pub mod constants;
