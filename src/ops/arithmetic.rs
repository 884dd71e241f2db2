//! Element by element, with broadcasting.

use super::{
    Class, IntegerForm, OpSpec,
    Role::Data,
    Slot::{Codes, Output},
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("Add", Class::Arithmetic, &[Data, Data])
        .written_as(IntegerForm::microsoft("QLinearAdd", &[Codes(0), Codes(1), Output])),
    OpSpec::new("Mul", Class::Arithmetic, &[Data, Data])
        .written_as(IntegerForm::microsoft("QLinearMul", &[Codes(0), Codes(1), Output])),
];
