//! Codes of 4 and 2 bits as bytes: tract has no types for them.

use crate::{
    error::Result,
    ir::{DType, Model},
    quant::pack::{pack, unpack},
};

/// The model with its constants of less than 8 bits in 8, or `None` where it has none. A DequantizeLinear makes the same
/// numbers of them.
pub(super) fn small_integers(model: &Model) -> Result<Option<Model>> {
    let small = |d: DType| match d {
        DType::Int4 | DType::Int2 => Some(DType::Int8),
        DType::Uint4 | DType::Uint2 => Some(DType::Uint8),
        _ => None,
    };
    let mut wider: Option<Model> = None;
    for v in model.value_ids() {
        let Some(tensor) = model.value(v).constant() else { continue };
        let Some(dtype) = small(tensor.dtype()) else { continue };
        let codes = pack(dtype, tensor.dims(), &unpack(tensor)?).map_err(|e| e.value(model.value(v).name()))?;
        let wider = wider.get_or_insert_with(|| model.clone());
        wider.value_mut(v).ty = None;
        wider.set_initializer(v, Some(codes));
    }
    Ok(wider)
}
