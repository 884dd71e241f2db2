//! Comparisons, logic, choice.

use super::{
    Eval,
    args::{Args, room, tensor},
    arithmetic::Numbers,
    strided::{broadcast_dims, stretch},
};
use crate::ir::{DType, Tensor};

pub(super) const EVALS: &[(&[&str], Eval)] = &[
    (&["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"], compare),
    (&["And", "Or", "Xor"], logic),
    (&["Not"], |a| {
        let t = a.tensor(0).filter(|t| t.dtype() == DType::Bool)?;
        truths(t.dims(), t.to_i64().ok()?.into_iter().map(|b| b == 0))
    }),
    (&["IsNaN"], |a| {
        let t = a.tensor(0)?;
        truths(t.dims(), t.to_f32().ok()?.into_iter().map(f32::is_nan))
    }),
    (&["Where"], choose),
];

fn truths(dims: &[usize], of: impl Iterator<Item = bool>) -> Option<Vec<Tensor>> {
    Some(vec![tensor(DType::Bool, dims, of.map(u8::from).collect())?])
}

/// Both inputs in the shape that they broadcast to.
fn pair(a: &Args<'_>) -> Option<(Tensor, Tensor)> {
    let (x, y) = (a.tensor(0)?, a.tensor(1)?);
    let dims = broadcast_dims(x.dims(), y.dims())?;
    room(x.dtype(), &dims)?;
    (x.dtype() == y.dtype()).then_some(())?;
    Some((stretch(x, &dims)?, stretch(y, &dims)?))
}

fn compare(a: &Args<'_>) -> Option<Vec<Tensor>> {
    fn test<T: PartialOrd>(op: &str, x: &T, y: &T) -> bool {
        match op {
            "Equal" => x == y,
            "Greater" => x > y,
            "Less" => x < y,
            "GreaterOrEqual" => x >= y,
            _ => x <= y,
        }
    }
    let (x, y) = pair(a)?;
    let op = a.node.op_type.as_str();
    match (Numbers::of(&x), Numbers::of(&y)) {
        (Some(Numbers::F32(p)), Some(Numbers::F32(q))) => {
            truths(x.dims(), p.iter().zip(&q).map(|(p, q)| test(op, p, q)))
        }
        (Some(Numbers::F64(p)), Some(Numbers::F64(q))) => {
            truths(x.dims(), p.iter().zip(&q).map(|(p, q)| test(op, p, q)))
        }
        _ => {
            let (p, q) = (x.to_i64().ok()?, y.to_i64().ok()?);
            truths(x.dims(), p.iter().zip(&q).map(|(p, q)| test(op, p, q)))
        }
    }
}

fn logic(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let (x, y) = pair(a)?;
    let op = a.node.op_type.as_str();
    let (p, q) = (x.to_i64().ok()?, y.to_i64().ok()?);
    let both = p.into_iter().zip(q).map(|(p, q)| (p != 0, q != 0));
    truths(
        x.dims(),
        both.map(|(p, q)| match op {
            "And" => p && q,
            "Or" => p || q,
            _ => p != q,
        }),
    )
}

fn choose(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let (c, x, y) = (a.tensor(0)?, a.tensor(1)?, a.tensor(2)?);
    let dims = broadcast_dims(c.dims(), &broadcast_dims(x.dims(), y.dims())?)?;
    room(x.dtype(), &dims)?;
    if x.dtype() != y.dtype() || c.dtype() != DType::Bool {
        return None;
    }
    let width = super::args::width(x.dtype())?;
    let (c, x, y) = (stretch(c, &dims)?.bytes().ok()?, stretch(x, &dims)?, stretch(y, &dims)?);
    let (p, q) = (x.bytes().ok()?, y.bytes().ok()?);
    let sides = p.chunks_exact(width).zip(q.chunks_exact(width));
    let out = c.iter().zip(sides).flat_map(|(&c, (p, q))| if c != 0 { p } else { q }).copied().collect();
    Some(vec![tensor(x.dtype(), &dims, out)?])
}
