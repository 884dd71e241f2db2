//! Matrix products.

use super::{
    ChannelAxis, Class, OpSpec,
    Role::{Bias, Data, Weight},
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("MatMul", Class::Product, &[Data, Weight]).channels(ChannelAxis::Last),
    OpSpec::new("Gemm", Class::Product, &[Data, Weight, Bias]).channels(ChannelAxis::TransB),
];
