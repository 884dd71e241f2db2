//! `TensorProto` to [`Tensor`] and back.

use bytes::{Bytes, BytesMut};

use super::{
    external_data::External,
    proto::{TensorProto, tensor_proto::DataLocation},
};
use crate::{
    error::{Error, Result},
    ir::{DType, Stored, Tensor, TensorData},
};

/// Reads a tensor. Elements in `raw_data` and in external files are not copied.
pub(super) fn from_proto(proto: TensorProto, external: &mut External) -> Result<Tensor> {
    let name = proto.name().to_owned();
    // The caller knows the name of an initializer, which is not in the message any more.
    convert(proto, external).map_err(|e| if name.is_empty() { e } else { e.value(name) })
}

fn convert(proto: TensorProto, external: &mut External) -> Result<Tensor> {
    let number = proto.data_type();
    let dtype = DType::from_onnx(number)
        .ok_or_else(|| Error::malformed(format!("tensor has data type number {number}, which ONNX does not know")))?;
    let dim = |&d: &i64| usize::try_from(d).map_err(|_| Error::malformed(format!("tensor has a dim of {d}")));
    let dims = proto.dims.iter().map(dim).collect::<Result<Vec<_>>>()?;
    if proto.segment.is_some() {
        return Err(Error::unsupported("tensor is stored in segments"));
    }
    if dtype == DType::String {
        return Tensor::strings(dims, proto.string_data);
    }
    let want = Tensor::raw_len(dtype, &dims)?;
    if proto.data_location() == DataLocation::External {
        return Tensor::new(dtype, dims, external.window(&proto.external_data, want)?);
    }
    match proto.raw_data {
        Some(raw) => {
            let stored = if proto.data_location.is_some() { Stored::RawLocated } else { Stored::Raw };
            Ok(Tensor::new(dtype, dims, raw)?.with_stored(stored))
        }
        None => {
            let bytes = typed_bytes(&proto, dtype, want)?;
            Ok(Tensor::new(dtype, dims, bytes)?.with_stored(Stored::Typed))
        }
    }
}

/// The elements of the typed fields, as `raw_data` would hold them.
fn typed_bytes(proto: &TensorProto, dtype: DType, want: usize) -> Result<Bytes> {
    fn pack<T: Copy, const N: usize>(items: &[T], to: impl Fn(T) -> [u8; N]) -> BytesMut {
        items.iter().flat_map(|&i| to(i)).collect()
    }
    use DType::*;
    let ints = &proto.int32_data;
    let bytes = match dtype {
        Float | Complex64 => pack(&proto.float_data, f32::to_le_bytes),
        Double | Complex128 => pack(&proto.double_data, f64::to_le_bytes),
        Int64 => pack(&proto.int64_data, i64::to_le_bytes),
        Uint64 => pack(&proto.uint64_data, u64::to_le_bytes),
        Uint32 => pack(&proto.uint64_data, |v| (v as u32).to_le_bytes()),
        Int32 => pack(ints, i32::to_le_bytes),
        Int16 | Uint16 | Float16 | Bfloat16 => pack(ints, |v| (v as u16).to_le_bytes()),
        Float6E2M3 | Float6E3M2 => pack_six_bits(ints),
        // One byte an entry; the types below 8 bits are packed in it already.
        _ => pack(ints, |v| [v as u8]),
    };
    if bytes.len() == want {
        Ok(bytes.freeze())
    } else {
        Err(Error::malformed(format!(
            "tensor of type {dtype} and shape {:?} needs {want} bytes of elements, its typed field holds {}",
            proto.dims,
            bytes.len()
        )))
    }
}

/// Four six-bit codes in three bytes, the first in the lowest bits.
fn pack_six_bits(codes: &[i32]) -> BytesMut {
    let mut out = BytesMut::with_capacity((codes.len() * 6).div_ceil(8));
    for four in codes.chunks(4) {
        let word = four.iter().enumerate().fold(0u32, |w, (i, &c)| w | ((c as u32 & 0x3f) << (6 * i)));
        out.extend_from_slice(&word.to_le_bytes()[..(four.len() * 6).div_ceil(8)]);
    }
    out
}

/// The header of a tensor (name, type, dims) without elements.
pub(super) fn header(tensor: &Tensor, name: Option<String>) -> TensorProto {
    TensorProto {
        dims: tensor.dims().iter().map(|&d| d as i64).collect(),
        data_type: Some(tensor.dtype().to_onnx()),
        name,
        data_location: (tensor.stored() == Stored::RawLocated).then_some(DataLocation::Default.into()),
        ..TensorProto::default()
    }
}

/// The whole tensor; deferred elements are computed now.
pub(super) fn to_proto(tensor: &Tensor, name: Option<String>) -> Result<TensorProto> {
    let mut proto = header(tensor, name);
    match tensor.data() {
        TensorData::Strings(items) => proto.string_data = items.to_vec(),
        _ if tensor.stored() == Stored::Typed => fill_typed(&mut proto, tensor)?,
        _ => proto.raw_data = Some(tensor.bytes()?),
    }
    Ok(proto)
}

/// Puts the elements into the typed fields.
pub(super) fn fill_typed(proto: &mut TensorProto, tensor: &Tensor) -> Result<()> {
    fn unpack<T, const N: usize>(bytes: &[u8], of: impl Fn([u8; N]) -> T) -> Vec<T> {
        bytes.chunks_exact(N).map(|c| of(c.try_into().expect("chunks_exact gives N bytes"))).collect()
    }
    use DType::*;
    let bytes = tensor.bytes()?;
    match tensor.dtype() {
        Float | Complex64 => proto.float_data = unpack(&bytes, f32::from_le_bytes),
        Double | Complex128 => proto.double_data = unpack(&bytes, f64::from_le_bytes),
        Int64 => proto.int64_data = unpack(&bytes, i64::from_le_bytes),
        Uint64 => proto.uint64_data = unpack(&bytes, u64::from_le_bytes),
        Uint32 => proto.uint64_data = unpack(&bytes, |b| u64::from(u32::from_le_bytes(b))),
        Int32 => proto.int32_data = unpack(&bytes, i32::from_le_bytes),
        Int16 => proto.int32_data = unpack(&bytes, |b| i32::from(i16::from_le_bytes(b))),
        Uint16 | Float16 | Bfloat16 => proto.int32_data = unpack(&bytes, |b| i32::from(u16::from_le_bytes(b))),
        Int8 => proto.int32_data = unpack(&bytes, |b: [u8; 1]| i32::from(b[0] as i8)),
        Float6E2M3 | Float6E3M2 => proto.int32_data = unpack_six_bits(&bytes, tensor.len()),
        _ => proto.int32_data = unpack(&bytes, |b: [u8; 1]| i32::from(b[0])),
    }
    Ok(())
}

fn unpack_six_bits(bytes: &[u8], count: usize) -> Vec<i32> {
    let bit = |i: usize| (bytes[i / 8] >> (i % 8)) & 1;
    let code = |n: usize| (0..6).fold(0, |c, b| c | i32::from(bit(n * 6 + b)) << b);
    (0..count).map(code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn six_bit_codes_come_back() {
        let codes = [1, 63, 32, 5, 17];
        assert_eq!(unpack_six_bits(&pack_six_bits(&codes), 5), codes);
    }

    #[test]
    fn typed_fields_come_back_typed() {
        for dtype in
            [DType::Float, DType::Int8, DType::Uint16, DType::Float16, DType::Uint32, DType::Int64, DType::Bool]
        {
            let bytes: Vec<u8> = (0..dtype.byte_len(3).unwrap()).map(|i| (i % 2) as u8).collect();
            let t = Tensor::new(dtype, vec![3], bytes).unwrap().with_stored(Stored::Typed);
            let proto = to_proto(&t, Some("t".into())).unwrap();
            assert!(proto.raw_data.is_none());
            let back = from_proto(proto, &mut External::new(Path::new("."))).unwrap();
            assert!(back.same_content(&t) && back.stored() == Stored::Typed, "{dtype}");
        }
    }

    #[test]
    fn a_wrong_count_names_both_numbers() {
        let proto = TensorProto {
            dims: vec![4],
            data_type: Some(1),
            float_data: vec![1.0; 3],
            name: Some("w".into()),
            ..TensorProto::default()
        };
        let e = from_proto(proto, &mut External::new(Path::new("."))).unwrap_err().to_string();
        assert!(e.contains("\"w\"") && e.contains("16") && e.contains("12"), "{e}");
    }
}
