//! The invariants of a [`Model`]; a model that breaks one is a bug of whoever edited it.
//!
//! 1. Every input of a node and every output of a graph is a use of its value, and every use is one of those.
//! 2. A value's producer lists it as that output; a node's output has that node as its producer.
//! 3. No value has two origins among: graph input or initializer, and node output; one that is used has one.
//! 4. A value is declared in the graph of its reader or in one around it.
//! 5. Names are unique among the values of a graph, and not empty.
//! 6. Each graph's chain of nodes is linked both ways and every node in it says that it is of this graph.
//! 7. A subgraph's parent is the node whose attribute it is.

use std::collections::{HashMap, HashSet};

use super::{GraphId, Model, Use, ValueId};
use crate::error::{Error, Result};

impl Model {
    /// Checks the invariants that the module's documentation lists.
    pub fn verify(&self) -> Result<()> {
        let mut uses: HashMap<ValueId, HashSet<Use>> = HashMap::new();
        for g in self.graph_ids() {
            self.verify_chain(g)?;
            for (i, &v) in self.graph(g).outputs().iter().enumerate() {
                uses.entry(v).or_default().insert(Use::Output(g, i));
                self.visible(v, g)?;
            }
            for n in self.nodes(g) {
                for (i, v) in self.node(n).inputs().iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?))) {
                    uses.entry(v).or_default().insert(Use::Input(n, i));
                    self.visible(v, g).map_err(|e| e.node(self.node_label(n), &self.node(n).op_type))?;
                }
                for (i, v) in self.node(n).outputs().iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?))) {
                    let made = self.try_value(v).and_then(|v| v.producer());
                    check(made == Some((n, i)), || format!("output {i} has another producer: {made:?}"))
                        .map_err(|e| e.node(self.node_label(n), &self.node(n).op_type))?;
                }
                for sub in self.node(n).subgraphs() {
                    check(self.graphs.get(sub).is_some_and(|s| s.parent == Some(n)), || {
                        format!("subgraph of {:?} has another parent", self.node_label(n))
                    })?;
                }
            }
        }
        let none = HashSet::new();
        let mut names: HashSet<(GraphId, &str)> = HashSet::new();
        for v in self.values.ids() {
            let value = self.value(v);
            let have: HashSet<Use> = value.uses().iter().copied().collect();
            let want = uses.get(&v).unwrap_or(&none);
            check(have == *want && have.len() == value.uses().len(), || {
                format!("value {:?} lists uses {have:?}, has {want:?}", value.name())
            })?;
            let origins = usize::from(value.producer().is_some())
                + usize::from(value.is_input() || value.initializer().is_some() || value.sparse.is_some());
            check(origins == 1 || origins == 0 && have.is_empty(), || {
                format!("value {:?} has {origins} origins", value.name())
            })?;
            if let Some((n, i)) = value.producer() {
                check(self.try_node(n).is_some_and(|n| n.output(i) == Some(v)), || {
                    format!("value {:?} is not output {i} of its producer", value.name())
                })?;
            }
            check(!value.name().is_empty() && names.insert((value.graph(), value.name())), || {
                format!("name {:?} is empty or not unique in its graph", value.name())
            })?;
        }
        Ok(())
    }

    fn verify_chain(&self, g: GraphId) -> Result<()> {
        let (mut prev, mut next) = (None, self.graph(g).first);
        while let Some(n) = next {
            let node = self.try_node(n).ok_or_else(|| Error::bug("a removed node is still linked"))?;
            check(node.prev == prev && node.graph == g, || format!("node {:?} is linked wrongly", self.node_label(n)))?;
            (prev, next) = (Some(n), node.next);
        }
        check(self.graph(g).last == prev, || "the last node is not the chain's last".to_owned())
    }

    fn visible(&self, v: ValueId, from: GraphId) -> Result<()> {
        let home = self.try_value(v).ok_or_else(|| Error::bug("a removed value is still read"))?.graph();
        let mut scope = Some(from);
        while let Some(g) = scope {
            if g == home {
                return Ok(());
            }
            scope = self.graph(g).parent.map(|n| self.node(n).graph());
        }
        Err(Error::bug("the value is not visible here").value(self.value(v).name()))
    }
}

fn check(holds: bool, say: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::bug(say())) }
}
