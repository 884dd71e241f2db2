//! What of a plan can be switched between float and integers, each by itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Form, NodePlan, Plan, Readers, Regions};
use crate::{
    ir::{Model, NodeId, Use, ValueId},
    ops::{self, Class, Role},
};

/// Nodes that are switched as one, and what is quantized at them.
pub struct Units {
    /// The nodes of each unit, in the order of the graph: integer ones, and float ones whose weight is stored.
    pub nodes: Vec<Vec<NodeId>>,
    of: HashMap<NodeId, usize>,
    regions: Regions,
}

/// Who decides whether some uses of a quantized value read the rounded one: any of these units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readings {
    /// The units; never none.
    pub units: BTreeSet<usize>,
    /// The uses.
    pub uses: Vec<Use>,
}

impl Units {
    /// Those of a plan. `model` is the one that the plan speaks of. One unit are
    ///
    /// - an integer node with the clamps that it absorbs; each quantizes what it reads and makes;
    /// - nodes that only move codes with what makes these, or, where that is float, with the one that computes with them: they
    ///   are integer where their neighbours are;
    /// - a product and the Add that is its bias, which takes the correction for what rounding the weights shifts;
    /// - all float nodes that read one stored weight.
    ///
    /// With more than `most`, neighbours are one unit.
    pub fn of(model: &Model, plan: &Plan, most: usize) -> Self {
        let regions = Regions::of(model, plan);
        let all: BTreeSet<NodeId> =
            regions.nodes.iter().map(|n| n.0).chain(regions.stored.values().flatten().copied()).collect();
        let ordered: Vec<NodeId> = model.nodes_below(model.main()).into_iter().filter(|n| all.contains(n)).collect();
        let mut joined = Joined { parent: (0..ordered.len()).collect(), at: HashMap::new() };
        joined.at.extend(ordered.iter().enumerate().map(|(i, &n)| (n, i)));
        for readers in regions.stored.values() {
            readers.windows(2).for_each(|pair| joined.join(pair[0], pair[1]));
        }
        for &node in &ordered {
            if let Some(add) = bias_add(model, node).filter(|add| joined.at.contains_key(add)) {
                joined.join(node, add);
            }
        }
        joined.movers(model, plan, &regions);
        let mut found: BTreeMap<usize, Vec<NodeId>> = BTreeMap::new();
        for &node in &ordered {
            let root = joined.root(node);
            found.entry(root.unwrap_or_default()).or_default().push(node);
        }
        let single: Vec<Vec<NodeId>> = found.into_values().collect();
        let share = single.len().div_ceil(most.max(1)).max(1);
        let nodes: Vec<Vec<NodeId>> = single.chunks(share).map(<[_]>::concat).collect();
        let of = nodes.iter().enumerate().flat_map(|(u, nodes)| nodes.iter().map(move |&n| (n, u))).collect();
        Self { nodes, of, regions }
    }

    /// The unit of a node.
    pub fn unit(&self, node: NodeId) -> Option<usize> {
        self.of.get(&node).copied()
    }

    /// The float Adds that are the bias of a unit's product, with the unit.
    pub fn biases(&self, model: &Model) -> Vec<(NodeId, usize)> {
        let products = self.nodes.iter().enumerate().flat_map(|(u, nodes)| nodes.iter().map(move |&n| (n, u)));
        let adds = products.filter_map(|(n, u)| Some((bias_add(model, n)?, u)));
        adds.filter(|(add, _)| self.unit(*add).is_none()).collect()
    }

    /// The units that quantize a value, and which of its uses each of them gives the rounded one: a unit its own, and the unit
    /// that makes the value all of them.
    pub fn readings(&self, model: &Model, plan: &Plan, value: ValueId) -> Vec<Readings> {
        let name = model.value(value).name();
        let Some(activation) = plan.activations.get(name) else { return Vec::new() };
        let own = |used: &Use| match *used {
            Use::Input(n, i) if form(model, plan, n) == Some(Form::Integer) => {
                let data = ops::spec(model, n).is_some_and(|s| s.role(i) == Role::Data);
                self.unit(n).filter(|_| data)
            }
            _ => None,
        };
        let uses = model.value(value).uses();
        let maker = self.regions.makers.get(name).and_then(|&n| self.unit(n));
        let for_all: BTreeSet<usize> = match (activation.readers, maker) {
            (Readers::Integer, _) => BTreeSet::new(),
            (Readers::All, Some(maker)) => BTreeSet::from([maker]),
            // A plan that was edited: what no integer node makes, and all read rounded.
            (Readers::All, None) => uses.iter().filter_map(own).collect(),
        };
        let mut found: Vec<Readings> = Vec::new();
        for &used in uses {
            let units: BTreeSet<usize> = for_all.iter().copied().chain(own(&used)).collect();
            match found.iter_mut().find(|r| r.units == units) {
                _ if units.is_empty() => {}
                Some(readings) => readings.uses.push(used),
                None => found.push(Readings { units, uses: vec![used] }),
            }
        }
        found
    }

    /// The plan with only these units in integers.
    pub fn only(&self, plan: &Plan, units: impl Fn(usize) -> bool) -> Plan {
        let nodes = self.nodes.iter().enumerate().filter(|(u, _)| units(*u));
        let nodes: Vec<NodeId> = nodes.flat_map(|(_, nodes)| nodes.iter().copied()).collect();
        self.regions.only(plan, &nodes)
    }
}

/// Nodes that are one with others.
struct Joined {
    parent: Vec<usize>,
    at: HashMap<NodeId, usize>,
}

impl Joined {
    fn root(&self, node: NodeId) -> Option<usize> {
        let mut i = *self.at.get(&node)?;
        while self.parent[i] != i {
            i = self.parent[i];
        }
        Some(i)
    }

    /// The first of the graph stands for both.
    fn join(&mut self, a: NodeId, b: NodeId) {
        if let (Some(a), Some(b)) = (self.root(a), self.root(b)) {
            self.parent[a.max(b)] = a.min(b);
        }
    }

    /// Joins what only moves codes with what makes them, or where that is float with the one that computes with them.
    fn movers(&mut self, model: &Model, plan: &Plan, regions: &Regions) {
        let movers: Vec<NodeId> = regions.nodes.iter().map(|n| n.0).filter(|&n| moves(model, plan, n)).collect();
        for &node in &movers {
            let from = model.node(node).input(0).map(|v| model.value(v).name());
            if let Some(&maker) = from.and_then(|name| regions.makers.get(name)) {
                self.join(node, maker);
            }
        }
        let mut groups: BTreeMap<Option<usize>, Vec<NodeId>> = BTreeMap::new();
        regions.nodes.iter().for_each(|n| groups.entry(self.root(n.0)).or_default().push(n.0));
        for group in groups.into_values().filter(|group| group.iter().all(|n| movers.contains(n))) {
            let outputs = group.iter().flat_map(|&n| model.node(n).outputs().iter().flatten());
            let readers = outputs.flat_map(|&v| model.value(v).readers()).map(|(n, _)| n);
            let mut others = readers.filter(|n| form(model, plan, *n) == Some(Form::Integer) && !group.contains(n));
            let first = others.next();
            if let Some(one) = first.filter(|&first| others.all(|n| self.root(n) == self.root(first))) {
                self.join(group[0], one);
            }
        }
    }
}

/// What becomes of a node of the main graph; `None` if the plan does not speak of it.
pub fn form(model: &Model, plan: &Plan, node: NodeId) -> Option<Form> {
    entry(model, plan, node).map(|n| n.becomes)
}

/// What the plan says of a node.
pub fn entry<'p>(model: &Model, plan: &'p Plan, node: NodeId) -> Option<&'p NodePlan> {
    let out = model.node(node).outputs().iter().copied().flatten().next()?;
    plan.nodes.get(model.value(out).name())
}

/// Whether what a node makes has the codes of what it reads.
fn moves(model: &Model, plan: &Plan, id: NodeId) -> bool {
    let node = model.node(id);
    let codes = |v: ValueId| plan.activations.get(model.value(v).name()).map(|a| a.params());
    let from = node.input(0).and_then(codes);
    let same = |&v: &ValueId| codes(v) == from;
    let moving = ops::spec(model, id).is_some_and(|s| s.class == Class::Movement);
    moving && from.is_some() && node.outputs().iter().flatten().next().is_some_and(same)
}

/// The Add of a constant that alone reads a product.
fn bias_add(model: &Model, node: NodeId) -> Option<NodeId> {
    let n = model.node(node);
    let (add, i) = model.sole_reader(n.output(0).filter(|_| n.is("MatMul"))?)?;
    let constant = |i: usize| model.constant_input(add, i).is_some();
    (model.node(add).is("Add") && i < 2 && constant(1 - i)).then_some(add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::testing::{find, model};

    fn plan(nodes: &[(&str, &str)], values: &[(&str, f32, &str)], stored: &[&str]) -> Plan {
        let mut yaml = "target: t\nactivations:\n".to_owned();
        for (name, scale, readers) in values {
            yaml += &format!("  {name}: {{dtype: uint8, scale: {scale:?}, zero_point: 0, readers: {readers}}}\n");
        }
        yaml += "nodes:\n";
        nodes.iter().for_each(|(name, form)| yaml += &format!("  {name}: {{op: o, becomes: {form}}}\n"));
        yaml += "stored_weights:\n";
        stored.iter().for_each(|name| yaml += &format!("  {name}: {{dtype: int8, first_axis: 0, last_axis: 0}}\n"));
        Plan::from_yaml(if stored.is_empty() { yaml.trim_end_matches("stored_weights:\n") } else { &yaml }).unwrap()
    }

    const TEXT: &str = "float[1,4] x \n float[4,4] w = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1} \n float[4] k = {1,1,1,1} \n \
        float[4,4] v = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1} \n \
        t = Transpose(x) \n u = Transpose(t) \n m = MatMul(u, w) \n b = Add(m, k) \n c = Clip(b) \n \
        d = Squeeze(c) \n s = Sigmoid(d) \n e = Exp(d) \n f = MatMul(e, v) \n g = Add(f, k) \n h = MatMul(g, v) \n \
        return s, h, d";

    #[test]
    fn what_is_switched_as_one() {
        let m = model(TEXT);
        let nodes = ["t", "u", "m", "b", "d", "s"]
            .map(|n| (n, "integer"))
            .into_iter()
            .chain([("c", "absorbed"), ("f", "float")]);
        let values = [
            ("x", 0.5, "integer"),
            ("t", 0.5, "all"),
            ("u", 0.5, "all"),
            ("c", 0.1, "all"),
            ("d", 0.1, "all"),
            ("s", 0.2, "all"),
        ];
        let plan = plan(&nodes.collect::<Vec<_>>(), &values, &["v"]);
        let labels = |units: &Units| -> Vec<String> {
            let label = |nodes: &Vec<NodeId>| nodes.iter().map(|&n| m.node_label(n)).collect::<String>();
            units.nodes.iter().map(label).collect()
        };
        // The movers go with the product, and d with what makes it; so does the bias, which stays float behind f.
        let units = Units::of(&m, &plan, 100);
        assert_eq!(labels(&units), ["tumbd", "s", "fh"]);
        assert_eq!(units.biases(&m), [(m.producer(find(&m, "g")).unwrap(), 2)]);
        assert_eq!(labels(&Units::of(&m, &plan, 2)), ["tumbds", "fh"]);
        let readings = |name: &str| -> Vec<(Vec<usize>, usize)> {
            let found = units.readings(&m, &plan, find(&m, name)).into_iter();
            found.map(|r| (r.units.into_iter().collect(), r.uses.len())).collect()
        };
        // Only the Transpose reads x rounded; who makes d makes all read it rounded, s its own input.
        assert_eq!(readings("x"), [(vec![0], 1)]);
        assert_eq!(readings("d"), [(vec![0, 1], 1), (vec![0], 2)]);
        assert_eq!(readings("e"), []);
        let only = units.only(&plan, |u| u == 1);
        assert_eq!((only.integer_nodes(), only.stored_weights.len()), (1, 0));
        assert_eq!(only.activations.keys().collect::<Vec<_>>(), ["d", "s"]);
        assert_eq!(units.only(&plan, |u| u == 2).stored_weights.len(), 1);
        assert_eq!(units.only(&plan, |_| true), plan);
    }
}
