//! How fast points are: measured in ONNX Runtime in turns with the original, or as the target's cost model has it.

use std::time::Duration;

use crate::{
    bench::{self, Inputs, Interval, Limits},
    calibrate::Dataset,
    error::{Error, Result},
    ir::Model,
    runtime::onnxruntime::OnnxRuntime,
};

/// Rounds of one comparison, for each of the two times that both are loaded: enough to tell two percent on a quiet machine.
const LIMITS: Limits = Limits { rounds: 6, turn: Duration::from_millis(25), budget: Duration::from_secs(10) };

/// Where speeds come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpeedBy {
    /// ONNX Runtime where it is installed, else the cost model.
    Either,
    /// ONNX Runtime, which must be installed.
    Measured,
    /// The target's cost model, whatever is installed.
    Model,
}

/// The clock, or none.
pub(super) enum Speeds {
    Model,
    Measured { runtime: OnnxRuntime, inputs: Inputs },
}

impl Speeds {
    pub(super) fn open(by: SpeedBy, data: &Dataset) -> Result<Self> {
        let measured = |runtime| Ok(Self::Measured { runtime, inputs: bench::from_data(data, 1)? });
        match (by, OnnxRuntime::open(None)) {
            (SpeedBy::Model, _) => Ok(Self::Model),
            (_, Ok(runtime)) => measured(runtime),
            // A library that someone names shall be there.
            (SpeedBy::Either, Err(e)) if std::env::var_os("ORT_DYLIB_PATH").is_some_and(|p| !p.is_empty()) => Err(e),
            (SpeedBy::Either, Err(e)) => {
                log::info!("tune: speeds are those of the cost model: {e}");
                Ok(Self::Model)
            }
            (SpeedBy::Measured, Err(e)) => {
                let wrapped = Error::new(e.kind(), "speeds are measured in ONNX Runtime, which cannot be used");
                let wrapped = wrapped.help("install it, or take --speed model: the speeds of the target's cost model");
                Err(wrapped.source(e))
            }
        }
    }

    /// In one word with its version, for the state.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Model => "model".to_owned(),
            Self::Measured { runtime, .. } => format!("onnxruntime {}", runtime.version()),
        }
    }

    /// For the table.
    pub(super) fn words(&self, target: &str) -> String {
        match self {
            Self::Model => {
                format!(
                    "times the model's in float with operators fused, an estimate of the cost model of {target}; \
                     nothing is measured"
                )
            }
            Self::Measured { runtime, .. } => {
                format!("times the original's, measured in turns in ONNX Runtime {}, one thread", runtime.version())
            }
        }
    }

    pub(super) fn is_measured(&self) -> bool {
        matches!(self, Self::Measured { .. })
    }

    /// How many times as fast as the original a model is; `None` where nothing is measured.
    pub(super) fn of(&self, original: &Model, model: &Model) -> Result<Option<Interval>> {
        match self {
            Self::Model => Ok(None),
            Self::Measured { runtime, inputs } => {
                let speed = bench::speed_in(runtime, &inputs.tensors, original, model, LIMITS);
                speed.map(Some).map_err(|e| e.help("with --speed model nothing runs in ONNX Runtime"))
            }
        }
    }
}
