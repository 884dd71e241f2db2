//! The numbers of quantization: parameters from ranges, rounding, granularity, packing, integer operators. No graph, no
//! files.
//!
//! Of the graph's rooms only [`crate::ir::DType`] and [`crate::ir::Tensor`] are known here, as plain data.

pub mod arith;
pub mod bias;
pub mod coding;
pub mod error;
pub mod float8;
pub mod granularity;
pub mod grid;
pub mod halves;
pub mod integer;
pub mod lattice;
pub mod nbits;
pub mod pack;
pub mod params;
pub mod saturation;

pub use bias::{QuantizedBias, quantize_bias};
pub use granularity::{Granularity, QuantizedWeight, quantize_weight};
pub use grid::Grid;
pub use params::{QParams, QuantTarget, Range};
