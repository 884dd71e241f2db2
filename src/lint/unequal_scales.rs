//! Operators that only move elements, with another scale behind them than in front.
//!
//! MaxPool, Reshape, Transpose, Slice and the like move codes as they are, if both sides have one scale and zero point; else the
//! runtime dequantizes, moves floats and quantizes again. Every element behind the operator is one of those in front, so the
//! scale in front fits both sides, and the second rounding goes.
//!
//! ```text
//! before: (uint8[1,1,4,4] c) => (float[1,1,2,2] y) <float s = {0.5}, uint8 z = {3}, float t = {0.6}> { x = DequantizeLinear(c, s, z) m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) q = QuantizeLinear(m, t, z) y = DequantizeLinear(q, t, z) }
//! after: (uint8[1,1,4,4] c) => (float[1,1,2,2] y) <float s = {0.5}, uint8 z = {3}, float m_scale = {0.5}, uint8 m_zero_point = {3}> { x = DequantizeLinear(c, s, z) m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) q = QuantizeLinear(m, m_scale, m_zero_point) y = DequantizeLinear(q, m_scale, m_zero_point) }
//! ```

use super::{Changes, Context, Finding, Severity, support::pairs::Pair, symmetric_clamps::absorb};
use crate::{
    error::Result,
    ir::{Model, NodeId},
    passes::support::pairs::moves_codes,
    quant::params::QParams,
};

pub(super) const WHAT: &str = "operators that move codes only where both sides have one scale, and theirs differ";
pub(super) const CURE: &str = "use the scale and zero point in front of the operator behind it, too";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        let moves = cx.row(n).is_some_and(|row| row.same_scale) && moves_codes(cx.model, n);
        let Some(params) = moves.then(|| in_front(cx, n)).flatten() else { continue };
        let behind: Option<Vec<Pair>> = cx
            .model
            .node(n)
            .outputs()
            .iter()
            .flatten()
            .map(|&v| {
                let (q, _) = cx.model.sole_reader(v)?;
                cx.pair(q)
            })
            .collect();
        let Some(behind) = behind.filter(|b| !b.is_empty()) else { continue };
        let odd: Vec<&Pair> = behind.iter().filter(|p| !same(p.params, params)).collect();
        let converts =
            behind.iter().any(|p| cx.converts(p.q.node)) || cx.dequantized(n, 0).is_none_or(|d| cx.converts(d.node));
        let Some(first) = odd.first().filter(|_| converts) else { continue };
        let fact = format!(
            "scale {:?} and zero point {} in front of it, {:?} and {} behind it",
            params.scale, params.zero_point, first.params.scale, first.params.zero_point
        );
        let dq = cx.dequantized(n, 0).map(|d| cx.times.node(d.node)).unwrap_or_default();
        let time = dq + behind.iter().map(|p| cx.times.node(p.q.node)).sum::<f64>();
        let qs: Vec<NodeId> = odd.iter().map(|p| p.q.node).collect();
        let repair = move |model: &mut Model| {
            let mut any = false;
            for &q in &qs {
                any |= absorb(q, params)(model)?;
            }
            Ok(any)
        };
        // Codes that end earlier behind it cut something off, as a Relu that somebody has taken out.
        let holds = |p: &&Pair| {
            let ranges = p.params.representable().ok().zip(params.representable().ok());
            ranges.is_some_and(|(behind, front)| behind.lo <= front.lo && front.hi <= behind.hi)
        };
        if !odd.iter().all(holds) {
            let fact = format!("{fact}, where codes end earlier and cut off what lies beyond");
            found.push(Finding::at(Severity::Warning, n, fact).costs(time));
            continue;
        }
        found.push(Finding::at(Severity::Warning, n, fact).costs(time).mend(Changes::FewerRoundings, repair));
    }
    Ok(found)
}

/// The parameters of what a node reads.
fn in_front(cx: &Context<'_>, n: NodeId) -> Option<QParams> {
    let d = cx.dequantized(n, 0)?;
    let (scale, zero_point) = d.per_tensor(cx.model)?;
    let dtype = d.codes(cx.model, &cx.types).filter(|t| t.is_integer() && t.bits() <= 16)?;
    Some(QParams { scale, zero_point: i32::try_from(zero_point).ok()?, dtype })
}

/// Whether both stand for the same numbers: int8 and uint8 codes that are 128 apart are another rule's.
fn same(a: QParams, b: QParams) -> bool {
    let shifted = |p: QParams| if p.dtype == crate::ir::DType::Int8 { p.as_uint8() } else { p };
    shifted(a) == shifted(b)
}
