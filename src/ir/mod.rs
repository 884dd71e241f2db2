//! The graph in memory: ours, lossless, and the same for the main graph, subgraphs and function bodies.
//!
//! One arena set per [`Model`], not per graph: a value captured by an `If` body is an ordinary use, and every edit is
//! right inside subgraphs. Operator types stay strings and attributes stay generic. Only [`edit`] touches links.

pub mod attr;
pub mod copy;
pub mod dtype;
pub mod edit;
pub mod id;
pub mod info;
pub mod model;
pub(crate) mod scopes;
mod sort;
pub mod tensor;
#[cfg(test)]
pub mod testing;
pub mod text;
pub mod types;
pub mod verify;

pub use attr::{Attr, AttrValue};
pub use dtype::DType;
pub use edit::{NodeSpec, Place};
pub use id::{GraphId, NodeId, ValueId};
pub use model::{Function, Graph, Model, Node, Use, Value};
pub use tensor::{Stored, Tensor, TensorData};
pub use types::{Dim, Shape, Type};
