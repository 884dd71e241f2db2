//! Functions of one element, and clamps.

use super::{
    Class, OpSpec,
    Role::{Data, Parameter},
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("LeakyRelu", Class::Arithmetic, &[Data]),
    OpSpec::new("Sigmoid", Class::Arithmetic, &[Data]),
    OpSpec::new("Softmax", Class::Arithmetic, &[Data]),
    OpSpec::new("Relu", Class::Clamp, &[Data]),
    OpSpec::new("Clip", Class::Clamp, &[Data, Parameter]),
    // With a constant scalar operand.
    OpSpec::new("Max", Class::Clamp, &[Data, Parameter]),
    OpSpec::new("Min", Class::Clamp, &[Data, Parameter]),
];
