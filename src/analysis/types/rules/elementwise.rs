//! Operators that work element by element, with broadcasting.

use super::{Cx, Dims, Rule};
use crate::{
    analysis::types::{
        MOST_INTS, SymDim, SymInt,
        symbols::{Func, Symbols},
    },
    ir::{DType, tensor::element_count},
};

#[rustfmt::skip]
pub(super) const RULES: &[(&[&str], Rule)] = &[
    (&["Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp",
        "Gelu", "HardSigmoid", "HardSwish", "Hardmax", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization",
        "Mish", "Reciprocal", "Relu", "Round", "ScaledTanh", "ParametricSoftplus", "Selu", "Shrink",
        "Sigmoid", "Sin", "Sinh", "Softmax", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
        "Affine", "ImageScaler", "Crop", "Clip", "PRelu", "CumSum", "CumProd", "Trilu", "ReverseSequence",
        "LRN", "MeanVarianceNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization",
        "com.microsoft.Gelu", "com.microsoft.FastGelu", "com.microsoft.QuickGelu", "com.microsoft.BiasGelu",
        "com.microsoft.BiasSoftmax", "com.microsoft.BiasDropout", "com.microsoft.Trilu"], |cx| cx.same()),
    (&["Ceil", "Floor", "Identity", "Abs", "Neg", "Sign", "Not"], unary),
    (&["IsNaN", "IsInf"], |cx| { let s = cx.shape(0); cx.set(0, Some(DType::Bool), s); Some(()) }),
    (&["Cast"], cast),
    (&["CastLike"], |cx| { let (d, s, i) = (cx.dtype(1), cx.shape(0), cx.ints(0)); cx.set(0, d, s); cx.set_ints(0, i); Some(()) }),
    (&["Dropout"], |cx| { cx.same()?; let s = cx.shape(0); cx.set(1, Some(DType::Bool), s); Some(()) }),
    (&["Add", "Sub", "Mul", "Div", "Mod", "Pow", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor",
        "com.microsoft.BiasAdd"], binary),
    (&["Min", "Max", "Sum", "Mean"], variadic),
    (&["And", "Or", "Xor", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"], compare),
    (&["Where"], choose),
];

/// Elementwise on small integer contents: the elements of both inputs that meet in each output element.
fn meet(cx: &mut Cx<'_>, inputs: &[usize]) -> Option<Vec<Vec<SymInt>>> {
    let shapes: Vec<Vec<usize>> = inputs.iter().map(|&i| cx.known_shape(i)).collect::<Option<_>>()?;
    let ints: Vec<Vec<SymInt>> = inputs.iter().map(|&i| cx.ints(i)).collect::<Option<_>>()?;
    let symbolic: Vec<Option<Dims>> =
        shapes.iter().map(|s| Some(s.iter().map(|&d| SymDim::Known(d)).collect())).collect();
    let out: Vec<usize> = cx.broadcast(&symbolic)?.into_iter().map(SymDim::known).collect::<Option<_>>()?;
    let count = element_count(&out).filter(|&n| n <= MOST_INTS)?;
    let at = |shape: &[usize], flat: usize| {
        let (mut rest, mut index, mut stride) = (flat, 0, 1);
        for (k, &d) in out.iter().enumerate().rev() {
            let here = rest % d.max(1);
            rest /= d.max(1);
            if let Some(own) = (k + shape.len()).checked_sub(out.len()).map(|j| shape[j]) {
                index += if own == 1 { 0 } else { here * stride };
                stride *= own;
            }
        }
        index
    };
    (0..count)
        .map(|flat| inputs.iter().enumerate().map(|(k, _)| ints[k].get(at(&shapes[k], flat)).copied()).collect())
        .collect()
}

fn unary(cx: &mut Cx<'_>) -> Option<()> {
    cx.same()?;
    let op = cx.node().op_type.as_str();
    let ints = cx.ints(0)?;
    let s = cx.symbols();
    let ints = ints.into_iter().map(|a| match op {
        "Neg" => s.mul(a, SymInt::Known(-1)),
        "Abs" if !s.is_natural(a) => a.known().and_then(i64::checked_abs).map_or(SymInt::Unknown, SymInt::Known),
        "Sign" => a.known().map_or(SymInt::Unknown, |n| SymInt::Known(n.signum())),
        "Not" => a.known().map_or(SymInt::Unknown, |n| SymInt::Known(i64::from(n == 0))),
        _ => a,
    });
    let ints = ints.collect();
    cx.set_ints(0, Some(ints));
    Some(())
}

fn cast(cx: &mut Cx<'_>) -> Option<()> {
    let to = cx.node().int("to").and_then(|n| i32::try_from(n).ok()).and_then(DType::from_onnx);
    let shape = cx.shape(0);
    cx.set(0, to, shape);
    let ints = cx.ints(0)?;
    let ints = ints.into_iter().map(|a| match (to?, a) {
        (DType::Bool, SymInt::Known(n)) => Some(SymInt::Known(i64::from(n != 0))),
        (DType::Bool, _) => Some(SymInt::Unknown),
        (_, a) => Some(a),
    });
    let ints = ints.collect();
    cx.set_ints(0, ints);
    Some(())
}

fn binary(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0).or_else(|| cx.dtype(1).filter(|_| cx.node().op_type != "Pow"));
    let shape = old_broadcast(cx);
    cx.set(0, dtype, shape);
    let whole = dtype.is_some_and(DType::is_integer);
    let op = cx.node().op_type.as_str();
    let modulo = cx.int("fmod", 0) == 0;
    let pairs = meet(cx, &[0, 1]).filter(|_| whole)?;
    let s = cx.symbols();
    let ints = pairs.into_iter().map(|p| match op {
        "Add" => s.add(p[0], p[1]),
        "Sub" => s.sub(p[0], p[1]),
        "Mul" => s.mul(p[0], p[1]),
        "Div" => s.div(Func::TruncDiv, p[0], p[1]),
        "Mod" if modulo => remainder(s, p[0], p[1]),
        "Pow" => match (p[0].known(), p[1].known().and_then(|n| u32::try_from(n).ok())) {
            (Some(a), Some(n)) => a.checked_pow(n).map_or(SymInt::Unknown, SymInt::Known),
            _ => SymInt::Unknown,
        },
        _ => SymInt::Unknown,
    });
    let ints = ints.collect();
    cx.set_ints(0, Some(ints));
    Some(())
}

/// Broadcasting; before opset 7 the second shape is aligned by `axis` and never enlarges the first.
fn old_broadcast(cx: &mut Cx<'_>) -> Option<Dims> {
    if cx.opset() < 7 {
        cx.shape(0)
    } else {
        let shapes = [cx.shape(0), cx.shape(1)];
        cx.broadcast(&shapes)
    }
}

/// The remainder with the sign of the divisor.
fn remainder(s: &mut Symbols, a: SymInt, b: SymInt) -> SymInt {
    match (a, b) {
        (SymInt::Known(a), SymInt::Known(b)) => {
            let r = a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r });
            r.map_or(SymInt::Unknown, SymInt::Known)
        }
        (a, b) if s.exact_div(a, b).is_some() => SymInt::Known(0),
        (a, b) => s.call(Func::Mod, vec![a, b]),
    }
}

fn variadic(cx: &mut Cx<'_>) -> Option<()> {
    let count = cx.node().inputs().len();
    let dtype = (0..count).find_map(|i| cx.dtype(i));
    let shapes: Vec<_> = (0..count).map(|i| cx.shape(i)).collect();
    let shape = cx.broadcast(&shapes);
    cx.set(0, dtype, shape);
    let op = cx.node().op_type.as_str();
    let rows = meet(cx, &(0..count).collect::<Vec<_>>())?;
    let s = cx.symbols();
    let ints = rows.into_iter().map(|row| {
        let all = row.into_iter();
        match op {
            "Min" => all.reduce(|a, b| s.min(a, b)),
            "Max" => all.reduce(|a, b| s.max(a, b)),
            "Sum" => all.reduce(|a, b| s.add(a, b)),
            _ => None,
        }
    });
    let ints = ints.collect();
    cx.set_ints(0, ints);
    Some(())
}

fn compare(cx: &mut Cx<'_>) -> Option<()> {
    let shape = old_broadcast(cx);
    cx.set(0, Some(DType::Bool), shape);
    let op = cx.node().op_type.as_str();
    let pairs = meet(cx, &[0, 1])?;
    let s = cx.symbols();
    let ints = pairs.into_iter().map(|p| {
        let (a, b) = (p[0], p[1]);
        let next = |s: &mut Symbols, n| s.add(n, SymInt::Known(1));
        let truth = match op {
            "Equal" => s.equal(a, b),
            "And" if [a, b].contains(&SymInt::Known(0)) => Some(false),
            "Or" if [a, b].contains(&SymInt::Known(1)) => Some(true),
            "And" | "Or" | "Xor" => a.known().zip(b.known()).map(|(a, b)| match op {
                "And" => a != 0 && b != 0,
                "Or" => a != 0 || b != 0,
                _ => (a != 0) != (b != 0),
            }),
            _ => {
                let (high, low) = if op.starts_with("Greater") { (a, b) } else { (b, a) };
                // Greater: high >= low + 1 is certain, or low >= high is; with equality the other way round.
                let (above, below) = if op.ends_with("OrEqual") { (low, next(s, high)) } else { (next(s, low), high) };
                if s.at_least(high, above) {
                    Some(true)
                } else if s.at_least(low, below) {
                    Some(false)
                } else {
                    None
                }
            }
        };
        truth.map_or(SymInt::Unknown, |t| SymInt::Known(i64::from(t)))
    });
    let ints = ints.collect();
    cx.set_ints(0, Some(ints));
    Some(())
}

fn choose(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(1).or_else(|| cx.dtype(2));
    let shapes = [cx.shape(0), cx.shape(1), cx.shape(2)];
    let shape = cx.broadcast(&shapes);
    cx.set(0, dtype, shape);
    let rows = meet(cx, &[0, 1, 2])?;
    let pick = |row: Vec<SymInt>| match row[0].known() {
        Some(0) => row[2],
        Some(_) => row[1],
        None if row[1] == row[2] => row[1],
        None => SymInt::Unknown,
    };
    cx.set_ints(0, Some(rows.into_iter().map(pick).collect()));
    Some(())
}
