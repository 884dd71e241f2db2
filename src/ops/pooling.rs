//! Means over windows.

use super::{Class, OpSpec, Role::Data};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("AveragePool", Class::Arithmetic, &[Data]),
    OpSpec::new("GlobalAveragePool", Class::Arithmetic, &[Data]),
];
