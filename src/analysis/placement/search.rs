//! Takes nodes back to float where that makes the whole faster.

use std::collections::{HashMap, HashSet};

use super::{Prices, Wishes, candidates::Candidates, cost::NodeCosts, cut, flow};
use crate::{ir::ValueId, ops::Class};

/// What was chosen.
pub(super) struct Choice {
    pub(super) integer: Vec<bool>,
    /// Why nodes that have a kernel stay float.
    pub(super) reasons: Vec<Option<String>>,
}

/// Models above this many candidates are searched region by region only: the node-by-node search is quadratic where many
/// changes are promising.
const FINE_SEARCH_LIMIT: usize = 3000;
/// Above this many, changes that have no reason to gain are not tried: each trial looks at the whole graph.
const EVERY_CHANGE_LIMIT: usize = 400;
/// A change must gain this share of the whole, so that noise in the cost model does not scatter float nodes about.
const WORTH: f64 = 0.001;
/// All of it must gain this share of the time of all nodes that have integer kernels: less than that is within the error
/// of the cost model, and float is exact.
const LEAST_GAIN: f64 = 0.03;

pub(super) fn choose(graph: &Candidates, costs: &NodeCosts, wishes: &Wishes) -> Choice {
    let mut reasons = vec![None; graph.nodes.len()];
    let mut allowed = vec![true; graph.nodes.len()];
    if !wishes.ignore_cost || wishes.prices != Prices::default() {
        let forced: Vec<bool> = graph.nodes.iter().map(|n| wishes.force.contains(&n.id)).collect();
        let free: Vec<usize> =
            (0..graph.nodes.len()).filter(|&i| graph.nodes[i].kernel.is_some() && !forced[i]).collect();
        let found = [cut::least(graph, costs, &forced), allowed].map(|from| descend(graph, costs, from, &free));
        let [cut, full] = found;
        let (best, from) = if cut.0 < full.0 { cut } else { full };
        let float = costs.total(graph, &flow::settle(graph, &forced));
        allowed = if best > float * (1.0 - LEAST_GAIN) - costs.uncertainty {
            forced
        } else {
            without_small_gains(graph, costs, from, &free)
        };
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

/// The cheapest placement that small steps lead to, and its time.
fn descend(graph: &Candidates, costs: &NodeCosts, mut allowed: Vec<bool>, free: &[usize]) -> (f64, Vec<bool>) {
    let best = costs.total(graph, &flow::settle(graph, &allowed));
    let quantize = match free.len() > EVERY_CHANGE_LIMIT {
        true => Some(costs.values.iter().map(|v| (v.id, v.quantize)).collect()),
        false => None,
    };
    let mut state = State { graph, costs, best, quantize };
    if free.len() <= FINE_SEARCH_LIMIT {
        state.change_nodes(&mut allowed, free);
    }
    state.change_regions(&mut allowed, free, false);
    (state.best, allowed)
}

/// The same without regions that gain less than the cost model can tell.
fn without_small_gains(graph: &Candidates, costs: &NodeCosts, mut allowed: Vec<bool>, free: &[usize]) -> Vec<bool> {
    let integer = flow::settle(graph, &allowed);
    let best = costs.total(graph, &integer);
    let mut member = vec![false; integer.len()];
    free.iter().for_each(|&i| member[i] = integer[i]);
    for region in regions(graph, &member) {
        let mut without = allowed.clone();
        region.iter().for_each(|&i| without[i] = false);
        if costs.total(graph, &flow::settle(graph, &without)) < best + costs.uncertainty / 4.0 {
            allowed = without;
        }
    }
    allowed
}

struct State<'a> {
    graph: &'a Candidates<'a>,
    costs: &'a NodeCosts,
    best: f64,
    /// For graphs where only promising changes are tried: what it costs to quantize each value.
    quantize: Option<HashMap<ValueId, f64>>,
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
        if total < self.best * (1.0 - WORTH) {
            self.best = total;
            return true;
        }
        for (&i, was) in nodes.iter().zip(before) {
            allowed[i] = was;
        }
        false
    }

    /// Whether it may gain to take this integer node back: it is slower than in float, or conversions are at it.
    fn may_leave(&self, i: usize, integer: &[bool]) -> bool {
        let (node, (float, quantized, _)) = (&self.graph.nodes[i], self.costs.node(i));
        let inside = || {
            node.data.iter().all(|&v| self.graph.made_integer(v, integer))
                && node.outputs.iter().all(|&v| self.graph.only_integer_readers(v, integer))
        };
        self.quantize.is_none() || float <= quantized || !inside()
    }

    /// Whether it may gain to take this float node in: by itself, or next to an integer one.
    fn may_join(&self, i: usize, integer: &[bool]) -> bool {
        let Some(quantize) = &self.quantize else { return true };
        let (node, (float, quantized, _)) = (&self.graph.nodes[i], self.costs.node(i));
        let near = |&v: &ValueId| self.graph.made_integer(v, integer) || self.graph.read_integer(v, integer);
        let alone = !node.data.iter().chain(&node.outputs).any(near);
        let inputs: f64 = node.data.iter().filter_map(|v| quantize.get(v)).sum();
        !alone || quantized + inputs < float
    }

    /// Takes whole regions in or back: nodes connected through values, integer ones (`to` float) or float ones.
    fn change_regions(&mut self, allowed: &mut [bool], free: &[usize], to: bool) -> bool {
        let integer = flow::settle(self.graph, allowed);
        let mut member = vec![false; integer.len()];
        for &i in free {
            member[i] = integer[i] != to && self.graph.nodes[i].host.is_none();
        }
        let mut changed = false;
        for region in regions(self.graph, &member) {
            changed |= self.attempt(allowed, &region, to);
        }
        changed
    }

    /// Takes back single nodes and pairs of neighbours, takes in single nodes and whole regions, until nothing gains.
    fn change_nodes(&mut self, allowed: &mut [bool], free: &[usize]) {
        let is_free: HashSet<usize> = free.iter().copied().collect();
        for _ in 0..4 {
            let mut changed = false;
            let integer = flow::settle(self.graph, allowed);
            for &i in free.iter().filter(|&&i| integer[i]) {
                let leaves = self.may_leave(i, &integer);
                changed |= leaves && self.attempt(allowed, &[i], false);
                let next =
                    self.graph.nodes[i].outputs.iter().flat_map(|v| self.graph.readers.get(v).into_iter().flatten());
                let next: Vec<usize> = next.copied().filter(|j| is_free.contains(j) && integer[*j]).collect();
                for j in next {
                    let leave = leaves || self.may_leave(j, &integer);
                    changed |= leave && allowed[i] && allowed[j] && self.attempt(allowed, &[i, j], false);
                }
            }
            for &i in free {
                changed |= !allowed[i] && self.may_join(i, &integer) && self.attempt(allowed, &[i], true);
            }
            changed |= self.change_regions(allowed, free, true);
            if !changed {
                break;
            }
        }
    }
}

/// The member nodes, grouped by the values that connect them.
fn regions(graph: &Candidates, member: &[bool]) -> Vec<Vec<usize>> {
    let mut seen = vec![false; member.len()];
    let mut found = Vec::new();
    for start in 0..member.len() {
        if !member[start] || seen[start] {
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
                    if j != usize::MAX && member[j] && !seen[j] {
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
