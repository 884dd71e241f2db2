//! Operators that ask for shapes, and those that make tensors from nothing.

use super::{Cx, Dims, Rule};
use crate::{
    analysis::types::{MOST_INTS, SymDim, SymInt, symbols::Func},
    ir::{AttrValue, DType},
};

#[rustfmt::skip]
pub(super) const RULES: &[(&[&str], Rule)] = &[
    (&["Shape"], shape),
    (&["Size"], size),
    (&["ConstantOfShape"], constant_of_shape),
    (&["Range"], range),
    (&["EyeLike", "Bernoulli", "RandomNormalLike", "RandomUniformLike"],
        |cx| { let d = to(cx).or_else(|| cx.dtype(0)); let s = cx.shape(0); cx.set(0, d, s); Some(()) }),
    (&["RandomNormal", "RandomUniform"], random),
    (&["Multinomial"], multinomial),
];

fn to(cx: &Cx<'_>) -> Option<DType> {
    cx.node().int("dtype").and_then(|n| i32::try_from(n).ok()).and_then(DType::from_onnx)
}

fn shape(cx: &mut Cx<'_>) -> Option<()> {
    cx.set(0, Some(DType::Int64), Some(vec![SymDim::Unknown]));
    let x = cx.sizes(0)?;
    let rank = i64::try_from(x.len()).ok()?;
    let place = |n: i64| usize::try_from((if n < 0 { n.saturating_add(rank) } else { n }).clamp(0, rank)).unwrap_or(0);
    let (start, end) = (place(cx.int("start", 0)), place(cx.int("end", rank)));
    let ints = x.get(start..end.max(start))?.to_vec();
    cx.set(0, Some(DType::Int64), Some(vec![SymDim::Known(ints.len())]));
    cx.set_ints(0, Some(ints));
    Some(())
}

fn size(cx: &mut Cx<'_>) -> Option<()> {
    cx.set(0, Some(DType::Int64), Some(Vec::new()));
    let x = cx.sizes(0)?;
    let count = cx.symbols().product(x);
    cx.set_ints(0, Some(vec![count]));
    Some(())
}

fn constant_of_shape(cx: &mut Cx<'_>) -> Option<()> {
    let value = cx.node().tensor("value");
    let dtype = match cx.node().attr("value") {
        Some(AttrValue::Tensor(t)) => t.tensor.dtype(),
        _ => DType::Float,
    };
    let dims: Option<Dims> = match (cx.ints(0), cx.known_shape(0).as_deref()) {
        (Some(ints), _) => Some(ints.into_iter().map(SymInt::dim).collect()),
        (None, Some(&[0])) => Some(Vec::new()),
        (None, Some(&[rank])) => cx.fresh_dims(rank),
        _ => None,
    };
    cx.set(0, Some(dtype), dims);
    let count = cx.count_of(cx.node().output(0)?)?;
    let filler = value?.scalar_i64()?;
    cx.set_ints(0, Some(vec![SymInt::Known(filler); count]));
    Some(())
}

fn range(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = (0..3).find_map(|i| cx.dtype(i));
    cx.set(0, dtype, Some(vec![SymDim::Unknown]));
    let one = |cx: &Cx<'_>, i: usize| match cx.ints(i).as_deref() {
        Some([n]) => Some(*n),
        _ => None,
    };
    let (start, limit, step) = match (one(cx, 0), one(cx, 1), one(cx, 2)) {
        (Some(a), Some(b), Some(c)) => (a, b, c),
        _ => return float_range(cx),
    };
    let s = cx.symbols();
    let span = s.sub(limit, start);
    let count = match step {
        SymInt::Known(n) if n > 0 => {
            let up = s.add(span, SymInt::Known(n - 1));
            let count = s.div(Func::FloorDiv, up, step);
            s.max(count, SymInt::Known(0))
        }
        SymInt::Known(n) if n < 0 => match span {
            SymInt::Known(d) => SymInt::Known(d.checked_div(n)?.checked_add(i64::from(d % n != 0))?.max(0)),
            _ => SymInt::Unknown,
        },
        _ => SymInt::Unknown,
    };
    cx.set(0, dtype, Some(vec![count.dim()]));
    if let (SymInt::Known(start), SymInt::Known(step), SymInt::Known(count)) = (start, step, count)
        && count <= MOST_INTS as i64
    {
        let at = |i: i64| start.checked_add(i.checked_mul(step)?).map(SymInt::Known);
        cx.set_ints(0, (0..count).map(at).collect());
    }
    Some(())
}

/// `max(ceil((limit - start) / delta), 0)`
fn float_range(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    let one = |i: usize| cx.constant(i).and_then(|t| t.scalar_f32()).map(f64::from);
    let count = ((one(1)? - one(0)?) / one(2)?).ceil().max(0.0);
    if count < 1e9 {
        cx.set(0, dtype, Some(vec![SymDim::Known(count as usize)]));
    }
    Some(())
}

fn random(cx: &mut Cx<'_>) -> Option<()> {
    let dims = cx.node().ints("shape")?.iter().map(|&n| SymInt::Known(n).dim()).collect();
    let dtype = to(cx).unwrap_or(DType::Float);
    cx.set(0, Some(dtype), Some(dims));
    Some(())
}

fn multinomial(cx: &mut Cx<'_>) -> Option<()> {
    let batch = cx.shape(0).and_then(|s| s.first().copied()).unwrap_or(SymDim::Unknown);
    let count = SymInt::Known(cx.int("sample_size", 1)).dim();
    let dtype = to(cx).unwrap_or(DType::Int32);
    cx.set(0, Some(dtype), Some(vec![batch, count]));
    Some(())
}
