//! Which layers of two models are the same: by name first, then by weight, then by what stands around them.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use super::{facts::weight_index, side::Side, weights};
use crate::{
    error::Result,
    ir::{NodeId, ValueId},
};

/// What told that two layers are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// The name of the node, of what it makes, or of its weight.
    Name,
    /// The numbers of its weight.
    Weight,
    /// What it reads from and what reads it: a guess.
    Neighbours,
}

/// Weights that agree to less than this are not the same, dB as a ratio of energies: 6 dB.
const ALIKE: f64 = 0.25;
/// So many layers are tried for one whose weight is looked for.
const MOST_TRIED: usize = 64;
/// Nodes without counterpart that are looked past, on the way to a neighbour.
const MOST_PAST: usize = 6;

type Matched = BTreeMap<NodeId, (NodeId, How)>;

/// The layers of the first model with those of the second.
pub(super) fn matched(a: &Side, b: &Side) -> Result<Matched> {
    let mut m = Matching { a, b, there: Matched::new(), back: HashMap::new() };
    m.by_key(How::Name, |side, n| side.float.node(n).output(0).map(|v| side.float.value(v).name().to_owned()));
    m.by_key(How::Name, |side, n| side.float.node(n).name.clone().filter(|name| !name.is_empty()));
    m.by_key(How::Name, |side, n| side.float.node(n).output(0).map(|v| stem(side.float.value(v).name())));
    m.by_key(How::Name, |side, n| side.float.node(n).name.as_deref().filter(|name| !name.is_empty()).map(stem));
    m.by_key(How::Name, |side, n| {
        let (i, _) = weight_index(side, n)?;
        side.float.node(n).input(i).map(|v| stem(side.float.value(v).name()))
    });
    m.by_weight()?;
    for _ in 0..8 {
        let before = m.there.len();
        m.by_neighbours();
        if m.there.len() == before {
            break;
        }
    }
    Ok(m.there)
}

struct Matching<'a> {
    a: &'a Side,
    b: &'a Side,
    there: Matched,
    back: HashMap<NodeId, NodeId>,
}

impl Matching<'_> {
    fn add(&mut self, x: NodeId, y: NodeId, how: How) {
        self.there.insert(x, (y, how));
        self.back.insert(y, x);
    }

    fn free_a(&self) -> Vec<NodeId> {
        self.a.nodes.iter().copied().filter(|n| !self.there.contains_key(n)).collect()
    }

    fn free_b(&self) -> Vec<NodeId> {
        self.b.nodes.iter().copied().filter(|n| !self.back.contains_key(n)).collect()
    }

    fn alike(&self, x: NodeId, y: NodeId) -> bool {
        kind(&self.a.float.node(x).op_type) == kind(&self.b.float.node(y).op_type)
    }

    /// Matches layers that have a key in common with one layer only.
    fn by_key(&mut self, how: How, key: impl Fn(&Side, NodeId) -> Option<String>) {
        let mut others: HashMap<(String, String), Vec<NodeId>> = HashMap::new();
        let full = |side: &Side, n: NodeId| Some((key(side, n)?, kind(&side.float.node(n).op_type).to_owned()));
        for y in self.free_b() {
            if let Some(key) = full(self.b, y) {
                others.entry(key).or_default().push(y);
            }
        }
        let mut own: HashMap<(String, String), usize> = HashMap::new();
        let free = self.free_a();
        for &x in &free {
            if let Some(key) = full(self.a, x) {
                *own.entry(key).or_default() += 1;
            }
        }
        for x in free {
            let Some(key) = full(self.a, x) else { continue };
            if let (Some(&[y]), Some(1)) = (others.get(&key).map(Vec::as_slice), own.get(&key)) {
                self.add(x, y, how);
            }
        }
    }

    fn by_weight(&mut self) -> Result<()> {
        let sized = |side: &Side, n: NodeId| {
            let (_, t) = weight_index(side, n)?;
            let mut dims: Vec<usize> = t.dims().iter().copied().filter(|&d| d != 1).collect();
            dims.sort_unstable();
            // Few numbers are alike by chance.
            (t.len() >= 64).then_some(dims)
        };
        let mut others: HashMap<Vec<usize>, Vec<NodeId>> = HashMap::new();
        for y in self.free_b() {
            if let Some(dims) = sized(self.b, y) {
                others.entry(dims).or_default().push(y);
            }
        }
        for x in self.free_a() {
            let Some(candidates) = sized(self.a, x).and_then(|dims| others.get(&dims).cloned()) else { continue };
            let Some((_, w)) = weight_index(self.a, x) else { continue };
            let mut best: Option<(f64, NodeId)> = None;
            for y in candidates.into_iter().filter(|y| !self.back.contains_key(y)).take(MOST_TRIED) {
                if !self.alike(x, y) {
                    continue;
                }
                let Some((_, v)) = weight_index(self.b, y) else { continue };
                let Some((signal, noise, _)) = weights::compare(w, v)? else { continue };
                let ratio = noise / signal.max(f64::MIN_POSITIVE);
                if ratio < ALIKE && best.is_none_or(|(least, _)| ratio < least) {
                    best = Some((ratio, y));
                }
                if ratio == 0.0 {
                    break;
                }
            }
            if let Some((_, y)) = best {
                self.add(x, y, How::Weight);
            }
        }
        Ok(())
    }

    /// Layers between the same neighbours.
    fn by_neighbours(&mut self) {
        for x in self.free_a() {
            let found = self.behind(x).or_else(|| self.in_front(x));
            if let Some(y) = found {
                self.add(x, y, How::Neighbours);
            }
        }
    }

    /// A free layer of the second model that reads what the counterpart of the producer makes.
    fn behind(&self, x: NodeId) -> Option<NodeId> {
        for from in data(self.a, x) {
            let (host, _) = self.nearest(from)?;
            let host = self.there.get(&host)?.0;
            let mut seen = HashSet::new();
            let mut front: Vec<NodeId> = readers(self.b, host);
            for _ in 0..MOST_PAST {
                let free: Vec<NodeId> = front.iter().copied().filter(|y| !self.back.contains_key(y)).collect();
                if let Some(&y) = free.iter().find(|&&y| self.alike(x, y)) {
                    return Some(y);
                }
                front = free.into_iter().filter(|&y| seen.insert(y)).flat_map(|y| readers(self.b, y)).collect();
            }
        }
        None
    }

    /// The same from behind.
    fn in_front(&self, x: NodeId) -> Option<NodeId> {
        let reader = readers(self.a, x).into_iter().find_map(|r| self.there.get(&r))?.0;
        let makers = data(self.b, reader).into_iter().filter_map(|v| self.b.float.producer(v));
        makers.into_iter().find(|&y| !self.back.contains_key(&y) && self.alike(x, y))
    }

    /// The nearest layer with a counterpart that a value comes from, past layers without one.
    fn nearest(&self, v: ValueId) -> Option<(NodeId, usize)> {
        let mut at = self.a.float.producer(v)?;
        for past in 0..MOST_PAST {
            if self.there.contains_key(&at) {
                return Some((at, past));
            }
            at = self.a.float.producer(*data(self.a, at).first()?)?;
        }
        None
    }
}

/// What a layer reads that is computed.
fn data(side: &Side, n: NodeId) -> Vec<ValueId> {
    let node = side.float.node(n);
    node.inputs().iter().copied().flatten().filter(|&v| side.float.value(v).initializer().is_none()).collect()
}

fn readers(side: &Side, n: NodeId) -> Vec<NodeId> {
    let outputs = side.float.node(n).outputs().iter().copied().flatten();
    let mut all: Vec<NodeId> = outputs.flat_map(|v| side.float.value(v).readers().map(|(n, _)| n)).collect();
    all.sort();
    all.dedup();
    all
}

/// Operators that are written for one another count as one.
fn kind(op: &str) -> &str {
    match op {
        "Gemm" => "MatMul",
        "Relu" | "Max" | "Min" => "Clip",
        op => op,
    }
}

/// A name without what tools append to it.
pub(super) fn stem(name: &str) -> String {
    const SUFFIXES: &[&str] = &[
        "_quantized",
        "_quant",
        "_QuantizeLinear_Output",
        "_QuantizeLinear",
        "_DequantizeLinear_Output",
        "_DequantizeLinear",
        "_DequantizeLinear/DequantizeLinear_output",
        "_Output",
        "_float",
        "_float16",
        "_bfloat16",
        "_rounded",
        "_transposed",
        "_without_bias",
        "_Mul",
        "_Cast",
        "_Reshape",
        "_Q2",
        "_Q4",
        "_Q8",
    ];
    let mut name = name;
    while let Some(rest) = SUFFIXES.iter().find_map(|s| name.strip_suffix(s)).filter(|rest| !rest.is_empty()) {
        name = rest;
    }
    name.to_owned()
}
