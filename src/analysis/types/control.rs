//! Operators with subgraphs: If, Loop, Scan.

use std::collections::HashSet;

use super::{Engine, Info, SymDim, SymInt, Types};
use crate::ir::{AttrValue, DType, GraphId, NodeId, ValueId};

impl Engine<'_> {
    /// Infers a node with subgraphs; false if it is none.
    pub(super) fn control(&mut self, n: NodeId) -> bool {
        let node = self.model.node(n);
        if node.is("If") {
            self.branches(n);
        } else if node.is("Loop") {
            self.repeat(n);
        } else if node.is("Scan") {
            self.scan(n);
        } else {
            return false;
        }
        true
    }

    fn body(&self, n: NodeId, name: &str) -> Option<GraphId> {
        match self.model.node(n).attr(name) {
            Some(AttrValue::Graph(g)) => Some(*g),
            _ => None,
        }
    }

    fn known(&self, v: Option<ValueId>) -> Info {
        v.and_then(|v| self.types.info(v)).cloned().unwrap_or_default()
    }

    /// What graph output `i` is.
    fn handed(&self, g: GraphId, i: usize) -> Info {
        self.known(self.model.graph(g).outputs().get(i).copied())
    }

    fn give(&mut self, n: NodeId, output: usize, info: Info) {
        if let Some(v) = self.model.node(n).output(output) {
            self.types.set(v, info);
        }
    }

    fn branches(&mut self, n: NodeId) {
        let node = self.model.node(n);
        let (Some(yes), Some(no)) = (self.body(n, "then_branch"), self.body(n, "else_branch")) else { return };
        self.graph(yes);
        self.graph(no);
        let condition = node.input(0).and_then(|v| self.types.known_ints(v));
        for i in 0..node.outputs().len() {
            let info = match condition.as_deref() {
                Some([0]) => self.handed(no, i),
                Some([_]) => self.handed(yes, i),
                _ => {
                    let (a, b) = (self.handed(yes, i), self.handed(no, i));
                    self.merge(a, b)
                }
            };
            self.give(n, i, info);
        }
    }

    /// What holds of a value that is either of two. Dims that differ become one of which nothing is known.
    fn merge(&mut self, a: Info, b: Info) -> Info {
        let shape = match (a.shape, b.shape) {
            (Some(a), Some(b)) if a.len() == b.len() => {
                let dim = |(x, y)| if x == y { x } else { self.types.symbols.fresh() };
                Some(a.into_iter().zip(b).map(dim).collect())
            }
            _ => None,
        };
        let ints = match (a.ints, b.ints) {
            (Some(a), Some(b)) if a.len() == b.len() => {
                Some(a.into_iter().zip(b).map(|(x, y)| if x == y { x } else { SymInt::Unknown }).collect())
            }
            _ => None,
        };
        Info { dtype: a.dtype.filter(|_| a.dtype == b.dtype), shape, ints: ints.filter(|_| a.dtype == b.dtype) }
    }

    /// Walks a body until the state that it hands out has the types of the state that it takes: body input `takes + i`
    /// is what body output `hands + i` becomes. Returns the types of the state as it leaves the loop.
    fn settle(&mut self, body: GraphId, takes: usize, hands: usize, mut state: Vec<Info>) -> Vec<Info> {
        // Dims that change from turn to turn: in the body they stand for another number each time.
        let mut varying = HashSet::new();
        loop {
            for (i, info) in state.iter_mut().enumerate() {
                info.ints = None;
                if let Some(&v) = self.model.graph(body).inputs().get(takes + i) {
                    self.types.set(v, info.clone());
                }
            }
            self.graph(body);
            // Each round widens something, so this ends.
            let mut settled = true;
            for (i, info) in state.iter_mut().enumerate() {
                let after = self.handed(body, hands + i);
                settled &= !self.widen(info, &after, &mut varying);
            }
            if settled {
                break;
            }
        }
        let fresh = |types: &mut Types, d| if varying.contains(&d) { types.symbols.fresh() } else { d };
        for info in &mut state {
            let dims = info.shape.take();
            info.shape = dims.map(|dims| dims.into_iter().map(|d| fresh(&mut self.types, d)).collect());
        }
        state
    }

    /// Takes out of `info` what does not hold of `after` too; true if something went.
    fn widen(&mut self, info: &mut Info, after: &Info, varying: &mut HashSet<SymDim>) -> bool {
        let mut changed = false;
        if info.dtype.is_some() && info.dtype != after.dtype {
            info.dtype = None;
            changed = true;
        }
        match (&mut info.shape, &after.shape) {
            (Some(a), Some(b)) if a.len() == b.len() => {
                for (x, y) in a.iter_mut().zip(b) {
                    if x != y && !varying.contains(x) {
                        *x = self.types.symbols.fresh();
                        varying.insert(*x);
                        changed = true;
                    }
                }
            }
            (Some(_), _) => {
                info.shape = None;
                changed = true;
            }
            (None, _) => {}
        }
        changed
    }

    fn repeat(&mut self, n: NodeId) {
        let node = self.model.node(n);
        let Some(body) = self.body(n, "body") else { return };
        let carried = node.inputs().len().saturating_sub(2);
        let scalar = |dtype| Info { dtype: Some(dtype), shape: Some(Vec::new()), ints: None };
        for (i, dtype) in [DType::Int64, DType::Bool].into_iter().enumerate() {
            if let Some(&v) = self.model.graph(body).inputs().get(i) {
                self.types.set(v, scalar(dtype));
            }
        }
        let state = (0..carried).map(|i| self.known(node.input(2 + i))).collect();
        let state = self.settle(body, 2, 1, state);
        for (i, info) in state.into_iter().enumerate() {
            self.give(n, i, info);
        }
        for i in carried..node.outputs().len() {
            let turns = self.types.symbols.fresh();
            let each = self.handed(body, 1 + i);
            self.give(n, i, stacked(each, Some(0), turns));
        }
    }

    fn scan(&mut self, n: NodeId) {
        let node = self.model.node(n);
        let Some(body) = self.body(n, "body") else { return };
        // Before opset 9 Scan had a batch axis and another list of inputs; no exporter used it.
        let old = self.model.opset("").is_some_and(|v| v < 9);
        let scanned = node.int("num_scan_inputs").and_then(|s| usize::try_from(s).ok());
        let Some(states) = scanned.and_then(|s| node.inputs().len().checked_sub(s)).filter(|_| !old) else { return };
        let axis = |name: &str, i: usize, rank: usize| {
            let axis = node.ints(name).and_then(|a| a.get(i)).copied().unwrap_or(0);
            super::cx::resolve_axis(axis, rank)
        };
        let mut turns = None;
        for i in states..node.inputs().len() {
            let mut info = self.known(node.input(i));
            info.ints = None;
            info.shape = info.shape.and_then(|mut dims| {
                let axis = axis("scan_input_axes", i - states, dims.len())?;
                turns = Some(dims.remove(axis));
                Some(dims)
            });
            if let Some(&v) = self.model.graph(body).inputs().get(i) {
                self.types.set(v, info);
            }
        }
        let state = (0..states).map(|i| self.known(node.input(i))).collect();
        let state = self.settle(body, 0, 0, state);
        for (i, info) in state.into_iter().enumerate() {
            self.give(n, i, info);
        }
        for i in states..node.outputs().len() {
            let turns = turns.unwrap_or_else(|| self.types.symbols.fresh());
            let each = self.handed(body, i);
            let rank = each.shape.as_ref().map_or(0, |s| s.len() + 1);
            let at = axis("scan_output_axes", i - states, rank);
            self.give(n, i, stacked(each, at, turns));
        }
    }
}

/// One value a turn, put together along a new axis.
fn stacked(each: Info, axis: Option<usize>, turns: SymDim) -> Info {
    let shape = each.shape.zip(axis).map(|(mut dims, axis)| {
        dims.insert(axis.min(dims.len()), turns);
        dims
    });
    Info { dtype: each.dtype, shape, ints: None }
}
