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
            return Err(self.cycle_from(nodes[i], |n| waits[place[&n]] > 0));
        }
        for n in order {
            self.move_node(n, Place::End(graph));
        }
        Ok(true)
    }

    /// The error for the cycle that `start` stands on or behind; `waiting` nodes depend on another waiting node each.
    fn cycle_from(&self, start: NodeId, waiting: impl Fn(NodeId) -> bool) -> Error {
        let (mut walk, mut step_of) = (Vec::new(), HashMap::new());
        let mut next = Some(start);
        while let Some(n) = next.filter(|n| !step_of.contains_key(n)) {
            step_of.insert(n, walk.len());
            walk.push(n);
            next = self.dependencies(n).into_iter().find(|&d| waiting(d));
        }
        let cycle = &walk[next.map_or(0, |n| step_of[&n])..];
        let names = cycle.iter().take(5).map(|&n| format!("{:?}", self.node_label(n))).collect::<Vec<_>>();
        let more = if cycle.len() > 5 { ", …" } else { "" };
        let e = Error::malformed(format!(
            "depends on its own output: the graph has a cycle ({} on it: {}{more})",
            if cycle.len() == 1 { "one node".to_owned() } else { format!("{} nodes", cycle.len()) },
            names.join(", ")
        ));
        e.node(self.node_label(cycle[0]), &self.node(cycle[0]).op_type)
    }
}

#[cfg(test)]
mod tests {
    use crate::ir::text;

    #[test]
    fn a_cycle_names_a_node_on_it_and_not_one_behind_it() {
        let e = text::parse("(x) => (y) { y = Neg(c) c = Abs(b) b = Add(x, a) a = Exp(b) }").unwrap_err();
        assert!(matches!(e.at().node.as_deref(), Some("a" | "b")), "{e}");
        assert!(e.message().contains("2 nodes"), "{e}");
        let own = text::parse("(x) => (y) { y = If<then_branch = g () => (z) { z = Neg(y) }>(x) }").unwrap_err();
        assert!(own.to_string().contains("one node on it: \"y\""), "{own}");
    }

    #[test]
    fn sorting_moves_as_little_as_it_must() {
        let m = text::parse("(x) => (y, e) { y = Neg(b) e = Exp(x) b = Abs(x) }").unwrap();
        let order: Vec<_> = m.nodes(m.main()).into_iter().map(|n| m.node(n).op_type.clone()).collect();
        assert_eq!(order, ["Exp", "Abs", "Neg"]);
    }
}
