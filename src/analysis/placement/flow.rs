//! Which operators join the products: the largest set in which every member has an integer neighbour where it needs one.

use super::candidates::{Candidate, Candidates};
use crate::{ops::Class, target::Output};

/// The integer nodes, given those that may be. Products are in wherever allowed; the others must connect.
pub(super) fn settle(graph: &Candidates, allowed: &[bool]) -> Vec<bool> {
    let mut integer: Vec<bool> =
        graph.nodes.iter().zip(allowed).map(|(n, &a)| a && n.kernel.is_some() && n.host.is_none()).collect();
    loop {
        let before = integer.clone();
        for i in 0..integer.len() {
            integer[i] = integer[i] && connects(graph, &graph.nodes[i], &integer);
        }
        for i in (0..integer.len()).rev() {
            integer[i] = integer[i] && connects(graph, &graph.nodes[i], &integer);
        }
        if integer == before {
            return integer;
        }
    }
}

fn connects(graph: &Candidates, node: &Candidate, integer: &[bool]) -> bool {
    let Some(spec) = node.spec else { return false };
    // Made by an integer kernel in quantized form: dequantizing may wait until behind this node.
    let made = |v| {
        graph.maker.get(&v).is_some_and(|&i| {
            integer[i]
                && (graph.nodes[i].kernel.is_some_and(|k| k.output == Output::Required)
                    || product_reads(graph, graph.nodes[i].outputs[0], integer))
        })
    };
    let wanted = || node.outputs.iter().any(|&v| graph.read_integer(v, integer));
    let only_wanted = || {
        node.outputs
            .iter()
            .all(|v| graph.readers.get(v).is_none_or(|r| r.iter().all(|&i| i != usize::MAX && integer[i])))
    };
    match spec.class {
        Class::Product => true,
        Class::Clamp | Class::Recurrent => false,
        // Where only integer kernels read the output, the runtime itself moves the conversion in front of the node.
        Class::Movement => made(node.data[0]) || only_wanted(),
        Class::Joining => node.data.iter().all(|&v| made(v)) || (node.data.iter().any(|&v| made(v)) && wanted()),
        Class::Arithmetic if shrinks(spec.name) => made(node.data[0]),
        Class::Arithmetic => node.data.iter().any(|&v| made(v) || product_reads(graph, v, integer)) && wanted(),
    }
}

/// Whether a float product stands between quantized values: ONNX Runtime (1.32) then quantizes its weight by itself when it
/// loads the file, with one scale for the whole tensor, which ruins depthwise convolutions.
pub(super) fn invites_requantization(graph: &Candidates, integer: &[bool]) -> bool {
    let product = |n: &Candidate| n.kernel.is_some() && n.spec.is_some_and(|s| s.class == Class::Product);
    graph.nodes.iter().enumerate().any(|(i, n)| {
        !integer[i]
            && product(n)
            && n.data.iter().any(|&v| graph.made_integer(v, integer))
            && n.outputs.iter().any(|&v| graph.read_integer(v, integer))
    })
}

/// Whether an integer product reads the value, so that it is quantized anyway.
fn product_reads(graph: &Candidates, v: crate::ir::ValueId, integer: &[bool]) -> bool {
    let product =
        |&i: &usize| i != usize::MAX && integer[i] && graph.nodes[i].spec.is_some_and(|s| s.class == Class::Product);
    graph.readers.get(&v).is_some_and(|r| r.iter().any(product))
}

/// Arithmetic that leaves fewer elements to dequantize than it takes in.
fn shrinks(op: &str) -> bool {
    matches!(op, "AveragePool" | "GlobalAveragePool")
}
