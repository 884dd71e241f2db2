//! qonvert turns a trained ONNX model into a smaller, faster ONNX model for an unchanged ONNX Runtime deployment.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod analysis;
pub mod calibrate;
pub mod config;
pub mod diagnostics;
pub mod error;
pub mod ir;
pub mod onnx_file;
pub mod ops;
pub mod passes;
pub mod pipeline;
pub mod plan;
pub mod quant;
pub mod report;
pub mod runtime;
pub mod scheme;
pub mod target;
pub mod validate;
pub mod weights;

pub use error::{Error, ErrorKind, Result};
