//! Plans that keep to an allowed noise: which nodes go back to float for that, and which weights are stored finer.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    lab::Lab,
    recipe::{Form, Ranges, Recipe},
};
use crate::{
    analysis::placement::{Decision, Placement, Wishes},
    config::FloatWeights,
    error::Result,
    ir::{DType, Model, NodeId},
    pipeline::{
        planner::Planner,
        prices::{all_float, cheapest, store_finer},
    },
    plan::{self, named_values},
    quant::Range,
    validate::noise::{Noise, Source},
};

/// Rounds in which nodes that would become integer instead of those that went back are sent back, too.
const ROUNDS: usize = 4;
/// What dynamic products may use up of what is allowed where others have ranges from calibration.
const SHARE: f64 = 0.5;

/// A form whose plans are looked at for many allowed noises.
pub(super) struct Family {
    pub(super) form: Form,
    /// Where its fastest plan has everything.
    pub(super) placed: Placement,
    /// The noise of single roundings.
    pub(super) known: Noise,
    /// All of them together in the fastest plan.
    pub(super) predicted: f64,
    /// Labels of the nodes that are integer in the fastest plan, in the graph's order.
    pub(super) labels: Vec<String>,
    /// What was allowed, and the point that came of it.
    pub(super) rungs: Vec<(f64, usize)>,
}

impl Family {
    /// The noise of a node in integers and of all that it reads and makes.
    pub(super) fn noise_around(&self, model: &Model, node: NodeId) -> f64 {
        let n = model.node(node);
        let values = n.inputs().iter().chain(n.outputs()).flatten().map(|&v| Source::Value(v));
        self.known.worst(&values.chain([Source::Node(node)]).collect::<Vec<_>>())
    }

    /// Takes note of the point that an allowed noise led to.
    pub(super) fn add(&mut self, allowed: f64, point: usize) {
        self.rungs.push((allowed, point));
        self.rungs.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
}

/// Labels of nodes in integers.
pub(super) fn integer_labels(model: &Model, placement: &Placement) -> Vec<String> {
    placement.nodes.iter().filter(|(_, d)| d.is_integer()).map(|(n, _)| model.node_label(*n)).collect()
}

/// The recipe with the fastest plan of a form whose roundings are predicted to stay within what is allowed.
pub(super) fn recipe(lab: &mut Lab<'_>, family: &Family, allowed: f64) -> Result<Recipe> {
    let whole = Recipe::whole(&family.form, FloatWeights::Int8);
    let model = lab.prepared;
    let (float, stored_of) = lab.with_planner(&whole, |planner, wishes, _| {
        let (float, placement) = kept(planner, family, wishes, allowed);
        let stored_of = stored(planner, family, &placement, allowed)?;
        Ok((float, stored_of))
    })?;
    let float = float.into_iter().map(|n| model.node_label(n)).collect();
    Ok(Recipe { float, stored_of, ..whole })
}

/// The nodes that go back to float, and where the others are placed then.
fn kept(planner: &Planner<'_>, family: &Family, wishes: &Wishes, allowed: f64) -> (BTreeSet<NodeId>, Placement) {
    let model = planner.task.model;
    let with = |float: &BTreeSet<NodeId>| {
        let mut wishes = wishes.clone();
        for &node in float {
            wishes.keep_float.entry(node).or_insert_with(|| "tune keeps it float".to_owned());
        }
        wishes
    };
    let dynamic = if family.form.ranges == Ranges::Static { BTreeSet::new() } else { louder(model, family, allowed) };
    let first = with(&dynamic);
    let priced = match family.form.ranges {
        Ranges::Dynamic => planner.place(&first),
        _ => match cheapest(planner, &first, &family.known, &family.placed, allowed) {
            Some(priced) => planner.place(&priced),
            None => planner.place(&all_float(&first, &family.placed)),
        },
    };
    let integer = |p: &Placement| -> BTreeSet<NodeId> {
        p.nodes.iter().filter(|(_, d)| d.is_integer()).map(|(n, _)| *n).collect()
    };
    let chosen = integer(&priced);
    let mut float: BTreeSet<NodeId> = integer(&family.placed).difference(&chosen).copied().collect();
    let mut placement = priced;
    for _ in 0..ROUNDS {
        placement = planner.place(&with(&float));
        // Without prices, others may join in the place of those that are gone.
        let more: Vec<NodeId> = integer(&placement).difference(&chosen).copied().collect();
        if more.is_empty() {
            break;
        }
        float.extend(more);
    }
    (float, placement)
}

/// The nodes quantizing at run time that go back to float: prices do not reach these, so those go first that make the most noise for
/// the products that they compute.
fn louder(model: &Model, family: &Family, allowed: f64) -> BTreeSet<NodeId> {
    let share = if family.form.ranges == Ranges::Dynamic { 1.0 } else { SHARE };
    let dynamic = family.placed.nodes.iter().filter(|(_, d)| matches!(d, Decision::Dynamic(_))).map(|(n, _)| *n);
    let weight = |n: NodeId| model.constant_input(n, 1).map_or(1, |t| t.len()).max(1) as f64;
    let mut all: Vec<(f64, NodeId)> =
        dynamic.map(|n| (family.known.worst(&[Source::Node(n)]) / weight(n), n)).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
    let mut float = BTreeSet::new();
    loop {
        let left: Vec<Source> = all.iter().map(|(_, n)| Source::Node(*n)).collect();
        if family.known.worst(&left) <= share * allowed {
            return float;
        }
        match all.pop() {
            Some((_, n)) => float.insert(n),
            None => return float,
        };
    }
}

/// The nodes whose weights must be stored in a finer form than 8 bits.
fn stored(
    planner: &Planner<'_>,
    family: &Family,
    placement: &Placement,
    allowed: f64,
) -> Result<BTreeMap<String, FloatWeights>> {
    let (model, resolved) = (planner.task.model, planner.task.resolved);
    if !resolved.stores_float_weights() {
        return Ok(BTreeMap::new());
    }
    // Which weights are stored follows from the placement alone, so any ranges will do.
    let target = &planner.task.job.settings.target;
    let mut plan = plan::decide(model, target, placement, &resolved.scheme, |_, _| Ok(Range::new(-1.0, 1.0)))?;
    plan::store_float_weights(model, &mut plan, &resolved.scheme, |n| resolved.stored_as(model, n));
    let before: Vec<String> = plan.stored_weights.keys().cloned().collect();
    store_finer(model, &mut plan, placement, &family.known, allowed);
    let names = named_values(model);
    let mut found = BTreeMap::new();
    for name in before {
        let form = match plan.stored_weights.get(&name).map(|s| s.dtype) {
            Some(DType::Float16) => FloatWeights::Float16,
            Some(_) => continue,
            None => FloatWeights::Keep,
        };
        let readers = names.get(&name).into_iter().flat_map(|&v| model.value(v).readers());
        found.extend(readers.map(|(n, _)| (model.node_label(n), form)));
    }
    Ok(found)
}
