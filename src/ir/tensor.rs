//! Constant tensors. A clone never copies the elements.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use super::DType;
use crate::error::{Error, Result};

/// How the file kept the elements; the writer keeps to it, so that a round trip is the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stored {
    /// `raw_data`, or an external file.
    #[default]
    Raw,
    /// `raw_data`, with a `data_location` that says so: what ONNX's tools leave where they embed an external file.
    RawLocated,
    /// `float_data`, `int32_data`, … as old exporters write them.
    Typed,
}

/// Elements that are computed when they are written or first asked for, and not kept.
pub type Deferred = dyn Fn() -> Result<Bytes> + Send + Sync;

/// Where the elements are.
#[derive(Clone)]
pub enum TensorData {
    /// Little-endian, packed as `raw_data` is; a window of a memory map or owned. Never assume alignment.
    Bytes(Bytes),
    /// Computed on demand; the length is known from dtype and dims.
    Deferred(Arc<Deferred>),
    /// The elements of a string tensor.
    Strings(Arc<[Bytes]>),
}

/// A constant: dtype, dims, elements in row-major order.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    dims: Vec<usize>,
    data: TensorData,
    stored: Stored,
}

/// The number of elements of a shape; `None` where it exceeds the address space.
pub fn element_count(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

impl Tensor {
    /// A tensor over `bytes`, whose length must be what dtype and dims ask for.
    pub fn new(dtype: DType, dims: Vec<usize>, bytes: impl Into<Bytes>) -> Result<Self> {
        let bytes = bytes.into();
        if dtype == DType::String {
            return Err(Error::malformed("a string tensor cannot be made from raw bytes"));
        }
        let want = Self::raw_len(dtype, &dims)?;
        if bytes.len() != want {
            return Err(Error::malformed(format!(
                "tensor of type {dtype} and shape {dims:?} needs {want} bytes, has {}",
                bytes.len()
            )));
        }
        Ok(Self { dtype, dims, data: TensorData::Bytes(bytes), stored: Stored::Raw })
    }

    /// A tensor whose elements are computed when they are needed.
    pub fn deferred(dtype: DType, dims: Vec<usize>, make: Arc<Deferred>) -> Result<Self> {
        Self::raw_len(dtype, &dims)?;
        Ok(Self { dtype, dims, data: TensorData::Deferred(make), stored: Stored::Raw })
    }

    /// A tensor of byte strings.
    pub fn strings(dims: Vec<usize>, items: Vec<Bytes>) -> Result<Self> {
        if element_count(&dims) != Some(items.len()) {
            return Err(Error::malformed(format!("string tensor of shape {dims:?} has {} elements", items.len())));
        }
        let data = TensorData::Strings(items.into());
        Ok(Self { dtype: DType::String, dims, data, stored: Stored::Typed })
    }

    /// The length of `raw_data` for this type and shape.
    pub fn raw_len(dtype: DType, dims: &[usize]) -> Result<usize> {
        element_count(dims)
            .and_then(|n| dtype.byte_len(n))
            .filter(|&n| isize::try_from(n).is_ok())
            .ok_or_else(|| Error::malformed(format!("tensor of type {dtype} and shape {dims:?} is too large")))
    }

    /// The same tensor with another note of how the file kept it.
    #[must_use]
    pub fn with_stored(mut self, stored: Stored) -> Self {
        self.stored = stored;
        self
    }

    /// The same elements under another shape of the same count.
    pub fn reshaped(&self, dims: Vec<usize>) -> Result<Self> {
        if element_count(&dims) != Some(self.len()) {
            return Err(Error::malformed(format!("cannot reshape {:?} to {dims:?}", self.dims)));
        }
        Ok(Self { dims, ..self.clone() })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape; empty for a scalar.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Number of dims.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.dims.contains(&0)
    }

    /// How the file kept it.
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// The elements as kept.
    pub fn data(&self) -> &TensorData {
        &self.data
    }

    /// Whether its elements are computed when they are asked for, which may take long.
    pub fn is_deferred(&self) -> bool {
        matches!(self.data, TensorData::Deferred(_))
    }

    /// Bytes that the elements take; for strings the sum of their lengths.
    pub fn byte_len(&self) -> usize {
        match &self.data {
            TensorData::Strings(s) => s.iter().map(Bytes::len).sum(),
            _ => self.dtype.byte_len(self.len()).unwrap_or(usize::MAX),
        }
    }

    /// The elements as little-endian bytes, computed now if deferred. Strings have none.
    pub fn bytes(&self) -> Result<Bytes> {
        match &self.data {
            TensorData::Bytes(b) => Ok(b.clone()),
            TensorData::Deferred(make) => {
                let bytes = make()?;
                let want = self.byte_len();
                if bytes.len() == want {
                    Ok(bytes)
                } else {
                    Err(Error::bug(format!("deferred tensor gave {} bytes for {want}", bytes.len())))
                }
            }
            TensorData::Strings(_) => Err(Error::bug("a string tensor has no raw bytes")),
        }
    }

    fn words<const N: usize, T>(&self, of: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let bytes = self.bytes()?;
        Ok(bytes.chunks_exact(N).map(|c| of(c.try_into().expect("chunks_exact gives N bytes"))).collect())
    }

    /// The elements of any 16, 32 or 64 bit floating point tensor as `f32`.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.dtype {
            DType::Float => self.words(f32::from_le_bytes),
            DType::Double => self.words(|b| f64::from_le_bytes(b) as f32),
            DType::Float16 => self.words(|b| half::f16::from_le_bytes(b).to_f32()),
            DType::Bfloat16 => self.words(|b| half::bf16::from_le_bytes(b).to_f32()),
            other => Err(Error::malformed(format!("expected a floating point tensor, found {other}"))),
        }
    }

    /// The elements of any whole-byte integer or bool tensor as `i64`.
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        match self.dtype {
            DType::Int64 => self.words(i64::from_le_bytes),
            DType::Uint64 => self.words(|b| u64::from_le_bytes(b) as i64),
            DType::Int32 => self.words(|b| i64::from(i32::from_le_bytes(b))),
            DType::Uint32 => self.words(|b| i64::from(u32::from_le_bytes(b))),
            DType::Int16 => self.words(|b| i64::from(i16::from_le_bytes(b))),
            DType::Uint16 => self.words(|b| i64::from(u16::from_le_bytes(b))),
            DType::Int8 => self.words(|b: [u8; 1]| i64::from(b[0] as i8)),
            DType::Uint8 | DType::Bool => self.words(|b: [u8; 1]| i64::from(b[0])),
            other => Err(Error::malformed(format!("expected an integer tensor, found {other}"))),
        }
    }

    /// The only element as `f32`, of a scalar or any shape with one element.
    pub fn scalar_f32(&self) -> Option<f32> {
        (self.len() == 1).then(|| self.to_f32().ok()).flatten().map(|v| v[0])
    }

    /// The only element as `i64`.
    pub fn scalar_i64(&self) -> Option<i64> {
        (self.len() == 1).then(|| self.to_i64().ok()).flatten().map(|v| v[0])
    }

    /// A float tensor. The count of values must fit the dims.
    pub fn from_f32(dims: &[usize], values: &[f32]) -> Self {
        Self::from_le(DType::Float, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// An int64 tensor. The count of values must fit the dims.
    pub fn from_i64(dims: &[usize], values: &[i64]) -> Self {
        Self::from_le(DType::Int64, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// An int32 tensor. The count of values must fit the dims.
    pub fn from_i32(dims: &[usize], values: &[i32]) -> Self {
        Self::from_le(DType::Int32, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// A tensor of one-byte elements. The count of values must fit the dims.
    pub fn from_u8(dtype: DType, dims: &[usize], values: Vec<u8>) -> Self {
        Self::from_le(dtype, dims, values)
    }

    fn from_le(dtype: DType, dims: &[usize], bytes: Vec<u8>) -> Self {
        Self::new(dtype, dims.to_vec(), bytes).expect("the caller gives as many values as the dims ask for")
    }

    /// Whether two tensors hold the same type, shape and elements (not: stored alike).
    pub fn same_content(&self, other: &Self) -> bool {
        if self.dtype != other.dtype || self.dims != other.dims {
            return false;
        }
        match (&self.data, &other.data) {
            (TensorData::Bytes(a), TensorData::Bytes(b)) => a == b,
            (TensorData::Strings(a), TensorData::Strings(b)) => a == b,
            (TensorData::Deferred(a), TensorData::Deferred(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.dims)
    }
}
