//! Tensors of ours to tract's and back: one copy each.

use std::borrow::Cow;

use half::f16;
use tract_onnx::prelude::*;

use crate::{
    error::{Error, Result},
    ir::{DType, Tensor, TensorData},
    onnx_file,
    runtime::Observed,
};

type TractTensor = tract_onnx::prelude::Tensor;

/// The types that both sides have.
const TYPES: &[(DType, DatumType)] = &[
    (DType::Float, DatumType::F32),
    (DType::Float16, DatumType::F16),
    (DType::Double, DatumType::F64),
    (DType::Bool, DatumType::Bool),
    (DType::Uint8, DatumType::U8),
    (DType::Uint16, DatumType::U16),
    (DType::Uint32, DatumType::U32),
    (DType::Uint64, DatumType::U64),
    (DType::Int8, DatumType::I8),
    (DType::Int16, DatumType::I16),
    (DType::Int32, DatumType::I32),
    (DType::Int64, DatumType::I64),
];

/// tract's name of a type.
pub(super) fn datum_type(dtype: DType) -> Result<DatumType> {
    let found = TYPES.iter().find(|(d, _)| *d == dtype).map(|&(_, t)| t);
    found.ok_or_else(|| Error::runtime(format!("the built-in runtime does not have tensors of type {dtype}")))
}

fn dtype(datum: DatumType) -> Result<DType> {
    // tract counts dims in a type of its own; in ONNX they are int64.
    let datum = if datum == DatumType::TDim { DatumType::I64 } else { datum.unquantized() };
    let found = TYPES.iter().find(|(_, t)| *t == datum).map(|&(d, _)| d);
    found.ok_or_else(|| Error::runtime(format!("the model gives a tensor of type {datum:?}, which ONNX does not have")))
}

/// As [`to_tract`], and lets go of the pages that the elements were read from: a weight is not read again soon.
pub(super) fn weight_to_tract(tensor: &Tensor) -> Result<TractTensor> {
    let made = to_tract(tensor)?;
    if let TensorData::Bytes(bytes) = tensor.data() {
        onnx_file::release(bytes);
    }
    Ok(made)
}

/// Ours to tract's.
pub(super) fn to_tract(tensor: &Tensor) -> Result<TractTensor> {
    let datum = datum_type(tensor.dtype())?;
    let bytes = tensor.bytes()?;
    let mut made = TractTensor::zero_dt(datum, tensor.dims()).map_err(|e| Error::runtime(e.to_string()))?;
    let target = made.as_bytes_mut();
    if target.len() != bytes.len() {
        return Err(Error::bug(format!("a tensor of {} bytes for {}", target.len(), bytes.len())));
    }
    target.copy_from_slice(&bytes);
    if datum == DatumType::Bool {
        // Any other bit pattern than 0 and 1 is no bool of Rust's.
        target.iter_mut().for_each(|b| *b = u8::from(*b != 0));
    }
    Ok(made)
}

/// tract's to ours.
pub(super) fn from_tract(tensor: &TractTensor) -> Result<Tensor> {
    let dtype = dtype(tensor.datum_type())?;
    let tensor = if tensor.datum_type() == DatumType::TDim {
        tensor.cast_to::<i64>().map_err(|e| Error::runtime(e.to_string()))?
    } else {
        Cow::Borrowed(tensor)
    };
    let view = tensor.as_plain_ram().ok_or_else(|| Error::runtime("the model gives a tensor in an opaque layout"))?;
    Tensor::new(dtype, tensor.shape().to_vec(), view.as_bytes().to_vec())
}

/// A value of the running model.
pub(super) struct Value<'a>(pub(super) &'a TractTensor);

impl Observed for Value<'_> {
    fn dtype(&self) -> DType {
        dtype(self.0.datum_type()).unwrap_or(DType::String)
    }

    fn dims(&self) -> &[usize] {
        self.0.shape()
    }

    fn floats(&self) -> Result<Cow<'_, [f32]>> {
        let opaque = |e: TractError| Error::runtime(e.to_string());
        let view = self.0.try_as_plain_ram().map_err(opaque)?;
        match self.0.datum_type() {
            DatumType::F32 => Ok(Cow::Borrowed(view.as_slice::<f32>().map_err(opaque)?)),
            DatumType::F16 => Ok(view.as_slice::<f16>().map_err(opaque)?.iter().map(|v| v.to_f32()).collect()),
            DatumType::F64 => Ok(view.as_slice::<f64>().map_err(opaque)?.iter().map(|&v| v as f32).collect()),
            _ => Err(Error::bug(format!("a value of type {} was observed as floating point", self.dtype()))),
        }
    }

    fn to_tensor(&self) -> Result<Tensor> {
        from_tract(self.0)
    }
}
