//! Whether both sides agree, and what to say where they do not.

use qonvert::{
    ir::{DType, Tensor},
    quant::{QParams, arith::dequantize_slice, integer::Computed, pack},
};

use super::draw::Drawn;

#[track_caller]
pub fn same_codes(ours: &Computed<i32>, theirs: &Tensor, what: &dyn std::fmt::Debug) {
    assert_eq!(ours.dims, theirs.dims(), "{what:?}");
    let theirs = pack::unpack(theirs).expect("codes");
    let wrong = (0..theirs.len()).filter(|&i| ours.values[i] != theirs[i]).collect::<Vec<_>>();
    let first = wrong.first().map(|&i| (i, ours.values[i], theirs[i]));
    assert!(
        wrong.is_empty(),
        "{} of {} differ, first (index, ours, theirs) {first:?}: {what:?}",
        wrong.len(),
        theirs.len()
    );
}

#[track_caller]
pub fn same_bits(ours: &Computed<f32>, theirs: &Tensor, what: &dyn std::fmt::Debug) {
    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(ours.dims, theirs.dims(), "{what:?}");
    assert_eq!(bits(&ours.values), bits(&theirs.to_f32().expect("numbers")), "{what:?}");
}

/// What a chain of Q and DQ around an operator gives: the codes, dequantized.
///
/// The runtime makes uint8 of int8 between Q and DQ when it loads a model, as [`unsigned`] does: hand in what that
/// gives.
#[track_caller]
pub fn same_reals(ours: &Computed<i32>, y: QParams, theirs: &Tensor, what: &dyn std::fmt::Debug) {
    let values = dequantize_slice(&ours.values, y);
    same_bits(&Computed { values, dims: ours.dims.clone() }, theirs, what);
}

/// The same reals as uint8. Kernels that add the zero point as `f32` can give other codes for them.
pub fn unsigned(x: &Drawn) -> Drawn {
    let by = if x.params.dtype == DType::Int8 { 128 } else { 0 };
    Drawn { codes: x.codes.iter().map(|c| c + by).collect(), dims: x.dims.clone(), params: as_unsigned(x.params) }
}

pub fn as_unsigned(p: QParams) -> QParams {
    QParams { zero_point: p.zero_point + if p.dtype == DType::Int8 { 128 } else { 0 }, dtype: DType::Uint8, ..p }
}
