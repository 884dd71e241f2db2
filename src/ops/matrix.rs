//! Matrix products.

use super::{
    ChannelAxis, Class, IntegerForm, OpSpec,
    Role::{Bias, Data, Weight},
    Slot::{self, Codes, OptionalOutput, Output},
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("MatMul", Class::Product, &[Data, Weight])
        .channels(ChannelAxis::Last)
        .written_as(IntegerForm::onnx("QLinearMatMul", &[Codes(0), Codes(1), Output])),
    OpSpec::new("Gemm", Class::Product, &[Data, Weight, Bias])
        .channels(ChannelAxis::TransB)
        .written_as(IntegerForm {
            fixed: &[("beta", 1.0)],
            ..IntegerForm::microsoft("QGemm", &[Codes(0), Codes(1), Slot::Bias(2), OptionalOutput])
        }),
];
