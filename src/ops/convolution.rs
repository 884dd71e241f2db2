//! Convolutions.

use super::{
    ChannelAxis, Class, IntegerForm, OpSpec,
    Role::{Bias, Data, Weight},
    Slot::{self, Codes, Output},
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("Conv", Class::Product, &[Data, Weight, Bias])
        .channels(ChannelAxis::At(0))
        .written_as(IntegerForm::onnx("QLinearConv", &[Codes(0), Codes(1), Output, Slot::Bias(2)])),
    OpSpec::new("ConvTranspose", Class::Product, &[Data, Weight, Bias]).channels(ChannelAxis::Transposed),
];
