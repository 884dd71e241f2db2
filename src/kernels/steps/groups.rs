//! An operator between conversions becomes an integer kernel, if the target has one and its conditions hold.

use crate::{
    ir::{DType, NodeId},
    kernels::scratch::{Fate, Scratch},
    ops::{self, Role},
    target::{Kernel, Output, WeightAxis},
};

/// An operator with the conversions around it.
struct Group {
    /// The DequantizeLinear of each input that is to be codes, with the input's number.
    dequantize: Vec<(usize, NodeId)>,
    /// The QuantizeLinear of each output; empty where the outputs stay float.
    quantize: Vec<NodeId>,
    /// A clamp between operator and QuantizeLinear.
    clamp: Option<NodeId>,
}

pub(super) fn run(s: &mut Scratch) {
    for n in s.nodes() {
        if s.m.try_node(n).is_none() || s.is_quantize(n) || s.is_dequantize(n) || !stands_beside(s, n) {
            continue;
        }
        let found = s.target.fused_kernel(&s.m, n).cloned().and_then(|k| Ok((group(s, n, &k)?, k)));
        match found {
            Ok((group, row)) => fuse(s, n, &group, &row),
            Err(why) => s.note(n, why),
        }
    }
}

/// Whether a conversion is next to the node.
fn stands_beside(s: &Scratch, n: NodeId) -> bool {
    let node = s.m.node(n);
    let quantized = |v: crate::ir::ValueId| s.m.value(v).readers().any(|(r, i)| i == 0 && s.is_quantize(r));
    (0..node.inputs().len()).any(|i| s.dequantize_at(n, i).is_some())
        || node.outputs().iter().flatten().any(|&v| quantized(v))
}

/// Whether an input of an operator is to be codes.
fn is_operand(s: &Scratch, n: NodeId, i: usize) -> bool {
    match ops::spec(&s.m, n) {
        Some(spec) => spec.role(i) != Role::Parameter,
        None => i == 0,
    }
}

fn group(s: &Scratch, n: NodeId, row: &Kernel) -> Result<Group, String> {
    let node = s.m.node(n);
    let mut dequantize = Vec::new();
    for i in (0..node.inputs().len()).filter(|&i| node.input(i).is_some() && is_operand(s, n, i)) {
        match s.dequantize_at(n, i) {
            Some(d) => dequantize.push((i, d)),
            None => return Err(missing(s, n, i)),
        }
    }
    let (quantize, clamp) = outputs(s, n, row)?;
    if row.output == Output::Required && quantize.is_empty() {
        return Err("its output is not quantized".to_owned());
    }
    let group = Group { dequantize, quantize, clamp };
    types(s, n, row, &group)?;
    scales(s, n, row, &group)?;
    Ok(group)
}

/// Why an input that no DequantizeLinear makes keeps the node from its kernel.
fn missing(s: &Scratch, n: NodeId, i: usize) -> String {
    let role = ops::spec(&s.m, n).map(|o| o.role(i));
    let constant = s.m.node(n).input(i).is_some_and(|v| s.is_constant(v));
    match (role, constant) {
        (Some(Role::Bias), _) => {
            "its bias is float, and it is quantized only between quantized data and output".to_owned()
        }
        (Some(Role::Weight), true) => "its weight is float".to_owned(),
        (_, true) => "its constant operand is float".to_owned(),
        _ => format!("its input {i} is not quantized"),
    }
}

/// The QuantizeLinear nodes behind a node and the clamp before them. Err where outputs are read in float, too.
fn outputs(s: &Scratch, n: NodeId, row: &Kernel) -> Result<(Vec<NodeId>, Option<NodeId>), String> {
    let outputs: Vec<_> = s.m.node(n).outputs().iter().copied().flatten().collect();
    if row.output == Output::Whole {
        return Ok((Vec::new(), None));
    }
    let quantized = |v| s.m.value(v).readers().filter(|&(r, i)| i == 0 && s.is_quantize(r)).count();
    if let [out] = outputs[..]
        && let Some((clamp, 0)) = s.m.sole_reader(out).filter(|&(c, _)| super::clamps::is_fusible_clamp(s, c))
        && let Some(q) = s.m.node(clamp).output(0).and_then(|v| s.sole_quantize(v))
    {
        return match super::clamps::is_redundant(s, clamp, q) {
            true => Ok((vec![q], Some(clamp))),
            false => {
                Err(format!("the codes of its output do not end where the {} behind it cuts", s.m.node(clamp).op_type))
            }
        };
    }
    let total: usize = outputs.iter().map(|&v| quantized(v)).sum();
    if total == 0 {
        return Ok((Vec::new(), None));
    }
    let quantize: Option<Vec<_>> = outputs.iter().map(|&v| s.sole_quantize(v)).collect();
    match quantize {
        Some(q) => Ok((q, None)),
        None if outputs.iter().any(|&v| quantized(v) > 1) => Err("its output is quantized in two ways".to_owned()),
        None if outputs.len() > 1 => Err("not all of its outputs are quantized".to_owned()),
        None => Err("its output is quantized, but read in float as well".to_owned()),
    }
}

fn types(s: &Scratch, n: NodeId, row: &Kernel, group: &Group) -> Result<(), String> {
    let dtype = |n| s.codes_of(n).ok_or_else(|| "the type of its codes is not known".to_owned());
    let first = group.dequantize.first().ok_or("it has no quantized input")?;
    let data = dtype(first.1)?;
    if !row.codes.contains(&data) && !row.codes_alike.contains(&data) {
        return Err(format!("{} does not take {data} data", row.kernel));
    }
    for &(i, d) in &group.dequantize[1..] {
        let (found, role) = (dtype(d)?, ops::spec(&s.m, n).map(|o| o.role(i)));
        let fits = match role {
            Some(Role::Weight) if row.codes.contains(&data) => matches!(found, DType::Int8 | DType::Uint8),
            Some(Role::Bias) => found == DType::Int32,
            _ => found == data,
        };
        if !fits {
            let what = match role {
                Some(Role::Weight) => "weight",
                Some(Role::Bias) => "bias",
                _ => "operand",
            };
            return Err(format!("its {what} is {found}, its data are {data}: {} has no such form", row.kernel));
        }
    }
    for &q in &group.quantize {
        let found = dtype(q)?;
        if found != data {
            return Err(format!("its output is quantized to {found}, its input to {data}"));
        }
    }
    Ok(())
}

fn scales(s: &Scratch, n: NodeId, row: &Kernel, group: &Group) -> Result<(), String> {
    for &(i, d) in &group.dequantize {
        let role = ops::spec(&s.m, n).map(|o| o.role(i));
        if s.m.node(d).int("block_size").unwrap_or(0) != 0 {
            return Err("its codes have a scale for each block".to_owned());
        }
        let fits = match role {
            Some(Role::Weight) if row.weight_axis == WeightAxis::Channels => {
                has_one_scale(s, d) || is_per_channel(s, n, d, i)
            }
            Some(Role::Weight | Role::Bias) => true,
            _ => s.params(d).is_some() || made_scale(s, d),
        };
        if !fits && role == Some(Role::Weight) {
            return Err("the scales of its weight do not lie along its output channels".to_owned());
        }
        if !fits {
            return Err("its data have no single constant scale".to_owned());
        }
        if role == Some(Role::Bias) && row.bias_scale && !bias_fits(s, group, d) {
            return Err("the scale of its bias is not that of the data times that of the weight".to_owned());
        }
    }
    if group.quantize.iter().any(|&q| s.params(q).is_none()) {
        return Err("its output has no single constant scale".to_owned());
    }
    if row.same_scale && group.quantize.iter().any(|&q| !s.same_params(group.dequantize[0].1, q)) {
        return Err("its output has another scale than its input".to_owned());
    }
    Ok(())
}

/// Whether one scale stands for the whole tensor.
pub(super) fn has_one_scale(s: &Scratch, d: NodeId) -> bool {
    let scale = s.m.node(d).input(1);
    scale.is_some_and(|v| s.tensor(v).map_or(s.constants.contains(&v), |t| t.len() == 1))
}

/// Whether the scale is one that a step made, so that its number is not known.
fn made_scale(s: &Scratch, d: NodeId) -> bool {
    s.m.node(d).input(1).is_some_and(|v| s.constants.contains(&v) && s.tensor(v).is_none())
}

/// Whether the scales of input `i` lie along the output channels.
pub(super) fn is_per_channel(s: &Scratch, n: NodeId, d: NodeId, i: usize) -> bool {
    let node = s.m.node(d);
    let rank = node.input(0).and_then(|v| s.types().rank(v)).or_else(|| s.types().rank(s.m.node(n).input(i)?));
    let (Some(rank), Some(spec)) = (rank, ops::spec(&s.m, n)) else { return false };
    let axis = node.int("axis").unwrap_or(1);
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    spec.weight_axis(s.m.node(n), rank).is_some_and(|a| a as i64 == axis)
}

/// Whether the bias's scale is that of the data times that of the weight, as far as all are known.
fn bias_fits(s: &Scratch, group: &Group, bias: NodeId) -> bool {
    let scales = |d: NodeId| s.m.node(d).input(1).and_then(|v| s.tensor(v)).and_then(|t| t.to_f32().ok());
    let at = |i: usize| group.dequantize.iter().find(|(j, _)| *j == i).and_then(|&(_, d)| scales(d));
    let (Some(x), Some(w), Some(b)) = (at(0), at(1), scales(bias)) else { return true };
    let Some(&x) = x.first() else { return true };
    let near = |b: f32, w: f32| (b - x * w).abs() <= 0.01 * (x * w).abs();
    match (b.len(), w.len()) {
        (b_len, w_len) if b_len == w_len => b.iter().zip(&w).all(|(&b, &w)| near(b, w)),
        (1, _) => w.iter().all(|&w| near(b[0], w)),
        (_, 1) => b.iter().all(|&b| near(b, w[0])),
        _ => false,
    }
}

/// Makes the kernel of the node: it reads and makes the codes itself.
fn fuse(s: &mut Scratch, n: NodeId, group: &Group, row: &Kernel) {
    for &(i, d) in &group.dequantize {
        let codes = s.m.node(d).input(0);
        s.m.set_input(n, i, codes);
        if s.m.node(d).output(0).is_some_and(|v| s.m.value(v).uses().is_empty()) {
            s.remove(d, Fate::Part(n));
        }
    }
    if let (Some(clamp), Some(out)) = (group.clamp, s.m.node(n).output(0)) {
        s.bypass(clamp, out, Fate::Part(n));
    }
    for &q in &group.quantize {
        let (made, codes) = (s.m.node(q).input(0), s.m.node(q).output(0));
        let (Some(made), Some(codes)) = (made, codes) else { continue };
        let dtype = s.codes_of(q);
        s.m.set_input(q, 0, None);
        if !s.m.value(codes).is_graph_output() {
            s.m.take_output_name(codes, made);
        }
        if !s.m.replace_all_uses(codes, made) {
            continue;
        }
        s.remove(q, Fate::Part(n));
        if let Some(dtype) = dtype {
            s.set_dtype(made, dtype);
        }
    }
    let float = row.float_output_kernel.clone().filter(|_| group.quantize.is_empty());
    s.kernels.insert(n, float.unwrap_or_else(|| row.kernel.clone()));
    s.why.remove(&n);
}
