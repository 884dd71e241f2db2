//! Recurrent layers: products of the data and of the state, step by step.

use super::{
    ChannelAxis, Class, OpSpec,
    Role::{Bias, Data, Parameter, Weight},
};

// X, W, R, B, sequence_lens, initial_h, and for LSTM initial_c and the peepholes. W and R are `[directions, gates, …]`: their
// scales lie along the gates, separately for each direction.
pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("LSTM", Class::Recurrent, &[Data, Weight, Weight, Bias, Parameter, Data, Data, Parameter])
        .channels(ChannelAxis::At(1)),
    OpSpec::new("GRU", Class::Recurrent, &[Data, Weight, Weight, Bias, Parameter, Data]).channels(ChannelAxis::At(1)),
    OpSpec::new("RNN", Class::Recurrent, &[Data, Weight, Weight, Bias, Parameter, Data]).channels(ChannelAxis::At(1)),
];
