//! The header of a `.npy` array: what NumPy says about the bytes that follow.

use std::io::Read;

use crate::{
    error::{Error, Result},
    ir::{DType, tensor::element_count},
};

/// Element type, shape and order of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Type of the elements.
    pub dtype: DType,
    /// Whether the bytes of an element are in reverse.
    pub big_endian: bool,
    /// Whether the first index runs fastest.
    pub fortran: bool,
    /// The shape; empty for a scalar.
    pub dims: Vec<usize>,
    /// Bytes before the elements.
    pub len: u64,
}

/// No header of an array of numbers comes near this.
const LONGEST: usize = 1 << 16;

impl Header {
    /// Reads the header, and nothing behind it.
    pub fn read(from: &mut impl Read) -> Result<Self> {
        let mut fixed = [0u8; 8];
        from.read_exact(&mut fixed).map_err(|_| Error::data("it ends before the header of a .npy array"))?;
        if &fixed[..6] != b"\x93NUMPY" {
            return Err(Error::data("it is no .npy array: it does not begin with \\x93NUMPY"));
        }
        let size_len = if fixed[6] == 1 { 2 } else { 4 };
        let mut size = [0u8; 4];
        from.read_exact(&mut size[..size_len]).map_err(|_| Error::data("it ends in the header of a .npy array"))?;
        let size = u32::from_le_bytes(size) as usize;
        if fixed[6] > 3 || size > LONGEST {
            return Err(Error::data(format!("its .npy header has version {} and {size} bytes", fixed[6])));
        }
        let mut text = vec![0; size];
        from.read_exact(&mut text).map_err(|_| Error::data("it ends in the header of a .npy array"))?;
        let len = (fixed.len() + size_len + size) as u64;
        Self::parse(&String::from_utf8_lossy(&text), len)
    }

    /// Understands the dictionary `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)}`.
    fn parse(text: &str, len: u64) -> Result<Self> {
        let wrong = || Error::data(format!("its .npy header makes no sense: {:?}", text.trim_end()));
        let after = |key: &str| {
            let at = text.find(&format!("'{key}'")).or_else(|| text.find(&format!("\"{key}\"")));
            let rest = at.and_then(|at| text.get(at + key.len() + 2..));
            rest.and_then(|rest| rest.trim_start().strip_prefix(':')).map(str::trim_start).ok_or_else(wrong)
        };
        let descr = after("descr")?;
        if descr.starts_with('[') {
            return Err(Error::data("it is an array of records; arrays of plain numbers are needed"));
        }
        let quote = descr.chars().next().filter(|c| matches!(c, '\'' | '"')).ok_or_else(wrong)?;
        let descr = descr[1..].split(quote).next().ok_or_else(wrong)?;
        let fortran = after("fortran_order")?.starts_with("True");
        let shape = after("shape")?.strip_prefix('(').and_then(|s| s.split_once(')')).ok_or_else(wrong)?.0;
        let dims = shape
            .split(',')
            .map(|d| d.trim().trim_end_matches('L'))
            .filter(|d| !d.is_empty())
            .map(|d| d.parse().map_err(|_| wrong()))
            .collect::<Result<Vec<usize>>>()?;
        let (dtype, big_endian) = element_type(descr)?;
        let header = Self { dtype, big_endian, fortran, dims, len };
        header.byte_len()?;
        Ok(header)
    }

    /// Bytes of the elements.
    pub fn byte_len(&self) -> Result<u64> {
        let bytes = element_count(&self.dims).and_then(|n| n.checked_mul(self.element_len()));
        let fits = bytes.filter(|&n| isize::try_from(n).is_ok());
        fits.map(|n| n as u64).ok_or_else(|| Error::data(format!("its shape {:?} is too large", self.dims)))
    }

    /// Bytes of an element.
    pub fn element_len(&self) -> usize {
        self.dtype.bits() / 8
    }
}

fn element_type(descr: &str) -> Result<(DType, bool)> {
    let (order, kind) = match descr.chars().next() {
        Some(c @ ('<' | '>' | '=' | '|')) => (c, &descr[1..]),
        _ => ('<', descr),
    };
    let dtype = match kind {
        "f2" => DType::Float16,
        "f4" => DType::Float,
        "f8" => DType::Double,
        "b1" => DType::Bool,
        "i1" => DType::Int8,
        "i2" => DType::Int16,
        "i4" => DType::Int32,
        "i8" => DType::Int64,
        "u1" => DType::Uint8,
        "u2" => DType::Uint16,
        "u4" => DType::Uint32,
        "u8" => DType::Uint64,
        _ if kind.starts_with('O') => {
            return Err(Error::data("it is an array of Python objects").help(
                "arrays of different shapes in one file do this: save one .npz file for each sample into a folder instead",
            ));
        }
        _ => {
            return Err(Error::data(format!("its elements have NumPy type {descr:?}; numbers or bool are needed"))
                .help("save real numbers: array.astype(numpy.float32)"));
        }
    };
    Ok((dtype, order == '>'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Header> {
        Header::parse(text, 128)
    }

    #[test]
    fn headers_that_numpy_writes() {
        let h = parse("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }   \n").unwrap();
        assert_eq!((h.dtype, h.big_endian, h.fortran, h.dims), (DType::Float, false, false, vec![3, 4]));
        let h = parse("{'descr': '>i8', 'fortran_order': True, 'shape': (7L,), }").unwrap();
        assert_eq!((h.dtype, h.big_endian, h.fortran, h.dims), (DType::Int64, true, true, vec![7]));
        let h = parse("{'shape': (), 'fortran_order': False, 'descr': '|u1'}").unwrap();
        assert_eq!((h.dtype, h.dims.len(), h.byte_len().unwrap()), (DType::Uint8, 0, 1));
    }

    #[test]
    fn headers_that_make_no_sense() {
        for text in [
            "",
            "{}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, -4), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000000000000), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': 3}",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,)}",
            "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}",
            "{'descr': '<U5', 'fortran_order': False, 'shape': (3,)}",
            "{'descr': '",
            "{'descr': é",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("{'descr': '|O', 'shape': (3,), 'fortran_order': False}").unwrap_err().help_text().is_some());
        for bytes in
            [&b""[..], b"PK\x03\x04aaaaaaa", b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x02\x00\xff\xff\xff\xff"]
        {
            assert!(Header::read(&mut &bytes[..]).is_err());
        }
    }
}
