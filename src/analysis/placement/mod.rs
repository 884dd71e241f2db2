//! Where integer kernels gain: which nodes compute in integers, and which values are quantized for that.
//!
//! 1. [`candidates`]: what each node could become by the target's table, and which clamps its saturation replaces.
//! 2. [`flow`]: products (convolutions, matrix products) first; other operators join where they connect them, so that a Q/DQ
//!    pair stands only where it becomes an integer kernel or joins two of them.
//! 3. [`cut`]: which of them gain by the target's cost model, their conversions counted, as a minimum cut.
//! 4. [`search`]: the same under the rules of 2, by small steps from there; what [`layout`] costs is counted here only.
//! 5. [`dynamic`]: what is left and has a kernel that quantizes its data at run time, in subgraphs too: recurrent layers,
//!    and [`products`] where they are to do so.

mod candidates;
mod cost;
mod cut;
mod dynamic;
mod flow;
mod layout;
mod products;
mod search;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    ir::{DType, Model, NodeId, ValueId},
    target::{Costs, Target},
};

/// Concrete dtype and shape of values, from running one sample.
#[derive(Debug, Clone, Default)]
pub struct Shapes(pub HashMap<ValueId, (DType, Vec<usize>)>);

impl Shapes {
    /// Shape, if the value was seen.
    pub fn dims(&self, v: ValueId) -> Option<&[usize]> {
        self.0.get(&v).map(|(_, d)| &d[..])
    }

    /// Element count, 0 if the value was not seen.
    pub fn elements(&self, v: ValueId) -> usize {
        self.dims(v).map_or(0, |d| d.iter().product())
    }

    /// Whether the value is known to be of type float.
    pub fn is_float(&self, v: ValueId) -> bool {
        self.0.get(&v).is_some_and(|(t, _)| *t == DType::Float)
    }
}

/// What the user wants of the placement.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Nodes to keep in float, each with the words of the rule that says so.
    pub keep_float: BTreeMap<NodeId, String>,
    /// Nodes to quantize wherever there is a kernel, whatever the cost model says.
    pub force: BTreeSet<NodeId>,
    /// Quantize wherever there is a kernel, whatever the cost model says.
    pub ignore_cost: bool,
    /// The quantized range of an activation is symmetric around zero, so that saturation cannot stand in for a clamp.
    pub symmetric: bool,
    /// The same for single values.
    pub symmetric_values: BTreeSet<ValueId>,
    /// Activations shall have more than 8 bits.
    pub wide: bool,
    /// Products quantize their data at run time, and nothing has ranges from calibration.
    pub dynamic: bool,
    /// The same, or the opposite, for single nodes.
    pub dynamic_nodes: BTreeMap<NodeId, bool>,
    /// Products that may quantize their data at run time where they would be float otherwise.
    pub float_at_run_time: BTreeSet<NodeId>,
    /// What rounding costs besides time.
    pub prices: Prices,
}

/// What rounding costs besides time, in nanoseconds that a placement must gain to make up for it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prices {
    /// For each node: that it computes in integers, on data with ranges from calibration.
    pub nodes: BTreeMap<NodeId, f64>,
    /// For each node: that it does so on data that are quantized at run time.
    pub at_run_time: BTreeMap<NodeId, f64>,
    /// For each value: that it is quantized.
    pub values: BTreeMap<ValueId, f64>,
}

impl Wishes {
    /// The words of the rule that keeps a node in float: its own, or that of a node in whose body it stands.
    pub fn keeps_float(&self, model: &Model, node: NodeId) -> Option<&str> {
        holders(model, node).find_map(|n| self.keep_float.get(&n)).map(String::as_str)
    }

    /// Whether what a node computes in integers shall be quantized at run time, not with ranges from calibration.
    pub fn at_run_time(&self, model: &Model, node: NodeId) -> bool {
        holders(model, node).find_map(|n| self.dynamic_nodes.get(&n).copied()).unwrap_or(self.dynamic)
    }

    /// Whether a rule names this very node as one to quantize.
    pub fn names(&self, node: NodeId) -> bool {
        self.force.contains(&node) || self.dynamic_nodes.contains_key(&node)
    }

    /// Whether a node, or a node in whose body it stands, shall be quantized whatever it costs.
    pub fn forces(&self, model: &Model, node: NodeId) -> bool {
        holders(model, node).any(|n| self.force.contains(&n))
    }
}

/// A node, the node in whose body it stands, and so on to the main graph.
fn holders(model: &Model, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
    std::iter::successors(Some(node), |&n| model.graph(model.node(n).graph()).parent)
}

/// Why a product whose weight is computed is not quantized.
fn not_constant(model: &Model, weight: ValueId) -> &'static str {
    match is_dequantized(model, weight) {
        true => QUANTIZED,
        false => "its second operand is not constant",
    }
}

const QUANTIZED: &str = "it is quantized already, and stays as it is";

/// Whether a weight is made of codes; of those with two axes of channels also through a Reshape.
fn is_dequantized(model: &Model, weight: ValueId) -> bool {
    let maker = |v: ValueId, op: &str| model.producer(v).filter(|&n| model.node(n).is(op));
    let flat = maker(weight, "Reshape").and_then(|n| model.node(n).input(0));
    maker(flat.unwrap_or(weight), "DequantizeLinear").is_some()
}

/// What becomes of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Computes in integers, by this kernel, on data quantized with ranges from calibration.
    Integer(String),
    /// Computes in integers, by this kernel, on data that the kernel quantizes at run time.
    Dynamic(String),
    /// Vanishes: the quantized output of the node before saturates where it cuts.
    Absorbed(NodeId),
    /// Stays float, for this reason.
    Float(String),
}

impl Decision {
    /// Whether the node computes in integers, wherever its ranges come from.
    pub fn is_integer(&self) -> bool {
        matches!(self, Self::Integer(_) | Self::Dynamic(_))
    }
}

/// Who reads the quantized form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Everyone: an integer kernel makes the value.
    All,
    /// Only integer kernels; float nodes read the value as it was computed.
    Integer,
}

/// A value that gets a Q/DQ pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantized {
    /// Who reads the quantized form.
    pub readers: Readers,
    /// The value whose range it shares (itself, if none).
    pub root: ValueId,
}

/// The result.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    /// Every node of the main graph in order; behind them, those nodes of subgraphs whose operator has a kernel that
    /// quantizes its data at run time.
    pub nodes: Vec<(NodeId, Decision)>,
    /// The quantized activations.
    pub values: BTreeMap<ValueId, Quantized>,
    /// Time of one run by the cost model, nanoseconds: all in float, and as placed.
    pub float_time: f64,
    /// See `float_time`.
    pub placed_time: f64,
    /// What is gained by what the placement was chosen for: time, or the number of nodes where time does not count.
    pub gain: f64,
}

impl Placement {
    /// The values whose ranges calibration must observe.
    pub fn roots(&self) -> Vec<ValueId> {
        let roots: BTreeSet<_> = self.values.values().map(|q| q.root).collect();
        roots.into_iter().collect()
    }
}

/// Time of one run of the main graph with all nodes in float, by the cost model, nanoseconds. Unlike the times of a placement it
/// has the nodes in it that have no integer kernel, as far as the model knows them.
pub fn float_time(model: &Model, target: &Target, shapes: &Shapes) -> f64 {
    let time = |id| {
        dynamic::float_time(model, target, shapes, id).unwrap_or_else(|| cost::float_time(model, target, shapes, id))
    };
    model.nodes(model.main()).into_iter().map(time).sum()
}

/// Float and integer time of one run of a node by the cost model, nanoseconds, in a model of any form: its conversions, if it has
/// any, are nodes of their own.
pub fn node_times(model: &Model, target: &Target, shapes: &Shapes, id: NodeId) -> (f64, f64) {
    cost::times(model, target, shapes, id)
}

/// Time of a QuantizeLinear, or else of a DequantizeLinear, of so many elements.
pub fn conversion_time(costs: &Costs, elements: usize, quantizes: bool) -> f64 {
    let memory = if elements > costs.cached_elements { costs.uncached } else { 1.0 };
    let element = if quantizes { costs.quantize } else { costs.dequantize };
    costs.convert_node + element * elements as f64 * memory
}

/// Places quantization in the main graph. `shapes` come from a run of one sample.
pub fn place(model: &Model, target: &Target, shapes: &Shapes, wishes: &Wishes) -> Placement {
    let graph = candidates::Candidates::of(model, target, shapes, wishes);
    let offers = products::offers(model, target, shapes, wishes);
    let costs = cost::NodeCosts::of(model, target, shapes, &graph, wishes, &offers);
    let chosen = search::choose(&graph, &costs, wishes);
    let mut placement = finish(&graph, &costs, &chosen);
    placement.gain = placement.float_time - placement.placed_time;
    if wishes.ignore_cost {
        // Whatever it was chosen for, it takes the time that it takes.
        let wishes = Wishes { ignore_cost: false, ..wishes.clone() };
        let honest = cost::NodeCosts::of(model, target, shapes, &graph, &wishes, &BTreeMap::new());
        placement.float_time = honest.float_time(&graph);
        placement.placed_time = honest.time(&graph, &chosen.integer);
    }
    let left = |i: usize| !chosen.integer[i] && costs.takes_offer(i);
    let left: BTreeSet<NodeId> = (0..graph.nodes.len()).filter(|&i| left(i)).map(|i| graph.nodes[i].id).collect();
    for (node, decision) in &mut placement.nodes {
        if left.contains(node) {
            *decision = Decision::Dynamic(offers[node].kernel(&offers, &left));
        }
    }
    let index: HashMap<NodeId, usize> = placement.nodes.iter().enumerate().map(|(i, (n, _))| (*n, i)).collect();
    let is_integer = |n| index.get(&n).is_some_and(|&i| placement.nodes[i].1.is_integer());
    for choice in dynamic::choose(model, target, shapes, wishes, is_integer) {
        placement.float_time += choice.times.0;
        placement.placed_time += choice.times.1;
        placement.gain += choice.times.0 - choice.times.1;
        match index.get(&choice.id) {
            Some(&i) => placement.nodes[i].1 = choice.decision,
            None => placement.nodes.push((choice.id, choice.decision)),
        }
    }
    placement
}

/// What a node makes, behind the clamps that it absorbs.
pub fn made(model: &Model, placement: &Placement, node: NodeId) -> Vec<ValueId> {
    let mut values: Vec<ValueId> = model.node(node).outputs().iter().copied().flatten().collect();
    let absorbed = placement.nodes.iter().filter(|(_, d)| *d == Decision::Absorbed(node));
    values.extend(absorbed.filter_map(|(clamp, _)| model.node(*clamp).output(0)));
    values
}

fn finish(graph: &candidates::Candidates, costs: &cost::NodeCosts, chosen: &search::Choice) -> Placement {
    let integer = &chosen.integer;
    let mut placement = Placement {
        float_time: costs.float_time(graph),
        placed_time: costs.time(graph, integer),
        ..Placement::default()
    };
    for (i, node) in graph.nodes.iter().enumerate() {
        for &v in node.outputs.iter().filter(|_| integer[i] && node.quantizes) {
            placement.values.insert(v, Quantized { readers: Readers::All, root: v });
        }
    }
    for (node, _) in graph.nodes.iter().zip(integer).filter(|(_, integer)| **integer) {
        for &v in &node.data {
            placement.values.entry(v).or_insert(Quantized { readers: Readers::Integer, root: v });
        }
    }
    // An optional output that only integer kernels read is made by the kernel itself.
    for (&v, q) in &mut placement.values {
        if q.readers == Readers::Integer && graph.made_integer(v, integer) && graph.only_integer_readers(v, integer) {
            q.readers = Readers::All;
        }
    }
    // Data movement keeps the scale: in graph order, an output's root is its input's.
    for (i, node) in graph.nodes.iter().enumerate() {
        if integer[i] && node.kernel.is_some_and(|k| k.same_scale) {
            let root = node.data.first().and_then(|v| placement.values.get(v)).map(|q| q.root);
            for v in &node.outputs {
                if let (Some(root), Some(q)) = (root, placement.values.get_mut(v)) {
                    q.root = root;
                }
            }
        }
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        let decision = match (&node.host, integer[i]) {
            (_, true) => {
                let kernel = node.kernel.expect("integer nodes have a kernel");
                let quantized =
                    node.outputs.iter().any(|v| placement.values.get(v).is_some_and(|q| q.readers == Readers::All));
                let name = if quantized { None } else { kernel.float_output_kernel.clone() };
                Decision::Integer(name.unwrap_or_else(|| kernel.kernel.clone()))
            }
            (Some(host), _) if integer[*host] && placement.values.contains_key(&graph.nodes[*host].outputs[0]) => {
                Decision::Absorbed(graph.nodes[*host].id)
            }
            _ => Decision::Float(chosen.reasons[i].clone().unwrap_or_else(|| node.reason.clone())),
        };
        placement.nodes.push((node.id, decision));
    }
    placement
}
