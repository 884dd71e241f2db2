//! Tensors of ours to ONNX Runtime's and back: one copy each.

use std::borrow::Cow;

use half::{bf16, f16};
use ort::value::{DynValue, Tensor as OrtTensor, TensorElementType, ValueType};

use crate::{
    error::{Error, Result},
    ir::{DType, Tensor, TensorData},
    runtime::Observed,
};

macro_rules! numeric {
    ($($dtype:ident, $ort:ident: $rust:ty;)*) => {
        fn numbers_to_ort(tensor: &Tensor) -> Result<DynValue> {
            let (dims, bytes) = (tensor.dims(), tensor.bytes()?);
            match tensor.dtype() {
                $(DType::$dtype => {
                    const N: usize = size_of::<$rust>();
                    let words = bytes.as_chunks::<N>().0;
                    made(dims, words.iter().map(|&w| <$rust>::from_le_bytes(w)).collect::<Vec<$rust>>())
                })*
                DType::Bool => made(dims, bytes.iter().map(|&b| b != 0).collect::<Vec<bool>>()),
                other => Err(Error::runtime(format!("ONNX Runtime cannot be given tensors of type {other} here"))),
            }
        }

        fn numbers_from_ort(value: &DynValue, ty: TensorElementType) -> Result<Tensor> {
            match ty {
                $(TensorElementType::$ort => {
                    const N: usize = size_of::<$rust>();
                    let (shape, data) = value.try_extract_tensor::<$rust>().map_err(failed)?;
                    let mut bytes = vec![0; N * data.len()];
                    for (to, from) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(data) {
                        *to = from.to_le_bytes();
                    }
                    Tensor::new(DType::$dtype, dims(shape)?, bytes)
                })*
                TensorElementType::Bool => {
                    let (shape, data) = value.try_extract_tensor::<bool>().map_err(failed)?;
                    Tensor::new(DType::Bool, dims(shape)?, data.iter().map(|&b| u8::from(b)).collect::<Vec<u8>>())
                }
                TensorElementType::String => {
                    let (shape, data) = value.try_extract_strings().map_err(failed)?;
                    Tensor::strings(dims(shape)?, data.into_iter().map(bytes::Bytes::from).collect())
                }
                other => Err(Error::runtime(format!("ONNX Runtime gave a tensor of type {other:?}, which is not read"))),
            }
        }

        fn dtype(ty: TensorElementType) -> Option<DType> {
            match ty {
                $(TensorElementType::$ort => Some(DType::$dtype),)*
                TensorElementType::Bool => Some(DType::Bool),
                TensorElementType::String => Some(DType::String),
                _ => None,
            }
        }
    };
}

numeric! {
    Float, Float32: f32;
    Float16, Float16: f16;
    Bfloat16, Bfloat16: bf16;
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

fn made<T>(dims: &[usize], elements: Vec<T>) -> Result<DynValue>
where
    T: ort::value::PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
{
    Ok(OrtTensor::from_array((dims.to_vec(), elements)).map_err(failed)?.into_dyn())
}

fn dims(shape: &[i64]) -> Result<Vec<usize>> {
    let dim = |&d: &i64| usize::try_from(d).map_err(|_| Error::runtime(format!("ONNX Runtime gave a dim of {d}")));
    shape.iter().map(dim).collect()
}

fn failed(error: ort::Error) -> Error {
    Error::runtime(format!("ONNX Runtime failed to hand over a tensor: {}", error.message()))
}

/// Ours to ONNX Runtime's.
pub(super) fn to_ort(tensor: &Tensor) -> Result<DynValue> {
    let TensorData::Strings(items) = tensor.data() else { return numbers_to_ort(tensor) };
    let text = |b: &bytes::Bytes| String::from_utf8_lossy(b).into_owned();
    let items: Vec<String> = items.iter().map(text).collect();
    Ok(OrtTensor::from_string_array((tensor.dims(), &items[..])).map_err(failed)?.into_dyn())
}

/// ONNX Runtime's to ours.
pub(super) fn from_ort(value: &DynValue) -> Result<Tensor> {
    numbers_from_ort(value, element_type(value)?)
}

fn element_type(value: &DynValue) -> Result<TensorElementType> {
    match value.dtype() {
        ValueType::Tensor { ty, .. } => Ok(*ty),
        other => Err(Error::runtime(format!("the model gives no tensor but {other}"))),
    }
}

/// A value of the running model.
pub(super) struct Value<'a> {
    value: &'a DynValue,
    dtype: DType,
    dims: Vec<usize>,
}

impl<'a> Value<'a> {
    pub(super) fn new(value: &'a DynValue) -> Result<Self> {
        let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
            return Err(Error::runtime("is no tensor when the model runs"));
        };
        let dtype = dtype(*ty);
        let dtype = dtype.ok_or_else(|| Error::runtime(format!("has type {ty:?}, which is not read")))?;
        Ok(Self { value, dtype, dims: dims(shape)? })
    }
}

impl Observed for Value<'_> {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn dims(&self) -> &[usize] {
        &self.dims
    }

    fn floats(&self) -> Result<Cow<'_, [f32]>> {
        match self.dtype {
            DType::Float => Ok(Cow::Borrowed(self.value.try_extract_tensor::<f32>().map_err(failed)?.1)),
            _ => self.to_tensor()?.to_f32().map(Cow::Owned),
        }
    }

    fn to_tensor(&self) -> Result<Tensor> {
        from_ort(self.value)
    }
}

/// A value that is known without a run: an input, or a constant.
pub(super) struct Known<'a>(pub(super) &'a Tensor);

impl Observed for Known<'_> {
    fn dtype(&self) -> DType {
        self.0.dtype()
    }

    fn dims(&self) -> &[usize] {
        self.0.dims()
    }

    fn floats(&self) -> Result<Cow<'_, [f32]>> {
        self.0.to_f32().map(Cow::Owned)
    }

    fn to_tensor(&self) -> Result<Tensor> {
        Ok(self.0.clone())
    }
}
