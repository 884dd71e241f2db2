//! Functions of one element, and clamps.

use super::{
    Class, IntegerForm, OpSpec,
    Role::{Data, Parameter},
    Slot::{Codes, Output},
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("LeakyRelu", Class::Arithmetic, &[Data])
        .written_as(IntegerForm::microsoft("QLinearLeakyRelu", &[Codes(0), Output])),
    OpSpec::new("Sigmoid", Class::Arithmetic, &[Data])
        .written_as(IntegerForm::microsoft("QLinearSigmoid", &[Codes(0), Output])),
    OpSpec::new("Softmax", Class::Arithmetic, &[Data])
        .written_as(IntegerForm { tells_opset: true, ..IntegerForm::microsoft("QLinearSoftmax", &[Codes(0), Output]) }),
    OpSpec::new("Relu", Class::Clamp, &[Data]),
    OpSpec::new("Clip", Class::Clamp, &[Data, Parameter]),
    // With a constant scalar operand.
    OpSpec::new("Max", Class::Clamp, &[Data, Parameter]),
    OpSpec::new("Min", Class::Clamp, &[Data, Parameter]),
];
