//! Which operators join the products: the largest set in which every member has an integer neighbour where it needs one.

use super::candidates::{Candidate, Candidates};
use crate::{ir::ValueId, ops::Class};

/// The integer nodes, given those that may be. Products are in wherever allowed; the others must connect. Operators that
/// the runtime moves conversions past are in wherever they connect, and all others where nothing but codes is around them.
pub(super) fn settle(graph: &Candidates, allowed: &[bool]) -> Vec<bool> {
    let product = |n: &Candidate| n.spec.is_some_and(|s| s.class == Class::Product);
    let may = |(n, &a): (&Candidate, &bool)| (a || !product(n)) && n.kernel.is_some() && n.host.is_none();
    let integer: Vec<bool> = graph.nodes.iter().zip(allowed).map(may).collect();
    let mut flow = Flow { graph, allowed, fed: integer.clone(), integer };
    loop {
        let before = flow.integer.clone();
        for i in 0..before.len() {
            flow.fed[i] = flow.integer[i] && flow.is_fed(i);
            flow.integer[i] = flow.integer[i] && flow.connects(i);
        }
        for i in (0..before.len()).rev() {
            flow.integer[i] = flow.integer[i] && flow.connects(i);
        }
        if flow.integer == before {
            return flow.integer;
        }
    }
}

struct Flow<'a> {
    graph: &'a Candidates<'a>,
    allowed: &'a [bool],
    integer: Vec<bool>,
    /// Integer nodes whose codes come from a kernel that computes, perhaps by way of others that move elements. Without
    /// this, two movements in a row would each be there for the other.
    fed: Vec<bool>,
}

impl Flow<'_> {
    fn is_fed(&self, i: usize) -> bool {
        let node = &self.graph.nodes[i];
        match node.spec.map(|s| s.class) {
            Some(Class::Movement) => node.data.first().is_some_and(|&v| self.made(v)),
            _ => true,
        }
    }

    /// Made by an integer kernel in quantized form: dequantizing may wait until behind the node that reads it.
    fn made(&self, v: ValueId) -> bool {
        let maker = self.graph.maker.get(&v).filter(|&&i| self.integer[i] && self.fed[i]);
        maker.is_some_and(|&i| {
            let node = &self.graph.nodes[i];
            node.quantizes || product_reads(self.graph, node.outputs[0], &self.integer)
        })
    }

    fn connects(&self, i: usize) -> bool {
        let (graph, node, integer) = (self.graph, &self.graph.nodes[i], &self.integer);
        let Some(spec) = node.spec else { return false };
        let wanted = || node.outputs.iter().any(|&v| graph.read_integer(v, integer));
        let only_wanted = || node.outputs.iter().all(|&v| graph.only_integer_readers(v, integer));
        if !self.allowed[i] && !node.passed_through {
            // Between codes on all sides, the runtime has the integer kernel whether the plan wants it or not.
            return node.data.iter().all(|&v| self.made(v)) && only_wanted();
        }
        match spec.class {
            Class::Product => true,
            Class::Clamp | Class::Recurrent => false,
            // Where only integer kernels read the output, the runtime itself moves the conversion in front of the node.
            Class::Movement => self.fed[i] || only_wanted(),
            Class::Joining => {
                node.data.iter().all(|&v| self.made(v)) || (node.data.iter().any(|&v| self.made(v)) && wanted())
            }
            Class::Arithmetic if shrinks(spec.name) => self.made(node.data[0]),
            Class::Arithmetic => {
                node.data.iter().any(|&v| self.made(v) || product_reads(graph, v, integer)) && wanted()
            }
        }
    }
}

/// Whether an integer product reads the value, so that it is quantized anyway.
fn product_reads(graph: &Candidates, v: ValueId, integer: &[bool]) -> bool {
    let product =
        |&i: &usize| i != usize::MAX && integer[i] && graph.nodes[i].spec.is_some_and(|s| s.class == Class::Product);
    graph.readers.get(&v).is_some_and(|r| r.iter().any(product))
}

/// Arithmetic that leaves fewer elements to dequantize than it takes in.
fn shrinks(op: &str) -> bool {
    matches!(op, "AveragePool" | "GlobalAveragePool")
}
