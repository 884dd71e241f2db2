//! Integer convolutions compute with the channels at the end: Transposes are put around them, which then move together and
//! vanish where they meet.

use super::transposes::{self, Mover};
use crate::{
    ir::{DType, GraphId, NodeId},
    kernels::scratch::Scratch,
};

pub(super) fn run(s: &mut Scratch) {
    for graph in s.graphs() {
        let convolutions: Vec<_> = s.m.nodes(graph).into_iter().filter(|&n| is_convolution(s, n)).collect();
        if !convolutions.is_empty() {
            turn(&mut Mover::new(s, true), graph, &convolutions);
        }
    }
}

fn turn(mover: &mut Mover, graph: GraphId, convolutions: &[NodeId]) {
    let mut turned = false;
    for &n in convolutions {
        let Some(rank) = mover.data_rank(n) else { continue };
        let order = transposes::last_to_second(rank);
        mover.transpose_input(n, 0, &transposes::inverse(&order));
        mover.transpose_outputs(n, &order);
        turned = true;
    }
    if turned {
        mover.run(graph);
    }
}

fn is_convolution(s: &Scratch, n: NodeId) -> bool {
    let node = s.m.node(n);
    let name = s.kernels.get(&n).map_or(node.op_type.as_str(), String::as_str);
    let eight = |t| matches!(t, DType::Uint8 | DType::Int8);
    let turned = node.int("channels_last").unwrap_or(0) == 1;
    name == "QLinearConv" && !turned && node.input(0).and_then(|v| s.dtype(v)).is_some_and(eight)
}
