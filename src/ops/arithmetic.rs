//! Element by element, with broadcasting.

use super::{Class, OpSpec, Role::Data};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("Add", Class::Arithmetic, &[Data, Data]),
    OpSpec::new("Mul", Class::Arithmetic, &[Data, Data]),
];
