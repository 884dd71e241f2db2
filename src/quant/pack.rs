//! Codes as the bytes of a tensor: two 4 bit or four 2 bit codes an octet, the first in the lowest bits.

use super::float8::Float8;
use crate::{
    error::{Error, Result},
    ir::{DType, Tensor},
};

/// A tensor of `codes`, which must fit the type. Fewer or more codes than the dims ask for are an error.
pub fn pack(dtype: DType, dims: &[usize], codes: &[i32]) -> Result<Tensor> {
    if !dtype.is_integer() {
        return Err(Error::config(format!("cannot hold integer codes in {dtype}")));
    }
    let bytes = match dtype.bits() {
        8 => codes.iter().map(|&c| c as u8).collect(),
        16 => codes.iter().flat_map(|&c| (c as u16).to_le_bytes()).collect(),
        32 => codes.iter().flat_map(|&c| c.to_le_bytes()).collect(),
        bits @ (2 | 4) => pack_bits(codes, bits),
        _ => return Err(Error::config(format!("cannot hold integer codes in {dtype}"))),
    };
    Tensor::new(dtype, dims.to_vec(), bytes)
}

/// Zero points of 0, of integers or floats of 8 bits.
pub fn zeros(dtype: DType, dims: &[usize]) -> Result<Tensor> {
    let count = dims.iter().product();
    match Float8::of(dtype) {
        Some(_) => Ok(Tensor::from_u8(dtype, dims, vec![0; count])),
        None => pack(dtype, dims, &vec![0; count]),
    }
}

fn pack_bits(codes: &[i32], bits: usize) -> Vec<u8> {
    let mask = (1u8 << bits) - 1;
    let octet = |group: &[i32]| group.iter().rev().fold(0u8, |byte, &c| byte << bits | (c as u8 & mask));
    codes.chunks(8 / bits).map(octet).collect()
}

/// The codes of an integer tensor of 2, 4, 8, 16 or 32 bits.
pub fn unpack(tensor: &Tensor) -> Result<Vec<i32>> {
    let (bits, signed) = match tensor.dtype() {
        DType::Int4 => (4, true),
        DType::Uint4 => (4, false),
        DType::Int2 => (2, true),
        DType::Uint2 => (2, false),
        DType::Int8 | DType::Uint8 | DType::Int16 | DType::Uint16 | DType::Int32 => {
            return Ok(tensor.to_i64()?.into_iter().map(|c| c as i32).collect()); // all fit
        }
        other => return Err(Error::malformed(format!("expected integer codes, found a tensor of {other}"))),
    };
    let bytes = tensor.bytes()?;
    let per_octet = 8 / bits;
    let code = |i: usize| {
        let raw = i32::from(bytes[i / per_octet] >> (i % per_octet * bits)) & ((1 << bits) - 1);
        if signed && raw >> (bits - 1) == 1 { raw - (1 << bits) } else { raw }
    };
    Ok((0..tensor.len()).map(code).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quant::params::type_range;

    proptest! {
        #[test]
        fn round_trip(seed in prop::collection::vec(any::<i32>(), 0..40), pick in 0usize..8) {
            use DType::*;
            let dtype = [Int8, Uint8, Int16, Uint16, Int4, Uint4, Int2, Uint2][pick];
            let (lo, hi) = type_range(dtype).unwrap();
            let codes: Vec<i32> = seed.iter().map(|s| lo + s.rem_euclid(hi - lo + 1)).collect();
            let tensor = pack(dtype, &[codes.len()], &codes).unwrap();
            prop_assert_eq!(unpack(&tensor).unwrap(), codes);
        }
    }

    #[test]
    fn first_code_in_the_lowest_bits() {
        let t = pack(DType::Int4, &[3], &[1, -2, 7]).unwrap();
        assert_eq!(&t.bytes().unwrap()[..], [0xe1, 0x07]);
        assert!(pack(DType::Int8, &[2], &[1]).is_err());
        assert!(pack(DType::Float, &[1], &[1]).is_err());
    }
}
