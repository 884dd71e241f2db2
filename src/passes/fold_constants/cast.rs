//! Conversions between element types.

use super::{
    Eval,
    args::{readable, tensor},
};
use crate::ir::{DType, Tensor};

pub(super) const EVALS: &[(&[&str], Eval)] = &[
    (&["Cast"], |a| {
        let to = DType::from_onnx(i32::try_from(a.node.int("to")?).ok()?)?;
        Some(vec![cast(a.tensor(0)?, to)?])
    }),
    (&["CastLike"], |a| Some(vec![cast(a.tensor(0)?, a.tensor(1)?.dtype())?])),
];

/// The tensor in another type. Floats become integers by cutting off; what does not fit (where runtimes differ) is left.
pub(super) fn cast(t: &Tensor, to: DType) -> Option<Tensor> {
    if t.dtype() == to {
        return readable(t).then(|| t.clone());
    }
    let bytes = if t.dtype().is_float() {
        let values: Vec<f64> = match t.dtype() {
            DType::Double => {
                t.bytes().ok()?.chunks_exact(8).filter_map(|c| Some(f64::from_le_bytes(c.try_into().ok()?))).collect()
            }
            _ => t.to_f32().ok()?.into_iter().map(f64::from).collect(),
        };
        match to {
            DType::Float => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
            DType::Double => values.iter().flat_map(|&v| v.to_le_bytes()).collect(),
            DType::Float16 => values.iter().flat_map(|&v| half::f16::from_f64(v).to_le_bytes()).collect(),
            DType::Bfloat16 => values.iter().flat_map(|&v| half::bf16::from_f64(v).to_le_bytes()).collect(),
            DType::Bool => values.iter().map(|&v| u8::from(v != 0.0)).collect(),
            _ => {
                let ints: Option<Vec<i64>> = values.iter().map(|&v| whole(v)).collect();
                integers(&ints?, to, true)?
            }
        }
    } else {
        let values = t.to_i64().ok()?;
        match to {
            DType::Float => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
            DType::Double => values.iter().flat_map(|&v| (v as f64).to_le_bytes()).collect(),
            DType::Float16 => values.iter().flat_map(|&v| half::f16::from_f64(v as f64).to_le_bytes()).collect(),
            DType::Bool => values.iter().map(|&v| u8::from(v != 0)).collect(),
            _ => integers(&values, to, false)?,
        }
    };
    tensor(to, t.dims(), bytes)
}

fn whole(v: f64) -> Option<i64> {
    (v.abs() < 9e18).then(|| v.trunc() as i64)
}

/// Integers of another width: cut to it, or refused where one does not fit.
fn integers(values: &[i64], to: DType, strict: bool) -> Option<Vec<u8>> {
    use DType::*;
    let (low, high) = match to {
        Int8 => (i64::from(i8::MIN), i64::from(i8::MAX)),
        Uint8 => (0, i64::from(u8::MAX)),
        Int16 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        Uint16 => (0, i64::from(u16::MAX)),
        Int32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        Uint32 => (0, i64::from(u32::MAX)),
        Int64 => (i64::MIN, i64::MAX),
        _ => return None,
    };
    if strict && values.iter().any(|v| !(low..=high).contains(v)) {
        return None;
    }
    let width = to.bits() / 8;
    Some(values.iter().flat_map(|v| v.to_le_bytes().into_iter().take(width)).collect())
}
