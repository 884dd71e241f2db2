//! Constants as 16-bit floats: large ones when they are written, with the pages of a mapped file given back behind.

use std::sync::Arc;

use crate::{
    error::Result,
    ir::{DType, Tensor},
    onnx_file,
    quant::halves::converted,
};

/// As [`converted`]; a tensor that is made when it is written is not made before.
pub fn halved(tensor: &Tensor, dtype: DType, bound: Option<f32>) -> Result<Tensor> {
    let made = converted(tensor, dtype, bound)?;
    if !made.is_deferred() || tensor.is_deferred() {
        return Ok(made);
    }
    let window = tensor.clone();
    let make = move || {
        let bytes = made.bytes()?;
        onnx_file::release(&window.bytes()?);
        Ok(bytes)
    };
    Tensor::deferred(dtype, tensor.dims().to_vec(), Arc::new(make))
}
