//! Takes nodes back to float where that makes the whole faster.

use std::collections::HashSet;

use super::{Wishes, candidates::Candidates, cost::NodeCosts, flow};
use crate::{ir::ValueId, ops::Class};

/// What was chosen.
pub(super) struct Choice {
    pub(super) integer: Vec<bool>,
    /// Why nodes that have a kernel stay float.
    pub(super) reasons: Vec<Option<String>>,
}

/// Models above this many candidates are searched region by region only: the node-by-node search is quadratic.
const FINE_SEARCH_LIMIT: usize = 3000;
/// A change must gain this share of the whole, so that noise in the cost model does not scatter float nodes about.
const WORTH: f64 = 0.001;

pub(super) fn choose(graph: &Candidates, costs: &NodeCosts, wishes: &Wishes) -> Choice {
    let all = vec![true; graph.nodes.len()];
    let mut reasons = vec![None; graph.nodes.len()];
    let full = flow::settle(graph, &all);
    let mut allowed = all;
    if !wishes.ignore_cost {
        let free = |i: &usize| graph.nodes[*i].kernel.is_some() && !wishes.force.contains(&graph.nodes[*i].id);
        let nodes: Vec<usize> = (0..graph.nodes.len()).filter(free).collect();
        let mut state = State { graph, costs, best: costs.total(graph, &full) };
        if nodes.len() <= FINE_SEARCH_LIMIT {
            state.drop_nodes(&mut allowed, &nodes);
        }
        state.drop_regions(&mut allowed, &nodes);
    }
    let integer = flow::settle(graph, &allowed);
    for (i, node) in graph.nodes.iter().enumerate() {
        if integer[i] || node.kernel.is_none() {
            continue;
        }
        let product = node.spec.is_some_and(|s| s.class == Class::Product);
        reasons[i] = Some(if !allowed[i] && product {
            "its integer kernel would not pay for the conversions around it".to_owned()
        } else if !allowed[i] {
            "joining it to its integer neighbours would cost more than it gains".to_owned()
        } else {
            "it joins no two integer kernels".to_owned()
        });
    }
    Choice { integer, reasons }
}

struct State<'a> {
    graph: &'a Candidates<'a>,
    costs: &'a NodeCosts,
    best: f64,
}

impl State<'_> {
    /// Keeps the change if it makes the whole faster.
    fn attempt(&mut self, allowed: &mut [bool], nodes: &[usize], to: bool) -> bool {
        let before: Vec<bool> = nodes.iter().map(|&i| allowed[i]).collect();
        for &i in nodes {
            allowed[i] = to;
        }
        let integer = flow::settle(self.graph, allowed);
        let total = self.costs.total(self.graph, &integer);
        if total < self.best * (1.0 - WORTH) && !flow::invites_requantization(self.graph, &integer) {
            self.best = total;
            return true;
        }
        for (&i, was) in nodes.iter().zip(before) {
            allowed[i] = was;
        }
        false
    }

    /// Takes back whole regions: nodes connected through quantized values.
    fn drop_regions(&mut self, allowed: &mut [bool], free: &[usize]) {
        let integer = flow::settle(self.graph, allowed);
        let free: HashSet<usize> = free.iter().copied().collect();
        for region in regions(self.graph, &integer) {
            if region.iter().all(|i| free.contains(i)) {
                self.attempt(allowed, &region, false);
            }
        }
    }

    /// Takes back single nodes, and pairs of neighbours, until nothing gains.
    fn drop_nodes(&mut self, allowed: &mut [bool], nodes: &[usize]) {
        let free: HashSet<usize> = nodes.iter().copied().collect();
        for _ in 0..4 {
            let mut changed = false;
            let integer = flow::settle(self.graph, allowed);
            for &i in nodes.iter().filter(|&&i| integer[i]) {
                changed |= self.attempt(allowed, &[i], false);
                let next =
                    self.graph.nodes[i].outputs.iter().flat_map(|v| self.graph.readers.get(v).into_iter().flatten());
                let next: Vec<usize> = next.copied().filter(|j| free.contains(j) && integer[*j]).collect();
                for j in next {
                    changed |= allowed[i] && allowed[j] && self.attempt(allowed, &[i, j], false);
                }
            }
            for &i in nodes {
                changed |= !allowed[i] && self.attempt(allowed, &[i], true);
            }
            if !changed {
                break;
            }
        }
    }
}

/// The integer nodes, grouped by the quantized values that connect them.
fn regions(graph: &Candidates, integer: &[bool]) -> Vec<Vec<usize>> {
    let mut seen = vec![false; integer.len()];
    let mut found = Vec::new();
    for start in 0..integer.len() {
        if !integer[start] || seen[start] {
            continue;
        }
        let (mut region, mut stack) = (Vec::new(), vec![start]);
        seen[start] = true;
        while let Some(i) = stack.pop() {
            region.push(i);
            let around: Vec<ValueId> = graph.nodes[i].data.iter().chain(&graph.nodes[i].outputs).copied().collect();
            for v in around {
                let next = graph.maker.get(&v).into_iter().chain(graph.readers.get(&v).into_iter().flatten());
                for &j in next {
                    if j != usize::MAX && integer[j] && !seen[j] {
                        seen[j] = true;
                        stack.push(j);
                    }
                }
            }
        }
        region.sort_unstable();
        found.push(region);
    }
    found
}
