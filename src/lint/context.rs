//! What rules are told of a model.

use std::collections::HashMap;

use super::{Times, support::pairs::Pair};
use crate::{
    analysis::{
        placement::{self, Shapes},
        stand_ins,
        types::{self, Types},
    },
    ir::{DType, Model, NodeId, ValueId},
    kernels::{self, Becomes, NodeKernel, Prediction},
    ops::{self, OpSpec, Role},
    passes::support::pairs::Linear,
    target::{Kernel, Target},
};

/// The form of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Float operators between Q/DQ pairs, whatever else there may be.
    Qdq,
    /// Integer operators with scales of their own: rules see them raised to Q/DQ form.
    Qoperator,
}

/// A model, and what follows from it.
pub struct Context<'a> {
    /// The model, in Q/DQ form.
    pub model: &'a Model,
    /// What runs it.
    pub target: &'a Target,
    /// The form of its file.
    pub form: Form,
    /// Types and shapes of its values.
    pub types: Types,
    /// Shapes in numbers, stand-ins for sizes that callers choose among them.
    pub shapes: Shapes,
    /// What each of its nodes becomes.
    pub prediction: Prediction,
    /// What each of them takes.
    pub times: Times,
    index: HashMap<NodeId, usize>,
}

impl<'a> Context<'a> {
    /// Looks at a model.
    pub fn of(model: &'a Model, target: &'a Target, form: Form) -> Self {
        let types = types::infer(model);
        let (shapes, _) = stand_ins::shapes(model);
        let prediction = kernels::predict(model, target);
        let times = Times::of(model, &prediction, &shapes, target);
        let index = prediction.nodes.iter().enumerate().map(|(i, n)| (n.id, i)).collect();
        Self { model, target, form, types, shapes, prediction, times, index }
    }

    /// The nodes of the main graph and its subgraphs, in order.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.model.nodes_below(self.model.main())
    }

    /// What becomes of a node.
    pub fn kernel(&self, n: NodeId) -> Option<&NodeKernel> {
        self.index.get(&n).map(|&i| &self.prediction.nodes[i])
    }

    /// What is left of a node.
    pub fn becomes(&self, n: NodeId) -> Option<Becomes> {
        self.kernel(n).map(|k| k.becomes)
    }

    /// Whether a node computes in float.
    pub fn is_float(&self, n: NodeId) -> bool {
        self.becomes(n) == Some(Becomes::Float)
    }

    /// Whether a conversion runs at every inference.
    pub fn converts(&self, n: NodeId) -> bool {
        self.becomes(n) == Some(Becomes::Conversion)
    }

    /// The integer kernel that a node could become.
    pub fn row(&self, n: NodeId) -> Option<&'a Kernel> {
        self.target.fused_kernel(self.model, n).ok()
    }

    /// The QuantizeLinear `q` with all that reads its codes.
    pub fn pair(&self, q: NodeId) -> Option<Pair> {
        Pair::of(self.model, &self.types, q)
    }

    /// Every QuantizeLinear whose codes DequantizeLinears alone read.
    pub fn pairs(&self) -> Vec<Pair> {
        self.nodes().into_iter().filter_map(|n| self.pair(n)).collect()
    }

    /// The DequantizeLinear that makes input `i` of a node.
    pub fn dequantized(&self, n: NodeId, i: usize) -> Option<Linear> {
        Linear::dequantized(self.model, self.model.node(n).input(i)?)
    }

    /// A node with a kernel whose data and weights are all dequantized.
    pub fn operator(&self, n: NodeId) -> Option<(&'static OpSpec, &'a Kernel)> {
        let (spec, row) = (ops::spec(self.model, n)?, self.row(n)?);
        let inputs = self.model.node(n).inputs();
        let operands = (0..inputs.len())
            .filter(|&i| inputs[i].is_some() && !matches!(spec.role(i), Role::Parameter | Role::Bias))
            .all(|i| self.dequantized(n, i).is_some());
        (operands && !inputs.is_empty()).then_some((spec, row))
    }

    /// Float and integer time of a node by the cost model.
    pub fn node_times(&self, n: NodeId) -> (f64, f64) {
        placement::node_times(self.model, self.target, &self.shapes, n)
    }

    /// Elements of a value, as far as they are known.
    pub fn elements(&self, v: ValueId) -> usize {
        self.shapes.elements(v)
    }

    /// What a value is called.
    pub fn name(&self, v: ValueId) -> &'a str {
        self.model.value(v).name()
    }

    /// A node in words: its operator and name.
    pub fn node(&self, n: NodeId) -> String {
        format!("{} {:?}", self.model.node(n).op_type, self.model.node_label(n))
    }

    /// The type that a value's codes have.
    pub fn dtype(&self, v: ValueId) -> Option<DType> {
        self.model.value(v).dtype().or_else(|| self.types.dtype(v))
    }
}
