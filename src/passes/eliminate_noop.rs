//! Takes nodes out that give their input back: a Cast to its type, a Reshape or Expand to its shape, a Slice of all of it,
//! a Transpose in its order, a Concat of one, a Pad of nothing, a product with 1.
//!
//! ```text
//! before: c = Cast<to = float>(x: float); s = Slice(c, 0, max); y = Relu(s)      after: y = Relu(x)
//! ```

use super::{
    Context,
    support::{
        replace::bypass,
        shapes::{is_reshape, same_shape},
    },
};
use crate::{
    analysis::types::{self, Types},
    error::Result,
    ir::{DType, Model, NodeId, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let types = types::infer(model);
    let mut gone = 0;
    for n in model.all_nodes() {
        if model.try_node(n).is_none() {
            continue;
        }
        if let Some(x) = given_back(model, &types, n) {
            gone += usize::from(bypass(model, n, x));
        }
    }
    Ok(gone)
}

/// The input that the node's first output equals.
fn given_back(model: &Model, types: &Types, n: NodeId) -> Option<ValueId> {
    let node = model.node(n);
    if !node.in_onnx_domain() {
        return None;
    }
    if node.op_type == "Where" {
        return chosen(model, types, n);
    }
    let (x, out) = (node.input(0)?, node.output(0)?);
    let alone = node.inputs().len() == 1;
    let alike = || same_shape(types, x, out);
    let ones = |i: usize| node.input(i).is_none_or(|v| types.known_ints(v).is_some_and(|s| s.iter().all(|&n| n == 1)));
    let zeros = |v: Option<Vec<i64>>| v.is_some_and(|p| p.iter().all(|&n| n == 0));
    let given = match node.op_type.as_str() {
        "Cast" => types.dtype(x).is_some_and(|d| node.int("to") == Some(i64::from(d.to_onnx()))),
        "CastLike" => types.dtype(x).is_some() && types.dtype(x) == node.input(1).and_then(|v| types.dtype(v)),
        "Expand" | "Tile" => alike(),
        // With other steps than 1 the order may differ.
        "Slice" => alike() && ones(4),
        "Split" => node.outputs().len() == 1 && alike(),
        "Transpose" => match (node.ints("perm"), types.rank(x)) {
            (Some(perm), Some(rank)) => perm.len() == rank && perm.iter().enumerate().all(|(i, &p)| p == i as i64),
            (None, Some(rank)) => rank < 2,
            _ => false,
        },
        "Concat" | "Sum" | "Mean" | "Max" | "Min" => alone,
        "Pad" => match node.ints("pads") {
            Some(pads) => pads.iter().all(|&p| p == 0),
            None => zeros(node.input(1).and_then(|v| types.known_ints(v))),
        },
        "Mul" | "Div" => neutral(model, n, 1.0) && alike(),
        "Sub" => neutral(model, n, 0.0) && alike(),
        _ => is_reshape(model, n) && alike(),
    };
    given.then_some(x)
}

/// The side that a Where always takes, if it has the result's shape.
fn chosen(model: &Model, types: &Types, n: NodeId) -> Option<ValueId> {
    let node = model.node(n);
    let condition = types.known_ints(node.input(0)?)?;
    let first = *condition.first()?;
    let side = node.input(if first != 0 { 1 } else { 2 })?;
    (condition.iter().all(|&c| c == first) && same_shape(types, side, node.output(0)?)).then_some(side)
}

/// Whether every element of a node's second, constant input is this number (and no -0, which would matter).
fn neutral(model: &Model, n: NodeId, number: f32) -> bool {
    let Some(t) = model.constant_input(n, 1).filter(|t| t.len() <= 1024) else { return false };
    match t.dtype() {
        d if d.is_float() && d != DType::Double => {
            t.to_f32().is_ok_and(|v| v.iter().all(|x| x.to_bits() == number.to_bits()))
        }
        d if d.is_integer() => t.to_i64().is_ok_and(|v| v.iter().all(|&x| x == number as i64)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped};

    #[test]
    fn each_kind() {
        check(
            run,
            "(float[b,3,4] x) => (y) <int64[2] zero = {0, 0}, int64[2] far = {9223372036854775807, 3},
                int64[6] pads = {0, 0, 0, 0, 0, 0}, int64[3] to = {0, -1, 4}, float one = {1},
                bool[1] yes = {1}> {
                a = Cast <to = 1> (x)
                s = Slice(a, zero, far)
                t = Transpose <perm = [0, 1, 2]> (s)
                c = Concat <axis = 1> (t)
                p = Pad(c, pads)
                r = Reshape(p, to)
                m = Mul(r, one)
                w = Where(yes, m, one)
                y = Relu(w)
             }",
            "(float[b,3,4] x) => (y) { y = Relu(x) }",
        );
    }

    #[test]
    fn what_changes_something_stays() {
        for line in [
            "y = Transpose <perm = [0, 2, 1]> (x)",
            "y = Slice(x, last, first, axis, last)",
            "y = Mul(x, wide)",
            "y = Cast <to = 11> (x)",
            "y = Concat <axis = 0> (x, x)",
        ] {
            let constants =
                "int64[1] last = {-1}, int64[1] first = {-99}, int64[1] axis = {1}, float[2,1,1,1] wide = {1, 1}";
            check_skipped(run, &format!("(float[2,3,3] x) => (z) <{constants}> {{ {line} z = Relu(y) }}"), "");
        }
    }
}
