//! Tensors that mix ranges: one scale for boxes and scores leaves the scores few codes. A Concat in float lets each of its parts
//! keep its own, and so does what stands behind it up to the next product, which reads its data with one scale anyway.

use std::collections::BTreeSet;

use super::{
    Clock,
    auto::GAINS,
    gate::{Gate, gains},
    planner::Planner,
};
use crate::{
    analysis::placement::{Decision, Placement, Wishes},
    config::Mode,
    diagnostics::{Diagnostic, count},
    error::Result,
    ir::{Model, NodeId},
    plan::Plan,
};

/// How much wider the widest part must be than the narrowest.
const RATIO: f32 = 4.0;
/// Concats that are tried, those with the most uneven parts first.
const MOST: usize = 8;

/// Keeps Concats of uneven parts in float where that is asked for and the answers gain by it, on two halves of the samples.
pub(super) fn split(
    planner: &mut Planner<'_>,
    mut wishes: Wishes,
    first: (Plan, Placement),
    clock: &mut Clock<'_>,
) -> Result<(Wishes, (Plan, Placement))> {
    let config = &planner.task.job.settings.config;
    if !config.split_concats {
        return Ok((wishes, first));
    }
    if config.mode == Mode::Dynamic || planner.samples.is_empty() {
        let text = "no effect of split_concats: no Concat computes in integers without ranges from calibration";
        let help = "give --calibration, and --mode static or auto";
        planner.diagnostics.push(Diagnostic::warning("settings_without_effect", text).help(help));
        return Ok((wishes, first));
    }
    let uneven = uneven(planner, &wishes, &first.1);
    let gate = match uneven.is_empty() {
        true => None,
        false => Gate::new(planner, planner.samples.clone())?,
    };
    let Some(gate) = gate else {
        let text = format!(
            "split_concats changes nothing: no Concat in integers joins parts of which one has {RATIO} times the range of another"
        );
        planner.diagnostics.push(Diagnostic::note("nothing_split", text));
        return Ok((wishes, first));
    };
    clock.step("split");
    let (model, tried, mut kept) = (planner.task.model, uneven.len(), 0);
    let mut best = first;
    let mut before = gate.noise(model, &best.0, &planner.known)?;
    for (ratio, concat) in uneven {
        let mut other = wishes.clone();
        let why = format!("parts keep scales of their own: the range of one is {ratio:.0} times that of another");
        for n in behind(model, &best.1, concat).into_iter().filter(|n| !wishes.names(*n)) {
            other.keep_float.entry(n).or_insert(format!("it stands behind a Concat whose {why}"));
        }
        other.keep_float.insert(concat, format!("its {why}"));
        let known = planner.known.clone();
        let made = planner.plan(&other, clock)?;
        clock.step("split");
        let after = gate.noise(model, &made.0, &planner.known)?;
        log::info!("{} in float: {before:.4?} of the budget, {after:.4?} with it", model.node_label(concat));
        if gains(before, after, GAINS) {
            (wishes, best, before, kept) = (other, made, after, kept + 1);
        } else {
            planner.known = known;
        }
    }
    planner.diagnostics.push(match kept {
        0 => Diagnostic::note(
            "nothing_split",
            format!("split_concats changes nothing: the answers do not gain by {} in float", count(tried, "Concat")),
        ),
        1 => Diagnostic::note("concats_split", "1 Concat of uneven parts stays float"),
        _ => Diagnostic::note("concats_split", format!("{kept} Concats of uneven parts stay float")),
    });
    Ok((wishes, best))
}

/// What computes in integers behind a node, as far as the next products.
fn behind(model: &Model, placement: &Placement, node: NodeId) -> BTreeSet<NodeId> {
    let integer: BTreeSet<NodeId> = placement.nodes.iter().filter(|(_, d)| d.is_integer()).map(|(n, _)| *n).collect();
    let product = |n: NodeId| matches!(&model.node(n).op_type[..], "Conv" | "ConvTranspose" | "Gemm" | "MatMul");
    let (mut found, mut waiting) = (BTreeSet::new(), vec![node]);
    while let Some(n) = waiting.pop() {
        let readers = model.node(n).outputs().iter().flatten().flat_map(|&v| model.value(v).readers());
        for (reader, _) in readers.filter(|(r, _)| integer.contains(r) && !product(*r)) {
            if found.insert(reader) {
                waiting.push(reader);
            }
        }
    }
    found
}

/// Concats in integers with the ratio of the ranges of their parts, the most uneven first.
pub(super) fn uneven(planner: &Planner<'_>, wishes: &Wishes, placement: &Placement) -> Vec<(f32, NodeId)> {
    let model = planner.task.model;
    let width = |v| {
        let root = placement.values.get(&v)?.root;
        let fixed = planner.task.resolved.ranges.get(&root).copied();
        let range = fixed.or_else(|| planner.table.get(model.value(root).name()))?;
        Some(range.hi - range.lo).filter(|w| *w > 0.0)
    };
    let ratio = |(n, d): &(NodeId, Decision)| {
        let concat = model.node(*n).is("Concat") && d.is_integer() && !wishes.names(*n);
        let widths: Vec<f32> = model.node(*n).inputs().iter().filter(|_| concat).filter_map(|v| width((*v)?)).collect();
        let (least, most) = widths.iter().fold((f32::INFINITY, 0f32), |(a, b), w| (a.min(*w), b.max(*w)));
        Some((most / least, *n)).filter(|(ratio, _)| *ratio >= RATIO)
    };
    let mut found: Vec<(f32, NodeId)> = placement.nodes.iter().filter_map(ratio).collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    found.truncate(MOST);
    found
}
