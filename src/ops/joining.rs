//! Several inputs side by side in one output.

use super::{
    Class, OpSpec,
    Role::{Data, Parameter},
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("Concat", Class::Joining, &[Data]),
    OpSpec::new("Where", Class::Joining, &[Parameter, Data, Data]),
];
