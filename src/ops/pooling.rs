//! Means over windows.

use super::{
    Class, IntegerForm, OpSpec,
    Role::Data,
    Slot::{Codes, Output},
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("AveragePool", Class::Arithmetic, &[Data])
        .written_as(IntegerForm::microsoft("QLinearAveragePool", &[Codes(0), Output])),
    OpSpec::new("GlobalAveragePool", Class::Arithmetic, &[Data])
        .written_as(IntegerForm::microsoft("QLinearGlobalAveragePool", &[Codes(0), Output])),
];
