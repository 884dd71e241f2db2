//! qonvert turns a trained ONNX model into a smaller, faster ONNX model for an unchanged ONNX Runtime deployment.
//!
//! ```
//! use qonvert::{Config, Job, Settings, pipeline, report::terminal};
//!
//! # let folder = tempfile::tempdir().unwrap();
//! # let output = folder.path().join("digits_cnn.int8.onnx");
//! let mut config = Config::load(None, None)?; // a preset and a YAML file, here neither: preset `int8`
//! config.calibration.samples = Some(100);
//! config.proof.min_sqnr = Some(15.0); // dB
//! let settings = Settings::new(config)?;
//! let mut job = Job::new("models/digits_cnn.torchscript.onnx", output, &settings);
//! job.data = Some("models/digits_calib.npz".into());
//! job.evaluation = Some("models/digits_eval.npz".into()); // its labels give the accuracy
//! let report = pipeline::run(&job)?;
//! println!("{}", terminal::render(&report, false));
//! assert!(report.passed());
//! # Ok::<(), qonvert::Error>(())
//! ```
//!
//! [`pipeline`] is the way from file to file; its steps can be called one by one. Models are read with
//! [`onnx_file::read`], looked at and changed as [`ir::Model`], and run by a [`runtime::Runtime`].

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod analysis;
pub mod bench;
pub mod calibrate;
pub mod config;
pub mod diagnostics;
pub mod difference;
pub mod error;
pub mod files;
pub mod ir;
pub mod kernels;
pub mod lint;
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

pub use config::Config;
pub use error::{Error, ErrorKind, Result};
pub use pipeline::Job;
pub use report::Report;
pub use scheme::Settings;
