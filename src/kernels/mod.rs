//! What each node of a model becomes when a runtime loads it.
//!
//! A runtime rewrites a graph before it runs it: it moves conversions, merges and removes nodes, and makes integer
//! kernels of what stands between conversions. [`predict`] does the same steps, in the same order, to a scratch copy, with
//! the target's table of kernels; what is left of each node in the end is its fate. Nothing runs here, and the model
//! itself is not changed.
//!
//! [`check`] compares a prediction with the graph that the runtime itself makes.

pub mod check;
mod render;
mod scratch;
mod steps;
mod summary;
#[cfg(test)]
mod tests;
mod words;

use std::collections::HashSet;

use serde::Serialize;

pub use summary::{Stays, Summary, is_conversion};

use crate::{
    ir::{Model, NodeId},
    target::Target,
};

/// What is left of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Becomes {
    /// Computes in integers.
    Integer,
    /// Moves codes of 8 or 16 bits, or chooses among them.
    Moves,
    /// Computes in floating point numbers.
    Float,
    /// Converts to or from codes at every inference.
    Conversion,
    /// Nothing by itself: it is done by the kernel of another node.
    Part,
    /// Nothing: its results are constants, computed when the file is loaded.
    Folded,
    /// Nothing: it does nothing, or an equal node does it, or nobody reads it.
    Gone,
    /// Neither floating point numbers nor codes: shapes, indices, conditions, strings, control flow.
    Other,
}

/// One node of the main graph or of a subgraph.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeKernel {
    /// The node.
    #[serde(skip)]
    pub id: NodeId,
    /// Its name, or its first output's.
    pub name: String,
    /// Its operator, with the domain in front where it is not ONNX's.
    pub op: String,
    /// Whether it is a node of a subgraph.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub inner: bool,
    /// What is left of it.
    pub becomes: Becomes,
    /// The kernel that stands for it; for a part, the other node's.
    pub kernel: Option<String>,
    /// The node that does what it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
    /// Why it is not in integers, or why it converts at every inference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What becomes of a model.
#[derive(Debug, Clone)]
pub struct Prediction {
    /// Every node of the main graph and of its subgraphs, in order.
    pub nodes: Vec<NodeKernel>,
    /// The graph as the runtime would run it, as far as integers go: float fusions are not followed.
    pub loaded: Model,
    types: scratch::Dtypes,
    /// Its nodes that are computed when the file is loaded.
    folded: HashSet<NodeId>,
}

impl Prediction {
    /// Whether a node of the loaded graph is computed when the file is loaded.
    pub fn is_folded(&self, node: NodeId) -> bool {
        self.folded.contains(&node)
    }
}

/// Predicts what a target's runtime makes of each node of a model.
pub fn predict(model: &Model, target: &Target) -> Prediction {
    let mut scratch = scratch::Scratch::of(model, target);
    steps::run(&mut scratch);
    words::tell(model, scratch)
}
