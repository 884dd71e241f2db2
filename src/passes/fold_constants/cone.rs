//! Which values depend on constants alone, and what folding them would add to the model.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::args::constant;
use crate::{
    ir::{Model, NodeId, Use, ValueId},
    passes::support::replace::replaceable_by_constant,
};

/// The constant results that other nodes read, in groups that share constants.
pub(super) struct Results {
    constant_nodes: BTreeSet<NodeId>,
    groups: Vec<Vec<ValueId>>,
}

/// Finds the nodes that read nothing but constants and can be evaluated, and their results.
pub(super) fn results(model: &Model, evaluable: impl Fn(NodeId) -> bool) -> Results {
    let mut nodes = BTreeSet::new();
    let mut order = Vec::new();
    for n in model.all_nodes() {
        let node = model.node(n);
        let from_constants =
            |v: ValueId| model.producer(v).is_some_and(|p| nodes.contains(&p)) || constant(model, v).is_some();
        if evaluable(n) && node.inputs().iter().flatten().all(|&v| from_constants(v)) {
            nodes.insert(n);
            order.push(n);
        }
    }
    let inner = |v: ValueId| model.value(v).uses().iter().all(|u| matches!(u, Use::Input(n, _) if nodes.contains(n)));
    let mut found = Vec::new();
    for &n in &order {
        let outputs = model.node(n).outputs().iter().copied().flatten();
        found.extend(outputs.filter(|&v| !inner(v) && replaceable_by_constant(model, v)));
    }
    let mut results = Results { constant_nodes: nodes, groups: Vec::new() };
    results.groups = results.group(model, &found);
    results
}

impl Results {
    /// The results in groups, in the order of their nodes.
    pub(super) fn groups(&self) -> &[Vec<ValueId>] {
        &self.groups
    }

    /// Whether a value is computed by one of these nodes, among others.
    pub(super) fn needs_any(&self, model: &Model, v: ValueId, chosen: &HashSet<NodeId>) -> bool {
        self.needs(model, &[v]).1.iter().any(|n| chosen.contains(n))
    }

    /// The constants that values are computed from, and the nodes that do it.
    fn needs(&self, model: &Model, values: &[ValueId]) -> (BTreeSet<ValueId>, BTreeSet<NodeId>) {
        let (mut sources, mut nodes) = (BTreeSet::new(), BTreeSet::new());
        let mut stack: Vec<NodeId> = values.iter().filter_map(|&v| model.producer(v)).collect();
        while let Some(n) = stack.pop() {
            if nodes.insert(n) {
                for &v in model.node(n).inputs().iter().flatten() {
                    match model.producer(v).filter(|p| self.constant_nodes.contains(p)) {
                        Some(p) => stack.push(p),
                        None => drop(sources.insert(v)),
                    }
                }
            }
        }
        (sources, nodes)
    }

    /// Joins results that need a common constant larger than a scalar or an index list.
    fn group(&self, model: &Model, found: &[ValueId]) -> Vec<Vec<ValueId>> {
        const LARGE: usize = 64;
        let mut groups: Vec<Vec<ValueId>> = Vec::new();
        let mut group_of: BTreeMap<ValueId, usize> = BTreeMap::new();
        for &v in found {
            let (sources, _) = self.needs(model, &[v]);
            let large: Vec<ValueId> =
                sources.into_iter().filter(|&s| constant(model, s).is_some_and(|t| t.byte_len() > LARGE)).collect();
            let mut home = None;
            for s in &large {
                match (group_of.get(s).copied(), home) {
                    (Some(g), None) => home = Some(g),
                    (Some(g), Some(h)) if g != h => {
                        let moved = std::mem::take(&mut groups[g]);
                        groups[h].extend(moved);
                        group_of.values_mut().filter(|x| **x == g).for_each(|x| *x = h);
                    }
                    _ => {}
                }
            }
            let home = home.unwrap_or_else(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            groups[home].push(v);
            group_of.extend(large.into_iter().map(|s| (s, home)));
        }
        groups.retain(|g| !g.is_empty());
        groups
    }

    /// Bytes that the model gains if these results become constants, less those of the constants that nobody reads then.
    /// `None` where a size is not known.
    pub(super) fn growth(
        &self,
        model: &Model,
        values: &[ValueId],
        size: impl Fn(ValueId) -> Option<usize>,
    ) -> Option<isize> {
        let (sources, nodes) = self.needs(model, values);
        // A node goes when all its outputs are replaced, or read by nodes that go: readers first.
        let mut gone: BTreeSet<NodeId> = BTreeSet::new();
        loop {
            let goes = |n: &&NodeId| {
                model.node(**n).outputs().iter().flatten().all(|&v| {
                    values.contains(&v)
                        || model.value(v).uses().iter().all(|u| matches!(u, Use::Input(r, _) if gone.contains(r)))
                })
            };
            let more: Vec<NodeId> = nodes.iter().filter(|n| !gone.contains(n)).filter(goes).copied().collect();
            if more.is_empty() {
                break;
            }
            gone.extend(more);
        }
        let dies = |v: ValueId| model.value(v).uses().iter().all(|u| matches!(u, Use::Input(r, _) if gone.contains(r)));
        let mut growth = 0isize;
        for &v in values {
            growth = growth.checked_add_unsigned(size(v)?)?;
        }
        for v in sources {
            let made = model.producer(v).is_some();
            let own = model.value(v).constant().map_or(0, |t| t.byte_len());
            if !made && dies(v) {
                growth = growth.checked_sub_unsigned(own)?;
            }
        }
        Some(growth)
    }
}
