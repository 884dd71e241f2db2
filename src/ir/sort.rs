//! The order of nodes: a value is made before it is read.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{GraphId, Model, NodeId, Place};
use crate::error::{Error, Result};

impl Model {
    /// Whether every node of the graph stands behind those that it depends on (through its subgraphs too).
    pub fn is_sorted(&self, graph: GraphId) -> bool {
        let mut seen = HashSet::new();
        self.nodes(graph).into_iter().all(|n| {
            let ok = self.dependencies(n).iter().all(|d| seen.contains(d));
            seen.insert(n);
            ok
        })
    }

    /// The nodes of the same graph whose outputs a node or its subgraphs read.
    pub fn dependencies(&self, node: NodeId) -> Vec<NodeId> {
        let graph = self.node(node).graph();
        let mut found = Vec::new();
        let mut stack = vec![node];
        while let Some(n) = stack.pop() {
            let made = self.node(n).inputs().iter().flatten().filter_map(|&v| self.producer(v));
            found.extend(made.filter(|&p| self.node(p).graph() == graph));
            for g in self.node(n).subgraphs() {
                stack.extend(self.nodes(g));
                let handed = self.graph(g).outputs().iter().filter_map(|&v| self.producer(v));
                found.extend(handed.filter(|&p| self.node(p).graph() == graph));
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Brings the nodes of a graph into an order in which each stands behind its dependencies, otherwise as they stood.
    /// Returns whether anything moved; a cycle is an error that names a node of it.
    pub fn sort(&mut self, graph: GraphId) -> Result<bool> {
        if self.is_sorted(graph) {
            return Ok(false);
        }
        let nodes = self.nodes(graph);
        let place: HashMap<NodeId, usize> = nodes.iter().enumerate().map(|(i, &n)| (n, i)).collect();
        let mut waits = vec![0usize; nodes.len()];
        let mut wakes: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
        for (i, &n) in nodes.iter().enumerate() {
            for d in self.dependencies(n) {
                waits[i] += 1;
                wakes[place[&d]].push(i);
            }
        }
        let mut ready: BTreeSet<usize> = (0..nodes.len()).filter(|&i| waits[i] == 0).collect();
        let mut order = Vec::with_capacity(nodes.len());
        while let Some(i) = ready.pop_first() {
            order.push(nodes[i]);
            for &j in &wakes[i] {
                waits[j] -= 1;
                if waits[j] == 0 {
                    ready.insert(j);
                }
            }
        }
        if let Some(i) = waits.iter().position(|&w| w > 0) {
            let n = nodes[i];
            let e = Error::malformed("the node depends on its own output: the graph has a cycle");
            return Err(e.node(self.node_label(n), &self.node(n).op_type));
        }
        for n in order {
            self.move_node(n, Place::End(graph));
        }
        Ok(true)
    }
}
