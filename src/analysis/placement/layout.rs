//! What it costs that integer convolutions have their channels last and what comes from elsewhere has not.
//!
//! The runtime wraps each integer convolution in two Transposes and moves them past other operators, where they cancel
//! those of the next convolution. A sum of such codes and of others that it alone reads gets a Transpose for these. Where
//! the others are read by convolutions, too, it keeps its Transposes: one stands in front of it, and the next convolution
//! has its own again. So one float layer at the start of a residual network costs two Transposes in every block behind it.

use super::{
    Shapes,
    candidates::{Candidate, Candidates},
};
use crate::{
    ir::{Model, ValueId},
    ops::Class,
    target::Costs,
};

/// What a node does with the order of axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Axes {
    /// Reads and makes maps whose channels lie last.
    Last,
    /// Computes in either order, the same for all its data.
    Either,
    /// Changes the order itself, from any to any.
    Moves,
    /// Has an order of its own.
    Own,
}

/// Times of changes of layout between integer nodes.
pub(super) struct Layouts {
    nodes: Vec<Axes>,
    /// What a Transpose of a node's first output costs; 0 where it is no map.
    transpose: Vec<f64>,
    /// The same of its first data input.
    transpose_data: Vec<f64>,
}

impl Layouts {
    pub(super) fn of(model: &Model, costs: &Costs, shapes: &Shapes, graph: &Candidates) -> Self {
        let map = |v: &ValueId| shapes.dims(*v).is_some_and(|d| d.len() == 4 && d[2..].iter().any(|&d| d > 1));
        let axes = |n: &Candidate| match n.spec.map(|s| s.class) {
            Some(Class::Product) if model.node(n.id).is("Conv") && n.outputs.first().is_some_and(map) => Axes::Last,
            Some(Class::Arithmetic | Class::Joining) if !model.node(n.id).is("Softmax") => Axes::Either,
            Some(Class::Movement) => match model.node(n.id).op_type.as_str() {
                "MaxPool" | "Slice" | "Split" | "Resize" => Axes::Either,
                "Transpose" => Axes::Moves,
                _ => Axes::Own,
            },
            _ => Axes::Own,
        };
        let transpose = |v: Option<&ValueId>| match v.filter(|v| map(v)) {
            Some(&v) => costs.float_node + costs.layout * shapes.elements(v) as f64,
            None => 0.0,
        };
        Self {
            nodes: graph.nodes.iter().map(axes).collect(),
            transpose: graph.nodes.iter().map(|n| transpose(n.outputs.first())).collect(),
            transpose_data: graph.nodes.iter().map(|n| transpose(n.data.first())).collect(),
        }
    }

    /// Makes all Transposes free.
    pub(super) fn clear(&mut self) {
        self.transpose.fill(0.0);
        self.transpose_data.fill(0.0);
    }

    /// The time of all Transposes between these integer nodes.
    pub(super) fn time(&self, graph: &Candidates, integer: &[bool]) -> f64 {
        let maker = |v: &ValueId| graph.maker.get(v).copied().filter(|&m| integer[m]);
        let mut last = vec![false; integer.len()];
        // The other form of each node's output, where a reader takes that.
        let mut other = vec![false; integer.len()];
        let mut time = 0.0;
        for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| integer[*i]) {
            let plain = |v: &&ValueId| !maker(v).is_some_and(|m| last[m]);
            let alone = |v: &ValueId| graph.readers.get(v).is_some_and(|r| r.len() == 1);
            last[i] = match self.nodes[i] {
                Axes::Last => true,
                Axes::Either if node.data.iter().filter(plain).all(alone) => node.data.iter().any(|v| !plain(&v)),
                _ => false,
            };
            if self.nodes[i] == Axes::Moves {
                continue;
            }
            for v in &node.data {
                match maker(v) {
                    Some(m) => other[m] |= last[m] != last[i],
                    // A convolution's own change of layout is part of the conversion.
                    None if last[i] && self.nodes[i] == Axes::Either => time += self.transpose_data[i],
                    None => {}
                }
            }
        }
        time + other.into_iter().zip(&self.transpose).filter(|(other, _)| *other).map(|(_, t)| t).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Wishes, *};
    use crate::{
        ir::{DType, text},
        target::Target,
    };

    /// Layouts of `nodes` over maps of 4 channels of 8 × 8, and how many Transposes there are where some nodes are float.
    fn transposes(nodes: &str, float: &[&str]) -> usize {
        let model = text::parse(&format!(
            "<ir_version: 8, opset_import: [\"\" : 17]>
            g (float[1, 4, 8, 8] x) => (y) <float[4, 4, 1, 1] w = {{{}}}> {{ {nodes} }}",
            ["0.5"; 16].join(", ")
        ))
        .unwrap();
        let named = |n| model.node(n).output(0).map(|v| model.value(v).name().to_owned()).unwrap();
        let values = model.nodes(model.main()).into_iter().filter_map(|n| model.node(n).output(0));
        let values = values.chain(model.graph(model.main()).inputs().iter().copied());
        let shapes = Shapes(values.map(|v| (v, (DType::Float, vec![1, 4, 8, 8]))).collect());
        let target = Target::load("onnxruntime-cpu").unwrap();
        let graph = Candidates::of(&model, &target, &shapes, &Wishes::default());
        let integer: Vec<bool> = graph.nodes.iter().map(|n| !float.contains(&&*named(n.id))).collect();
        let one = target.costs.float_node + target.costs.layout * 256.0;
        let time = Layouts::of(&model, &target.costs, &shapes, &graph).time(&graph, &integer);
        (time / one).round() as usize
    }

    #[test]
    fn a_float_layer_in_front_of_a_residual_chain_costs_two_transposes_in_each_block() {
        let blocks = "a = Conv(x, w) \n b = Conv(a, w) \n c = Add(b, a) \n d = Conv(c, w) \n y = Add(d, c)";
        assert_eq!(transposes(blocks, &[]), 0);
        // Those of `b` and `d` in front of the sums, and that of `c` in front of the convolution.
        assert_eq!(transposes(blocks, &["a"]), 3);
        // The sum alone reads what is float: one Transpose brings it into line.
        let branch = "a = Conv(x, w) \n n = Neg(x) \n b = Add(a, n) \n c = Conv(b, w) \n y = Add(c, b)";
        assert_eq!(transposes(branch, &["n"]), 1);
    }

    #[test]
    fn what_has_an_order_of_its_own() {
        assert_eq!(transposes("a = Conv(x, w) \n y = Flatten(a)", &[]), 1);
        assert_eq!(transposes("a = Conv(x, w) \n y = Transpose(a)", &[]), 0);
        assert_eq!(transposes("a = Conv(x, w) \n y = Neg(a)", &["y"]), 0);
    }
}
