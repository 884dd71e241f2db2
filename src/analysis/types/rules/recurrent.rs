//! Recurrent layers.

use super::{Cx, Rule};
use crate::analysis::types::SymDim;

pub(super) const RULES: &[(&[&str], Rule)] =
    &[(&["LSTM", "GRU", "RNN", "com.microsoft.DynamicQuantizeLSTM"], recurrent)];

/// `Y` is `[seq, directions, batch, hidden]`, `Y_h` (and `Y_c`) `[directions, batch, hidden]`; with `layout` 1 the batch
/// comes first.
fn recurrent(cx: &mut Cx<'_>) -> Option<()> {
    let dtype = cx.dtype(0);
    let directions = SymDim::Known(if cx.node().string("direction") == Some("bidirectional") { 2 } else { 1 });
    let hidden = match cx.node().int("hidden_size").and_then(|n| usize::try_from(n).ok()) {
        Some(n) => SymDim::Known(n),
        // R is `[directions, gates, hidden]`, and the other way round where it is quantized.
        None => {
            let axis = if cx.node().in_onnx_domain() { 2 } else { 1 };
            cx.shape(2).and_then(|r| r.get(axis).copied()).unwrap_or_else(|| cx.fresh())
        }
    };
    let batch_first = cx.int("layout", 0) == 1;
    let (seq, batch) = match cx.shape(0).as_deref() {
        Some(&[a, b, _]) => {
            if batch_first {
                (b, a)
            } else {
                (a, b)
            }
        }
        _ => (cx.fresh(), cx.fresh()),
    };
    let (all, last) = if batch_first {
        (vec![batch, seq, directions, hidden], vec![batch, directions, hidden])
    } else {
        (vec![seq, directions, batch, hidden], vec![directions, batch, hidden])
    };
    cx.set(0, dtype, Some(all));
    cx.set(1, dtype, Some(last.clone()));
    cx.set(2, dtype, Some(last));
    Some(())
}
