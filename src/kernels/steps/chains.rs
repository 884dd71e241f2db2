//! An integer product with the Cast and Mul that make its sums float again becomes one kernel, and with the
//! DynamicQuantizeLinear in front of it, if nobody else reads that, another.
//!
//! ```text
//! before: q, sx, zx = DynamicQuantizeLinear(x); i = MatMulInteger(q, w, zx, zw); c = Cast(i); y = Mul(c, Mul(sx, sw))
//! after:  y = DynamicQuantizeMatMul(x, w, sw, zw)
//! ```

use crate::{
    ir::{DType, NodeId, Use, ValueId},
    kernels::scratch::{Fate, Scratch},
    target::Chain,
};

pub(super) fn run(s: &mut Scratch) {
    for n in s.nodes() {
        let Some(node) = s.m.try_node(n) else { continue };
        let written = |c: &&Chain| c.kernel.as_ref() == Some(&node.op_type) && !node.in_onnx_domain();
        if let Some(row) = s.target.chains.iter().find(written).cloned() {
            take_written_data(s, n, &row);
            continue;
        }
        let Some(row) = s.target.chains.iter().find(|c| node.is(&c.product)).cloned() else { continue };
        let why = match &row.kernel {
            None => {
                Some(format!("{} stays a chain of nodes: it has no kernel with the conversion to float", row.product))
            }
            Some(_) => fuse(s, n, &row).err(),
        };
        if let Some(why) = why {
            s.note(n, why);
        }
    }
}

/// The node, if it alone reads `v` and is of this operator.
fn then(s: &Scratch, v: Option<ValueId>, op: &str) -> Option<NodeId> {
    s.m.sole_reader(v?).map(|(n, _)| n).filter(|&n| s.m.node(n).is(op))
}

fn fuse(s: &mut Scratch, n: NodeId, row: &Chain) -> Result<(), String> {
    let Some(kernel) = row.kernel.clone() else { return Ok(()) };
    let cast = then(s, s.m.node(n).output(0), "Cast").filter(|&c| s.m.node(c).int("to") == Some(1));
    let cast = cast.ok_or("no Cast to float alone reads its sums")?;
    let mul = then(s, s.m.node(cast).output(0), "Mul").ok_or("no Mul by the scales alone reads its sums")?;
    let casted = s.m.node(cast).output(0);
    let scale =
        s.m.node(mul).inputs().iter().copied().flatten().find(|&v| Some(v) != casted).ok_or("its scale is missing")?;
    let scales = s.m.producer(scale).filter(|&p| s.m.node(p).is("Mul") && s.m.sole_reader(scale).is_some());
    let scales = scales.ok_or("its scale is not the product of two scales that it alone reads")?;
    let (a, b) = (s.m.node(scales).input(0), s.m.node(scales).input(1));
    let (Some(a), Some(b)) = (a, b) else { return Err("a scale is missing".to_owned()) };
    // The data's conversion, and whether all of its results go here.
    let data = s.m.node(n).input(0).and_then(|v| s.m.producer(v)).filter(|&d| s.m.node(d).is("DynamicQuantizeLinear"));
    let (out, sum) = (s.m.node(mul).output(0), s.m.node(n).output(0));
    let (Some(out), Some(sum)) = (out, sum) else { return Err("its output is missing".to_owned()) };
    let outer = s.m.sole_reader(out).filter(|&(add, i)| {
        let beside = s.m.node(add).input(1 - i.min(1));
        s.m.node(add).is("Add")
            && beside
                .is_some_and(|v| s.is_constant(v) && s.types().known_shape(v).is_some_and(|d| d.len() == 1 && d[0] > 1))
    });
    // What follows reads the sums, which are float now.
    s.m.set_input(cast, 0, None);
    if !s.m.value(out).is_graph_output() {
        s.m.take_output_name(out, sum);
    }
    if !s.m.replace_all_uses(out, sum) {
        s.m.set_input(cast, 0, Some(sum));
        return Err("its output cannot be followed".to_owned());
    }
    for gone in [mul, cast, scales] {
        s.remove(gone, Fate::Part(n));
    }
    s.m.set_input(n, 4, Some(a));
    s.m.set_input(n, 5, Some(b));
    s.set_dtype(sum, DType::Float);
    if let Some((add, i)) = outer {
        s.m.set_input(add, i, None);
        if let Some(total) = s.m.node(add).output(0)
            && (s.m.value(total).is_graph_output() || {
                s.m.take_output_name(total, sum);
                true
            })
            && s.m.replace_all_uses(total, sum)
        {
            s.remove(add, Fate::Part(n));
        }
    }
    s.kernels.insert(n, kernel);
    if let Some(d) = data.filter(|_| s.m.node(n).input(1).is_some_and(|v| s.is_constant(v))) {
        take_data(s, n, d, row);
    }
    s.why.remove(&n);
    Ok(())
}

/// The kernel that stands in the file, with codes, scale and zero point from one DynamicQuantizeLinear.
fn take_written_data(s: &mut Scratch, n: NodeId, row: &Chain) -> Option<()> {
    let node = s.m.node(n);
    let d = s.m.producer(node.input(0)?).filter(|&d| s.m.node(d).is("DynamicQuantizeLinear"))?;
    let [codes, scale, zero_point] = [0, 1, 2].map(|i| s.m.node(d).output(i));
    let own = node.input(0) == codes && node.input(2) == scale && node.input(4).is_none_or(|v| Some(v) == zero_point);
    own.then(|| take_data(s, n, d, row))
}

/// The DynamicQuantizeLinear of the data, if nothing else uses what it makes, goes into the product's kernel.
fn take_data(s: &mut Scratch, n: NodeId, d: NodeId, row: &Chain) {
    let own = |u: &Use| matches!(u, Use::Input(reader, _) if *reader == n);
    let alone = s.m.node(d).outputs().iter().flatten().all(|&v| s.m.value(v).uses().iter().all(own));
    let Some(whole) = row.whole.clone().filter(|_| alone) else { return };
    for i in 0..s.m.node(n).inputs().len() {
        let from = s.m.node(n).input(i).and_then(|v| s.m.producer(v));
        if from == Some(d) {
            s.m.set_input(n, i, None);
        }
    }
    let x = s.m.node(d).input(0);
    s.m.set_input(n, 0, x);
    s.remove(d, Fate::Part(n));
    s.kernels.insert(n, whole);
}
