//! Transpose nodes move forward past other nodes where that takes them to another Transpose, with which they vanish or become
//! one. Conversions move along, and pairs of conversions are put where a Transpose comes to stand beside a single one.
//!
//! The runtime does so with the Transposes of the file, and again with those that it puts around integer convolutions (see
//! `layout`). Whether a Transpose moves on is estimated in dims: those other than 1 that Transposes in front of a node have,
//! before and after.

mod edits;
mod handlers;
mod units;

use std::collections::{HashMap, HashSet};

use self::handlers::Handler;
use crate::{
    ir::{GraphId, NodeId, ValueId},
    kernels::scratch::{Fate, Scratch},
};

/// What an unknown shape counts as many dims.
const UNKNOWN: i64 = 5;

/// The sizes of a value, as far as they are known.
type Dims = Vec<Option<usize>>;

/// The Transposes of the file.
pub(super) fn run(s: &mut Scratch) {
    for graph in s.graphs() {
        Mover::new(s, false).run(graph);
    }
}

/// Moves Transposes of one graph.
pub(super) struct Mover<'a, 't> {
    s: &'a mut Scratch<'t>,
    /// Whether the kernels are chosen: then operators move that the runtime has in several layouts.
    chosen: bool,
    /// The dims of what was moved or made.
    dims: HashMap<ValueId, Dims>,
    /// The axes of nodes that a Transpose moved past.
    axes: HashMap<NodeId, Vec<usize>>,
    /// Poolings whose channels come last.
    channels_last: HashSet<NodeId>,
    /// Values from which movable nodes lead to a Transpose.
    leading: HashSet<ValueId>,
}

impl<'a, 't> Mover<'a, 't> {
    pub(super) fn new(s: &'a mut Scratch<'t>, chosen: bool) -> Self {
        Self {
            s,
            chosen,
            dims: HashMap::new(),
            axes: HashMap::new(),
            channels_last: HashSet::new(),
            leading: HashSet::new(),
        }
    }

    pub(super) fn run(&mut self, graph: GraphId) {
        let nodes: Vec<_> = self.s.m.nodes(graph).into_iter().filter(|n| !self.s.fates.contains_key(n)).collect();
        self.find_leading(&nodes);
        let mut converts = false;
        for &n in &nodes {
            // Nodes vanish before it is their turn.
            let Some(node) = self.s.m.try_node(n) else { continue };
            converts |= self.s.is_dequantize(n);
            for i in 0..node.inputs().len() {
                let from = self.s.m.node(n).input(i).and_then(|v| self.s.m.producer(v));
                let Some((t, perm)) = from.and_then(|t| Some((t, self.perm(t)?))) else { continue };
                if self.pushes(t, n, &perm, i) {
                    break;
                }
            }
        }
        if converts {
            units::mend(self, graph);
        }
    }

    fn find_leading(&mut self, nodes: &[NodeId]) {
        for &n in nodes.iter().rev() {
            let node = self.s.m.node(n);
            if node.is("Transpose") {
                self.leading.extend(node.input(0));
                continue;
            }
            if !node.outputs().iter().flatten().any(|v| self.leading.contains(v)) {
                continue;
            }
            let Some(handler) = self.handler(n).filter(|h| h.carries) else { continue };
            self.leading.extend(handler.inputs.iter().filter_map(|&i| self.s.m.node(n).input(i)));
        }
    }

    /// Moves a Transpose past the node that reads it, if that pays and can be done.
    fn pushes(&mut self, t: NodeId, n: NodeId, perm: &[usize], i: usize) -> bool {
        let Some(handler) = self.handler(n).filter(|h| h.inputs.contains(&i)) else { return false };
        let pays = handler.always || self.s.m.node(n).is("Transpose") || self.cost(n, perm, &handler) < 0;
        pays && self.push(t, n, perm, &handler)
    }

    /// How many dims more are transposed in front of the node and behind it.
    fn cost(&self, n: NodeId, perm: &[usize], handler: &Handler) -> i64 {
        let node = self.s.m.node(n);
        let inputs = handler.inputs.iter().filter_map(|&i| node.input(i));
        let cost: i64 = inputs.map(|v| self.input_cost(v, perm)).sum();
        let outputs = || node.outputs().iter().flatten();
        // What is handed out needs a Transpose in any case.
        let leads = |v: &ValueId| self.leading.contains(v) && !self.s.m.value(*v).is_graph_output();
        if cost >= 0 || !handler.carries || outputs().any(leads) {
            return cost;
        }
        cost + outputs().map(|&v| self.weight(v)).max().unwrap_or(0)
    }

    fn input_cost(&self, v: ValueId, perm: &[usize]) -> i64 {
        if self.is_stored(v) {
            return 0;
        }
        let maker = self.s.m.producer(v).map(|p| self.behind_conversion(p));
        match maker.and_then(|p| Some((p, self.perm(p)?))) {
            Some((t, other)) if other == perm && self.is_removable(t) => -self.weight(v),
            Some(_) => 0,
            None => self.weight(v),
        }
    }

    /// The node whose codes a DequantizeLinear converts; any other node is itself.
    fn behind_conversion(&self, p: NodeId) -> NodeId {
        let before = |n: NodeId| self.s.m.node(n).input(0).and_then(|v| self.s.m.producer(v));
        let Some(maker) = Some(p).filter(|&p| self.s.is_dequantize(p)).and_then(before) else { return p };
        if !self.s.m.node(maker).is("Squeeze") {
            return maker;
        }
        before(maker).filter(|&t| self.s.m.node(t).is("Transpose")).unwrap_or(p)
    }

    /// Whether all that read a Transpose are nodes that it can move past.
    fn is_removable(&self, t: NodeId) -> bool {
        let Some(out) = self.s.m.node(t).output(0) else { return false };
        self.readers(out).is_some_and(|all| all.iter().all(|&n| self.handler(n).is_some()))
    }

    /// A constant, or what a DequantizeLinear alone makes of one for one reader: it is stored in another order.
    fn is_stored(&self, v: ValueId) -> bool {
        let conversion = || {
            let d = self.s.m.producer(v).filter(|&d| self.s.is_dequantize(d))?;
            let codes = self.s.m.node(d).input(0).filter(|&c| self.s.is_constant(c))?;
            (self.is_supported(d) && self.sole_reader(v).is_some()).then_some(codes)
        };
        self.s.is_constant(v) || conversion().is_some()
    }

    /// Whether a conversion has one scale, or one for each index of an axis.
    fn is_supported(&self, d: NodeId) -> bool {
        self.s.m.node(d).int("block_size").unwrap_or(0) == 0
    }

    /// The nodes that read a value; `None` if an output of the graph or a subgraph does, too.
    fn readers(&self, v: ValueId) -> Option<Vec<NodeId>> {
        let value = self.s.m.value(v);
        let nodes: Vec<_> = value.readers().map(|(n, _)| n).collect();
        let here = nodes.iter().all(|&n| self.s.m.node(n).graph() == value.graph());
        (here && !value.is_graph_output()).then(|| distinct(nodes))
    }

    fn sole_reader(&self, v: ValueId) -> Option<NodeId> {
        self.readers(v).filter(|all| all.len() == 1).and_then(|all| all.first().copied())
    }

    /// The order of a Transpose; one that does not write it is left alone.
    fn perm(&self, n: NodeId) -> Option<Vec<usize>> {
        let node = self.s.m.try_node(n).filter(|node| node.is("Transpose"))?;
        let perm: Option<Vec<usize>> = node.ints("perm")?.iter().map(|&p| usize::try_from(p).ok()).collect();
        let is_order = |perm: &Vec<usize>| (0..perm.len()).all(|i| perm.contains(&i));
        perm.filter(is_order)
    }

    /// The dims of a value; those that steps inserted have them from what they convert.
    fn dims(&self, v: ValueId) -> Option<Dims> {
        if let Some(dims) = self.dims.get(&v) {
            return Some(dims.clone());
        }
        if let Some(shape) = self.s.types().shape(v) {
            return Some(shape.iter().map(|d| d.known()).collect());
        }
        let n = self.s.m.producer(v)?;
        let x = self.s.m.node(n).input(0)?;
        match self.perm(n) {
            Some(perm) => permuted(&self.dims(x)?, &perm),
            None if self.s.is_dequantize(n) || self.s.is_quantize(n) => self.dims(x),
            None => None,
        }
    }

    /// How many dims a node's data have.
    pub(super) fn data_rank(&self, n: NodeId) -> Option<usize> {
        self.s.m.node(n).input(0).and_then(|v| self.dims(v)).map(|dims| dims.len())
    }

    fn weight(&self, v: ValueId) -> i64 {
        self.dims(v).map_or(UNKNOWN, |dims| dims.iter().filter(|d| **d != Some(1)).count() as i64)
    }

    fn remove_unread(&mut self, t: NodeId) {
        let unread = |v: &ValueId| self.s.m.value(*v).uses().is_empty();
        if self.s.m.node(t).outputs().iter().flatten().all(unread) {
            self.s.remove(t, Fate::Gone);
        }
    }
}

fn distinct(mut nodes: Vec<NodeId>) -> Vec<NodeId> {
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// Dims in another order.
fn permuted<T: Clone>(dims: &[T], perm: &[usize]) -> Option<Vec<T>> {
    (dims.len() == perm.len()).then(|| perm.iter().map(|&p| dims[p].clone()).collect())
}

/// The order that undoes another.
pub(super) fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut out = vec![0; perm.len()];
    for (i, &p) in perm.iter().enumerate() {
        out[p] = i;
    }
    out
}

/// The order that brings the last of so many axes to the second place.
pub(super) fn last_to_second(rank: usize) -> Vec<usize> {
    match rank {
        0 => Vec::new(),
        1 => vec![0],
        _ => std::iter::once(0).chain(std::iter::once(rank - 1)).chain(1..rank - 1).collect(),
    }
}
