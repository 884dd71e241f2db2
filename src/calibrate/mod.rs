//! Calibration: which numbers the values of a model take on real data.

mod check_inputs;
pub mod collect;
pub mod dataset;
pub mod halves;
pub mod means;
pub mod moments;
pub mod observers;
pub mod table;

pub use check_inputs::{check_count, check_inputs};
pub use collect::{Watch, collect};
pub use dataset::{Dataset, DatasetOptions, InputSpec};
pub use means::{ChannelMeans, Means};
pub use observers::{Observer, TensorStats};
pub use table::Table;
