//! Codes packed in bytes, as numbers: what only weights are computed of, so it is evaluated for these alone.

use super::{
    Eval,
    args::{Args, tensor},
    strided::{broadcast_dims, stretch},
};
use crate::ir::{DType, Node, Tensor};

/// The evaluation of a node on bytes.
pub(super) fn find(node: &Node) -> Option<Eval> {
    let known = ["BitShift", "BitwiseAnd", "Mod"].contains(&node.op_type.as_str());
    (known && node.in_onnx_domain()).then_some(eval as Eval)
}

fn eval(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let (x, y) = (a.tensor(0)?, a.tensor(1)?);
    if x.dtype() != DType::Uint8 || y.dtype() != DType::Uint8 {
        return super::find(a.node)?(a);
    }
    let right = a.node.string("direction") == Some("RIGHT");
    let of = |x: u8, y: u8| match a.node.op_type.as_str() {
        "BitwiseAnd" => Some(x & y),
        "Mod" => x.checked_rem(y),
        _ if right => Some(x.checked_shr(u32::from(y)).unwrap_or(0)),
        _ => Some(x.checked_shl(u32::from(y)).unwrap_or(0)),
    };
    let dims = broadcast_dims(x.dims(), y.dims())?;
    let bytes = |t: &Tensor| stretch(t, &dims)?.bytes().ok();
    let (x, y) = (bytes(x)?, bytes(y)?);
    let bytes = x.iter().zip(&y).map(|(&x, &y)| of(x, y)).collect::<Option<Vec<u8>>>()?;
    Some(vec![tensor(DType::Uint8, &dims, bytes)?])
}
