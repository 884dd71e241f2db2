//! Attention and its neighbours.

use super::{Cx, Rule};
use crate::{
    analysis::types::{SymDim, SymInt, symbols::Func},
    ir::DType,
};

#[rustfmt::skip]
pub(super) const RULES: &[(&[&str], Rule)] = &[
    (&["com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization"], skip_normalization),
    (&["com.microsoft.EmbedLayerNormalization"], embed),
    (&["com.microsoft.Attention", "com.microsoft.QAttention"], packed_attention),
    (&["com.microsoft.MultiHeadAttention"], multi_head),
    (&["com.microsoft.GroupQueryAttention"], |cx| { cx.same()?; query_output(cx) }),
    (&["RotaryEmbedding", "com.microsoft.RotaryEmbedding"], |cx| cx.same()),
    (&["Attention"], attention),
];

/// Output 3 is the sum of input and skip.
fn skip_normalization(cx: &mut Cx<'_>) -> Option<()> {
    cx.same()?;
    let (dtype, shape) = (cx.dtype(0), cx.shape(0));
    cx.set(3, dtype, shape);
    Some(())
}

/// `[batch, seq, hidden]` from ids and a table.
fn embed(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(2);
    let (ids, table) = (cx.shape(0)?, cx.shape(2)?);
    let (&[batch, seq], &[_, hidden]) = (ids.as_slice(), table.as_slice()) else { return None };
    let dims = Some(vec![batch, seq, hidden]);
    cx.set(0, dtype, dims.clone());
    cx.set(1, Some(DType::Int32), Some(vec![batch]));
    cx.set(2, dtype, dims);
    Some(())
}

/// One weight for query, key and value: a third of its columns is the result's width, unless sizes are given.
fn packed_attention(cx: &mut Cx<'_>) -> Option<()> {
    let quantized = cx.node().op_type == "QAttention";
    let dtype = if quantized { cx.dtype(3) } else { cx.dtype(0) };
    cx.set(0, dtype, None);
    let mut dims = cx.shape(0)?;
    let columns = cx.shape(1).and_then(|w| w.get(1).copied()).unwrap_or(SymDim::Unknown);
    *dims.last_mut()? = match cx.node().ints("qkv_hidden_sizes") {
        Some(sizes) => SymInt::Known(*sizes.get(2)?).dim(),
        None => cx.symbols().div(Func::FloorDiv, columns.into(), SymInt::Known(3)).dim(),
    };
    cx.set(0, dtype, Some(dims));
    Some(())
}

fn multi_head(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let (query, value) = (cx.shape(0)?, cx.shape(2));
    if let (&[batch, seq, _], Some(&[_, _, width])) = (query.as_slice(), value.as_deref()) {
        cx.set(0, dtype, Some(vec![batch, seq, width]));
    }
    Some(())
}

/// Where query, key and value come packed in one input, the result is narrower.
fn query_output(cx: &mut Cx<'_>) -> Option<()> {
    if cx.has(1) {
        return Some(());
    }
    let dtype = cx.dtype(0);
    let mut dims = cx.shape(0)?;
    let (heads, shared) = (cx.node().int("num_heads")?, cx.node().int("kv_num_heads")?);
    let all = heads.checked_add(shared.checked_mul(2)?)?;
    let last = dims.last_mut()?;
    let s = cx.symbols();
    let head = s.div(Func::FloorDiv, (*last).into(), SymInt::Known(all));
    *last = s.mul(head, SymInt::Known(heads)).dim();
    cx.set(0, dtype, Some(dims));
    Some(())
}

/// ai.onnx's Attention, in its form with four dims `[batch, heads, seq, width]` or with three.
fn attention(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    cx.set(0, dtype, None);
    let (query, value) = (cx.shape(0)?, cx.shape(2)?);
    match (query.as_slice(), value.as_slice()) {
        (&[batch, heads, seq, _], &[_, _, _, width]) => cx.set(0, dtype, Some(vec![batch, heads, seq, width])),
        (&[batch, seq, _], &[_, _, width]) => {
            let (q, kv) = (cx.node().int("q_num_heads")?, cx.node().int("kv_num_heads")?);
            let s = cx.symbols();
            let head = s.div(Func::FloorDiv, width.into(), SymInt::Known(kv));
            let width = s.mul(head, SymInt::Known(q)).dim();
            cx.set(0, dtype, Some(vec![batch, seq, width]));
        }
        _ => {}
    }
    Some(())
}
