//! Matrix products.

use super::{
    ChannelAxis, Class, IntegerForm, OpSpec,
    Role::{Bias, Data, Weight},
    Slot::{self, Codes, OnlyCodes, OptionalOutput, Output, Scale, ZeroPoint},
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("MatMul", Class::Product, &[Data, Weight])
        .channels(ChannelAxis::Last)
        .written_as(IntegerForm::onnx("QLinearMatMul", &[Codes(0), Codes(1), Output]))
        .to_float_as(IntegerForm::microsoft(
            "MatMulIntegerToFloat",
            &[OnlyCodes(0), OnlyCodes(1), Scale(0), Scale(1), ZeroPoint(0), ZeroPoint(1)],
        )),
    OpSpec::new("Gemm", Class::Product, &[Data, Weight, Bias]).channels(ChannelAxis::TransB).written_as(IntegerForm {
        fixed: &[("beta", 1.0)],
        ..IntegerForm::microsoft("QGemm", &[Codes(0), Codes(1), Slot::Bias(2), OptionalOutput])
    }),
];
