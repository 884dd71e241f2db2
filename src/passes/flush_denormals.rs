//! Sets weights that are denormal numbers (below 1.2e-38) to zero.
//!
//! ```text
//! before: w = {1.0, 3e-41}      after: w = {1.0, 0.0}
//! ```
//!
//! Weight decay drives dead channels there. Their products are far below the rounding of any sum they enter, but each
//! costs a processor a hundred times the time of a normal product: convolutions of real models run ten times slower.

use super::Context;
use crate::{
    error::Result,
    ir::{DType, Model, Tensor},
    onnx_file,
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut changes = 0;
    for v in model.value_ids() {
        let Some(t) = model.value(v).constant().filter(|t| t.dtype() == DType::Float) else { continue };
        // Bit patterns, so that nothing is computed with the slow numbers: an exponent of zero with a mantissa.
        let denormal = |w: &[u8]| w[3] & 0x7f == 0 && w[2] & 0x80 == 0 && (w[0] | w[1] | w[2]) != 0;
        if t.is_deferred() {
            continue;
        }
        let bytes = t.bytes()?;
        if !bytes.chunks_exact(4).any(denormal) {
            onnx_file::release(&bytes);
            continue;
        }
        let mut flushed = bytes.to_vec();
        for w in flushed.chunks_exact_mut(4).filter(|w| denormal(w)) {
            w.fill(0);
        }
        let tensor = Tensor::new(DType::Float, t.dims().to_vec(), flushed)?;
        model.set_initializer(v, Some(tensor));
        changes += 1;
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_denormals_change() {
        let mut model = Model::new(8);
        let values = [1.0, -1e-40, f32::MIN_POSITIVE, 1e-45, -0.0, f32::NAN];
        let v = model.add_initializer(model.main(), "w", Tensor::from_f32(&[6], &values));
        assert_eq!(run(&mut model, &mut Context::default()).unwrap(), 1);
        let after = model.value(v).constant().unwrap().to_f32().unwrap();
        assert_eq!(after[..5], [1.0, 0.0, f32::MIN_POSITIVE, 0.0, -0.0]);
        assert!(after[4].is_sign_negative() && after[5].is_nan());
        assert_eq!(run(&mut model, &mut Context::default()).unwrap(), 0);
    }
}
