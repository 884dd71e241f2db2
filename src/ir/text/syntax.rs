//! What a text says, before names are resolved.

use crate::ir::{Tensor, Type};

/// A model.
#[derive(Debug, Default)]
pub(super) struct ModelText {
    pub(super) header: Header,
    pub(super) graph: GraphText,
    pub(super) functions: Vec<FunctionText>,
}

/// The `< key: value, … >` in front of a model or function.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub(super) ir_version: Option<i64>,
    pub(super) opset_imports: Option<Vec<(Option<String>, i64)>>,
    pub(super) producer_name: Option<String>,
    pub(super) producer_version: Option<String>,
    pub(super) domain: Option<String>,
    pub(super) overload: Option<String>,
    pub(super) model_version: Option<i64>,
    pub(super) doc_string: Option<String>,
    pub(super) metadata_props: Vec<(String, String)>,
}

/// A graph or a function's body.
#[derive(Debug, Default)]
pub(super) struct GraphText {
    pub(super) name: Option<String>,
    pub(super) inputs: Vec<ValueText>,
    pub(super) outputs: Vec<ValueText>,
    /// Initializers, and types of other values.
    pub(super) values: Vec<ValueText>,
    pub(super) nodes: Vec<NodeText>,
}

/// A function.
#[derive(Debug)]
pub(super) struct FunctionText {
    pub(super) header: Header,
    pub(super) attributes: Vec<String>,
    pub(super) defaults: Vec<AttrText>,
    /// Its name is the function's.
    pub(super) body: GraphText,
}

/// A value's name, with type and initial value where they are said.
#[derive(Debug)]
pub(super) struct ValueText {
    pub(super) ty: Option<Type>,
    pub(super) name: String,
    pub(super) initial: Option<Tensor>,
}

/// A node.
#[derive(Debug)]
pub(super) struct NodeText {
    pub(super) name: Option<String>,
    /// An empty name is an output that is left out.
    pub(super) outputs: Vec<ValueText>,
    pub(super) domain: Option<String>,
    pub(super) op_type: String,
    pub(super) overload: Option<String>,
    pub(super) attributes: Vec<AttrText>,
    /// An empty name is an input that is left out.
    pub(super) inputs: Vec<String>,
}

/// An attribute.
#[derive(Debug)]
pub(super) struct AttrText {
    pub(super) name: String,
    pub(super) value: AttrTextValue,
}

/// An attribute's value.
#[derive(Debug)]
pub(super) enum AttrTextValue {
    Float(f32),
    Int(i64),
    String(String),
    Tensor(Tensor, Option<String>),
    Graph(Box<GraphText>),
    Type(Type),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<String>),
    Tensors(Vec<(Tensor, Option<String>)>),
    Graphs(Vec<GraphText>),
    /// The name, and the `AttributeType` of the value that stands for it.
    Reference(String, i32),
}

/// The names of attribute types, by their number in `AttributeProto.AttributeType`.
pub(super) const ATTRIBUTE_TYPES: [&str; 15] = [
    "undefined",
    "float",
    "int",
    "string",
    "tensor",
    "graph",
    "floats",
    "ints",
    "strings",
    "tensors",
    "graphs",
    "sparse_tensor",
    "sparse_tensors",
    "type_proto",
    "type_protos",
];
