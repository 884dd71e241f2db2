//! Attributes of nodes, generic.

use bytes::Bytes;

use super::{GraphId, Tensor};

/// An attribute of a node.
#[derive(Debug, Clone)]
pub struct Attr {
    /// Name.
    pub name: String,
    /// Value.
    pub value: AttrValue,
    /// Documentation that the file carries.
    pub doc_string: Option<String>,
    /// Very old files leave the `type` field out; the writer then does so too.
    pub typed: bool,
}

/// The value of an attribute.
#[derive(Debug, Clone)]
pub enum AttrValue {
    /// `f`
    Float(f32),
    /// `i`
    Int(i64),
    /// `s`
    String(Bytes),
    /// `t`
    Tensor(NamedTensor),
    /// `g`: a subgraph
    Graph(GraphId),
    /// `floats`
    Floats(Vec<f32>),
    /// `ints`
    Ints(Vec<i64>),
    /// `strings`
    Strings(Vec<Bytes>),
    /// `tensors`
    Tensors(Vec<NamedTensor>),
    /// `graphs`
    Graphs(Vec<GraphId>),
    /// Inside a function's body: the caller's attribute of this name, of this `AttributeType`.
    Reference(String, i32),
    /// Sparse tensors and type protos: carried as the encoded `AttributeProto`.
    Other(Bytes),
}

/// A tensor in an attribute, with the words that the file gives it.
#[derive(Debug, Clone)]
pub struct NamedTensor {
    /// The tensor.
    pub tensor: Tensor,
    /// `name` of the `TensorProto`.
    pub name: Option<String>,
    /// `doc_string` of the `TensorProto`.
    pub doc_string: Option<String>,
    /// `metadata_props` of the `TensorProto`.
    pub metadata_props: Vec<(String, String)>,
}

impl From<Tensor> for NamedTensor {
    fn from(tensor: Tensor) -> Self {
        Self { tensor, name: None, doc_string: None, metadata_props: Vec::new() }
    }
}

macro_rules! from_rust {
    ($($of:ty => $make:expr;)*) => {$(
        impl From<$of> for AttrValue {
            fn from(value: $of) -> Self {
                let make: fn($of) -> AttrValue = $make;
                make(value)
            }
        }
    )*};
}

from_rust! {
    f32 => AttrValue::Float;
    i64 => AttrValue::Int;
    &str => |s| AttrValue::String(Bytes::copy_from_slice(s.as_bytes()));
    Vec<i64> => AttrValue::Ints;
    Vec<f32> => AttrValue::Floats;
    Tensor => |t| AttrValue::Tensor(t.into());
    GraphId => AttrValue::Graph;
}

impl Attr {
    /// An attribute without documentation.
    pub fn new(name: impl Into<String>, value: impl Into<AttrValue>) -> Self {
        Self { name: name.into(), value: value.into(), doc_string: None, typed: true }
    }

    /// The subgraphs in it.
    pub fn graphs(&self) -> &[GraphId] {
        match &self.value {
            AttrValue::Graph(g) => std::slice::from_ref(g),
            AttrValue::Graphs(gs) => gs,
            _ => &[],
        }
    }
}
