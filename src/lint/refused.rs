//! What runtimes refuse a file for, and no other rule tells of: types and shapes of scales that do not fit what they scale,
//! operators that the imported versions do not have, values that are read before they are made.
//!
//! The first such thing is told; behind it there may be more.
//!
//! ```text
//! before: (float[1,2] x) => (float[1,2] y) <float[3] s = {0.5, 0.25, 1}, uint8[3] z = {1, 2, 3}> { q = QuantizeLinear<axis = 1>(x, s, z) y = DequantizeLinear<axis = 1>(q, s, z) }
//! ```

use super::{Context, Finding, Severity};
use crate::{error::Result, validate};

pub(super) const WHAT: &str = "what runtimes refuse the file for";
pub(super) const CURE: &str = "quantize the float model anew";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let Err(error) = validate::check(cx.model) else { return Ok(Vec::new()) };
    let node = error.at().node.as_ref();
    let node = node.and_then(|name| cx.nodes().into_iter().find(|&n| cx.model.node_label(n) == *name));
    let fact = match node {
        Some(_) => error.message().to_owned(),
        None => error.to_string(),
    };
    Ok(vec![Finding { severity: Severity::Error, node, value: None, fact, time: 0.0, bytes: 0, repair: None }])
}
