//! A product of float data with a weight of few bits becomes a kernel that reads the codes.

use std::collections::HashMap;

use crate::{
    ir::{DType, NodeId, ValueId},
    kernels::scratch::{Fate, Scratch},
    target::WeightOnly,
};

/// The input of the kernel that is its bias, in a file that has the kernel itself.
const BIAS: usize = 5;

pub(super) fn run(s: &mut Scratch) {
    let scalars = Scalars::of(s);
    for n in s.nodes() {
        let Some(node) = s.m.try_node(n) else { continue };
        let kernel = s.target.weight_only.iter().any(|r| r.kernel == node.op_type);
        if kernel && !node.in_onnx_domain() && node.input(BIAS).is_none() {
            take_bias(s, n);
        }
        if s.kernels.contains_key(&n) || !s.m.node(n).in_onnx_domain() {
            continue;
        }
        let node = s.m.node(n);
        let Some(row) = s.target.weight_only.iter().find(|r| r.op == node.op_type).cloned() else { continue };
        let Some(d) = s.dequantize_at(n, 1) else { continue };
        match conditions(s, &scalars, n, d, &row) {
            Ok(()) => fuse(s, n, d, &row),
            Err(why) => {
                // Between conversions of the data, too, the reason is the other kernel's.
                if s.dequantize_at(n, 0).is_none() || !s.why.contains_key(&n) {
                    s.note(n, why);
                }
            }
        }
    }
}

fn conditions(s: &Scratch, scalars: &Scalars, n: NodeId, d: NodeId, row: &WeightOnly) -> Result<(), String> {
    let (node, from) = (s.m.node(n), s.m.node(d));
    let eight = |n: NodeId| s.codes_of(n).is_some_and(|t| matches!(t, DType::Int8 | DType::Uint8));
    if s.dequantize_at(n, 0).is_some_and(eight) {
        return Err("its data are dequantized from 8 bits".to_owned());
    }
    if node.output(0).is_some_and(|v| s.m.value(v).readers().any(|(r, i)| i == 0 && s.is_quantize(r) && eight(r))) {
        return Err("its output is quantized, but its data are not".to_owned());
    }
    for (name, want) in [("transA", 0), ("transB", 0)] {
        if node.int(name).unwrap_or(0) != want {
            return Err(format!("{} has no form with {name}", row.kernel));
        }
    }
    if node.float("alpha").unwrap_or(1.0) != 1.0 || node.float("beta").unwrap_or(1.0) != 1.0 {
        return Err(format!("{} has no form with alpha or beta", row.kernel));
    }
    if let Some(op) = looked_through(s, n) {
        return Err(format!("the runtime looks through the {op} behind it for a QuantizeLinear"));
    }
    let codes = from.input(0).filter(|&v| s.is_constant(v)).ok_or("its weight is not a constant")?;
    let dtype = s.dtype(codes).ok_or("the type of its codes is not known")?;
    if !row.bits.contains(&dtype.bits()) || !dtype.is_integer() {
        return Err(format!("{} takes no weights in {dtype}", row.kernel));
    }
    if s.types().rank(codes).is_some_and(|r| r != 2) {
        return Err(format!("{} takes matrices only", row.kernel));
    }
    if from.inputs().iter().flatten().any(|&v| scalars.is_shared(s, v)) {
        return Err("its weight, scale or zero point has other readers".to_owned());
    }
    let block = from.int("block_size").unwrap_or(0);
    let axis = from.int("axis").unwrap_or(1);
    if block != 0 {
        let size = usize::try_from(block).unwrap_or(0);
        if axis != 0 {
            return Err("the blocks of its weight do not lie along its input channels".to_owned());
        }
        if !size.is_power_of_two() || size < row.least_block {
            return Err(format!("{} takes no blocks of {block}", row.kernel));
        }
    } else if !super::groups::has_one_scale(s, d) && axis != 1 {
        return Err(wrong_axis(axis, row));
    }
    Ok(())
}

/// The clamp behind a product that the runtime looks through, and finds none of the conversions that it looks for.
fn looked_through(s: &Scratch, n: NodeId) -> Option<String> {
    let (reader, _) = s.m.sole_reader(s.m.node(n).output(0)?)?;
    let node = s.m.node(reader);
    let seen = s.target.seen_through.iter().any(|op| node.is(op));
    let out = node.output(0).filter(|&v| seen && !s.m.value(v).is_graph_output())?;
    let quantized = s.m.value(out).readers().all(|(r, _)| s.is_quantize(r));
    (!quantized).then(|| node.op_type.clone())
}

fn wrong_axis(axis: i64, row: &WeightOnly) -> String {
    match axis {
        0 => "the scales of its weight do not lie along its output channels".to_owned(),
        axis => format!("the axis of its weight's scales is written {axis}: {} takes only 1", row.kernel),
    }
}

fn fuse(s: &mut Scratch, n: NodeId, d: NodeId, row: &WeightOnly) {
    let codes = s.m.node(d).input(0);
    s.m.set_input(n, 1, codes);
    s.remove(d, Fate::Part(n));
    if s.m.node(n).input(2).is_none() {
        take_bias(s, n);
    }
    s.kernels.insert(n, row.kernel.clone());
    s.why.remove(&n);
}

/// An Add of a constant row behind the kernel becomes its bias.
fn take_bias(s: &mut Scratch, n: NodeId) -> Option<()> {
    let out = s.m.node(n).output(0)?;
    let (add, i) = s.m.sole_reader(out).filter(|&(r, _)| s.m.node(r).is("Add"))?;
    let beside = s.m.node(add).input(1 - i.min(1)).filter(|&v| s.is_constant(v))?;
    let sum = s.m.node(add).output(0).filter(|_| s.types().rank(beside) == Some(1))?;
    if !s.m.value(sum).is_graph_output() {
        s.m.take_output_name(sum, out);
    }
    if s.m.replace_all_uses(sum, out) {
        s.m.set_input(add, i, None);
        s.remove(add, Fate::Part(n));
    }
    Some(())
}

/// How often float scalars of each number are read: the runtime keeps one constant for those that are equal.
struct Scalars(HashMap<u32, usize>);

impl Scalars {
    fn of(s: &Scratch) -> Self {
        let mut uses = HashMap::new();
        for v in s.m.value_ids() {
            if let Some(number) = Self::number(s, v) {
                *uses.entry(number).or_default() += s.m.value(v).uses().len();
            }
        }
        Self(uses)
    }

    fn number(s: &Scratch, v: ValueId) -> Option<u32> {
        let scalar = s.m.value(v).constant().filter(|t| t.dtype() == DType::Float && t.len() == 1)?;
        scalar.scalar_f32().map(f32::to_bits)
    }

    /// Whether other nodes read a constant, or a scalar of the same number.
    fn is_shared(&self, s: &Scratch, v: ValueId) -> bool {
        let uses = Self::number(s, v).and_then(|n| self.0.get(&n).copied());
        uses.unwrap_or_else(|| s.m.value(v).uses().len()) > 1
    }
}
