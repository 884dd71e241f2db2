//! The proof: is the written model sound, and how far is it from the original?

pub mod changes;
pub mod check;
pub mod classes;
pub mod compare;
pub mod half_noise;
mod labels;
pub mod losses;
mod metrics;
pub mod noise;
mod parts;
mod reference;
mod rounded;
mod runnable;
pub mod sensitivity;
mod switches;
mod trials;
mod widened;

pub use check::{check, check_interface};
pub use compare::{Accuracy, Comparison, compare, compare_with};
pub use labels::Misfit;
pub use metrics::{OutputMetrics, one_answer};
pub use parts::Part;
pub use reference::Reference;

/// For tests of those who judge metrics.
#[cfg(test)]
pub(crate) mod testing {
    pub(crate) use super::metrics::Gathered;
}
