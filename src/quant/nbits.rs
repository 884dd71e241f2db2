//! The layout of `com.microsoft.MatMulNBits`: its weight `[N, ceil(K / block), block · bits / 8]` holds the blocks of each
//! column one after the other, the first code in the lowest bits; its zero points are packed in the same way, each column
//! beginning at a byte. A DequantizeLinear with blocks along axis 0 has the same codes as `[K, N]` and one scale and zero
//! point for each block as `[ceil(K / block), N]`.

use crate::{
    error::{Error, Result},
    ir::{DType, Tensor},
    quant::pack::{pack, unpack},
};

/// Rows of codes that are packed at a time.
const STRIP: usize = 32;

/// Sizes of one such weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NBits {
    /// Rows of the weight: what is summed over.
    pub k: usize,
    /// Columns: outputs.
    pub n: usize,
    /// Bits of a code: 2, 4 or 8.
    pub bits: usize,
    /// Codes that share a scale.
    pub block: usize,
}

impl NBits {
    /// Blocks in a column; the last one may be cut short.
    pub fn blocks(&self) -> usize {
        self.k.div_ceil(self.block)
    }

    /// Whether ONNX Runtime computes the Q/DQ form wrongly: measured with 1.32, where columns of 2 bits are no multiple of 4.
    pub fn is_uneven(&self) -> bool {
        self.bits == 2 && !self.n.is_multiple_of(4)
    }

    /// The code that stands for zero where there are no zero points.
    pub fn middle(&self) -> i32 {
        1 << (self.bits - 1)
    }

    /// The types of codes with these bits: with a sign, and without.
    pub fn dtypes(&self) -> Option<(DType, DType)> {
        match self.bits {
            2 => Some((DType::Int2, DType::Uint2)),
            4 => Some((DType::Int4, DType::Uint4)),
            8 => Some((DType::Int8, DType::Uint8)),
            _ => None,
        }
    }

    fn column_bytes(&self) -> usize {
        self.blocks() * self.block * self.bits / 8
    }

    fn zero_point_bytes(&self) -> usize {
        (self.blocks() * self.bits).div_ceil(8)
    }

    /// Codes of a packed column store of `rows` codes each, as `[rows, n]`.
    fn spread(&self, packed: &[u8], rows: usize, column: usize) -> Vec<i32> {
        let (per_byte, mask) = (8 / self.bits, (1i32 << self.bits) - 1);
        let mut codes = vec![0; rows * self.n];
        for (j, bytes) in packed.chunks_exact(column).take(self.n).enumerate() {
            for i in 0..rows {
                codes[i * self.n + j] = i32::from(bytes[i / per_byte]) >> (i % per_byte * self.bits) & mask;
            }
        }
        codes
    }

    fn gather(&self, codes: &[i32], rows: usize, column: usize, fill: i32) -> Vec<u8> {
        let per_byte = 8 / self.bits;
        let mask = (1i32 << self.bits) - 1;
        let mut packed = vec![0u8; self.n * column];
        // Some rows at a time, so that what is read of them lies together.
        for from in (0..column * per_byte).step_by(STRIP) {
            let to = (from + STRIP).min(column * per_byte);
            for (j, bytes) in packed.chunks_exact_mut(column).enumerate() {
                for i in from..to {
                    let code = if i < rows { codes[i * self.n + j] } else { fill };
                    bytes[i / per_byte] |= ((code & mask) << (i % per_byte * self.bits)) as u8;
                }
            }
        }
        packed
    }

    /// The weight as the codes of a DequantizeLinear, `[K, N]`: with a sign where there are no zero points. Another number
    /// of bytes than the sizes ask for is an error.
    pub fn codes(&self, weight: &Tensor, has_zero_points: bool) -> Result<Tensor> {
        let (signed, unsigned) = self.checked(weight, self.n * self.column_bytes())?;
        let mut codes = self.spread(&weight.bytes()?, self.k, self.column_bytes());
        if has_zero_points {
            return pack(unsigned, &[self.k, self.n], &codes);
        }
        codes.iter_mut().for_each(|c| *c -= self.middle());
        pack(signed, &[self.k, self.n], &codes)
    }

    /// The zero points as those of a DequantizeLinear, `[blocks, N]`.
    pub fn zero_points(&self, packed: &Tensor) -> Result<Tensor> {
        let (_, unsigned) = self.checked(packed, self.n * self.zero_point_bytes())?;
        pack(unsigned, &[self.blocks(), self.n], &self.spread(&packed.bytes()?, self.blocks(), self.zero_point_bytes()))
    }

    /// The scales `[N · blocks]` as those of a DequantizeLinear, `[blocks, N]`.
    pub fn scales(&self, scales: &Tensor) -> Result<Tensor> {
        self.transposed(scales, [self.n, self.blocks()])
    }

    /// The inverse of [`NBits::scales`], `[N, blocks]`.
    pub fn packed_scales(&self, scales: &Tensor) -> Result<Tensor> {
        self.transposed(scales, [self.blocks(), self.n])
    }

    fn transposed(&self, t: &Tensor, [rows, columns]: [usize; 2]) -> Result<Tensor> {
        if t.dtype() != DType::Float || t.len() != rows * columns {
            let want = format!("{} scales of float, one for each block", rows * columns);
            return Err(Error::malformed(format!("needs {want}, has {} of {}", t.len(), t.dtype())));
        }
        let from = t.to_f32()?;
        let to: Vec<f32> = (0..columns * rows).map(|i| from[i % rows * columns + i / rows]).collect();
        Ok(Tensor::from_f32(&[columns, rows], &to))
    }

    /// The inverse of [`NBits::codes`] and [`NBits::zero_points`]: the packed weight and, unless the codes have a sign and
    /// no zero points, the packed zero points.
    pub fn packed(&self, codes: &Tensor, zero_points: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        let weight = self.packed_codes(codes)?;
        let signed = self.dtypes().is_some_and(|(signed, _)| signed == codes.dtype());
        let zeros = match (zero_points, signed) {
            (Some(z), true) if unpack(z)?.iter().all(|&z| z == 0) => None,
            (Some(z), _) => Some(self.packed_zero_points(z)?),
            // Without zero points, codes without a sign mean what they are.
            (None, false) => Some(self.zeros()?),
            (None, true) => None,
        };
        Ok((weight, zeros))
    }

    /// The dims of the packed weight and of its zero points, both of uint8.
    pub fn packed_dims(&self) -> [Vec<usize>; 2] {
        [vec![self.n, self.blocks(), self.block * self.bits / 8], vec![self.n * self.zero_point_bytes()]]
    }

    /// The inverse of [`NBits::codes`].
    pub fn packed_codes(&self, codes: &Tensor) -> Result<Tensor> {
        let Some((signed, unsigned)) = self.dtypes() else { return Err(self.wrong_bits()) };
        let is_signed = codes.dtype() == signed;
        if codes.dims() != [self.k, self.n] || !(is_signed || codes.dtype() == unsigned) {
            let (k, n) = (self.k, self.n);
            return Err(Error::malformed(format!(
                "codes are {}{:?}, not {unsigned}[{k}, {n}]",
                codes.dtype(),
                codes.dims()
            )));
        }
        let weight = self.gather(&self.shifted(codes)?, self.k, self.column_bytes(), self.middle());
        let [dims, _] = self.packed_dims();
        Tensor::new(DType::Uint8, dims, weight)
    }

    /// The inverse of [`NBits::zero_points`]; they may have a sign.
    pub fn packed_zero_points(&self, zero_points: &Tensor) -> Result<Tensor> {
        let codes = self.shifted(zero_points)?;
        let [_, dims] = self.packed_dims();
        Tensor::new(DType::Uint8, dims, self.gather(&codes, self.blocks(), self.zero_point_bytes(), 0))
    }

    fn zeros(&self) -> Result<Tensor> {
        let [_, dims] = self.packed_dims();
        Tensor::new(DType::Uint8, dims, vec![0u8; self.n * self.zero_point_bytes()])
    }

    /// Codes, as those without a sign that stand for the same.
    fn shifted(&self, codes: &Tensor) -> Result<Vec<i32>> {
        let signed = self.dtypes().is_some_and(|(signed, _)| signed == codes.dtype());
        let shift = if signed { self.middle() } else { 0 };
        Ok(unpack(codes)?.into_iter().map(|c| c + shift).collect())
    }

    fn checked(&self, packed: &Tensor, bytes: usize) -> Result<(DType, DType)> {
        let Some(dtypes) = self.dtypes() else { return Err(self.wrong_bits()) };
        if packed.dtype() != DType::Uint8 || packed.len() != bytes || !(self.block * self.bits).is_multiple_of(8) {
            let of = format!("K {}, N {}, {} bits, blocks of {}", self.k, self.n, self.bits, self.block);
            let found = format!("{} of {}", packed.len(), packed.dtype());
            return Err(Error::malformed(format!("packed codes of {of} are {bytes} of uint8, found {found}")));
        }
        Ok(dtypes)
    }

    fn wrong_bits(&self) -> Error {
        Error::malformed(format!("codes of {} bits are not known here, only of 2, 4 and 8", self.bits))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn there_and_back(k in 1usize..70, n in 1usize..6, bits in prop::sample::select(vec![2usize, 4, 8]),
                          block in prop::sample::select(vec![16usize, 32]), with_zeros: bool, seed: u32) {
            let sizes = NBits { k, n, bits, block };
            let mut state = seed;
            let mut next = || { state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223); (state >> 16) as i32 };
            let (signed, unsigned) = sizes.dtypes().unwrap();
            let mask = (1 << bits) - 1;
            let codes: Vec<i32> = (0..k * n).map(|_| next() & mask).collect();
            let zeros: Vec<i32> = (0..sizes.blocks() * n).map(|_| next() & mask).collect();
            let (codes, zeros) = if with_zeros {
                (pack(unsigned, &[k, n], &codes).unwrap(), Some(pack(unsigned, &[sizes.blocks(), n], &zeros).unwrap()))
            } else {
                let middle = sizes.middle();
                (pack(signed, &[k, n], &codes.iter().map(|c| c - middle).collect::<Vec<_>>()).unwrap(), None)
            };
            let (weight, packed) = sizes.packed(&codes, zeros.as_ref()).unwrap();
            prop_assert_eq!(packed.is_some(), with_zeros);
            prop_assert!(sizes.codes(&weight, with_zeros).unwrap().same_content(&codes));
            if let (Some(packed), Some(zeros)) = (packed, zeros) {
                prop_assert!(sizes.zero_points(&packed).unwrap().same_content(&zeros));
            }
            let scales = Tensor::from_f32(&[n * sizes.blocks()], &(0..n * sizes.blocks()).map(|i| i as f32).collect::<Vec<_>>());
            let back = sizes.packed_scales(&sizes.scales(&scales).unwrap()).unwrap();
            prop_assert_eq!(back.to_f32().unwrap(), scales.to_f32().unwrap());
        }
    }

    #[test]
    fn the_first_code_is_in_the_lowest_bits_of_its_column() {
        let sizes = NBits { k: 3, n: 2, bits: 4, block: 16 };
        let codes = pack(DType::Uint4, &[3, 2], &[1, 2, 3, 4, 5, 6]).unwrap();
        let (weight, zeros) = sizes.packed(&codes, None).unwrap();
        let bytes = weight.bytes().unwrap();
        assert_eq!((&bytes[..2], &bytes[8..10]), (&[0x31u8, 0x85][..], &[0x42u8, 0x86][..]));
        assert_eq!(&zeros.unwrap().bytes().unwrap()[..], [0, 0]);
        assert!(sizes.codes(&Tensor::from_u8(DType::Uint8, &[3], vec![0; 3]), true).is_err());
    }
}
