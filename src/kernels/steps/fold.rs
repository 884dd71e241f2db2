//! Nodes whose inputs are all constants are computed when the file is loaded, but a DequantizeLinear is not: it may
//! become part of an integer kernel. What stands between a DequantizeLinear and a QuantizeLinear of constants is computed
//! with both. Nodes that do nothing vanish.

use crate::{
    ir::{Node, NodeId, ValueId},
    kernels::scratch::{Fate, Scratch},
};

/// Operators that make something new each time.
const RANDOM: &[&str] =
    &["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"];

pub(super) fn run(s: &mut Scratch) {
    for n in s.nodes() {
        if s.m.try_node(n).is_none() || s.fates.contains_key(&n) {
            continue;
        }
        let initializer = |v: ValueId| s.m.value(v).constant().is_some();
        if let Some(v) = s.m.node(n).input(0).filter(|&v| s.m.node(n).is("Identity") && initializer(v)) {
            // What reads it sees the number itself, as of a scale that several quantizers share.
            s.bypass(n, v, Fate::Folded);
        } else if folds(s, n) {
            s.constants.extend(s.m.node(n).outputs().iter().copied().flatten().collect::<Vec<_>>());
            s.fates.insert(n, Fate::Folded);
            forget_inputs(s, n);
        } else if s.is_quantize(n) {
            fold_with_dequantize(s, n);
        } else if let Some(v) = nothing(s, n).and_then(|i| s.m.node(n).input(i)) {
            s.bypass(n, v, Fate::Gone);
        }
    }
}

/// Whether a node makes something new each time.
pub(super) fn is_random(node: &Node) -> bool {
    RANDOM.contains(&node.op_type.as_str())
}

fn folds(s: &Scratch, n: NodeId) -> bool {
    let node = s.m.node(n);
    if s.is_dequantize(n)
        || is_random(node)
        || node.subgraphs().next().is_some()
        || !(node.in_onnx_domain() || s.is_quantize(n))
    {
        return false;
    }
    let sized = node.is("Shape") && node.input(0).is_some_and(|v| s.types().known_shape(v).is_some());
    let constants = node.inputs().iter().flatten().all(|&v| s.is_constant(v));
    sized || (constants && (node.is("Constant") || node.inputs().iter().any(Option::is_some)))
}

/// `q = QuantizeLinear(X(DequantizeLinear(constant)))` is a constant.
fn fold_with_dequantize(s: &mut Scratch, q: NodeId) {
    let Some(between) = s.m.node(q).input(0).and_then(|v| s.m.producer(v)) else { return };
    if s.m.node(between).subgraphs().next().is_some() || s.is_dequantize(between) {
        return;
    }
    let inputs = s.m.node(between).inputs().len();
    let constant = |v| s.is_constant(v);
    let known = |i: usize| match s.dequantize_at(between, i) {
        Some(d) => s.m.node(d).inputs().iter().flatten().all(|&v| constant(v)),
        None => s.m.node(between).input(i).is_none_or(constant),
    };
    let parameters = s.m.node(q).inputs().iter().skip(1).flatten().all(|&v| constant(v));
    if inputs == 0 || !parameters || !(0..inputs).all(known) {
        return;
    }
    let Some(out) = s.m.node(q).output(0) else { return };
    s.constants.insert(out);
    s.fates.insert(q, Fate::Folded);
    forget_inputs(s, q);
}

/// What a folded node read is needed no more, nor what made it, if nobody else reads that.
fn forget_inputs(s: &mut Scratch, n: NodeId) {
    let mut stack = vec![n];
    while let Some(n) = stack.pop() {
        let makers: Vec<_> = s.m.node(n).inputs().iter().flatten().filter_map(|&v| s.m.producer(v)).collect();
        for i in 0..s.m.node(n).inputs().len() {
            s.m.set_input(n, i, None);
        }
        for maker in makers {
            let unused = |n: NodeId| s.m.node(n).outputs().iter().flatten().all(|&v| s.m.value(v).uses().is_empty());
            if !s.fates.contains_key(&maker) && unused(maker) {
                s.fates.insert(maker, Fate::Folded);
                stack.push(maker);
            }
        }
    }
}

/// The input that is the output of a node that does nothing.
fn nothing(s: &Scratch, n: NodeId) -> Option<usize> {
    let node = s.m.node(n);
    let same_type =
        || node.is("Cast") && node.input(0).and_then(|v| s.dtype(v)) == node.output(0).and_then(|v| s.dtype(v));
    let dropout = || {
        let trains = node.input(2).is_some_and(|v| s.tensor(v).and_then(|t| t.scalar_i64()) != Some(0));
        node.is("Dropout") && !trains && node.output(1).is_none_or(|v| s.m.value(v).uses().is_empty())
    };
    let whole = || node.is("Slice") && takes_all(s, n);
    let known = node.input(0).is_some_and(|v| s.dtype(v).is_some());
    (node.is("Identity") || (known && same_type()) || dropout() || whole()).then_some(0)
}

/// Whether a Slice takes everything.
fn takes_all(s: &Scratch, n: NodeId) -> bool {
    let node = s.m.node(n);
    let ints = |i: usize| node.input(i).map(|v| s.types().known_ints(v));
    let (Some(Some(starts)), Some(Some(ends))) = (ints(1), ints(2)) else { return false };
    // Ends beyond every tensor's; others would have to be compared with the shape.
    let beyond = ends.iter().all(|&e| e >= i64::from(i32::MAX));
    let steps = ints(4).is_none_or(|s| s.is_some_and(|s| s.iter().all(|&s| s == 1)));
    starts.iter().all(|&s| s == 0) && beyond && steps
}
