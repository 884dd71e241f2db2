//! Integer nodes that hang together, and nodes with weights in few bits, each by itself; and the plan with some of them back in float.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Form, Plan, Readers, named_values};
use crate::ir::{Model, NodeId};

/// The integer nodes of a plan and the quantized values that connect them.
#[derive(Default)]
pub struct Regions {
    /// In the graph's order: a node, its name in the plan, and the quantized values at it.
    pub(super) nodes: Vec<(NodeId, String, BTreeSet<String>)>,
    /// For absorbed nodes: the name in the plan, and the integer node that absorbs it.
    absorbed: BTreeMap<String, NodeId>,
    /// The integer node that makes a quantized value, by the value's name.
    pub(super) makers: BTreeMap<String, NodeId>,
    /// The float nodes that read a stored weight, by the weight's name.
    pub(super) stored: BTreeMap<String, Vec<NodeId>>,
}

impl Regions {
    /// Those of a plan. `model` is the one that the plan speaks of.
    pub fn of(model: &Model, plan: &Plan) -> Self {
        let mut all = Self::default();
        // Where a value comes from once clamps are gone.
        let mut host: HashMap<String, NodeId> = HashMap::new();
        let named = named_values(model);
        for id in model.nodes_below(model.main()) {
            let name = |v| model.value(v).name().to_owned();
            let node = model.node(id);
            let Some(key) = node.outputs().iter().copied().flatten().next().map(name) else { continue };
            match plan.nodes.get(&key).map(|n| n.becomes) {
                // A node of a subgraph that bears a name of the main graph.
                _ if node.outputs().iter().flatten().next() != named.get(&key) => {}
                // It needs no quantized value, so it is a region by itself.
                Some(Form::Dynamic | Form::WeightOnly) => all.nodes.push((id, key, BTreeSet::new())),
                // What it makes is no code.
                Some(Form::Float8) => {
                    let at = node.inputs().iter().copied().flatten().map(name);
                    all.nodes.push((id, key, at.filter(|v| plan.activations.contains_key(v)).collect()));
                }
                Some(Form::Integer) => {
                    let at = node.inputs().iter().chain(node.outputs()).copied().flatten().map(name);
                    let at = at.filter(|v| plan.activations.contains_key(v)).collect();
                    host.insert(key.clone(), id);
                    let made = node.outputs().iter().copied().flatten().map(name);
                    all.makers.extend(made.filter(|v| plan.activations.contains_key(v)).map(|v| (v, id)));
                    all.nodes.push((id, key, at));
                }
                Some(Form::Absorbed) => {
                    let from = node.input(0).map(name).and_then(|v| host.get(&v).copied());
                    let Some(owner) = from else { continue };
                    host.insert(key.clone(), owner);
                    if let Some((_, _, at)) = all.nodes.iter_mut().find(|n| n.0 == owner) {
                        at.extend(plan.activations.contains_key(&key).then(|| key.clone()));
                    }
                    if plan.activations.contains_key(&key) {
                        all.makers.insert(key.clone(), owner);
                    }
                    all.absorbed.insert(key, owner);
                }
                _ => {}
            }
        }
        for name in plan.stored_weights.keys() {
            if let Some(&v) = named.get(name) {
                all.stored.insert(name.clone(), model.value(v).readers().map(|(n, _)| n).collect());
            }
        }
        all
    }

    /// The nodes in at most about so many groups: connected ones together where a group is large enough.
    pub fn groups(&self, most: usize) -> Vec<Vec<NodeId>> {
        let nodes: Vec<NodeId> = self.connected().into_iter().flatten().collect();
        let share = nodes.len().div_ceil(most.max(1)).max(1);
        nodes.chunks(share).map(<[NodeId]>::to_vec).collect()
    }

    /// The nodes by region: those that quantized values connect, in the order of their first node.
    pub fn connected(&self) -> Vec<Vec<NodeId>> {
        let mut region: Vec<usize> = (0..self.nodes.len()).collect();
        let mut first: HashMap<&str, usize> = HashMap::new();
        for (i, (_, _, values)) in self.nodes.iter().enumerate() {
            for v in values {
                let j = *first.entry(v).or_insert(i);
                let (a, b) = (root(&mut region, i), root(&mut region, j));
                region[a.max(b)] = a.min(b);
            }
        }
        let mut found: BTreeMap<usize, Vec<NodeId>> = BTreeMap::new();
        for i in 0..self.nodes.len() {
            found.entry(root(&mut region, i)).or_default().push(self.nodes[i].0);
        }
        found.into_values().collect()
    }

    /// The plan with only these nodes in integers, and only those weights stored that they alone read. What a node makes that is
    /// float now is rounded for integer nodes alone.
    pub fn only(&self, plan: &Plan, group: &[NodeId]) -> Plan {
        let group: BTreeSet<&NodeId> = group.iter().collect();
        let kept: Vec<_> = self.nodes.iter().filter(|n| group.contains(&n.0)).collect();
        let values: BTreeSet<&String> = kept.iter().flat_map(|n| &n.2).collect();
        let names: BTreeSet<&String> = kept
            .iter()
            .map(|n| &n.1)
            .chain(self.absorbed.iter().filter(|(_, owner)| group.contains(owner)).map(|(name, _)| name))
            .collect();
        let mut out = Plan { activations: BTreeMap::new(), stored_weights: BTreeMap::new(), ..plan.clone() };
        for (name, node) in &mut out.nodes {
            if !names.contains(name) && node.becomes != Form::Float {
                node.becomes = Form::Float;
                (node.kernel, node.weight, node.few_bits) = (None, None, None);
            }
        }
        for (name, activation) in plan.activations.iter().filter(|(v, _)| values.contains(v)) {
            let mut activation = activation.clone();
            if self.makers.get(name).is_some_and(|maker| !group.contains(maker)) {
                activation.readers = Readers::Integer;
            }
            out.activations.insert(name.clone(), activation);
        }
        let stored = plan.stored_weights.iter();
        let stored = stored.filter(|(w, _)| self.stored.get(*w).is_some_and(|r| r.iter().all(|n| group.contains(n))));
        out.stored_weights = stored.map(|(w, s)| (w.clone(), s.clone())).collect();
        out
    }

    /// The plan with these nodes in float, for this reason. They are whole regions.
    pub fn without(&self, model: &Model, plan: &Plan, group: &[NodeId], reason: &str) -> Plan {
        let group: BTreeSet<&NodeId> = group.iter().collect();
        let gone = self.nodes.iter().filter(|n| group.contains(&n.0));
        let values: BTreeSet<&String> = gone.clone().flat_map(|n| &n.2).collect();
        let absorbed = self.absorbed.iter().filter(|(_, owner)| group.contains(owner)).map(|(name, _)| name);
        let names: BTreeSet<&String> = gone.map(|n| &n.1).chain(absorbed).collect();
        let mut out = plan.clone();
        out.activations.retain(|v, _| !values.contains(v));
        let named = named_values(model);
        for (name, node) in &mut out.nodes {
            if names.contains(name) {
                node.becomes = Form::Float;
                (node.kernel, node.weight, node.few_bits) = (None, None, None);
                node.reason = Some(reason.to_owned());
            }
            // Nothing is left to fence off where the input is not quantized any more.
            let input = named.get(name).and_then(|&v| model.producer(v)).and_then(|n| model.node(n).input(0));
            node.fenced &= !input.is_some_and(|v| values.iter().any(|name| *name == model.value(v).name()));
        }
        out
    }
}

fn root(parents: &mut [usize], mut i: usize) -> usize {
    while parents[i] != i {
        parents[i] = parents[parents[i]];
        i = parents[i];
    }
    i
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::{DType, text},
        plan::{Activation, NodePlan, Readers},
    };

    fn plan(integer: &[&str], values: &[&str]) -> Plan {
        let mut plan = Plan::default();
        for name in ["a", "r", "b", "t", "c"] {
            let becomes = match name {
                "r" => Form::Absorbed,
                name if integer.contains(&name) => Form::Integer,
                _ => Form::Float,
            };
            plan.nodes.insert(name.into(), NodePlan::new(None, "Conv", becomes));
        }
        for &v in values {
            let a = Activation { dtype: DType::Uint8, scale: 1.0, zero_point: 0, clip: None, readers: Readers::All };
            plan.activations.insert(v.into(), a);
        }
        plan
    }

    #[test]
    fn regions_are_what_quantized_values_connect_and_go_back_as_a_whole() {
        let model = text::parse(
            "(float[4] x) => (float[4] c) {
                a = Neg (x)
                r = Relu (a)
                b = Neg (r)
                t = Tanh (b)
                c = Neg (t)
            }",
        )
        .unwrap();
        let plan = plan(&["a", "b", "c"], &["x", "r", "b", "t", "c"]);
        let regions = Regions::of(&model, &plan);
        let connected = regions.connected();
        let labels: Vec<Vec<String>> =
            connected.iter().map(|r| r.iter().map(|&n| model.node_label(n)).collect()).collect();
        assert_eq!(labels, [vec!["a", "b"], vec!["c"]]);
        let left = regions.without(&model, &plan, &connected[0], "measured");
        let kept: Vec<&str> = left.activations.keys().map(String::as_str).collect();
        assert_eq!(kept, ["c", "t"]);
        let of = |name: &str| (left.nodes[name].becomes, left.nodes[name].reason.as_deref());
        assert_eq!([of("a"), of("r")], [(Form::Float, Some("measured")); 2]);
        assert_eq!((of("t"), of("c")), ((Form::Float, None), (Form::Integer, None)));
        let only = regions.only(&plan, &connected[0]);
        assert_eq!(only.integer_nodes(), 2);
        // What b reads has no integer maker without a.
        let b = regions.only(&plan, &connected[0][1..]);
        let readers = |name: &str| b.activations.get(name).map(|a| a.readers);
        assert_eq!([readers("x"), readers("r"), readers("b")], [None, Some(Readers::Integer), Some(Readers::All)]);
    }
}
