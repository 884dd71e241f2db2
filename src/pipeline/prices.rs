//! What noise costs, in time: the fastest placement whose roundings stay within a budget of noise.

use std::collections::{BTreeMap, BTreeSet};

use super::planner::Planner;
use crate::{
    analysis::placement::{Decision, Placement, Prices, Wishes},
    ir::{DType, Model, NodeId},
    plan::{FOR_ANSWERS, Plan, StoredWeight, named_values},
    validate::noise::{Noise, Source},
};

/// Prices that are tried one after the other, each twice the one before, and steps of bisection between the last two.
const PRICES: i32 = 24;
const STEPS: usize = 4;
/// Nodes that are weighed for each that goes back to float.
const NODES: usize = 24;
/// What saves no time, only bytes, may use up this share of the budget.
const STORED: f64 = 0.001;

/// The wishes with the lowest price under which the roundings left are predicted to stay within what is allowed.
pub(super) fn cheapest(
    planner: &Planner<'_>,
    wishes: &Wishes,
    known: &Noise,
    placed: &Placement,
    allowed: f64,
) -> Option<Wishes> {
    let gain = saved(placed).max(1e3);
    let tried = |exponent: f64| {
        let priced = priced(wishes, known, gain * exponent.exp2());
        Tried::of(planner, known, priced)
    };
    let fits = |t: &Tried| t.noise <= allowed;
    let start = -8.0;
    let (mut high, mut found) =
        (0..PRICES).map(|k| start + f64::from(k)).map(|e| (e, tried(e))).find(|(_, t)| fits(t))?;
    let (mut low, mut too_noisy) = (high - 1.0, None);
    for _ in 0..STEPS {
        let middle = (low + high) / 2.0;
        let between = tried(middle);
        if fits(&between) {
            (high, found) = (middle, between);
        } else {
            (low, too_noisy) = (middle, Some(between));
        }
    }
    // Prices find only some of the best plans, and where they leave a gap, single nodes fill it.
    let near = too_noisy.unwrap_or_else(|| tried(low)).quieter(planner, known, allowed, saved(&found.placement));
    Some(near.unwrap_or(found).wishes)
}

/// A placement that is weighed.
struct Tried {
    wishes: Wishes,
    placement: Placement,
    noise: f64,
}

impl Tried {
    fn of(planner: &Planner<'_>, known: &Noise, wishes: Wishes) -> Self {
        let placement = planner.place(&wishes);
        let noise = known.worst(&integer_sources(&placement));
        Self { wishes, placement, noise }
    }

    /// One that fits what is allowed and saves more than `least`, nanoseconds: nodes go back to float one by one, each time that which
    /// takes most noise away for the time that it costs.
    fn quieter(mut self, planner: &Planner<'_>, known: &Noise, allowed: f64, least: f64) -> Option<Self> {
        while self.noise > allowed {
            let free = self.placement.nodes.iter().filter(|(n, d)| d.is_integer() && !self.wishes.names(*n));
            let mut nodes: Vec<NodeId> = free.map(|(n, _)| *n).collect();
            let model = planner.task.model;
            let around = |&n: &NodeId| {
                let node = model.node(n);
                let values = node.inputs().iter().chain(node.outputs()).flatten().map(|&v| Source::Value(v));
                known.worst(&values.chain([Source::Node(n), Source::AtRunTime(n)]).collect::<Vec<_>>())
            };
            nodes.sort_by(|a, b| around(b).total_cmp(&around(a)).then(a.cmp(b)));
            let without = |n: NodeId| {
                let mut wishes = self.wishes.clone();
                wishes.keep_float.insert(n, FOR_ANSWERS.to_owned());
                Self::of(planner, known, wishes)
            };
            let worth = |t: &Self| (self.noise - t.noise) / (saved(&self.placement) - saved(&t.placement)).max(1.0);
            let others = nodes.into_iter().take(NODES).map(without).filter(|t| t.noise < self.noise);
            let next = others.max_by(|a, b| worth(a).total_cmp(&worth(b)))?;
            if saved(&next.placement) <= least {
                return None;
            }
            self = next;
        }
        Some(self)
    }
}

/// The wishes with all nodes in float that are not asked for by name. Those that are float anyway keep their reason.
pub(super) fn all_float(wishes: &Wishes, placed: &Placement) -> Wishes {
    let mut wishes = wishes.clone();
    for (node, decision) in &placed.nodes {
        if wishes.names(*node) {
            continue;
        }
        let reason = match decision {
            Decision::Float(reason) => reason.clone(),
            _ => FOR_ANSWERS.to_owned(),
        };
        wishes.keep_float.entry(*node).or_insert(reason);
    }
    wishes
}

/// The wishes, with a price on noise: nanoseconds for all of the budget.
fn priced(wishes: &Wishes, known: &Noise, price: f64) -> Wishes {
    let mut prices = Prices::default();
    for (source, shares) in &known.0 {
        // What the user asks for by name has no price.
        if source.node().is_some_and(|n| wishes.names(n)) {
            continue;
        }
        let cost = price * shares.iter().copied().fold(0.0, f64::max);
        match source {
            Source::Value(v) => drop(prices.values.insert(*v, cost)),
            Source::Node(n) => drop(prices.nodes.insert(*n, cost)),
            Source::AtRunTime(n) => drop(prices.at_run_time.insert(*n, cost)),
        }
    }
    Wishes { prices, ..wishes.clone() }
}

/// What integers save of a run by the cost model, nanoseconds, or how many nodes they have where time does not count. The times
/// themselves leave out nodes that must stay float.
pub(super) fn saved(placement: &Placement) -> f64 {
    placement.gain
}

/// What a placement rounds to compute in integers.
pub(super) fn integer_sources(placement: &Placement) -> BTreeSet<Source> {
    let node = |(n, decision): &(NodeId, Decision)| match decision {
        Decision::Integer(_) => Some(Source::Node(*n)),
        Decision::Dynamic(_) => Some(Source::AtRunTime(*n)),
        _ => None,
    };
    let nodes = placement.nodes.iter().filter_map(node);
    // What has the scale of another value was rounded there.
    let roots = placement.values.iter().filter(|(v, q)| **v == q.root);
    nodes.chain(roots.map(|(&v, _)| Source::Value(v))).collect()
}

/// All that is rounded.
pub(super) fn sources(model: &Model, plan: &Plan, placement: &Placement) -> BTreeSet<Source> {
    let mut found = integer_sources(placement);
    found.extend(stored_readers(model, plan).into_values().flatten().map(Source::Node));
    found
}

/// The readers of each stored weight, by its name.
fn stored_readers(model: &Model, plan: &Plan) -> BTreeMap<String, Vec<NodeId>> {
    let names = named_values(model);
    let readers = |(name, _): (&String, _)| {
        let v = names.get(name)?;
        Some((name.clone(), model.value(*v).readers().map(|(n, _)| n).collect()))
    };
    let coarse = plan.stored_weights.iter().filter(|(_, s)| s.dtype == DType::Int8);
    coarse.filter_map(readers).collect()
}

/// Stores weights of float nodes in 16 bits instead of 8, until the noise of all fits what is allowed: those first that make
/// most noise for the bytes that they save. 16 bits round a thousand times finer than most of what else is rounded.
pub(super) fn store_finer(model: &Model, plan: &mut Plan, placement: &Placement, known: &Noise, allowed: f64) {
    let names = named_values(model);
    let kept = integer_sources(placement);
    let mut all: Vec<(f64, String, Vec<Source>)> = Vec::new();
    for (name, readers) in stored_readers(model, plan) {
        let of: Vec<Source> = readers.into_iter().map(Source::Node).collect();
        let size = names.get(&name).and_then(|v| model.value(*v).initializer()).map_or(1, |t| t.len());
        all.push((known.worst(&of) / size.max(1) as f64, name, of));
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut stored: BTreeSet<Source> = BTreeSet::new();
    for (_, name, of) in all {
        let with: BTreeSet<Source> = stored.iter().cloned().chain(of).collect();
        if known.worst(&with) <= STORED * allowed && known.worst(kept.union(&with)) <= allowed.max(known.worst(&kept)) {
            stored = with;
        } else {
            let weight = names.get(&name).and_then(|v| model.value(*v).initializer());
            match plan.stored_weights.get_mut(&name) {
                Some(finer) if weight.is_some_and(StoredWeight::fits_half) => finer.dtype = DType::Float16,
                _ => drop(plan.stored_weights.remove(&name)),
            }
        }
    }
}
