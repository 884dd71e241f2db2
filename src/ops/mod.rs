//! Facts about operators, one file per family: constants, no control flow.
//!
//! An operator is described once, whatever form it is written in later. What a runtime makes of it stands in the target.

use crate::ir::{Model, Node, NodeId};

/// What an input is to its operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Data that flows through the network.
    Data,
    /// Learned weights: quantized by themselves when constant.
    Weight,
    /// Added to the sum: int32 with the product of the other scales.
    Bias,
    /// Shapes, axes, indices, bounds: never quantized.
    Parameter,
}

/// What an operator does with the numbers, as far as quantization cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Sums of products: where integer kernels gain.
    Product,
    /// New numbers from old ones, element by element or by pooling; the output has a scale of its own.
    Arithmetic,
    /// The output's elements are elements of input 0: one scale for both.
    Movement,
    /// The output's elements are elements of all data inputs; each side may have its own scale.
    Joining,
    /// Cuts off at one or both ends. What follows may saturate instead.
    Clamp,
    /// Sums of products of the data and of a state that goes from step to step: its range is known at run time only.
    Recurrent,
}

/// The axis of a weight along which output channels lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelAxis {
    /// No weight.
    None,
    /// Always this axis.
    At(usize),
    /// The last axis (MatMul's second operand, of any rank).
    Last,
    /// 0 if attribute `transB` is set, else 1.
    TransB,
    /// 1 within each group (ConvTranspose: `[C, M/group, …]`).
    Transposed,
}

/// One operator of ai.onnx.
#[derive(Debug, Clone, Copy)]
pub struct OpSpec {
    /// `op_type`.
    pub name: &'static str,
    /// What it does.
    pub class: Class,
    /// Roles of its inputs; the last one also holds for those behind it.
    pub inputs: &'static [Role],
    /// Where the weight's output channels lie.
    pub channel_axis: ChannelAxis,
    /// The operator that computes the same with codes, and makes codes.
    pub integer: Option<IntegerForm>,
    /// The operator that computes the same with codes, and makes numbers.
    pub to_float: Option<IntegerForm>,
}

impl OpSpec {
    const fn new(name: &'static str, class: Class, inputs: &'static [Role]) -> Self {
        Self { name, class, inputs, channel_axis: ChannelAxis::None, integer: None, to_float: None }
    }

    const fn channels(self, channel_axis: ChannelAxis) -> Self {
        Self { channel_axis, ..self }
    }

    const fn written_as(self, integer: IntegerForm) -> Self {
        Self { integer: Some(integer), ..self }
    }

    const fn to_float_as(self, to_float: IntegerForm) -> Self {
        Self { to_float: Some(to_float), ..self }
    }

    /// The role of input `i`.
    pub fn role(&self, i: usize) -> Role {
        self.inputs.get(i).or(self.inputs.last()).copied().unwrap_or(Role::Parameter)
    }

    /// The index of the input in this role.
    pub fn index_of(&self, role: Role) -> Option<usize> {
        self.inputs.iter().position(|&r| r == role)
    }

    /// The axis of a weight of `rank` that holds `node`'s output channels.
    pub fn weight_axis(&self, node: &Node, rank: usize) -> Option<usize> {
        match self.channel_axis {
            ChannelAxis::None => None,
            ChannelAxis::At(axis) => (axis < rank).then_some(axis),
            ChannelAxis::Last => rank.checked_sub(1).filter(|_| rank >= 2),
            ChannelAxis::TransB => Some(if node.int("transB").unwrap_or(0) != 0 { 0 } else { 1 }).filter(|&a| a < rank),
            ChannelAxis::Transposed => (rank > 1).then_some(1),
        }
    }
}

mod clamp;
mod halves;
mod integer;
mod storage;

pub use clamp::clamp_bounds;
pub use halves::{always_float, half_refused, type_attribute};
pub use integer::{GATHER_BLOCKS, IntegerForm, MICROSOFT, Slot, raised_by};
pub use storage::weight_axes;

macro_rules! ops {
    ($($family:ident),* $(,)?) => {
        $(mod $family;)*

        /// Every operator that is described, by family.
        pub const OPS: &[&[OpSpec]] = &[$($family::OPS),*];
    };
}

ops! { activation, arithmetic, convolution, joining, matrix, movement, pooling, recurrent }

/// The description of a node's operator; `None` for operators that always stay float.
pub fn spec(model: &Model, node: NodeId) -> Option<&'static OpSpec> {
    let node = model.node(node);
    if !node.in_onnx_domain() {
        return None;
    }
    OPS.iter().copied().flatten().find(|s| s.name == node.op_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_is_described_once() {
        let mut names: Vec<_> = OPS.iter().copied().flatten().map(|s| s.name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
