//! Constants that 16 bits cannot hold.

use super::{Work, short};
use crate::{
    error::Result,
    ir::{DType, Tensor},
    onnx_file,
    quant::halves::{largest, rounded},
};

/// Rounding must leave this much of a constant or value, dB. Numbers in the normal range of float16 keep 72 dB, of bfloat16 54.
pub(super) fn least_sqnr(dtype: DType) -> f64 {
    if dtype == DType::Float16 { 50.0 } else { 40.0 }
}

/// Keeps nodes that read such constants in 32 bits.
pub(super) fn look(work: &mut Work<'_>) -> Result<()> {
    let model = work.model();
    for v in model.value_ids() {
        let value = model.value(v);
        let Some(t) = value.initializer().filter(|t| t.dtype() == DType::Float) else { continue };
        if work.limited.contains_key(&v) {
            continue;
        }
        if let Some(reason) = reason(t, work.task.dtype).map_err(|e| e.value(value.name()))? {
            work.keep_value(v, &reason);
        }
    }
    for n in work.nodes.clone() {
        let Some(t) = model.node(n).tensor("value").filter(|t| t.dtype() == DType::Float) else { continue };
        let limited = model.node(n).output(0).is_some_and(|v| work.limited.contains_key(&v));
        if !limited && let Some(reason) = reason(t, work.task.dtype)? {
            work.keep(n, format!("what it makes {reason}"));
        }
    }
    Ok(())
}

/// Looks at each number of a tensor of 32-bit floats. Pages of a mapped file are given back behind.
pub(super) fn each(t: &Tensor, mut look: impl FnMut(f32)) -> Result<()> {
    const AT_A_TIME: usize = 1 << 22;
    let bytes = t.bytes()?;
    for chunk in bytes.chunks(AT_A_TIME) {
        let numbers = chunk.chunks_exact(4).filter_map(|c| <[u8; 4]>::try_from(c).ok());
        numbers.for_each(|c| look(f32::from_le_bytes(c)));
        if chunk.len() == AT_A_TIME {
            onnx_file::release(chunk);
        }
    }
    Ok(())
}

/// Why a constant needs 32 bits.
pub(super) fn reason(t: &Tensor, dtype: DType) -> Result<Option<String>> {
    let most = largest(dtype);
    let (mut signal, mut noise, mut greatest) = (0.0f64, 0.0f64, 0.0f32);
    each(t, |x| {
        if x.is_finite() {
            greatest = greatest.max(x.abs());
            let error = f64::from(x - rounded(dtype, x));
            signal += f64::from(x) * f64::from(x);
            noise += error * error;
        }
    })?;
    if greatest > most {
        return Ok(Some(format!("is a constant that overflows: {} of at most {}", short(greatest), short(most))));
    }
    let sqnr = if noise > 0.0 { 10.0 * (signal / noise).log10() } else { f64::INFINITY };
    let text = format!("is a constant too small for 16 bits: of at most {}", short(greatest));
    Ok((sqnr < least_sqnr(dtype)).then_some(text))
}
