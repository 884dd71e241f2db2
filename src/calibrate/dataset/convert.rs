//! From the element type of an array to that of an input, where no number changes.

use half::{bf16, f16};

use crate::{
    error::{Error, Result},
    ir::DType,
};

/// Whether numbers of one type may be fed to an input of another, before looking at them.
///
/// Integers and bools go wherever their numbers fit exactly; floating point goes to floating point, rounded where the
/// input is narrower; floating point never goes to integers.
pub fn may_convert(from: DType, to: DType) -> bool {
    from == to || (from.is_float() && to.is_float()) || (is_whole(from) && (is_whole(to) || to.is_float()))
}

/// Whether floating point numbers are rounded on the way.
pub fn rounds(from: DType, to: DType) -> bool {
    from.is_float()
        && to.is_float()
        && from != to
        && !(to == DType::Double || (to == DType::Float && from.bits() == 16))
}

fn is_whole(dtype: DType) -> bool {
    dtype == DType::Bool || (dtype.is_integer() && dtype.bits() >= 8)
}

/// The elements `bytes` (little-endian) of type `from` as elements of type `to`. A number that does not fit is an error.
pub fn convert(bytes: Vec<u8>, from: DType, to: DType) -> Result<Vec<u8>> {
    if from == to {
        return Ok(bytes);
    }
    if !may_convert(from, to) {
        return Err(Error::data(format!("numbers of {from} cannot be fed to an input of {to}")));
    }
    let mut out = Vec::with_capacity(bytes.len() / (from.bits() / 8) * (to.bits() / 8));
    for element in bytes.chunks_exact(from.bits() / 8) {
        if from.is_float() {
            push_float(&mut out, float(element, from), to);
        } else {
            push_whole(&mut out, whole(element, from), to)
                .ok_or_else(|| Error::data(format!("{} does not fit an input of {to}", whole(element, from))))?;
        }
    }
    Ok(out)
}

/// The leading bytes of an element; the caller cuts elements to their length.
fn first<const N: usize>(element: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(element).for_each(|(o, e)| *o = *e);
    out
}

fn float(element: &[u8], dtype: DType) -> f64 {
    match dtype {
        DType::Float16 => f16::from_le_bytes(first(element)).to_f64(),
        DType::Bfloat16 => bf16::from_le_bytes(first(element)).to_f64(),
        DType::Float => f32::from_le_bytes(first(element)).into(),
        _ => f64::from_le_bytes(first(element)),
    }
}

fn push_float(out: &mut Vec<u8>, x: f64, to: DType) {
    match to {
        DType::Float16 => out.extend(f16::from_f64(x).to_le_bytes()),
        DType::Bfloat16 => out.extend(bf16::from_f64(x).to_le_bytes()),
        DType::Float => out.extend((x as f32).to_le_bytes()),
        _ => out.extend(x.to_le_bytes()),
    }
}

fn whole(element: &[u8], dtype: DType) -> i128 {
    match dtype {
        DType::Int8 => i8::from_le_bytes(first(element)).into(),
        DType::Int16 => i16::from_le_bytes(first(element)).into(),
        DType::Uint16 => u16::from_le_bytes(first(element)).into(),
        DType::Int32 => i32::from_le_bytes(first(element)).into(),
        DType::Uint32 => u32::from_le_bytes(first(element)).into(),
        DType::Int64 => i64::from_le_bytes(first(element)).into(),
        DType::Uint64 => u64::from_le_bytes(first(element)).into(),
        _ => first::<1>(element)[0].into(),
    }
}

/// `None` if the number does not fit.
fn push_whole(out: &mut Vec<u8>, n: i128, to: DType) -> Option<()> {
    match to {
        DType::Bool => out.push(u8::try_from(n).ok().filter(|&b| b <= 1)?),
        DType::Int8 => out.extend(i8::try_from(n).ok()?.to_le_bytes()),
        DType::Uint8 => out.extend(u8::try_from(n).ok()?.to_le_bytes()),
        DType::Int16 => out.extend(i16::try_from(n).ok()?.to_le_bytes()),
        DType::Uint16 => out.extend(u16::try_from(n).ok()?.to_le_bytes()),
        DType::Int32 => out.extend(i32::try_from(n).ok()?.to_le_bytes()),
        DType::Uint32 => out.extend(u32::try_from(n).ok()?.to_le_bytes()),
        DType::Int64 => out.extend(i64::try_from(n).ok()?.to_le_bytes()),
        DType::Uint64 => out.extend(u64::try_from(n).ok()?.to_le_bytes()),
        _ => {
            let at = out.len();
            push_float(out, n as f64, to);
            if float(&out[at..], to) as i128 != n || n as f64 as i128 != n {
                return None;
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_no_number_changes() {
        use DType::*;
        assert_eq!(convert(vec![200, 0], Uint8, Int64).unwrap()[..9], [200, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(convert(vec![255], Int8, Int32).unwrap(), [255; 4]);
        assert_eq!(convert(vec![255], Uint8, Float).unwrap(), 255f32.to_le_bytes());
        assert_eq!(
            convert(5i64.to_le_bytes().to_vec(), Int64, Bool).unwrap_err().to_string(),
            "5 does not fit an input of bool"
        );
        assert!(convert((1i64 << 40).to_le_bytes().to_vec(), Int64, Int32).is_err());
        assert!(convert(((1i64 << 40) + 1).to_le_bytes().to_vec(), Int64, Float).is_err());
        assert!(convert((1i64 << 40).to_le_bytes().to_vec(), Int64, Float).is_ok());
        assert_eq!(convert(0.1f64.to_le_bytes().to_vec(), Double, Float).unwrap(), 0.1f32.to_le_bytes());
        assert_eq!(convert(f16::from_f32(0.5).to_le_bytes().to_vec(), Float16, Float).unwrap(), 0.5f32.to_le_bytes());
        assert!(!may_convert(Float, Int64) && !may_convert(Float, Bool) && !may_convert(Int4, Int8));
        assert!(rounds(Double, Float) && rounds(Float, Float16) && !rounds(Float16, Float) && !rounds(Float, Double));
    }
}
