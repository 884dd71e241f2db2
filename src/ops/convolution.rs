//! Convolutions.

use super::{
    ChannelAxis, Class, OpSpec,
    Role::{Bias, Data, Weight},
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("Conv", Class::Product, &[Data, Weight, Bias]).channels(ChannelAxis::At(0)),
    OpSpec::new("ConvTranspose", Class::Product, &[Data, Weight, Bias]).channels(ChannelAxis::Transposed),
];
