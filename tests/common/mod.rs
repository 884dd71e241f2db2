//! Runs models in ONNX Runtime, for the tests that compare with it.
//!
//! The library is the one that `ORT_DYLIB_PATH` names; without it these tests say SKIPPED, loudly, and pass.

#![allow(dead_code)] // Each test file is a crate of its own and uses a part of this.

pub mod random;

use std::sync::OnceLock;

use ort::{
    environment::Environment,
    session::{Session, builder::GraphOptimizationLevel},
    value::{DynValue, Tensor as OrtTensor, TensorElementType, ValueType},
};
use qonvert::ir::{DType, Tensor};

/// ONNX Runtime, or `None` (said on stderr) where `ORT_DYLIB_PATH` is not set.
pub fn ort_environment() -> Option<&'static Environment> {
    static ENVIRONMENT: OnceLock<Option<Environment>> = OnceLock::new();
    let environment = ENVIRONMENT.get_or_init(|| {
        let path = std::env::var_os("ORT_DYLIB_PATH")?;
        let init = ort::init_from(std::path::PathBuf::from(&path));
        Some(init.unwrap_or_else(|e| panic!("ORT_DYLIB_PATH={path:?}: {e}")).build().expect("an ORT environment"))
    });
    if environment.is_none() {
        eprintln!("SKIPPED: ORT_DYLIB_PATH is not set, nothing was compared with ONNX Runtime");
    }
    environment.as_ref()
}

/// Runs an encoded model as ONNX Runtime would in production (every optimization, one thread). Returns its outputs in
/// order; `None` (and SKIPPED on stderr) without `ORT_DYLIB_PATH`. Panics where ONNX Runtime refuses the model or fails.
pub fn ort_run(bytes: &[u8], inputs: &[(&str, Tensor)]) -> Option<Vec<Tensor>> {
    Some(ort_try_run(bytes, inputs, true)?.unwrap_or_else(|e| panic!("ONNX Runtime: {e}")))
}

/// As [`ort_run`], with a choice of `optimize` (false: the graph runs as it stands) and the error as a value.
pub fn ort_try_run(bytes: &[u8], inputs: &[(&str, Tensor)], optimize: bool) -> Option<Result<Vec<Tensor>, String>> {
    let environment = ort_environment()?;
    Some(run(environment, bytes, inputs, optimize).map_err(|e| e.to_string()))
}

/// Writes the graph that ONNX Runtime makes of an encoded model when it loads it; false (and SKIPPED on stderr) without
/// `ORT_DYLIB_PATH`.
pub fn ort_optimize(bytes: &[u8], to: &std::path::Path) -> bool {
    let Some(environment) = ort_environment() else { return false };
    let load = || -> Result<Session, ort::Error> {
        let builder = Session::builder(environment)?.with_intra_threads(1)?;
        let builder = builder.with_optimization_level(GraphOptimizationLevel::All)?;
        builder.with_optimized_model_path(to)?.commit_from_memory(bytes)
    };
    load().unwrap_or_else(|e| panic!("ONNX Runtime: {e}"));
    true
}

fn run(env: &Environment, bytes: &[u8], inputs: &[(&str, Tensor)], optimize: bool) -> Result<Vec<Tensor>, ort::Error> {
    let level = if optimize { GraphOptimizationLevel::All } else { GraphOptimizationLevel::Disable };
    let builder = Session::builder(env)?.with_intra_threads(1)?;
    let mut session = builder.with_optimization_level(level)?.commit_from_memory(bytes)?;
    let feeds: Vec<(String, DynValue)> =
        inputs.iter().map(|(name, t)| Ok(((*name).to_owned(), to_ort(t)?))).collect::<Result<_, ort::Error>>()?;
    let names: Vec<String> = session.outputs().iter().map(|o| o.name().to_owned()).collect();
    let outputs = session.run(feeds)?;
    names.iter().map(|n| from_ort(outputs.get(n).expect("an output that the session lists"))).collect()
}

macro_rules! numeric {
    ($($dtype:ident, $ort:ident: $rust:ty;)*) => {
        fn to_ort(t: &Tensor) -> Result<DynValue, ort::Error> {
            let dims = t.dims().to_vec();
            let bytes = t.bytes().expect("a tensor of numbers");
            match t.dtype() {
                $(DType::$dtype => {
                    const N: usize = size_of::<$rust>();
                    let of = |c: &[u8]| <$rust>::from_le_bytes(c.try_into().expect("N bytes"));
                    let values: Vec<$rust> = bytes.chunks_exact(N).map(of).collect();
                    Ok(OrtTensor::from_array((dims, values))?.into_dyn())
                })*
                DType::Bool => {
                    let values: Vec<bool> = bytes.iter().map(|&b| b != 0).collect();
                    Ok(OrtTensor::from_array((dims, values))?.into_dyn())
                }
                other => panic!("the test helper has no {other} inputs"),
            }
        }

        fn from_ort(v: &DynValue) -> Result<Tensor, ort::Error> {
            let ValueType::Tensor { ty, .. } = v.dtype() else { panic!("output is no tensor: {:?}", v.dtype()) };
            let (dtype, dims, bytes): (DType, Vec<usize>, Vec<u8>) = match ty {
                $(TensorElementType::$ort => {
                    let (shape, data) = v.try_extract_tensor::<$rust>()?;
                    (DType::$dtype, dims(shape), data.iter().flat_map(|x| x.to_le_bytes()).collect())
                })*
                TensorElementType::Bool => {
                    let (shape, data) = v.try_extract_tensor::<bool>()?;
                    (DType::Bool, dims(shape), data.iter().map(|&b| u8::from(b)).collect())
                }
                other => panic!("the test helper has no {other:?} outputs"),
            };
            Ok(Tensor::new(dtype, dims, bytes).expect("as many bytes as the shape says"))
        }
    };
}

fn dims(shape: &[i64]) -> Vec<usize> {
    shape.iter().map(|&d| usize::try_from(d).expect("a dim of a result")).collect()
}

numeric! {
    Float, Float32: f32;
    Double, Float64: f64;
    Int8, Int8: i8;
    Int16, Int16: i16;
    Int32, Int32: i32;
    Int64, Int64: i64;
    Uint8, Uint8: u8;
    Uint16, Uint16: u16;
    Uint32, Uint32: u32;
    Uint64, Uint64: u64;
}
