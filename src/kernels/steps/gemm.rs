//! MatMul and the Add behind it become a Gemm: of matrices, and of more dims where all are known (then between Reshapes).

use crate::{
    ir::{AttrValue, NodeId, NodeSpec, Place, ValueId},
    kernels::scratch::{Fate, Scratch},
};

pub(super) fn run(s: &mut Scratch) {
    for n in s.nodes() {
        if s.m.try_node(n).is_some_and(|node| node.is("MatMul")) {
            merge(s, n);
        }
    }
}

fn merge(s: &mut Scratch, n: NodeId) -> Option<()> {
    let node = s.m.node(n);
    let (a, b, out) = (node.input(0)?, node.input(1)?, node.output(0)?);
    let (add, i) = s.m.sole_reader(out).filter(|&(r, _)| s.m.node(r).is("Add"))?;
    let (bias, sum) = (s.m.node(add).input(1 - i)?, s.m.node(add).output(0)?);
    if s.types().rank(b)? != 2 || !is_float(s, a) {
        return None;
    }
    let (rank, columns) = (s.types().rank(a)?, s.types().shape(b)?[1]);
    let dims = s.types().shape(bias)?.to_vec();
    let row = dims.len() == 1 && dims[0] == columns && columns.known().is_some();
    let matrix = || {
        let rows = s.types().shape(a).map(|d| d[0]);
        dims.len() == 2 && dims[1] == columns && (dims[0].known() == Some(1) || Some(dims[0]) == rows)
    };
    let known = s.types().known_shape(a).is_some() && s.types().known_shape(b).is_some();
    if !(rank == 2 && (row || matrix()) || rank > 2 && row && known) {
        return None;
    }
    s.m.set_input(add, i, None);
    s.m.replace_all_uses(sum, out).then_some(())?;
    s.remove(add, Fate::Part(n));
    let node = s.m.node_mut(n);
    node.op_type = "Gemm".to_owned();
    s.m.set_input(n, 2, Some(bias));
    if rank > 2 {
        let flat = reshape(s, a, Place::Before(n));
        s.m.set_input(n, 0, Some(flat));
        let full = reshape(s, out, Place::After(n));
        // The name stays with what the graph's readers read.
        let reader = s.m.producer(full);
        s.m.replace_readers(out, full, |r, _| Some(r) != reader);
        for used in s.m.value(out).uses().to_vec() {
            if matches!(used, crate::ir::Use::Output(..)) {
                s.m.redirect(used, full);
            }
        }
        s.m.take_output_name(out, full);
    }
    Some(())
}

fn is_float(s: &Scratch, v: ValueId) -> bool {
    s.dtype(v) == Some(crate::ir::DType::Float)
}

/// A Reshape of `v`; returns its output.
fn reshape(s: &mut Scratch, v: ValueId, place: Place) -> ValueId {
    let graph = s.m.value(v).graph();
    let name = s.m.value(v).name().to_owned();
    let shape = s.m.add_value(graph, &format!("{name}_shape"));
    s.constants.insert(shape);
    let spec = NodeSpec::new("Reshape").input(v).input(shape).output(format!("{name}_reshaped"));
    let spec = spec.attr("allowzero", AttrValue::Int(0));
    let n = s.m.insert(spec, place);
    let out = s.m.node(n).output(0).expect("just made");
    if let Some(dtype) = s.dtype(v) {
        s.set_dtype(out, dtype);
    }
    out
}
