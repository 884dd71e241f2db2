//! Several inputs side by side in one output.

use super::{
    Class, IntegerForm, OpSpec,
    Role::{Data, Parameter},
    Slot::{Codes, EachFrom, Output, Plain},
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("Concat", Class::Joining, &[Data])
        .written_as(IntegerForm::microsoft("QLinearConcat", &[Output, EachFrom(0)])),
    OpSpec::new("Where", Class::Joining, &[Parameter, Data, Data])
        .written_as(IntegerForm::microsoft("QLinearWhere", &[Plain(0), Codes(1), Codes(2), Output])),
];
