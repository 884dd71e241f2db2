//! Keeps one of several nodes that compute the same of the same inputs.
//!
//! ```text
//! before: a = Shape(x); b = Shape(x); c = Gather(a, 0); d = Gather(b, 0)      after: a = Shape(x); c = Gather(a, 0)
//! ```
//!
//! Nodes that are never alike: those with chance in them or subgraphs, and quantization (runtimes fuse it best when each
//! reader has its own).

use std::collections::HashMap;

use super::Context;
use crate::{
    error::Result,
    ir::{AttrValue, Model, Node, NodeId, ValueId},
};

/// What equal nodes have in common before their attributes are compared.
type Key = (String, String, Vec<Option<ValueId>>, Vec<bool>);

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut removed = 0;
    for graph in model.graph_ids() {
        let mut seen: HashMap<Key, Vec<NodeId>> = HashMap::new();
        for n in model.nodes(graph) {
            let node = model.node(n);
            if !repeatable(node) {
                continue;
            }
            let outputs = node.outputs().iter().map(Option::is_some).collect();
            let domain = if node.in_onnx_domain() { "" } else { node.domain.as_deref().unwrap_or_default() };
            let key = (domain.to_owned(), node.op_type.clone(), node.inputs().to_vec(), outputs);
            let alike = seen.entry(key).or_default();
            match alike.iter().copied().find(|&first| same_attributes(model.node(first), node)) {
                None => alike.push(n),
                Some(first) => removed += usize::from(merge(model, first, n)),
            }
        }
    }
    Ok(removed)
}

fn repeatable(node: &Node) -> bool {
    const NEVER: [&str; 6] = ["Bernoulli", "Multinomial", "Dropout", "QuantizeLinear", "DequantizeLinear", "Constant"];
    let chance = node.op_type.starts_with("Random") || NEVER.contains(&node.op_type.as_str());
    node.in_onnx_domain() && !chance && node.subgraphs().next().is_none()
}

/// Makes the readers of the second node read the first. A node with an output that both must hand out stays.
fn merge(model: &mut Model, first: NodeId, second: NodeId) -> bool {
    let pairs: Vec<(ValueId, ValueId)> = model
        .node(second)
        .outputs()
        .iter()
        .zip(model.node(first).outputs())
        .filter_map(|(b, a)| Some(((*b)?, (*a)?)))
        .collect();
    let clash = |&(b, a): &(ValueId, ValueId)| model.value(b).is_graph_output() && model.value(a).is_graph_output();
    if pairs.iter().any(clash) {
        return false;
    }
    let gone = pairs.into_iter().all(|(b, a)| model.replace_all_uses(b, a));
    if gone {
        model.remove_node(second);
    }
    gone
}

fn same_attributes(a: &Node, b: &Node) -> bool {
    let same = |x: &AttrValue, y: &AttrValue| match (x, y) {
        (AttrValue::Float(x), AttrValue::Float(y)) => x.to_bits() == y.to_bits(),
        (AttrValue::Int(x), AttrValue::Int(y)) => x == y,
        (AttrValue::String(x), AttrValue::String(y)) => x == y,
        (AttrValue::Ints(x), AttrValue::Ints(y)) => x == y,
        (AttrValue::Floats(x), AttrValue::Floats(y)) => x.iter().map(|f| f.to_bits()).eq(y.iter().map(|f| f.to_bits())),
        (AttrValue::Strings(x), AttrValue::Strings(y)) => x == y,
        (AttrValue::Tensor(x), AttrValue::Tensor(y)) => x.tensor.same_content(&y.tensor),
        _ => false,
    };
    a.attributes.len() == b.attributes.len()
        && a.attributes.iter().all(|x| b.attr(&x.name).is_some_and(|y| same(&x.value, y)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped};

    #[test]
    fn chains_fall_together() {
        check(
            run,
            "(float[b,3] x) => (y, z) <int64 i = {0}> {
                a = Shape(x)
                b = Shape(x)
                c = Gather(a, i)
                d = Gather(b, i)
                y = Neg(c)
                z = Abs(d)
             }",
            "(float[b,3] x) => (y, z) <int64 i = {0}> { a = Shape(x) c = Gather(a, i) y = Neg(c) z = Abs(c) }",
        );
    }

    #[test]
    fn other_attributes_and_two_outputs_stay() {
        check_skipped(
            run,
            "(float[2,2] x) => (y) { a = Softmax <axis = 0> (x) b = Softmax <axis = 1> (x) y = Add(a, b) }",
            "",
        );
        check_skipped(run, "(float[2,2] x) => (y, z) { y = Relu(x) z = Relu(x) }", "");
    }
}
