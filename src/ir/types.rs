//! Types of values, as a `TypeProto` says them.

use bytes::Bytes;

use super::DType;

/// One dim of a declared shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Dim {
    /// Nothing is said.
    #[default]
    Unknown,
    /// A number. Negative numbers, which some exporters write for "unknown", are kept as they are.
    Known(i64),
    /// A name: the same name is the same number in one run.
    Named(String),
}

impl Dim {
    /// The number, if it is one that a tensor can have.
    pub fn known(&self) -> Option<usize> {
        match self {
            Self::Known(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }
}

/// A declared shape.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    /// The dims, outermost first.
    pub dims: Vec<Dim>,
    /// The denotation of each dim that has one (`DATA_BATCH`, …), by index.
    pub denotations: Vec<(usize, String)>,
}

impl Shape {
    /// A shape of these dims without denotations.
    pub fn new(dims: Vec<Dim>) -> Self {
        Self { dims, denotations: Vec::new() }
    }

    /// The numbers, if all are known.
    pub fn known(&self) -> Option<Vec<usize>> {
        self.dims.iter().map(Dim::known).collect()
    }
}

/// The type of a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Type {
    /// What it is.
    pub kind: TypeKind,
    /// The `denotation` of the `TypeProto` (`IMAGE`, …).
    pub denotation: Option<String>,
}

/// The alternatives of a `TypeProto`.
#[derive(Debug, Clone, PartialEq)]
pub enum TypeKind {
    /// A dense tensor. The number is kept where no [`DType`] is known for it; no shape means unknown rank.
    Tensor {
        /// `elem_type`; `None` where the field is absent or names no type.
        dtype: Option<DType>,
        /// The shape; `None` is unknown rank.
        shape: Option<Shape>,
    },
    /// A sequence, map, optional, sparse or opaque type, or an empty one: carried as its encoded `TypeProto`.
    Other(Bytes),
}

impl Type {
    /// A tensor type.
    pub fn tensor(dtype: DType, shape: Option<Shape>) -> Self {
        Self { kind: TypeKind::Tensor { dtype: Some(dtype), shape }, denotation: None }
    }

    /// The element type of a tensor type.
    pub fn dtype(&self) -> Option<DType> {
        match &self.kind {
            TypeKind::Tensor { dtype, .. } => *dtype,
            TypeKind::Other(_) => None,
        }
    }

    /// The shape of a tensor type.
    pub fn shape(&self) -> Option<&Shape> {
        match &self.kind {
            TypeKind::Tensor { shape, .. } => shape.as_ref(),
            TypeKind::Other(_) => None,
        }
    }
}
