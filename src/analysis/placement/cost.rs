//! What a placement costs, by the target's cost model.

use super::{
    Prices, Shapes,
    candidates::{Candidate, Candidates},
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
    /// What rounding costs besides time where a node is integer.
    prices: Vec<f64>,
    /// What an integer MaxPool costs besides where no integer kernel makes its input: it then runs in the slow layout.
    slow_layout: Vec<f64>,
    pub(super) values: Vec<ValueCost>,
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
    pub(super) fn of(model: &Model, target: &Target, shapes: &Shapes, graph: &Candidates, prices: &Prices) -> Self {
        let cost = |n: &Candidate| match n.spec {
            Some(spec) if n.kernel.is_some() || n.host.is_some() => {
                let (float, integer) = node_cost(model, &target.costs, shapes, n.id, spec.class, &n.outputs);
                (if fuses_in_float(model, n.id) { 0.0 } else { float }, integer)
            }
            _ => (0.0, 0.0),
        };
        let nodes = graph.nodes.iter().map(cost).collect();
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
            ValueCost {
                id,
                maker,
                quantize: c.convert_node + c.quantize * n + layout,
                dequantize: c.convert_node + c.dequantize * n + layout,
                price: prices.values.get(&id).copied().unwrap_or(0.0),
            }
        };
        let slow = |n: &Candidate| {
            let reads = pool_reads(model, shapes, n.id).filter(|_| model.node(n.id).is("MaxPool"));
            let extra = target.costs.integer_max_read_other - target.costs.integer_max_read;
            reads.map_or(0.0, |reads| reads as f64 * extra)
        };
        let slow_layout = graph.nodes.iter().map(slow).collect();
        Self {
            nodes,
            prices: graph.nodes.iter().map(|n| prices.nodes.get(&n.id).copied().unwrap_or(0.0)).collect(),
            slow_layout,
            values: ids.into_iter().map(value).collect(),
            uncertainty: target.costs.uncertainty,
        }
    }

    /// What a node costs in float and in integers, and what besides where no integer kernel makes its input.
    pub(super) fn node(&self, i: usize) -> (f64, f64, f64) {
        (self.nodes[i].0, self.nodes[i].1 + self.prices[i], self.slow_layout[i])
    }

    /// What it costs to have these nodes in integers: time, and what rounding costs besides.
    pub(super) fn total(&self, graph: &Candidates, integer: &[bool]) -> f64 {
        let nodes: f64 = self.prices.iter().zip(integer).filter(|(_, i)| **i).map(|(price, _)| price).sum();
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
            _ => self.nodes[i].0,
        };
        let nodes: f64 = graph.nodes.iter().enumerate().map(node).sum();
        let conversions: f64 = self.values.iter().map(|v| conversion(graph, v, integer)).sum();
        nodes + conversions
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

/// Whether float runtimes compute the node as part of the convolution in front of it.
fn fuses_in_float(model: &Model, id: NodeId) -> bool {
    let node = model.node(id);
    let fusable =
        matches!(node.op_type.as_str(), "Relu" | "Clip" | "LeakyRelu" | "Sigmoid" | "Tanh" | "HardSigmoid" | "Add");
    let behind_conv =
        |v: ValueId| model.producer(v).is_some_and(|p| model.node(p).is("Conv")) && model.value(v).uses().len() == 1;
    fusable && node.inputs().iter().flatten().any(|&v| behind_conv(v))
}

/// Time of one run of a node in float.
pub(super) fn float_time(model: &Model, target: &Target, shapes: &Shapes, id: NodeId) -> f64 {
    let (node, c) = (model.node(id), &target.costs);
    if fuses_in_float(model, id) {
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
    let w = weight.dims();
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
    c.matrix(elements / columns, weight.len() / columns, columns)
}
