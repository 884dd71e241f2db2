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
    let own =
        ["QGemm", "QAttention", "QEmbedLayerNormalization", "QMoE", "MatMulBnb4", "MatMulFpQ4", "QuantizeWithOrder"];
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
            None => {
                remover.float_of(model, codes, params, out, None).map_err(|e| e.node(&label, "DequantizeLinear"))?
            }
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
    cx.removed.kept.append(&mut remover.kept);
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
    let handed_out = model.graph(model.main()).outputs().contains(&codes);
    if ends_float && handed_out && model.value(codes).readers().next().is_none() {
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
    let kept = model.value(codes).dtype().filter(|_| handed_out);
    changed |= spell_quantizer(model, id, x, params, codes)?;
    if let Some(dtype) = kept.filter(|_| changed) {
        remover.kept.push((model.value(codes).name().to_owned(), dtype));
    }
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
    let zero = coding.zero_point.as_ref().map(pack::unpack).transpose()?.map_or(Some(0), |z| z.first().copied());
    let Some(zero) = zero else { return Ok(false) };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::text,
        passes::testing::{check, check_skipped, check_with},
    };

    fn model(opset: i64, inputs: &str, constants: &str, nodes: &str) -> String {
        format!("<ir_version: 8, opset_import: [\"\" : {opset}]> g ({inputs}) => (y) <{constants}> {{ {nodes} }}")
    }

    fn with(clamps: Clamps) -> Context {
        let mut cx = Context::default();
        cx.options.clamps = clamps;
        cx
    }

    #[test]
    fn pairs_and_weights() {
        let params = "float s = {0.5}, uint8 z = {128}, float[2] t = {0.5, 2}, int8[2] u = {0, 1}";
        let before = model(
            17,
            "float[2,2] x",
            &format!("{params}, int8[2,2] w_quantized = {{1, 2, -3, 5}}, float v = {{0.25}}, uint8 m = {{0}}"),
            "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear<axis = 1>(w_quantized, t, u)
             a = MatMul(xd, wd) aq = QuantizeLinear(a, v, m) ad = DequantizeLinear(aq, v, m) y = Neg(ad)",
        );
        // The range of `a` begins at 0: a Relu may have been left out for that.
        let after = |constants: &str, clamp: &str, last: &str| {
            let constants = format!("float[2,2] w = {{0.5, 2, -1.5, 8}}{constants}");
            model(17, "float[2,2] x", &constants, &format!("{clamp} y = Neg({last})"))
        };
        let keep = after(
            ", float \"clamp_-64\" = {-64}, float \"clamp_63.5\" = {63.5}, float clamp_0 = {0}, float \"clamp_63.75\" = {63.75}",
            "x_clamped = Clip(x, \"clamp_-64\", \"clamp_63.5\") a = MatMul(x_clamped, w)
             a_clamped = Clip(a, clamp_0, \"clamp_63.75\")",
            "a_clamped",
        );
        check_with(run, &mut with(Clamps::Keep), &before, &keep);
        check_with(
            run,
            &mut with(Clamps::Relu),
            &before,
            &after("", "a = MatMul(x, w) a_clamped = Relu(a)", "a_clamped"),
        );
        check_with(run, &mut with(Clamps::None), &before, &after("", "a = MatMul(x, w)", "a"));
    }

    #[test]
    fn a_clamp_that_stands_is_not_doubled() {
        let greatest = "float \"clamp_2.55\" = {2.55}";
        let bounds = "float one = {1}, float ten = {10}";
        for (constants, standing, becomes) in [
            ("float clamp_0 = {0}", "r = Relu(n)", "r_clamped = Clip(n, clamp_0, \"clamp_2.55\") y = Abs(r_clamped)"),
            (
                bounds,
                "m = Clip(n, one, ten) r = Flatten(m)",
                "m = Clip(n, one, ten) r = Flatten(m) r_clamped = Clip(r, , \"clamp_2.55\") y = Abs(r_clamped)",
            ),
            ("", "r = Sigmoid(n)", "r = Sigmoid(n) y = Abs(r)"),
            ("", "m = Sigmoid(n) r = Flatten(m)", "m = Sigmoid(n) r = Flatten(m) y = Abs(r)"),
        ] {
            let bounded = if constants == bounds { ", float one = {1}, float ten = {10}" } else { "" };
            let before = model(
                17,
                "float[2,2] x",
                &format!("float s = {{0.01}}, uint8 z = {{0}}{bounded}"),
                &format!("n = Neg(x) {standing} q = QuantizeLinear(r, s, z) d = DequantizeLinear(q, s, z) y = Abs(d)"),
            );
            let constants = if constants.is_empty() { String::new() } else { format!("{constants}, {greatest}") };
            let after = model(17, "float[2,2] x", &constants, &format!("n = Neg(x) {becomes}"));
            check_with(run, &mut with(Clamps::Keep), &before, &after);
        }
    }

    #[test]
    fn codes_are_clamped_moved_and_joined() {
        let before = model(
            17,
            "float[2,2] x",
            "float s = {0.5}, int8 z = {0}, int8 lo = {-3}, int8 hi = {6}, int64[2] to = {4, 1}, int64[4] p = {1, 0, 0, 0}, int8 with = {2}",
            "n = Neg(x) q = QuantizeLinear(n, s, z) c = Clip(q, lo, hi) r = Reshape(c, to) j = Concat<axis = 0>(r, r)
             f = Pad(j, p, with) d = DequantizeLinear(f, s, z) y = Abs(d)",
        );
        let after = model(
            17,
            "float[2,2] x",
            "int64[2] to = {4, 1}, int64[4] p = {1, 0, 0, 0}, float padding = {1}, float a = {-1.5}, float b = {3}",
            "n = Neg(x) n_clamped = Clip(n, a, b) r_float = Reshape(n_clamped, to)
             j_float = Concat<axis = 0>(r_float, r_float) f_float = Pad(j_float, p, padding) y = Abs(f_float)",
        );
        let after = after.replace("float a", "float \"clamp_-1.5\"").replace("float b", "float clamp_3");
        check_with(run, &mut with(Clamps::Keep), &before, &after.replace("(n, a, b)", "(n, \"clamp_-1.5\", clamp_3)"));
    }

    #[test]
    fn constants_are_rounded() {
        check(
            run,
            &model(
                17,
                "float[2,2] x",
                "float[2,2] w = {0.3, 0.9, -0.3, 200}, float s = {0.5}, int8 z = {0}",
                "q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = MatMul(x, d)",
            ),
            &model(17, "float[2,2] x", "float[2,2] w_rounded = {0.5, 1, -0.5, 63.5}", "y = MatMul(x, w_rounded)"),
        );
    }

    #[test]
    fn blocks_and_floats_of_8_bits() {
        check(
            run,
            &model(
                21,
                "float[2,4] x",
                "int4[4,1] w = {1, -8, 7, 2}, float[2,1] t = {0.5, 2}",
                "d = DequantizeLinear<axis = 0, block_size = 2>(w, t) y = MatMul(x, d)",
            ),
            &model(21, "float[2,4] x", "float[4,1] w_1 = {0.5, -4, 14, 4}", "y = MatMul(x, w_1)"),
        );
        check_with(
            run,
            &mut with(Clamps::None),
            &model(
                19,
                "float[2] x",
                "float s = {0.5}, float8e4m3fn z = {0}",
                "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Neg(d)",
            ),
            &model(19, "float[2] x", "", "y = Neg(x)"),
        );
    }

    /// What quantizes at run time clamps nothing.
    #[test]
    fn quantized_at_run_time() {
        check(
            run,
            &model(
                17,
                "float[2,2] x",
                "",
                "n = Neg(x) q, s, z = DynamicQuantizeLinear(n) d = DequantizeLinear(q, s, z) y = Abs(d)",
            ),
            &model(17, "float[2,2] x", "", "n = Neg(x) y = Abs(n)"),
        );
    }

    /// Codes that callers feed and get stay codes, unless they are to become floats.
    #[test]
    fn the_ends_of_the_model() {
        let head = |input: &str, output: &str| {
            format!("<ir_version: 8, opset_import: [\"\" : 17]> g ({input}[2] x) => ({output}[2] y)")
        };
        let params = "float s = {0.5}, uint8 z = {3}";
        let before = format!(
            "{} <{params}> {{ d = DequantizeLinear(x, s, z) n = Neg(d) y = QuantizeLinear(n, s, z) }}",
            head("uint8", "uint8")
        );
        let kept = format!(
            "{} <float x_Sub_by = {{3}}, float x_Mul_by = {{0.5}}, float y_scale = {{0.5}}, float y_zero_point = {{3}},
                float y_bound = {{0}}, float y_bound_1 = {{255}}> {{
                x_float = Cast<to = 1>(x) x_Sub = Sub(x_float, x_Sub_by) x_Mul = Mul(x_Sub, x_Mul_by) n = Neg(x_Mul)
                y_Div = Div(n, y_scale) y_Round = Round(y_Div) y_Add = Add(y_Round, y_zero_point)
                y_Clip = Clip(y_Add, y_bound, y_bound_1) y = Cast<to = 2>(y_Clip) }}",
            head("uint8", "uint8")
        );
        check(run, &before, &kept);
        let mut cx = with(Clamps::None);
        cx.options.float_ends = true;
        check_with(run, &mut cx, &before, &format!("{} {{ y = Neg(x) }}", head("float", "float")));
    }

    #[test]
    fn the_greatest_code_is_that_of_the_greatest_number() {
        check(
            run,
            &model(17, "float[2] x", "float s = {0.5}, uint8 z = {3}", "q = QuantizeLinear(x, s, z) y = ArgMax(q)"),
            &model(17, "float[2] x", "", "y = ArgMax(x)"),
        );
    }

    #[test]
    fn what_stays() {
        let rescaled = model(
            17,
            "float[2] x",
            "float s = {0.5}, float t = {0.25}, uint8 z = {3}",
            "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z)",
        );
        check_skipped(run, &rescaled, NOT_REMOVED);
        let unknown = model(
            17,
            "float[2,2] x, float s",
            "uint8 z = {3}, uint8[2,2] w = {1, 2, 3, 4}",
            "d = DequantizeLinear(w, s, z) y = MatMul(x, d)",
        );
        check_skipped(run, &unknown, NOT_REMOVED);
        check_skipped(run, &model(17, "float[2] x", "", "y = Neg(x)"), "");
        // Another domain's operators are nobody's business here.
        let own =
            "<ir_version: 8, opset_import: [\"\" : 17, \"my\" : 1]> g (float[2] x) => (y) { y = my.QuantizeLinear(x) }";
        assert!(!is_quantization(text::parse(own).unwrap().node(text::parse(own).unwrap().all_nodes()[0])));
    }
}
