//! Encoded `TypeProto`s of the types that the graph carries without looking at them (sequences, maps, optionals), and
//! the little of protobuf's wire format that this takes.

use bytes::Bytes;

use crate::ir::{DType, Dim, Shape, Type, types::TypeKind};

/// The types that contain others, with their field number in `TypeProto`.
pub(super) const SEQUENCE: u32 = 4;
/// See [`SEQUENCE`].
pub(super) const MAP: u32 = 5;
/// See [`SEQUENCE`].
pub(super) const SPARSE: u32 = 8;
/// See [`SEQUENCE`].
pub(super) const OPTIONAL: u32 = 9;
const TENSOR: u32 = 1;

/// `seq(of)` or `optional(of)`.
pub(super) fn wrap(field: u32, of: &Type) -> Type {
    other(message(field, &message(1, &encode(of))))
}

/// `map(key, value)`.
pub(super) fn map(key: DType, value: &Type) -> Type {
    other(message(MAP, &[number(1, key.to_onnx() as u64), message(2, &encode(value))].concat()))
}

/// `sparse_tensor(of)`, of a tensor type.
pub(super) fn sparse(of: &Type) -> Type {
    let (_, body) =
        fields(&encode(of)).and_then(|f| f.into_iter().next()).unwrap_or((TENSOR, Field::Bytes(Vec::new())));
    other(message(SPARSE, &body.bytes()))
}

/// An encoded `AttributeProto` that holds a type.
pub(super) fn attribute(name: &str, ty: &Type) -> Bytes {
    const TYPE_PROTO: u64 = 13;
    [message(1, name.as_bytes()), message(14, &encode(ty)), number(20, TYPE_PROTO)].concat().into()
}

/// The type in an encoded `AttributeProto`, if that holds one.
pub(super) fn attribute_type(encoded: &[u8]) -> Option<Type> {
    fields(encoded)?.into_iter().find(|(n, _)| *n == 14).map(|(_, f)| decode(&f.bytes()))
}

/// What an encoded type is made of.
pub(super) enum Parts {
    /// A field number of the types that contain one other, and that other.
    Wrap(u32, Type),
    /// Key and value.
    Map(Option<DType>, Type),
    /// Opaque, empty, or not understood.
    Unknown,
}

/// Takes an encoded `TypeProto` apart.
pub(super) fn parts(encoded: &[u8]) -> Parts {
    parts_of(encoded).unwrap_or(Parts::Unknown)
}

fn parts_of(encoded: &[u8]) -> Option<Parts> {
    let (field, body) = fields(encoded)?.into_iter().find(|(n, _)| *n != 6)?;
    let inner = body.bytes();
    let get = |number: u32| Some(fields(&inner)?.into_iter().find(|(n, _)| *n == number)?.1);
    Some(match field {
        SEQUENCE | OPTIONAL => Parts::Wrap(field, decode(&get(1)?.bytes())),
        SPARSE => Parts::Wrap(field, decode(&message(TENSOR, &inner))),
        MAP => Parts::Map(get(1).and_then(|f| DType::from_onnx(f.number() as i32)), decode(&get(2)?.bytes())),
        _ => Parts::Unknown,
    })
}

fn other(bytes: Vec<u8>) -> Type {
    Type { kind: TypeKind::Other(bytes.into()), denotation: None }
}

/// A `TypeProto`; denotations are left out.
fn encode(ty: &Type) -> Vec<u8> {
    match &ty.kind {
        TypeKind::Other(bytes) => bytes.to_vec(),
        TypeKind::Tensor { dtype, shape } => {
            let mut body = dtype.map_or_else(Vec::new, |d| number(1, d.to_onnx() as u64));
            if let Some(s) = shape {
                let dim = |d: &Dim| match d {
                    Dim::Unknown => Vec::new(),
                    Dim::Known(n) => number(1, *n as u64),
                    Dim::Named(name) => message(2, name.as_bytes()),
                };
                body.extend(message(2, &s.dims.iter().flat_map(|d| message(1, &dim(d))).collect::<Vec<_>>()));
            }
            message(TENSOR, &body)
        }
    }
}

fn decode(encoded: &[u8]) -> Type {
    decode_tensor(encoded).unwrap_or_else(|| other(encoded.to_vec()))
}

fn decode_tensor(encoded: &[u8]) -> Option<Type> {
    let (TENSOR, body) = fields(encoded)?.into_iter().next()? else { return None };
    let (mut dtype, mut shape) = (None, None);
    for (n, f) in fields(&body.bytes())? {
        match n {
            1 => dtype = DType::from_onnx(f.number() as i32),
            2 => {
                let dim = |(_, d): (u32, Field)| match fields(&d.bytes())?.into_iter().find(|(n, _)| *n < 3) {
                    Some((1, f)) => Some(Dim::Known(f.number() as i64)),
                    Some((_, f)) => Some(Dim::Named(String::from_utf8_lossy(&f.bytes()).into_owned())),
                    None => Some(Dim::Unknown),
                };
                shape = Some(Shape::new(fields(&f.bytes())?.into_iter().map(dim).collect::<Option<_>>()?));
            }
            _ => {}
        }
    }
    Some(Type { kind: TypeKind::Tensor { dtype, shape }, denotation: None })
}

enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Field {
    fn number(&self) -> u64 {
        match self {
            Self::Number(n) => *n,
            Self::Bytes(_) => 0,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Number(_) => Vec::new(),
            Self::Bytes(b) => b.clone(),
        }
    }
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn number(field: u32, n: u64) -> Vec<u8> {
    [varint(u64::from(field) << 3), varint(n)].concat()
}

fn message(field: u32, body: &[u8]) -> Vec<u8> {
    [varint(u64::from(field) << 3 | 2), varint(body.len() as u64), body.to_vec()].concat()
}

/// The fields of a message; `None` where it is none, or has fields that types do not have.
fn fields(mut rest: &[u8]) -> Option<Vec<(u32, Field)>> {
    let mut out = Vec::new();
    while !rest.is_empty() {
        let key = take_varint(&mut rest)?;
        let value = match key & 7 {
            0 => Field::Number(take_varint(&mut rest)?),
            2 => {
                let len = usize::try_from(take_varint(&mut rest)?).ok()?;
                let (body, behind) = rest.split_at_checked(len)?;
                rest = behind;
                Field::Bytes(body.to_vec())
            }
            _ => return None,
        };
        out.push((u32::try_from(key >> 3).ok()?, value));
    }
    Some(out)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for i in 0..10 {
        let (&b, behind) = rest.split_first()?;
        *rest = behind;
        n |= u64::from(b & 0x7f) << (7 * i);
        if b < 0x80 {
            return Some(n);
        }
    }
    None
}
