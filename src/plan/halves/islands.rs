//! Casts cost time and room: nodes that would be alone among others keep 32 bits, too.

use std::collections::{BTreeMap, BTreeSet};

use super::Work;
use crate::{
    ir::{NodeId, ValueId},
    ops::{self, Class},
};

/// A weight of so many numbers is worth its Casts.
const WEIGHT: usize = 512;

/// Puts nodes back into 32 bits that gain nothing.
pub(super) fn merge(work: &mut Work<'_>) {
    loop {
        let before = work.float.len();
        readers_only(work);
        for island in islands(work) {
            let casts = casts(work, &island).len();
            let gains = island.iter().filter(|&&n| works(work, n)).count();
            let weighty = island.iter().any(|&n| has_weight(work, n));
            if casts > 0 && !weighty && gains <= casts {
                for n in island {
                    work.keep(n, "it would stand alone among nodes of 32 bits, and Casts cost more than it gains");
                }
            }
        }
        if work.float.len() == before {
            return;
        }
    }
}

/// Nodes that make no floats take what is there.
fn readers_only(work: &mut Work<'_>) {
    for n in work.nodes.clone() {
        if !work.outputs(n).is_empty() || work.float.contains_key(&n) {
            continue;
        }
        let made_in_float = |v: &ValueId| work.model().producer(*v).is_none_or(|m| work.float.contains_key(&m));
        let data: Vec<ValueId> = work.inputs(n).into_iter().filter(|&v| !is_constant(work, v)).collect();
        if data.is_empty() || data.iter().any(made_in_float) {
            work.keep(n, "it makes no floats, and takes those that are there");
        }
    }
}

fn is_constant(work: &Work<'_>, v: ValueId) -> bool {
    work.model().value(v).initializer().is_some()
}

/// Nodes of 16 bits that hand floats to each other.
fn islands(work: &Work<'_>) -> Vec<Vec<NodeId>> {
    let half: Vec<NodeId> = work.nodes.iter().copied().filter(|n| !work.float.contains_key(n)).collect();
    let mut root: BTreeMap<NodeId, NodeId> = half.iter().map(|&n| (n, n)).collect();
    fn find(root: &mut BTreeMap<NodeId, NodeId>, n: NodeId) -> NodeId {
        let (mut at, mut path) = (n, Vec::new());
        while root[&at] != at {
            path.push(at);
            at = root[&at];
        }
        for p in path {
            root.insert(p, at);
        }
        at
    }
    for &n in &half {
        for v in work.inputs(n) {
            if let Some(maker) = work.model().producer(v).filter(|m| root.contains_key(m)) {
                let (a, b) = (find(&mut root, n), find(&mut root, maker));
                root.insert(a.max(b), a.min(b));
            }
        }
    }
    let mut islands: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    for &n in &half {
        let r = find(&mut root, n);
        islands.entry(r).or_default().push(n);
    }
    islands.into_values().collect()
}

/// The values that need a Cast at the island's shore; those at the model's own ends are not counted.
fn casts(work: &Work<'_>, island: &[NodeId]) -> BTreeSet<ValueId> {
    let model = work.model();
    let own: BTreeSet<NodeId> = island.iter().copied().collect();
    let mut casts = BTreeSet::new();
    for &n in island {
        casts.extend(work.inputs(n).into_iter().filter(|&v| model.producer(v).is_some_and(|m| !own.contains(&m))));
        for v in work.outputs(n) {
            let outside = |(r, i): (NodeId, usize)| work.float.contains_key(&r) || ops::always_float(model, r, i);
            if model.value(v).readers().any(outside) {
                casts.insert(v);
            }
        }
    }
    casts
}

/// Whether a node computes.
fn works(work: &Work<'_>, n: NodeId) -> bool {
    let class = ops::spec(work.model(), n).map(|s| s.class);
    !matches!(class, Some(Class::Movement | Class::Joining)) && !work.model().node(n).is("Cast")
}

fn has_weight(work: &Work<'_>, n: NodeId) -> bool {
    work.inputs(n).into_iter().any(|v| work.model().value(v).constant().is_some_and(|t| t.len() >= WEIGHT))
}
