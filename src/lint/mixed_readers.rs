//! A value that is quantized for some of its readers, while others read it in float: its maker has a kernel only if it is quantized
//! for all.
//!
//! ```text
//! before: (float[1,4,64,64] x) => (float[1,4,64,64] y, float[1,4,64,64] z) <float s = {0.5}, uint8 o = {3}, int8[4,4,1,1] c = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}, float t = {0.1}, int8 u = {0}> {
//!     q = QuantizeLinear(x, s, o) d = DequantizeLinear(q, s, o) w = DequantizeLinear(c, t, u) a = Conv(d, w)
//!     z = Exp(a) aq = QuantizeLinear(a, s, o) y = DequantizeLinear(aq, s, o)
//! }
//! after: (float[1,4,64,64] x) => (float[1,4,64,64] y, float[1,4,64,64] z) <float s = {0.5}, uint8 o = {3}, int8[4,4,1,1] c = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}, float t = {0.1}, int8 u = {0}> {
//!     q = QuantizeLinear(x, s, o) d = DequantizeLinear(q, s, o) w = DequantizeLinear(c, t, u) a = Conv(d, w)
//!     aq = QuantizeLinear(a, s, o) y = DequantizeLinear(aq, s, o) z = Exp(y)
//! }
//! ```

use super::{Changes, Context, Finding, Severity};
use crate::{error::Result, ir::Model, passes::support::pairs::Linear, target::Output};

pub(super) const WHAT: &str =
    "values that are quantized for some readers and read in float by others, so that their maker has no kernel";
pub(super) const CURE: &str = "let all readers read the dequantized value";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        let wants = cx.operator(n).is_some_and(|(_, row)| row.output == Output::Required) && cx.is_float(n);
        let Some(v) = cx.model.node(n).output(0).filter(|_| wants) else { continue };
        let readers: Vec<_> = cx.model.value(v).readers().collect();
        let pairs: Vec<_> = readers.iter().filter(|(_, i)| *i == 0).filter_map(|&(r, _)| cx.pair(r)).collect();
        let [pair] = &pairs[..] else { continue };
        let others = readers.len() - 1;
        let here = readers.iter().all(|&(r, _)| cx.model.node(r).graph() == cx.model.node(n).graph());
        if others == 0 || cx.model.value(v).is_graph_output() || !here {
            continue;
        }
        let fact = format!("its output is quantized, and {} of its {} readers read it in float", others, readers.len());
        let q = pair.q.node;
        let dequantized = pair.dq.first().map(|d| d.output);
        let repair = move |model: &mut Model| {
            let there = model.try_node(q).is_some() && dequantized.is_some_and(|d| model.try_value(d).is_some());
            let (true, Some(to)) = (there, dequantized) else { return Ok(false) };
            if Linear::of(model, q, "QuantizeLinear").is_none_or(|q| q.input != v) {
                return Ok(false);
            }
            model.replace_readers(v, to, |r, _| r != q);
            Ok(true)
        };
        let words = "changes numbers: readers that had the float value get the rounded one";
        let (float, integer) = cx.node_times(n);
        let time = (float - integer).max(0.0);
        found.push(Finding::at(Severity::Warning, n, fact).costs(time).mend(Changes::As(words.to_owned()), repair));
    }
    Ok(found)
}
