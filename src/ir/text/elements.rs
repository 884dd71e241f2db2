//! The elements of tensors as text.

use bytes::Bytes;
use half::{bf16, f16};

use crate::{
    error::{Error, Result},
    ir::{DType, Tensor},
};

/// A tensor of numbers as written.
pub(super) fn numbers(dtype: DType, dims: Vec<usize>, items: &[String]) -> Result<Tensor> {
    let want = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let pair = if matches!(dtype, DType::Complex64 | DType::Complex128) { 2 } else { 1 };
    if want.and_then(|n| n.checked_mul(pair)) != Some(items.len()) {
        let want = want.map_or_else(|| "too large a number of".to_owned(), |n| (n * pair).to_string());
        return Err(Error::malformed(format!(
            "{} numbers are written for a tensor of shape {dims:?}, which has {want} elements",
            items.len()
        )));
    }
    let bytes = match dtype.bits() {
        bits @ (2 | 4 | 6) => pack(bits, items.iter().map(|s| code(dtype, s)).collect::<Result<_>>()?),
        _ => items.iter().map(|s| element(dtype, s)).collect::<Result<Vec<_>>>()?.concat(),
    };
    Tensor::new(dtype, dims, bytes)
}

/// A tensor of strings.
pub(super) fn strings(dims: Vec<usize>, items: Vec<String>) -> Result<Tensor> {
    Tensor::strings(dims, items.into_iter().map(Bytes::from).collect())
}

fn element(dtype: DType, s: &str) -> Result<Vec<u8>> {
    use DType::*;
    Ok(match dtype {
        Float | Complex64 => float(s)?.0.to_le_bytes().into(),
        Double | Complex128 => float(s)?.1.to_le_bytes().into(),
        Float16 => f16::from_f64(float(s)?.1).to_le_bytes().into(),
        Bfloat16 => bf16::from_f64(float(s)?.1).to_le_bytes().into(),
        _ => {
            let n = integer(dtype, s)?;
            n.to_le_bytes()[..dtype.bits() / 8].to_vec()
        }
    })
}

/// Both precisions are parsed from the text: rounding twice would not give the nearest f32.
fn float(s: &str) -> Result<(f32, f64)> {
    let wrong = || Error::malformed(format!("{s:?} is no number"));
    Ok((s.parse().map_err(|_| wrong())?, s.parse().map_err(|_| wrong())?))
}

fn integer(dtype: DType, s: &str) -> Result<i128> {
    let s = if dtype == DType::Bool { s.replace("true", "1").replace("false", "0") } else { s.to_owned() };
    let n: i128 = s.parse().map_err(|_| Error::malformed(format!("{s:?} is no whole number")))?;
    let signed = matches!(dtype.name().as_bytes()[0], b'i');
    let bits = if dtype == DType::Bool { 1 } else { dtype.bits() };
    let (low, high) =
        if signed { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) };
    if (low..=high).contains(&n) {
        Ok(n)
    } else {
        Err(Error::malformed(format!("{n} is outside of {dtype}'s {low} to {high}")))
    }
}

fn code(dtype: DType, s: &str) -> Result<u8> {
    Ok(integer(dtype, s)? as u8 & ((1u16 << dtype.bits()) - 1) as u8)
}

/// Elements below 8 bits, the first in the lowest bits.
fn pack(bits: usize, codes: Vec<u8>) -> Vec<u8> {
    let mut out = vec![0u8; (codes.len() * bits).div_ceil(8)];
    for (i, c) in codes.into_iter().enumerate() {
        let word = u16::from(c) << (i * bits % 8);
        out[i * bits / 8] |= word as u8;
        if let Some(next) = out.get_mut(i * bits / 8 + 1) {
            *next |= (word >> 8) as u8;
        }
    }
    out
}

/// The first `limit` elements of raw bytes as text. Complex numbers are two.
pub(super) fn print(dtype: DType, bytes: &[u8], limit: usize) -> Vec<String> {
    use DType::*;
    macro_rules! each {
        ($n:literal, $of:expr) => {
            bytes.chunks_exact($n).take(limit).map(|c| $of(<[u8; $n]>::try_from(c).unwrap_or_default())).collect()
        };
    }
    match dtype {
        Float | Complex64 => each!(4, |b| short(f32::from_le_bytes(b))),
        Double | Complex128 => each!(8, |b| short(f64::from_le_bytes(b))),
        Float16 => each!(2, |b| short(f16::from_le_bytes(b).to_f32())),
        Bfloat16 => each!(2, |b| short(bf16::from_le_bytes(b).to_f32())),
        Int64 => each!(8, |b| i64::from_le_bytes(b).to_string()),
        Uint64 => each!(8, |b| u64::from_le_bytes(b).to_string()),
        Int32 => each!(4, |b| i32::from_le_bytes(b).to_string()),
        Uint32 => each!(4, |b| u32::from_le_bytes(b).to_string()),
        Int16 => each!(2, |b| i16::from_le_bytes(b).to_string()),
        Uint16 => each!(2, |b| u16::from_le_bytes(b).to_string()),
        Int8 => each!(1, |b: [u8; 1]| (b[0] as i8).to_string()),
        String => Vec::new(),
        _ if dtype.bits() == 8 => bytes.iter().take(limit).map(u8::to_string).collect(),
        _ => (0..limit).map_while(|i| small(dtype, bytes, i)).collect(),
    }
}

fn small(dtype: DType, bytes: &[u8], i: usize) -> Option<String> {
    let bits = dtype.bits();
    let low = u16::from(*bytes.get(i * bits / 8)?);
    let high = u16::from(bytes.get(i * bits / 8 + 1).copied().unwrap_or(0));
    let code = ((high << 8 | low) >> (i * bits % 8)) & ((1 << bits) - 1);
    let signed = matches!(dtype, DType::Int4 | DType::Int2) && code >> (bits - 1) == 1;
    Some((i32::from(code) - if signed { 1 << bits } else { 0 }).to_string())
}

/// A number in the fewest digits that give it back, whole ones without a point.
pub(super) fn short(v: impl std::fmt::Debug) -> String {
    let s = format!("{v:?}").replace("NaN", "nan");
    s.strip_suffix(".0").map_or(s.clone(), str::to_owned)
}
