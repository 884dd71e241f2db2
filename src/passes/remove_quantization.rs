//! Takes Q/DQ pairs and dequantized constants away: values stay what they were in front of the quantizer, weights become the
//! numbers that their codes stand for, exactly.
//!
//! ```text
//! before: y = Conv(DequantizeLinear(QuantizeLinear(x, s, z), s, z), DequantizeLinear(w_quantized, t, u))
//! after:  y = Conv(x, w)
//! ```
//!
//! What moves, joins or clamps codes between the two does the same with numbers then. A quantizer also clamps, and a Relu or
//! another clamp in front of it is often left out for that, so it comes back ([`Clamps`]). Codes that the model reads or hands out are computed by plain operators. All forms are brought into that of pairs by
//! [`super::raise`] before.

mod bounds;
mod clamps;
mod codes;

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

pub use clamps::{Clamped, Clamps};

use super::{
    Context,
    support::{convert::convert, pairs::stay},
};
use crate::{
    analysis::types,
    diagnostics::Diagnostic,
    error::Result,
    ir::{DType, Model, Node, NodeId, NodeSpec, Place, Tensor, ValueId},
    ops::MICROSOFT,
    quant::{coding::Coding, pack, params::type_range},
};
use codes::Remover;

/// The code of the diagnostic of what stays quantized.
pub const NOT_REMOVED: &str = "not_removed";

/// What was taken away.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Removed {
    /// Quantizers of values that the model computes.
    pub quantizers: usize,
    /// Constants that became floats.
    pub weights: usize,
    /// Constants of 16-bit floats that became 32-bit ones.
    pub widened: usize,
    /// Casts to and from 16-bit floats that went.
    pub casts: usize,
    /// Clamps that came back.
    pub clamps: Vec<Clamped>,
    /// Inputs and outputs that keep another type than float, each with it.
    pub kept: Vec<(String, DType)>,
}

/// Whether a node makes codes, reads them or computes with them.
pub fn is_quantization(node: &Node) -> bool {
    let microsoft = node.domain.as_deref() == Some(MICROSOFT);
    if !node.in_onnx_domain() && !microsoft {
        return false;
    }
    let op = node.op_type.as_str();
    let parts = ["QuantizeLinear", "DequantizeLinear", "QLinear", "Integer", "DynamicQuantize", "NBits", "Quantized"];
    let own = ["QGemm", "QAttention", "QEmbedLayerNormalization", "QMoE", "MatMulBnb4", "MatMulFpQ4", "QuantizeWithOrder"];
    parts.iter().any(|p| op.contains(p)) || microsoft && (own.contains(&op) || op.starts_with("QOrdered"))
}

/// Scale and zero point of a QuantizeLinear or DequantizeLinear, blocks among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Params {
    scale: ValueId,
    zero_point: Option<ValueId>,
    axis: i64,
    block: usize,
}

impl Params {
    /// Of a node, with what it reads.
    fn of(model: &Model, id: NodeId, op: &str) -> Option<(ValueId, Self)> {
        let node = model.node(id);
        let known = node.in_onnx_domain() || node.domain.as_deref() == Some(MICROSOFT);
        if node.op_type != op || !known {
            return None;
        }
        let block = usize::try_from(node.int("block_size").unwrap_or(0)).ok()?;
        let axis = node.int("axis").unwrap_or(1);
        Some((node.input(0)?, Self { scale: node.input(1)?, zero_point: node.input(2), axis, block }))
    }

    /// The numbers, where they are constant.
    fn coding(&self, model: &Model) -> Option<Coding> {
        let zero_point = match self.zero_point {
            None => None,
            Some(z) => Some(model.value(z).constant()?.clone()),
        };
        let scale = model.value(self.scale).constant()?.clone();
        Some(Coding { scale, zero_point, axis: self.axis, block: self.block })
    }

    /// Whether two stand for the same numbers.
    fn same(&self, model: &Model, other: &Self) -> bool {
        let alike = self.axis == other.axis && self.block == other.block;
        if self.scale == other.scale && self.zero_point == other.zero_point && alike {
            return true;
        }
        let (Some(a), Some(b)) = (self.coding(model), other.coding(model)) else { return false };
        let zeros = |c: &Coding| match &c.zero_point {
            None => vec![0; c.scale.len()],
            Some(z) => pack::unpack(z).unwrap_or_else(|_| vec![0; z.len()]),
        };
        let scales = |c: &Coding| c.scale.to_f32().ok();
        let one = a.scale.len() == 1 && b.scale.len() == 1;
        (alike || one) && scales(&a) == scales(&b) && zeros(&a) == zeros(&b)
    }

    /// The least and greatest number of a range of codes, and of several for channels only a bound that all have at 0.
    fn range(&self, model: &Model, (least, greatest): (i64, i64)) -> Option<(f32, f32)> {
        let coding = self.coding(model)?;
        let scales = coding.scale.to_f32().ok()?;
        let zeros = match &coding.zero_point {
            None => vec![0; scales.len()],
            Some(z) => pack::unpack(z).ok()?,
        };
        let real = |code: i64, at: usize| (code - i64::from(zeros[at])) as f32 * scales[at];
        if let ([_], [_]) = (&scales[..], &zeros[..]) {
            return Some((real(least, 0), real(greatest, 0)));
        }
        let all = |code: i64| zeros.iter().all(|&z| i64::from(z) == code);
        let (none, every) = (f32::NEG_INFINITY, f32::INFINITY);
        Some((if all(least) { 0.0 } else { none }, if all(greatest) { 0.0 } else { every }))
    }
}

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let ids = model.all_nodes();
    if !ids.iter().any(|&n| is_quantization(model.node(n))) {
        return Ok(0);
    }
    let types = types::infer(model);
    let mut remover = Remover::new(types, cx.options.clamps);
    let mut left: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut changes = 0;
    let ends_float = cx.options.float_ends;
    for &id in &ids {
        let Some((codes, params)) = Params::of(model, id, "DequantizeLinear") else { continue };
        let label = model.node_label(id);
        let out = out_type(model, id, &params);
        let made = match input_to_widen(model, codes).filter(|_| ends_float && widens(model, id)) {
            Some(input) => {
                set_float(model, input);
                Ok(input)
            }
            None => remover.float_of(model, codes, params, out, None).map_err(|e| e.node(&label, "DequantizeLinear"))?,
        };
        match made {
            Ok(real) => {
                replace(model, id, real);
                changes += 1;
            }
            Err(reason) => left.entry(reason).or_default().push(label),
        }
    }
    for &id in &ids {
        if model.try_node(id).is_some() && model.node(id).op_type == "QuantizeLinear" {
            changes += usize::from(quantizer_left(model, id, &mut remover, ends_float)?);
        }
    }
    for (reason, nodes) in left {
        let text = format!("{}: {reason}", stay(&nodes, "DequantizeLinear"));
        cx.diagnostics.push(Diagnostic::warning(NOT_REMOVED, text));
    }
    cx.removed.quantizers += remover.quantizers.len();
    cx.removed.weights += remover.weights;
    cx.removed.clamps.append(&mut remover.maker.done);
    Ok(changes)
}

/// The type that a DequantizeLinear makes.
fn out_type(model: &Model, id: NodeId, params: &Params) -> DType {
    let named = model.node(id).int("output_dtype").and_then(|n| DType::from_onnx(i32::try_from(n).ok()?));
    let scale = model.value(params.scale).dtype();
    named.or(scale).filter(|t| t.is_float()).unwrap_or(DType::Float)
}

/// Makes readers of a node's output read a float value.
fn replace(model: &mut Model, id: NodeId, real: ValueId) {
    let Some(out) = model.node(id).output(0) else { return };
    // What hands an initializer out differs from runtime to runtime.
    let handed_out = model.value(out).is_graph_output() && model.value(real).constant().is_some();
    if !handed_out && model.replace_all_uses(out, real) {
        model.remove_node(id);
        return;
    }
    model.replace_readers(out, real, |_, _| true);
    model.node_mut(id).domain = None;
    convert(model, id, "Identity", &[Some(real)], Vec::new());
}

/// The model's input in codes that a DequantizeLinear reads.
fn input_to_widen(model: &Model, codes: ValueId) -> Option<ValueId> {
    let value = model.value(codes);
    (value.is_input() && value.graph() == model.main() && value.initializer().is_none()).then_some(codes)
}

/// Whether all that reads the codes of an input are DequantizeLinears of one scale.
fn widens(model: &Model, id: NodeId) -> bool {
    let Some((codes, params)) = Params::of(model, id, "DequantizeLinear") else { return false };
    let alike = |(n, i): (NodeId, usize)| {
        i == 0 && Params::of(model, n, "DequantizeLinear").is_some_and(|(_, other)| other.same(model, &params))
    };
    let types = [DType::Uint8, DType::Int8, DType::Uint16, DType::Int16];
    let value = model.value(codes);
    // Once it is float, the other readers follow.
    !value.is_graph_output()
        && (value.dtype() == Some(DType::Float) || value.dtype().is_some_and(|t| types.contains(&t)))
        && value.readers().all(alike)
}

fn set_float(model: &mut Model, v: ValueId) {
    let shape = model.value(v).shape().cloned();
    model.value_mut(v).ty = Some(crate::ir::Type::tensor(DType::Float, shape));
}

/// A QuantizeLinear that something else than a DequantizeLinear reads.
fn quantizer_left(model: &mut Model, id: NodeId, remover: &mut Remover, ends_float: bool) -> Result<bool> {
    let Some((x, params)) = Params::of(model, id, "QuantizeLinear") else { return Ok(false) };
    let Some(codes) = model.node(id).output(0) else { return Ok(false) };
    // The greatest code is that of the greatest number.
    let orders = |model: &Model, n: NodeId| ["ArgMax", "ArgMin"].iter().any(|op| model.node(n).is(op));
    let one = model.value(params.scale).constant().is_some_and(|s| s.len() == 1);
    let chooses: HashSet<NodeId> =
        model.value(codes).readers().map(|(n, _)| n).filter(|&n| one && orders(model, n)).collect();
    model.replace_readers(codes, x, |n, _| chooses.contains(&n));
    let mut changed = !chooses.is_empty();
    let main_output = |v: ValueId| model.graph(model.main()).outputs().contains(&v);
    if ends_float && main_output(codes) && model.value(codes).readers().next().is_none() {
        let range = remover.clamped_input(model, id, x, params)?;
        if model.replace_all_uses(codes, range) {
            set_float(model, range);
            model.remove_node(id);
            remover.quantizers.insert(id);
            return Ok(true);
        }
    }
    let read_as_codes = model.value(codes).readers().any(|(n, _)| is_quantization(model.node(n)));
    if model.value(codes).uses().is_empty() || read_as_codes {
        return Ok(changed);
    }
    changed |= spell_quantizer(model, id, x, params, codes)?;
    if changed && model.try_node(id).is_none() {
        remover.quantizers.insert(id);
    }
    Ok(changed)
}

/// Codes by plain operators: for what hands them out or reads them without being an operator of quantization.
fn spell_quantizer(model: &mut Model, id: NodeId, x: ValueId, params: Params, codes: ValueId) -> Result<bool> {
    let Some(coding) = params.coding(model).filter(|c| c.scale.len() == 1 && c.block == 0) else { return Ok(false) };
    let dtype = model.value(codes).dtype().or(coding.zero_point.as_ref().map(Tensor::dtype)).unwrap_or(DType::Uint8);
    let Ok((least, greatest)) = type_range(dtype) else { return Ok(false) };
    if coding.scale.dtype() != DType::Float || model.opset("").unwrap_or(1) < 12 {
        return Ok(false);
    }
    let zero = coding.zero_point.as_ref().map(pack::unpack).transpose()?.map_or(0, |z| z[0]);
    let graph = model.node(id).graph();
    let name = model.value(codes).name().to_owned();
    let number = |model: &mut Model, part: &str, x: f32| {
        model.add_initializer(graph, &format!("{name}_{part}"), Tensor::from_f32(&[], &[x]))
    };
    let scale = coding.scale.to_f32()?[0];
    let scale = number(model, "scale", scale);
    let mut v = x;
    let mut step = |model: &mut Model, op: &str, more: Vec<Option<ValueId>>| -> Result<()> {
        let spec = NodeSpec::new(op).input(v).inputs(more).output(format!("{name}_{op}"));
        v = model.insert_value(spec, Place::Before(id))?;
        Ok(())
    };
    step(model, "Div", vec![Some(scale)])?;
    step(model, "Round", vec![])?;
    if zero != 0 {
        let zero = number(model, "zero_point", zero as f32);
        step(model, "Add", vec![Some(zero)])?;
    }
    let bounds = [least, greatest].map(|b| Some(number(model, "bound", b as f32)));
    step(model, "Clip", bounds.to_vec())?;
    let outputs = model.take_outputs(id);
    let cast = NodeSpec::new("Cast").input(v).attr("to", i64::from(dtype.to_onnx()));
    model.insert(cast.output_value(outputs.first().copied().flatten()), Place::Before(id));
    model.remove_node(id);
    Ok(true)
}
