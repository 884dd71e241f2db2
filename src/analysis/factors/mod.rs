//! Which values can be divided by a factor for each channel without a change of what the model computes: the constants
//! around them take the factors in.
//!
//! A value can be divided if what makes it has a constant for each of its channels, or hands the factors on to what it
//! reads; and if each of its readers has, or hands them on to what it makes. So one value draws in others: both sides of a
//! residual sum and the sum itself share their factors. [`Group`] is all of them, or there is none.
//!
//! Clamps hand factors on only while nothing reaches their bounds (0 apart): a group lists them as [`Bound`]s.

mod rules;
mod take;

use std::collections::BTreeMap;

pub use rules::{data_axis, data_take};
pub use take::{Power, Take};

use crate::{
    analysis::types::Types,
    ir::{DType, Model, NodeId, Tensor, Use, ValueId},
    ops,
};

/// The most values that share factors, so that time does not grow with the square of the model.
const MOST_VALUES: usize = 512;

/// Values that are divided by the same factors, and what takes these in.
#[derive(Debug, Clone, Default)]
pub struct Group {
    /// How many channels, and so factors, there are.
    pub channels: usize,
    /// The values, each with the axes along which its channels lie, in the order of the channels.
    pub values: BTreeMap<ValueId, Vec<usize>>,
    /// The constants that take the factors in.
    pub takes: Vec<Take>,
    /// Clamps that the values must stay clear of.
    pub bounds: Vec<Bound>,
}

/// A clamp to bounds other than 0 and infinity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// What the clamp makes.
    pub value: ValueId,
    /// Its lower bound, below 0 or 0.
    pub lo: f32,
    /// Its upper bound, above 0.
    pub hi: f32,
}

/// Why a value cannot be divided, in words.
pub type Refusal = String;

/// The group of a value: of what a layer with a constant weight reads, or of what one makes.
pub fn group_of(model: &Model, types: &Types, value: ValueId) -> Result<Group, Refusal> {
    let axis = channel_axis(model, types, value).ok_or("no layer says where its channels lie")?;
    let mut search = Search { model, types, group: Group::default(), waiting: Vec::new(), divided: BTreeMap::new() };
    let dims = types.shape(value).ok_or("its rank is not known")?;
    search.group.channels = dims.get(axis).and_then(|d| d.known()).ok_or("the number of its channels is not known")?;
    search.join(value, vec![axis])?;
    search.run()?;
    search.group.takes.sort();
    Ok(search.group)
}

/// The axis of the channels of a value that layers read or make.
fn channel_axis(model: &Model, types: &Types, value: ValueId) -> Option<usize> {
    let readers = model.value(value).readers().filter(|(_, i)| *i == 0);
    let mut axes = readers.filter_map(|(n, _)| data_axis(model, types, n));
    axes.next().or_else(|| rules::output_axis(model, types, model.producer(value)?))
}

/// The products of matrices that read a value as their data and have a constant matrix that nothing else reads: a
/// multiplication in front of them can divide the value for them alone. Each with what takes the factors in.
pub fn products_of(model: &Model, types: &Types, value: ValueId) -> Vec<Take> {
    let product = |(n, i): (NodeId, usize)| {
        let node = model.node(n);
        let own = i == 0 && node.graph() == model.main() && (node.is("MatMul") || node.is("Gemm"));
        let axis = data_axis(model, types, n).filter(|_| own)?;
        (axis + 1 == types.rank(value)?).then(|| data_take(model, n)).flatten()
    };
    let mut takes: Vec<Take> = model.value(value).readers().filter_map(product).collect();
    takes.sort();
    takes
}

struct Search<'a> {
    model: &'a Model,
    types: &'a Types,
    group: Group,
    /// Values whose maker and readers have not been asked yet.
    waiting: Vec<ValueId>,
    /// Products of two computed values: which one of them is divided.
    divided: BTreeMap<NodeId, usize>,
}

/// Where a value stands at a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Input(usize),
    Output,
}

impl Search<'_> {
    fn run(&mut self) -> Result<(), Refusal> {
        while let Some(v) = self.waiting.pop() {
            let axes = self.group.values[&v].clone();
            let Some((maker, number)) = self.model.value(v).producer() else {
                return Err(format!("{} is an input of the model", self.name(v)));
            };
            if number != 0 {
                return Err(format!("{} is a further output of its node", self.name(v)));
            }
            self.ask(maker, Port::Output, &axes)?;
            for used in self.model.value(v).uses().to_vec() {
                match used {
                    Use::Input(n, i) if self.model.node(n).graph() == self.model.main() => {
                        self.ask(n, Port::Input(i), &axes)?;
                    }
                    Use::Input(..) => return Err(format!("a subgraph reads {}", self.name(v))),
                    Use::Output(..) => return Err(format!("{} is an output of the model", self.name(v))),
                }
            }
        }
        Ok(())
    }

    fn ask(&mut self, node: NodeId, port: Port, axes: &[usize]) -> Result<(), Refusal> {
        self.visit(node, port, axes)
            .map_err(|why| format!("{} {}: {why}", self.model.node(node).op_type, self.model.node_label(node)))
    }

    fn name(&self, v: ValueId) -> &str {
        self.model.value(v).name()
    }

    /// Takes a value into the group, its channels along these axes.
    fn join(&mut self, v: ValueId, axes: Vec<usize>) -> Result<(), Refusal> {
        if let Some(known) = self.group.values.get(&v) {
            return if *known == axes { Ok(()) } else { Err("two readers see other channels".into()) };
        }
        let value = self.model.value(v);
        if value.initializer().is_some() || value.graph() != self.model.main() {
            return Err(format!("{} is not computed in the main graph", self.name(v)));
        }
        if self.types.dtype(v) != Some(DType::Float) {
            return Err(format!("{} is not of type float", self.name(v)));
        }
        let dims = self.types.shape(v).ok_or_else(|| format!("the rank of {} is not known", self.name(v)))?;
        let channels = axes.iter().try_fold(1usize, |n, &a| n.checked_mul(dims.get(a)?.known()?));
        if channels != Some(self.group.channels) {
            return Err(format!("{} does not have all channels", self.name(v)));
        }
        if self.group.values.len() >= MOST_VALUES {
            return Err(format!("more than {MOST_VALUES} values would share the factors"));
        }
        self.group.values.insert(v, axes);
        self.waiting.push(v);
        Ok(())
    }

    /// Takes a constant into the group.
    fn take(&mut self, take: Take) -> Result<(), Refusal> {
        let v = self.model.node(take.node).input(take.input);
        let constant = v.and_then(|v| self.model.value(v).constant()).filter(|t| t.dtype() == DType::Float);
        let Some((v, constant)) = v.zip(constant) else { return Err("its parameters are not constants".into()) };
        if self.is_shared(v, constant) {
            return Err("it shares its constant".into());
        }
        if take.channels(constant.dims()) != Some(self.group.channels) {
            return Err("its constant does not have a number for each channel".into());
        }
        if !self.group.takes.contains(&take) {
            self.group.takes.push(take);
        }
        Ok(())
    }

    /// Whether other nodes read a constant that is too large for each to have its own.
    fn is_shared(&self, v: ValueId, constant: &Tensor) -> bool {
        self.model.value(v).uses().len() != 1 && constant.len() > self.group.channels
    }

    fn rank(&self, v: ValueId) -> Option<usize> {
        self.types.rank(v)
    }

    fn constant(&self, node: NodeId, i: usize) -> Option<&Tensor> {
        self.model.constant_input(node, i)
    }

    fn bound(&mut self, node: NodeId, value: ValueId) -> Result<(), Refusal> {
        let (lo, hi) = ops::clamp_bounds(self.model, node).ok_or("its bounds are not constants")?;
        if lo > 0.0 || hi <= 0.0 {
            return Err("0 is not between its bounds".into());
        }
        let bound = Bound { value, lo, hi };
        if (lo < 0.0 && lo.is_finite() || hi.is_finite()) && !self.group.bounds.contains(&bound) {
            self.group.bounds.push(bound);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
