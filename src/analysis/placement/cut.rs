//! Which nodes gain from integers, if connections were free to be made: a minimum cut.
//!
//! Each node with an integer kernel is on one of two sides, integer (the source's) or float (the sink's). What a side costs
//! a node, and what a conversion between sides costs a value, are edges; the cheapest cut is the cheapest placement. A value
//! is converted once, however many nodes read it, so each conversion has a vertex of its own that all readers hang on.
//! (V. Kolmogorov, R. Zabih, "What Energy Functions Can Be Minimized via Graph Cuts?", 2004, section 4.)

use petgraph::{
    algo::dinics,
    graph::{DiGraph, NodeIndex},
    visit::EdgeRef,
};

use super::{candidates::Candidates, cost::NodeCosts};

/// More than everything else together can cost.
const NEVER: u64 = 1 << 50;

/// The side of each node in the cheapest placement; `forced` nodes are integer.
pub(super) fn least(graph: &Candidates, costs: &NodeCosts, forced: &[bool]) -> Vec<bool> {
    let mut net = Net::new(graph);
    for (i, node) in graph.nodes.iter().enumerate() {
        let (float, integer, slow_layout) = costs.node(i);
        // A clamp vanishes with the node that absorbs it.
        let side = net.side[node.host.unwrap_or(i)];
        net.edge(net.integer, side, float);
        if node.host.is_some() || net.side[i] == net.float {
            continue;
        }
        net.edge(net.side[i], net.float, integer);
        if let Some((conv, alone)) = costs.fused(i) {
            net.edge(net.side[conv], net.side[i], alone);
        }
        if forced[i] {
            net.flow.add_edge(net.integer, net.side[i], NEVER);
        }
        let maker = node.data.first().and_then(|v| graph.maker.get(v)).map(|&m| net.side[m]);
        net.edge(net.side[i], maker.unwrap_or(net.float), slow_layout);
        if node.passed_through
            && let Some(maker) = maker
        {
            net.flow.add_edge(maker, net.side[i], NEVER);
        }
    }
    for value in &costs.values {
        let readers: Vec<NodeIndex> = graph
            .readers
            .get(&value.id)
            .into_iter()
            .flatten()
            .map(|&r| if r == usize::MAX { net.float } else { net.side[r] })
            .collect();
        let maker = value.maker.map_or(net.float, |m| net.side[m]);
        let quantized = net.flow.add_node(());
        net.edge(quantized, maker, value.quantize);
        if value.price > 0.0 {
            let rounded = net.flow.add_node(());
            net.edge(rounded, net.float, value.price);
            let makers = value.maker.filter(|&m| graph.nodes[m].quantizes).map(|_| maker);
            for at in readers.iter().copied().chain(makers).filter(|&at| at != net.float) {
                net.flow.add_edge(at, rounded, NEVER);
            }
        }
        let hands_out_float = value.maker.is_some_and(|m| !graph.nodes[m].quantizes);
        let kept = net.flow.add_node(());
        net.edge(maker, kept, if hands_out_float { 0.0 } else { value.dequantize });
        for reader in readers {
            net.flow.add_edge(reader, quantized, NEVER);
            net.flow.add_edge(kept, reader, NEVER);
        }
    }
    net.integer_side()
}

struct Net {
    flow: DiGraph<(), u64>,
    integer: NodeIndex,
    float: NodeIndex,
    /// The vertex of each node; that of the float side for nodes without a kernel.
    side: Vec<NodeIndex>,
}

impl Net {
    fn new(graph: &Candidates) -> Self {
        let mut flow = DiGraph::new();
        let (integer, float) = (flow.add_node(()), flow.add_node(()));
        let free = |n: &super::candidates::Candidate| n.kernel.is_some() && n.host.is_none();
        let side = graph.nodes.iter().map(|n| if free(n) { flow.add_node(()) } else { float }).collect();
        Self { flow, integer, float, side }
    }

    /// `cost` nanoseconds where `from` is on the integer side and `to` on the float side.
    fn edge(&mut self, from: NodeIndex, to: NodeIndex, cost: f64) {
        let cost = (cost * 1e3).clamp(0.0, 1e12) as u64;
        if cost > 0 && from != to {
            self.flow.add_edge(from, to, cost);
        }
    }

    /// What can be reached from the source once the flow is at its greatest.
    fn integer_side(&self) -> Vec<bool> {
        let (_, used) = dinics(&self.flow, self.integer, self.float);
        let mut reached = vec![false; self.flow.node_count()];
        let mut stack = vec![self.integer];
        reached[self.integer.index()] = true;
        while let Some(at) = stack.pop() {
            let ahead = self.flow.edges(at).filter(|e| used[e.id().index()] < *e.weight()).map(|e| e.target());
            let back = self.flow.edges_directed(at, petgraph::Direction::Incoming);
            let back = back.filter(|e| used[e.id().index()] > 0).map(|e| e.source());
            for next in ahead.chain(back) {
                if !std::mem::replace(&mut reached[next.index()], true) {
                    stack.push(next);
                }
            }
        }
        self.side.iter().map(|s| reached[s.index()]).collect()
    }
}
