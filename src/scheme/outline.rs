//! The names and links of a model at one point of the way: rules are written against the original, and decide about what
//! the Prepare passes left of it.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::ir::{Model, NodeId};

/// Names and links of the nodes of the main graph, and names of those of its subgraphs.
#[derive(Debug, Clone, Default)]
pub(super) struct Outline {
    pub(super) nodes: Vec<Entry>,
    /// Every value of the main graph, in the order in which it comes into being.
    pub(super) values: Vec<String>,
}

/// One node.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) id: NodeId,
    /// What to call it: its name, else its first output's.
    pub(super) label: String,
    pub(super) op: String,
    inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
}

impl Outline {
    /// Takes the names down. The links of subgraphs count as those of the node that holds them; their nodes have none.
    pub(super) fn of(model: &Model) -> Self {
        let name = |v| model.value(v).name().to_owned();
        let graph = model.graph(model.main());
        let mut outline = Self::default();
        let main = model.main();
        // First, so that the main graph wins where it has a node of the same name.
        let inner = model.nodes_below(main).into_iter().filter(|&n| model.node(n).graph() != main);
        outline.nodes.extend(inner.map(|id| {
            let (label, op) = (model.node_label(id), model.node(id).op_type.clone());
            Entry { id, label, op, inputs: Vec::new(), outputs: Vec::new() }
        }));
        outline.values.extend(graph.inputs().iter().chain(graph.initializers()).map(|&v| name(v)));
        for id in model.nodes(model.main()) {
            let node = model.node(id);
            let mut inputs: Vec<String> = node.inputs().iter().flatten().map(|&v| name(v)).collect();
            let mut inner: Vec<NodeId> = node.subgraphs().flat_map(|g| model.nodes(g)).collect();
            while let Some(n) = inner.pop() {
                // Names are unique among what a scope sees, so an inner value cannot be taken for an outer one.
                inputs.extend(model.node(n).inputs().iter().flatten().map(|&v| name(v)));
                inner.extend(model.node(n).subgraphs().flat_map(|g| model.nodes(g)));
            }
            let outputs: Vec<String> = node.outputs().iter().flatten().map(|&v| name(v)).collect();
            outline.values.extend(outputs.iter().cloned());
            let (label, op) = (model.node_label(id), node.op_type.clone());
            outline.nodes.push(Entry { id, label, op, inputs, outputs });
        }
        outline
    }

    /// The nodes on all ways from a value or node to another, both nodes among them; `Err` is the name that is neither.
    pub(super) fn between<'a>(&self, from: &'a str, to: &'a str) -> Result<BTreeSet<usize>, &'a str> {
        let (starts, ends) = (self.starts(from).ok_or(from)?, self.ends(to).ok_or(to)?);
        let ahead = self.reach(starts, |e| &e.outputs, |e| &e.inputs);
        let back = self.reach(ends, |e| &e.inputs, |e| &e.outputs);
        Ok(ahead.intersection(&back).copied().collect())
    }

    /// The nodes that read a value.
    pub(super) fn readers(&self, value: &str) -> Vec<&Entry> {
        self.nodes.iter().filter(|n| n.inputs.iter().any(|v| v == value)).collect()
    }

    /// The node itself, or the readers of the value.
    fn starts(&self, name: &str) -> Option<Vec<usize>> {
        self.named(name).or_else(|| self.with(name, |e| &e.inputs))
    }

    /// The node itself, or the maker of the value.
    fn ends(&self, name: &str) -> Option<Vec<usize>> {
        self.named(name).or_else(|| self.with(name, |e| &e.outputs))
    }

    fn named(&self, name: &str) -> Option<Vec<usize>> {
        let linked = |i: &usize| !self.nodes[*i].outputs.is_empty();
        let found: Vec<_> = (0..self.nodes.len()).filter(linked).filter(|&i| self.nodes[i].label == name).collect();
        // Without a name a node is called like its first output; then the value is meant.
        let by_value = found.iter().all(|&i| self.nodes[i].outputs.iter().any(|v| v == name));
        (!found.is_empty() && !by_value).then_some(found)
    }

    fn with(&self, value: &str, side: fn(&Entry) -> &Vec<String>) -> Option<Vec<usize>> {
        self.values
            .iter()
            .any(|v| v == value)
            .then(|| (0..self.nodes.len()).filter(|&i| side(&self.nodes[i]).iter().any(|v| v == value)).collect())
    }

    fn reach(
        &self,
        start: Vec<usize>,
        leave: fn(&Entry) -> &Vec<String>,
        enter: fn(&Entry) -> &Vec<String>,
    ) -> BTreeSet<usize> {
        let mut next: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            for v in enter(node) {
                next.entry(v).or_default().push(i);
            }
        }
        let (mut seen, mut stack) = (HashSet::new(), start);
        while let Some(i) = stack.pop() {
            if seen.insert(i) {
                stack.extend(leave(&self.nodes[i]).iter().flat_map(|v| next.get(v.as_str()).into_iter().flatten()));
            }
        }
        seen.into_iter().collect()
    }
}
