//! Operators beside conversions that could compute in integers and do not, for a reason that no other rule has told.
//!
//! Most often an input or the output is not quantized, or not in the way that the kernel asks for.
//!
//! ```text
//! before: (uint8[1,4,64,64] c) => (float[1,4,64,64] y) <float s = {0.5}, uint8 z = {3}, int8[4,4,1,1] k = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}, float t = {0.1}, int8 u = {0}> { x = DequantizeLinear(c, s, z) w = DequantizeLinear(k, t, u) y = Conv(x, w) }
//! ```

use super::{Context, Finding, Severity};
use crate::{
    error::Result,
    ir::NodeId,
    ops::{self, Role},
};

pub(super) const WHAT: &str = "operators that could compute in integers and compute in float";
pub(super) const CURE: &str =
    "quantize what the kernel asks for (the reason is told), or keep the node in float on both sides";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        if !cx.is_float(n) || cx.row(n).is_none() || !data_is_quantized(cx, n) {
            continue;
        }
        let reason = cx.kernel(n).and_then(|k| k.reason.clone()).unwrap_or_else(|| "no reason is known".to_owned());
        let (float, integer) = cx.node_times(n);
        // Some kernels are slower than float, and some sizes are not known.
        if integer > float {
            continue;
        }
        let severity = if float > integer { Severity::Warning } else { Severity::Note };
        found.push(Finding::at(severity, n, format!("computes in float: {reason}")).costs(float - integer));
    }
    Ok(found)
}

/// Whether some data of a node that are no constants are dequantized.
fn data_is_quantized(cx: &Context<'_>, n: NodeId) -> bool {
    let Some(spec) = ops::spec(cx.model, n) else { return false };
    (0..cx.model.node(n).inputs().len()).any(|i| {
        spec.role(i) == Role::Data && cx.dequantized(n, i).is_some_and(|d| cx.model.value(d.input).constant().is_none())
    })
}
