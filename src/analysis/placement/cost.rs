//! What a placement costs, by the target's cost model.

use std::collections::BTreeMap;

use super::{
    Shapes, Wishes,
    candidates::{Candidate, Candidates},
    layout::Layouts,
    products::Offer,
};
use crate::{
    ir::{Model, NodeId, ValueId},
    ops::{self, Class},
    target::{Convolution, Costs, Target},
};

/// Times that do not depend on the placement.
pub(super) struct NodeCosts {
    /// Float and integer time of each node, its conversions not included.
    nodes: Vec<(f64, f64)>,
    /// For what float runtimes compute as part of the convolution in front of it: that, and what it costs by itself in
    /// float where that is integer.
    fused: Vec<Option<(usize, f64)>>,
    /// What rounding costs besides time where a node is integer.
    prices: Vec<f64>,
    /// For what rather quantizes its data at run time than be float: the time that saves, which is taken off its float
    /// time already, and what rounding costs besides.
    at_run_time: Vec<Option<(f64, f64)>>,
    /// What an integer MaxPool costs besides where no integer kernel makes its input: it then runs in the slow layout.
    slow_layout: Vec<f64>,
    pub(super) values: Vec<ValueCost>,
    layouts: Layouts,
    /// What a placement must gain at least.
    pub(super) uncertainty: f64,
}

/// A value that some node reads as data, or that an integer kernel may make.
pub(super) struct ValueCost {
    pub(super) id: ValueId,
    pub(super) maker: Option<usize>,
    pub(super) quantize: f64,
    pub(super) dequantize: f64,
    /// What rounding it costs besides time.
    pub(super) price: f64,
}

impl NodeCosts {
    pub(super) fn of(
        model: &Model,
        target: &Target,
        shapes: &Shapes,
        graph: &Candidates,
        wishes: &Wishes,
        offers: &BTreeMap<NodeId, Offer<'_>>,
    ) -> Self {
        let prices = &wishes.prices;
        let cost = |n: &Candidate| match n.spec {
            Some(spec) if n.kernel.is_some() || n.host.is_some() => {
                let (float, integer) = node_cost(model, &target.costs, shapes, n.id, spec.class, &n.outputs);
                log::trace!("{}: {float:.0} ns in float, {integer:.0} ns in integers", model.node_label(n.id));
                (float, integer)
            }
            _ => (0.0, 0.0),
        };
        let mut nodes: Vec<(f64, f64)> = graph.nodes.iter().map(cost).collect();
        let fused: Vec<Option<(usize, f64)>> = graph
            .nodes
            .iter()
            .zip(&mut nodes)
            .map(|(n, (float, _))| {
                let conv = fused_with(model, n.id).filter(|_| n.kernel.is_some() || n.host.is_some())?;
                // Sums and Relu are part of the kernel; other activations are one more way through its output.
                let again = match model.node(n.id).op_type.as_str() {
                    "Relu" | "Add" => 0.0,
                    _ => target.costs.float_element * n.outputs.first().map_or(0, |&v| shapes.elements(v)) as f64,
                };
                let alone = std::mem::replace(float, again) - again;
                // A clamp that is absorbed vanishes with an integer convolution.
                graph.maker.get(&conv).filter(|_| n.host.is_none()).map(|&conv| (conv, alone))
            })
            .collect();
        let offer = |(n, (float, _)): (&Candidate, &mut (f64, f64))| {
            let price = prices.at_run_time.get(&n.id).copied().unwrap_or(0.0);
            let saved = (1.0 - offers.get(&n.id)?.share) * *float;
            *float -= if price < saved { saved } else { 0.0 };
            (price < saved).then_some((saved, price))
        };
        let at_run_time = graph.nodes.iter().zip(&mut nodes).map(offer).collect();
        let mut ids: Vec<ValueId> = graph.maker.keys().chain(graph.readers.keys()).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        let value = |id: ValueId| {
            let maker = graph.maker.get(&id).copied();
            let n = shapes.elements(id) as f64;
            let c = &target.costs;
            // Images and feature maps change their layout between float and integer convolutions.
            let layout = if shapes.dims(id).is_some_and(|d| d.len() >= 4 && d[2..].iter().any(|&d| d > 1)) {
                c.layout * n
            } else {
                0.0
            };
            let memory = if shapes.elements(id) > c.cached_elements { c.uncached } else { 1.0 };
            ValueCost {
                id,
                maker,
                quantize: c.convert_node + (c.quantize * n + layout) * memory,
                dequantize: c.convert_node + (c.dequantize * n + layout) * memory,
                price: prices.values.get(&id).copied().unwrap_or(0.0),
            }
        };
        let slow = |n: &Candidate| {
            let reads = pool_reads(model, shapes, n.id).filter(|_| model.node(n.id).is("MaxPool"));
            let extra = target.costs.integer_max_read_other - target.costs.integer_max_read;
            reads.map_or(0.0, |reads| reads as f64 * extra)
        };
        let slow_layout = graph.nodes.iter().map(slow).collect();
        let costs = Self {
            nodes,
            fused,
            at_run_time,
            prices: graph.nodes.iter().map(|n| prices.nodes.get(&n.id).copied().unwrap_or(0.0)).collect(),
            slow_layout,
            values: ids.into_iter().map(value).collect(),
            layouts: Layouts::of(model, &target.costs, shapes, graph),
            uncertainty: target.costs.uncertainty,
        };
        if wishes.ignore_cost { costs.all_alike(graph) } else { costs }
    }

    /// The same where time does not count, only how many nodes are integer.
    fn all_alike(mut self, graph: &Candidates) -> Self {
        for (n, times) in graph.nodes.iter().zip(&mut self.nodes) {
            *times = if n.kernel.is_some() { (1000.0, 0.0) } else { (0.0, 0.0) };
        }
        self.values.iter_mut().for_each(|v| (v.quantize, v.dequantize) = (0.0, 0.0));
        self.fused.fill(None);
        self.at_run_time.fill(None);
        self.slow_layout.fill(0.0);
        self.layouts.clear();
        self.uncertainty = 0.0;
        self
    }

    /// What a node costs in float and in integers, and what besides where no integer kernel makes its input.
    pub(super) fn node(&self, i: usize) -> (f64, f64, f64) {
        (self.nodes[i].0 + self.offer(i).1, self.nodes[i].1 + self.prices[i], self.slow_layout[i])
    }

    /// Whether a node rather quantizes its data at run time than be float.
    pub(super) fn takes_offer(&self, i: usize) -> bool {
        self.at_run_time[i].is_some()
    }

    /// The time that this saves, and what it costs besides.
    fn offer(&self, i: usize) -> (f64, f64) {
        self.at_run_time[i].unwrap_or_default()
    }

    /// Time of one run with all in float.
    pub(super) fn float_time(&self, graph: &Candidates) -> f64 {
        let saved: f64 = (0..graph.nodes.len()).map(|i| self.offer(i).0).sum();
        self.time(graph, &vec![false; graph.nodes.len()]) + saved
    }

    /// The convolution that the node is a part of where both are float, and what the node costs in float where only it is.
    pub(super) fn fused(&self, i: usize) -> Option<(usize, f64)> {
        self.fused[i]
    }

    /// What it costs to have these nodes in integers: time, and what rounding costs besides.
    pub(super) fn total(&self, graph: &Candidates, integer: &[bool]) -> f64 {
        let price = |i: usize| if integer[i] { self.prices[i] } else { self.offer(i).1 };
        let nodes: f64 = (0..integer.len()).map(price).sum();
        let rounded = |v: &&ValueCost| {
            let made = v.maker.is_some_and(|m| integer[m] && graph.nodes[m].quantizes);
            made || graph.read_integer(v.id, integer)
        };
        let values: f64 = self.values.iter().filter(|v| v.price > 0.0).filter(rounded).map(|v| v.price).sum();
        self.time(graph, integer) + nodes + values
    }

    /// Time of one run with these nodes in integers (less what does not depend on the placement).
    pub(super) fn time(&self, graph: &Candidates, integer: &[bool]) -> f64 {
        let node = |(i, n): (usize, &Candidate)| match n.host {
            Some(host) if integer[host] => 0.0,
            _ if integer[i] && !n.data.iter().any(|&v| graph.made_integer(v, integer)) => {
                self.nodes[i].1 + self.slow_layout[i]
            }
            _ if integer[i] => self.nodes[i].1,
            _ => self.nodes[i].0 + self.fused[i].filter(|(conv, _)| integer[*conv]).map_or(0.0, |(_, alone)| alone),
        };
        let nodes: f64 = graph.nodes.iter().enumerate().map(node).sum();
        let conversions: f64 = self.values.iter().map(|v| conversion(graph, v, integer)).sum();
        nodes + conversions + self.layouts.time(graph, integer)
    }
}

fn conversion(graph: &Candidates, v: &ValueCost, integer: &[bool]) -> f64 {
    let empty = Vec::new();
    let readers = graph.readers.get(&v.id).unwrap_or(&empty);
    let is_integer = |&i: &usize| i != usize::MAX && integer[i];
    let (some_integer, some_float) = (readers.iter().any(is_integer), readers.iter().any(|i| !is_integer(i)));
    let made = v.maker.filter(|&m| integer[m]);
    match made.map(|m| graph.nodes[m].quantizes) {
        Some(true) => {
            if some_float {
                v.dequantize
            } else {
                0.0
            }
        }
        // Both forms at once: the kernel hands out float, and that is quantized.
        Some(false) => {
            if some_integer && some_float {
                v.quantize
            } else {
                0.0
            }
        }
        None => {
            if some_integer {
                v.quantize
            } else {
                0.0
            }
        }
    }
}

/// The output of the convolution in front of the node that float runtimes compute it with.
fn fused_with(model: &Model, id: NodeId) -> Option<ValueId> {
    let node = model.node(id);
    let fusable =
        matches!(node.op_type.as_str(), "Relu" | "Clip" | "LeakyRelu" | "Sigmoid" | "Tanh" | "HardSigmoid" | "Add");
    let behind_conv =
        |v: &ValueId| model.producer(*v).is_some_and(|p| model.node(p).is("Conv")) && model.value(*v).uses().len() == 1;
    node.inputs().iter().flatten().copied().filter(|_| fusable).find(behind_conv)
}

/// Time of one run of a node in float.
pub(super) fn float_time(model: &Model, target: &Target, shapes: &Shapes, id: NodeId) -> f64 {
    let (node, c) = (model.node(id), &target.costs);
    if fused_with(model, id).is_some() {
        return 0.0;
    }
    let outputs: Vec<ValueId> = node.outputs().iter().copied().flatten().collect();
    let dims = |v: Option<ValueId>| v.and_then(|v| shapes.dims(v)).unwrap_or_default();
    match ops::spec(model, id).map(|s| s.class) {
        // A product of two values that are computed has no integer kernel, but takes its time.
        Some(Class::Product) if node.is("MatMul") && model.constant_input(id, 1).is_none() => {
            let (out, depth) = (dims(node.output(0)), dims(node.input(0)).last().copied().unwrap_or(1));
            let columns = out.last().copied().unwrap_or(1).max(1);
            c.matrix(out.iter().product::<usize>() / columns, depth, columns).0
        }
        Some(class) => node_cost(model, c, shapes, id, class, &outputs).0,
        None => c.elementwise(outputs.iter().map(|&v| shapes.elements(v)).sum()).0,
    }
}

/// How many elements a pooling operator reads in all: output elements times window.
fn pool_reads(model: &Model, shapes: &Shapes, id: NodeId) -> Option<usize> {
    let node = model.node(id);
    let window = node.ints("kernel_shape")?.iter().map(|&k| usize::try_from(k).unwrap_or(1));
    Some(shapes.elements(node.output(0)?) * window.product::<usize>())
}

fn node_cost(model: &Model, c: &Costs, shapes: &Shapes, id: NodeId, class: Class, outputs: &[ValueId]) -> (f64, f64) {
    let node = model.node(id);
    let data = node.input(0).and_then(|v| shapes.dims(v)).unwrap_or_default();
    let out = node.output(0).or(outputs.first().copied());
    let out_dims = out.and_then(|v| shapes.dims(v)).unwrap_or_default();
    let elements: usize = out_dims.iter().product();
    if let Some(reads) = pool_reads(model, shapes, id).filter(|_| class != Class::Product) {
        return c.pool(reads, node.is("MaxPool"), out_dims.len() == 4);
    }
    if class != Class::Product {
        return match class {
            Class::Movement => (c.float_node, c.float_node),
            _ if node.is("Softmax") => c.softmax(elements),
            _ => c.elementwise(elements.max(data.iter().product())),
        };
    }
    let Some(weight) = model.constant_input(id, 1) else { return (0.0, 0.0) };
    product_cost(model, c, id, out_dims, weight.dims())
}

/// Times of a sum of products with a weight of this shape.
fn product_cost(model: &Model, c: &Costs, id: NodeId, out_dims: &[usize], w: &[usize]) -> (f64, f64) {
    let (node, elements) = (model.node(id), out_dims.iter().product::<usize>());
    if node.is("Conv") {
        let groups = usize::try_from(node.int("group").unwrap_or(1)).unwrap_or(1).max(1);
        let outputs = w.first().copied().unwrap_or(1).max(1);
        return c.convolution(Convolution {
            positions: elements / outputs,
            taps: w.get(2..).unwrap_or_default().iter().product(),
            inputs: w.get(1).copied().unwrap_or(1) * groups,
            outputs,
            groups,
            planar: w.len() == 4,
        });
    }
    let columns = out_dims.last().copied().unwrap_or(1).max(1);
    c.matrix(elements / columns, w.iter().product::<usize>() / columns, columns)
}

/// Float and integer time of one run of any node, whether its weight is a constant, codes, or made of codes.
pub(super) fn times(model: &Model, target: &Target, shapes: &Shapes, id: NodeId) -> (f64, f64) {
    let (node, c) = (model.node(id), &target.costs);
    let outputs: Vec<ValueId> = node.outputs().iter().copied().flatten().collect();
    let dims = |v: Option<ValueId>| v.and_then(|v| shapes.dims(v)).unwrap_or_default();
    let spec = ops::spec(model, id);
    let product = spec.is_some_and(|s| s.class == Class::Product);
    // Integer products of any domain have their operands in front, and multiply matrices.
    if product || node.op_type.contains("MatMul") {
        let (out, data) = (dims(outputs.first().copied()), dims(node.input(0)));
        let weight = dims(node.input(1));
        let batches = out.len().saturating_sub(2);
        let times = match (out.is_empty() || weight.is_empty(), node.is("MatMul") && weight.len() > 2) {
            (true, _) => (0.0, 0.0),
            // One weight for each of a batch of products.
            (_, true) => {
                let n: usize = out.iter().take(batches).product();
                let (rows, columns) =
                    (out[out.len().saturating_sub(2)..].iter().product::<usize>(), out[out.len() - 1]);
                let one = c.matrix(rows / columns.max(1), data.last().copied().unwrap_or(1), columns);
                (one.0 * n as f64, one.1 * n as f64)
            }
            _ if product => product_cost(model, c, id, out, weight),
            _ => {
                let columns = out[out.len() - 1].max(1);
                c.matrix(out.iter().product::<usize>() / columns, data.last().copied().unwrap_or(1), columns)
            }
        };
        return (if fused_with(model, id).is_some() { 0.0 } else { times.0 }, times.1);
    }
    let (float, integer) = match spec {
        Some(s) => node_cost(model, c, shapes, id, s.class, &outputs),
        None => c.elementwise(outputs.iter().map(|&v| shapes.elements(v)).sum()),
    };
    (if fused_with(model, id).is_some() { 0.0 } else { float }, integer)
}
