//! What changes around a node that a Transpose moves past.

use super::{Dims, Mover, inverse, permuted};
use crate::{
    ir::{AttrValue, NodeId, NodeSpec, Place, Use, ValueId},
    kernels::{scratch::Fate, steps::propagate},
};

impl Mover<'_, '_> {
    /// Makes a node read input `i` in another order: of a constant, of what was in that order before, or behind a new
    /// Transpose.
    pub(in crate::kernels::steps) fn transpose_input(&mut self, n: NodeId, i: usize, perm: &[usize]) {
        let Some(v) = self.s.m.node(n).input(i).filter(|&v| !self.is_stored(v)) else { return };
        let maker = self.s.m.producer(v);
        let conversion = maker.filter(|&d| self.s.is_dequantize(d) && self.is_supported(d));
        let source = match conversion {
            Some(d) => self.s.m.node(d).input(0).and_then(|v| self.s.m.producer(v)),
            None => maker,
        };
        let before = source.and_then(|t| Some((t, self.perm(t)?, self.s.m.node(t).input(0)?)));
        if let Some((t, other, x)) = before.filter(|(_, other, _)| other.len() == perm.len()) {
            if other == inverse(perm) {
                match conversion {
                    Some(d) => {
                        let dims = self.dims(v).and_then(|dims| permuted(&dims, perm));
                        self.s.m.set_input(d, 0, Some(x));
                        self.set_dims(v, dims);
                    }
                    None => self.s.m.set_input(n, i, Some(x)),
                }
                return self.remove_unread(t);
            }
            if conversion.is_none() {
                let both: Vec<usize> = perm.iter().map(|&p| other[p]).collect();
                let made = self.insert(x, &both, Place::Before(n));
                self.s.m.set_input(n, i, Some(made));
                return self.remove_unread(t);
            }
        }
        let there = self.s.m.value(v).readers().map(|(t, _)| t).find(|&t| self.perm(t).as_deref() == Some(perm));
        if let Some(t) = there {
            // It may stand behind the node.
            let graph = self.s.m.node(t).graph();
            self.s.m.move_node(t, maker.map_or(Place::Start(graph), Place::After));
            let out = self.s.m.node(t).output(0);
            return self.s.m.set_input(n, i, out);
        }
        let made = self.insert(v, perm, Place::Before(n));
        self.s.m.set_input(n, i, Some(made));
        if let (Some(d), Some(t)) = (maker.filter(|&d| self.s.is_dequantize(d)), self.s.m.producer(made)) {
            self.pair_behind(d, t);
        }
    }

    /// Makes a node's outputs come in another order, and puts them back into theirs behind it.
    pub(in crate::kernels::steps) fn transpose_outputs(&mut self, n: NodeId, perm: &[usize]) {
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            return;
        }
        let outputs: Vec<_> = self.s.m.node(n).outputs().iter().copied().flatten().collect();
        for out in outputs {
            let dims = self.dims(out);
            let full = self.insert(out, perm, Place::After(n));
            let t = self.s.m.producer(full);
            self.s.m.replace_readers(out, full, |reader, _| Some(reader) != t);
            for used in self.s.m.value(out).uses().to_vec() {
                if matches!(used, Use::Output(..)) {
                    self.s.m.redirect(used, full);
                }
            }
            // The name stays with the file's order.
            self.s.m.take_output_name(out, full);
            if self.leading.contains(&out) {
                self.leading.insert(full);
            }
            self.set_dims(out, dims.as_deref().and_then(|dims| permuted(dims, &inverse(perm))));
            self.set_dims(full, dims);
        }
    }

    /// A Transpose and one that it moves to become one, or none.
    pub(super) fn join(&mut self, t: NodeId, n: NodeId, first: &[usize]) -> bool {
        let (Some(second), Some(x)) = (self.perm(n), self.s.m.node(t).input(0)) else { return false };
        let Some(both) = permuted(first, &second) else { return false };
        if both.iter().enumerate().all(|(i, &p)| i == p) {
            // An output of the graph that cannot be had elsewhere stays.
            if !self.s.bypass(n, x, Fate::Gone) {
                self.s.m.set_input(n, 0, Some(x));
                self.s.m.node_mut(n).op_type = "Identity".to_owned();
            }
        } else {
            self.s.m.set_input(n, 0, Some(x));
            let perm = both.iter().map(|&p| p as i64).collect();
            if let Some(a) = self.s.m.node_mut(n).attributes.iter_mut().find(|a| a.name == "perm") {
                a.value = AttrValue::Ints(perm);
            }
        }
        if self.s.m.try_node(t).is_some() {
            self.remove_unread(t);
        }
        true
    }

    /// Puts a pair like a DequantizeLinear behind the node that alone reads it.
    pub(super) fn pair_behind(&mut self, d: NodeId, n: NodeId) -> bool {
        let alone = self.s.m.node(d).output(0).and_then(|v| self.sole_reader(v)) == Some(n);
        let Some(out) = self.s.m.node(n).output(0).filter(|_| alone && self.is_supported(d)) else { return false };
        let dims = self.dims(out);
        let back = propagate::pair_behind(self.s, d, n, out);
        self.set_dims(back, dims);
        true
    }

    /// A new Transpose; returns its output.
    fn insert(&mut self, x: ValueId, perm: &[usize], place: Place) -> ValueId {
        let name = format!("{}_transposed", self.s.m.value(x).name());
        let order = perm.iter().map(|&p| p as i64).collect();
        let spec = NodeSpec::new("Transpose").input(x).output(name).attr("perm", AttrValue::Ints(order));
        let n = self.s.m.insert(spec, place);
        let out = self.s.m.node(n).output(0).expect("just made");
        if let Some(dtype) = self.s.dtype(x) {
            self.s.set_dtype(out, dtype);
        }
        let dims = self.dims(x).and_then(|dims| permuted(&dims, perm));
        self.set_dims(out, dims);
        out
    }

    /// A value of fewer dims gets leading ones, in front of a node.
    pub(super) fn unsqueeze_input(&mut self, n: NodeId, i: usize, more: usize) {
        let Some(v) = self.s.m.node(n).input(i).filter(|&v| !self.is_stored(v)) else { return };
        let name = format!("{}_unsqueezed", self.s.m.value(v).name());
        let spec = NodeSpec::new("Unsqueeze").input(v).output(name);
        let made = self.s.m.insert(spec, Place::Before(n));
        let out = self.s.m.node(made).output(0).expect("just made");
        if let Some(dtype) = self.s.dtype(v) {
            self.s.set_dtype(out, dtype);
        }
        let dims = self.dims(v).map(|dims| std::iter::repeat_n(Some(1), more).chain(dims).collect());
        self.set_dims(out, dims);
        self.s.m.set_input(n, i, Some(out));
        if let Some(d) = self.s.m.producer(v).filter(|&d| self.s.is_dequantize(d)) {
            self.pair_behind(d, made);
        }
    }

    fn set_dims(&mut self, v: ValueId, dims: Option<Dims>) {
        if let Some(dims) = dims {
            self.dims.insert(v, dims);
        }
    }
}
