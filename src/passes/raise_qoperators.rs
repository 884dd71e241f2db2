//! Makes of integer operators the float operators that they compute, between DequantizeLinear and QuantizeLinear.
//!
//! ```text
//! before: y_q = QLinearConv(x_q, s, z, w_q, t, u, r, v, b_q)
//! after:  y_q = QuantizeLinear(Conv(DequantizeLinear(x_q, s, z), DequantizeLinear(w_q, t, u), DequantizeLinear(b_q, s·t)), r, v)
//! ```
//!
//! Not where the QOperator format is asked for, in which they are already. The inverse of [`super::fuse_into_qoperators`],
//! driven by the same operator facts. Scales and zero points stay the tensors that they are. Nodes that move codes move
//! numbers afterwards, between a pair with the scale of what they read.

use std::collections::{BTreeMap, HashMap};

use super::{
    Context,
    support::{
        pairs::{Linear, forget_import, moves_codes, stay},
        replace::insert_instead,
    },
};
use crate::{
    analysis::types::{self, Types},
    diagnostics::Diagnostic,
    error::{Error, Result},
    ir::{Attr, Model, Node, NodeId, NodeSpec, Place, Tensor, ValueId},
    ops::{self, IntegerForm, MICROSOFT, OpSpec, Slot, raised_by},
    quant::pack::pack,
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    if cx.options.qoperator.is_some() {
        return Ok(0);
    }
    let ids = model.all_nodes();
    if !ids.iter().any(|&n| is_quantized(model.node(n))) {
        return Ok(0);
    }
    let mut raiser = Raiser { types: types::infer(model), numbers: HashMap::new(), changes: 0 };
    let mut odd: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for id in ids {
        let node = model.node(id);
        let label = (model.node_label(id), node.op_type.clone());
        let done = match raised_by(node) {
            Some((spec, form)) => raiser.computing(model, id, spec, &form),
            None => raiser.moving(model, id),
        };
        let done = done.map_err(|e| e.node(label.0.clone(), label.1))?;
        if let Err(reason) = done {
            odd.entry(reason).or_default().push(label.0);
        }
    }
    if raiser.changes > 0 {
        forget_import(model, MICROSOFT);
    }
    for (reason, nodes) in odd {
        let text = format!("{}: {reason}", stay(&nodes, "integer operator"));
        let known = |d: &Diagnostic| d.code == "not_raised" && d.message == text;
        if !cx.diagnostics.iter().any(known) {
            cx.diagnostics.push(Diagnostic::warning("not_raised", text));
        }
    }
    Ok(raiser.changes)
}

/// Whether a node makes codes or computes with them, so that there may be something to raise.
fn is_quantized(node: &Node) -> bool {
    raised_by(node).is_some() || node.op_type == "QuantizeLinear" || node.op_type == "DynamicQuantizeLinear"
}

/// A change, or why there is none, in words.
type Raised = Result<std::result::Result<(), String>>;

struct Raiser {
    types: Types,
    /// What was dequantized already, by codes, scale, zero point and axis.
    numbers: HashMap<(ValueId, ValueId, Option<ValueId>, Option<usize>), ValueId>,
    changes: usize,
}

impl Raiser {
    fn computing(&mut self, model: &mut Model, id: NodeId, spec: &OpSpec, form: &IntegerForm) -> Raised {
        let (layout, attributes) = match (Layout::of(model.node(id), form), attributes(model, model.node(id), form)) {
            (Ok(layout), Ok(attributes)) => (layout, attributes),
            (Err(reason), _) | (_, Err(reason)) => return Ok(Err(reason)),
        };
        let bias_scale = match layout.bias_scale(model, model.node(id).float("alpha").unwrap_or(1.0)) {
            Some(s) if layout.bias.is_some() && !s.to_f32()?.iter().all(|s| s.is_finite() && *s > 0.0) => {
                return Ok(Err(format!("the scales of the bias of {} are no positive numbers", form.op)));
            }
            scale => scale,
        };
        if layout.bias.is_some() && bias_scale.is_none() {
            return Ok(Err(format!("the scales of {} with a bias are not constant", form.op)));
        }
        let mut inputs: BTreeMap<usize, ValueId> = layout.plain.iter().copied().collect();
        for (&i, triple) in &layout.triples {
            let axis = match triple.scales(model) {
                0 | 1 => None,
                _ => {
                    let rank = model.value(triple.codes).initializer().map(Tensor::rank);
                    let rank = rank.or_else(|| self.types.rank(triple.codes));
                    match rank.and_then(|rank| spec.weight_axis(model.node(id), rank)) {
                        None => return Ok(Err(format!("{} has several scales for what is no weight", form.op))),
                        axis => axis,
                    }
                }
            };
            let triple = Triple { zero_point: zero_points_as(model, triple.scale, triple.zero_point)?, ..*triple };
            let value = self.dequantized(model, id, &triple, axis, false)?;
            inputs.insert(i, value);
        }
        if let (Some((i, codes)), Some(scale)) = (layout.bias, bias_scale) {
            let name = format!("{}_scale", model.value(codes).name());
            let axis = (scale.len() > 1).then_some(0);
            let scale = model.add_initializer(model.value(codes).graph(), &name, scale);
            let triple = Triple { codes, scale, zero_point: None };
            let value = self.dequantized(model, id, &triple, axis, false)?;
            inputs.insert(i, value);
        }
        let mut float = NodeSpec::new(spec.name).attrs(attributes);
        let last = inputs.keys().next_back().copied().unwrap_or(0);
        float = float.inputs((0..=last).map(|i| inputs.get(&i).copied()));
        let outputs = model.take_outputs(id);
        let &[Some(out)] = &outputs[..] else { return Err(Error::malformed("an integer operator has one output")) };
        match layout.output {
            None => {
                insert_instead(model, id, float.output_value(Some(out)));
            }
            Some((scale, zero_point)) => {
                let name = base_name(model.value(out).name()).to_owned();
                let node = insert_instead(model, id, float.output(name));
                let real = model.node(node).output(0).ok_or_else(|| Error::bug("the new node has no output"))?;
                let zero_point = zero_points_as(model, scale, zero_point)?;
                let spec = NodeSpec::new("QuantizeLinear").inputs([Some(real), Some(scale)]);
                let spec = spec.inputs(zero_point.map(Some));
                model.insert(spec.output_value(Some(out)), Place::Before(id));
            }
        }
        model.remove_node(id);
        self.changes += 1;
        Ok(Ok(()))
    }

    /// A node that moves codes which a QuantizeLinear made.
    fn moving(&mut self, model: &mut Model, id: NodeId) -> Raised {
        let Some(spec) = ops::spec(model, id).filter(|_| moves_codes(model, id)) else { return Ok(Ok(())) };
        let node = model.node(id);
        let made = node.input(0).and_then(|v| Linear::of(model, model.producer(v)?, "QuantizeLinear"));
        let Some(q) = made.filter(|q| q.per_tensor(model).is_some()) else { return Ok(Ok(())) };
        let attributes = node.attributes.clone();
        let others: Vec<_> = node.inputs().iter().skip(1).copied().collect();
        let triple = Triple { codes: q.output, scale: q.scale, zero_point: q.zero_point };
        let microsoft = !model.node(q.node).in_onnx_domain();
        let numbers = self.dequantized(model, id, &triple, None, microsoft)?;
        let outputs = model.take_outputs(id);
        let mut float = NodeSpec::new(spec.name).attrs(attributes).input(numbers).inputs(others);
        for v in &outputs {
            float = match v {
                Some(v) => float.output(base_name(model.value(*v).name())),
                None => float.output_value(None),
            };
        }
        let node = insert_instead(model, id, float);
        let reals = model.node(node).outputs().to_vec();
        for (real, codes) in reals.into_iter().zip(outputs) {
            if codes.is_some() {
                // Of the same domain and attributes: they may tell the type of the codes.
                let like = model.node(q.node);
                let mut spec = NodeSpec::new("QuantizeLinear").attrs(like.attributes.clone());
                if let Some(domain) = like.domain.clone().filter(|_| !like.in_onnx_domain()) {
                    spec = spec.domain(domain);
                }
                let spec = spec.inputs([real, Some(q.scale)]).inputs(q.zero_point.map(Some));
                model.insert(spec.output_value(codes), Place::Before(id));
            }
        }
        model.remove_node(id);
        self.changes += 1;
        Ok(Ok(()))
    }

    /// The numbers of codes, by a DequantizeLinear of ONNX's domain or ONNX Runtime's, in front of a node.
    fn dequantized(
        &mut self,
        model: &mut Model,
        before: NodeId,
        t: &Triple,
        axis: Option<usize>,
        microsoft: bool,
    ) -> Result<ValueId> {
        let key = (t.codes, t.scale, t.zero_point, axis);
        let graph = model.node(before).graph();
        if let Some(&v) = self.numbers.get(&key).filter(|v| model.value(**v).graph() == graph) {
            return Ok(v);
        }
        let name = format!("{}_DequantizeLinear_Output", model.value(t.codes).name());
        let mut spec = NodeSpec::new("DequantizeLinear").input(t.codes).input(t.scale).inputs(t.zero_point.map(Some));
        if let Some(axis) = axis {
            spec = spec.attr("axis", axis as i64);
        }
        if microsoft {
            spec = spec.domain(MICROSOFT);
        }
        let value = model.insert_value(spec.output(name), Place::Before(before))?;
        self.numbers.insert(key, value);
        Ok(value)
    }
}

/// Zero points in the shape of the scales, as QuantizeLinear and DequantizeLinear have them: integer operators may have one
/// for all, or one in brackets beside a scalar.
fn zero_points_as(model: &mut Model, scale: ValueId, zero_point: Option<ValueId>) -> Result<Option<ValueId>> {
    let Some(v) = zero_point else { return Ok(None) };
    let (Some(scales), Some(zeros)) = (model.value(scale).constant(), model.value(v).constant()) else {
        return Ok(zero_point);
    };
    let Some(zero) = zeros.scalar_i64().filter(|_| zeros.dims() != scales.dims() && zeros.len() == 1) else {
        return Ok(zero_point);
    };
    let zero = i32::try_from(zero).map_err(|_| Error::malformed(format!("a zero point is {zero}")))?;
    let tensor = pack(zeros.dtype(), scales.dims(), &vec![zero; scales.len()])?;
    let name = format!("{}_{}", model.value(v).name(), model.value(scale).name());
    Ok(Some(model.add_initializer(model.value(v).graph(), &name, tensor)))
}

/// The name of a value of which codes bear the name that quantizers give them.
fn base_name(codes: &str) -> String {
    let suffixes = ["_quantized", "_QuantizeLinear_Output", "_QuantizeLinear"];
    match suffixes.iter().find_map(|s| codes.strip_suffix(s)).filter(|base| !base.is_empty()) {
        Some(base) => base.to_owned(),
        None => format!("{codes}_float"),
    }
}

/// The attributes of the float operator, or why it has none that say the same.
fn attributes(model: &Model, node: &Node, form: &IntegerForm) -> std::result::Result<Vec<Attr>, String> {
    if node.int("channels_last").unwrap_or(0) != 0 {
        return Err(format!("{} with channels last has no float operator", form.op));
    }
    let mut attributes = node.attributes.clone();
    attributes.retain(|a| a.name != "channels_last");
    if form.tells_opset {
        let rules = |opset: i64| opset >= FLAT_SOFTMAX_ENDS;
        let (own, model) = (node.int("opset").unwrap_or(1), model.opset("").unwrap_or(1));
        let axis = node.int("axis").unwrap_or(-1);
        // Along the last axis the old rules and the new ones agree.
        if rules(own) != rules(model) && axis != -1 {
            return Err(format!("{} by the rules of opset {own} in a model of opset {model}", form.op));
        }
        attributes.retain(|a| a.name != "opset" && a.name != "axis");
        attributes.push(Attr::new("axis", axis));
    }
    Ok(attributes)
}

/// Up to this opset, Softmax flattened what lies behind its axis.
const FLAT_SOFTMAX_ENDS: i64 = 13;

#[derive(Clone, Copy)]
struct Triple {
    codes: ValueId,
    scale: ValueId,
    zero_point: Option<ValueId>,
}

impl Triple {
    fn scales(&self, model: &Model) -> usize {
        model.value(self.scale).constant().map_or(0, Tensor::len)
    }
}

/// The inputs of an integer operator, sorted.
#[derive(Default)]
struct Layout {
    triples: BTreeMap<usize, Triple>,
    plain: Vec<(usize, ValueId)>,
    bias: Option<(usize, ValueId)>,
    output: Option<(ValueId, Option<ValueId>)>,
}

impl Layout {
    /// What each input is, or why they are not what they should be.
    fn of(node: &Node, form: &IntegerForm) -> std::result::Result<Self, String> {
        let mut layout = Self::default();
        let mut rest = node.inputs().iter().copied();
        let missing = || format!("{} lacks an input", form.op);
        for slot in form.inputs {
            match *slot {
                Slot::Codes(i) => {
                    let triple = Triple::next(&mut rest).ok_or_else(missing)?;
                    layout.triples.insert(i, triple);
                }
                Slot::EachFrom(first) => {
                    for i in (first..).take(rest.len().div_ceil(3)) {
                        layout.triples.insert(i, Triple::next(&mut rest).ok_or_else(missing)?);
                    }
                }
                // Such operators are raised as products by `raise_dynamic_products`.
                Slot::OnlyCodes(_) | Slot::Scale(_) | Slot::ZeroPoint(_) => return Err(missing()),
                Slot::Plain(i) => layout.plain.push((i, rest.next().flatten().ok_or_else(missing)?)),
                Slot::Bias(i) => layout.bias = rest.next().flatten().map(|v| (i, v)),
                Slot::Output => {
                    layout.output = Some((rest.next().flatten().ok_or_else(missing)?, rest.next().flatten()))
                }
                Slot::OptionalOutput => layout.output = rest.next().flatten().map(|s| (s, rest.next().flatten())),
            }
        }
        Ok(layout)
    }

    /// The scales of the bias: those of input 0 times those of the weight, as the runtime multiplies them, times what the
    /// product is multiplied by (a QGemm multiplies its bias, too).
    fn bias_scale(&self, model: &Model, alpha: f32) -> Option<Tensor> {
        let floats = |i: usize| model.value(self.triples.get(&i)?.scale).constant()?.to_f32().ok();
        let (&[data], weight) = (&floats(0)?[..], floats(1)?) else { return None };
        let dims: Vec<usize> = if weight.len() == 1 { vec![] } else { vec![weight.len()] };
        Some(Tensor::from_f32(&dims, &weight.iter().map(|w| data * w * alpha).collect::<Vec<_>>()))
    }
}

impl Triple {
    fn next(rest: &mut impl Iterator<Item = Option<ValueId>>) -> Option<Self> {
        Some(Self { codes: rest.next().flatten()?, scale: rest.next().flatten()?, zero_point: rest.next().flatten() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::{
        fuse_into_qoperators,
        testing::{check, check_skipped, check_with},
    };
    use crate::target::Target;

    const HEAD: &str = "<ir_version: 8, opset_import: [\"\" : 17";
    const PARAMS: &str = "float s = {0.5}, uint8 z = {3}, float r = {0.25}, uint8 v = {7}";

    fn fused(raised: &str, fused: &str) {
        fused_by(Target::load("onnxruntime-cpu").unwrap().integer_ops(), raised, fused);
    }

    fn fused_by(operators: crate::target::IntegerOps, raised: &str, fused: &str) {
        let mut cx = Context::default();
        cx.options.qoperator = Some(operators);
        check_with(fuse_into_qoperators::run, &mut cx, raised, fused);
    }

    /// How many operators are fused.
    fn fusions(raised: &str) -> usize {
        let mut cx = Context::default();
        cx.options.qoperator = Some(Target::load("onnxruntime-cpu").unwrap().integer_ops());
        fuse_into_qoperators::run(&mut crate::ir::text::parse(raised).unwrap(), &mut cx).unwrap()
    }

    /// Both ways. The body of the Q/DQ form, and that of the form with integer operators.
    fn both(inputs: &str, constants: &str, pairs: &str, bias: &str, integer: &str, microsoft: bool) {
        let domain = if microsoft { ", \"com.microsoft\" : 1" } else { "" };
        let pair_form = format!("{HEAD}] > g ({inputs}) => (uint8 y) <{PARAMS}{constants}{bias}> {{ {pairs} }}");
        let integer_form = format!("{HEAD}{domain}] > g ({inputs}) => (uint8 y) <{PARAMS}{constants}> {{ {integer} }}");
        fused(&pair_form, &integer_form);
        check(run, &integer_form, &pair_form);
    }

    #[test]
    fn convolutions() {
        both(
            "uint8[1,2,4,4] x",
            ", int8[2,2,1,1] w = {1,2,3,4}, float[2] t = {0.5,2.0}, int8[2] u = {0,0}, int32[2] b = {5,6}",
            "x_DequantizeLinear_Output = DequantizeLinear(x, s, z) w_DequantizeLinear_Output = DequantizeLinear<axis = 0>(w, t, u) b_DequantizeLinear_Output = DequantizeLinear<axis = 0>(b, b_scale)
             y_float = Conv<pads = [0,0,0,0]>(x_DequantizeLinear_Output, w_DequantizeLinear_Output, b_DequantizeLinear_Output) y = QuantizeLinear(y_float, r, v)",
            ", float[2] b_scale = {0.25,1.0}",
            "y = QLinearConv<pads = [0,0,0,0]>(x, s, z, w, t, u, r, v, b)",
            false,
        );
    }

    #[test]
    fn sums_joins_and_pools() {
        let (x, params) = ("uint8[1,2,4,4] x, uint8[1,2,4,4] x2", ", float t = {2.0}, uint8 u = {9}");
        let pair = "x_DequantizeLinear_Output = DequantizeLinear(x, s, z) x2_DequantizeLinear_Output = DequantizeLinear(x2, t, u)";
        let (a, b) = ("x_DequantizeLinear_Output", "x2_DequantizeLinear_Output");
        for (op, integer) in [("Add", "QLinearAdd"), ("Mul", "QLinearMul")] {
            both(
                x,
                params,
                &format!("{pair} y_float = {op}({a}, {b}) y = QuantizeLinear(y_float, r, v)"),
                "",
                &format!("y = com.microsoft.{integer}(x, s, z, x2, t, u, r, v)"),
                true,
            );
        }
        both(
            x,
            params,
            &format!("{pair} y_float = Concat<axis = 1>({a}, {b}, {a}) y = QuantizeLinear(y_float, r, v)"),
            "",
            "y = com.microsoft.QLinearConcat<axis = 1>(r, v, x, s, z, x2, t, u, x, s, z)",
            true,
        );
        both(
            "uint8[1,2,4,4] x",
            "",
            "x_DequantizeLinear_Output = DequantizeLinear(x, s, z) y_float = Softmax<axis = 1>(x_DequantizeLinear_Output) y = QuantizeLinear(y_float, r, v)",
            "",
            "y = com.microsoft.QLinearSoftmax<axis = 1, opset = 17>(x, s, z, r, v)",
            true,
        );
    }

    #[test]
    fn products_whose_sums_stay_float() {
        let constants = "float t = {2.0}, int8[3,2] w = {1,2,3,4,5,6}, float s = {0.5}, uint8 z = {3}";
        let head = |domain: &str| format!("{HEAD}{domain}] > g (uint8[4,3] x) => (float y) <{constants}>");
        let pairs = "a = DequantizeLinear(x, s, z) b = DequantizeLinear(w, t) y = MatMul(a, b)";
        let integer = "y = com.microsoft.MatMulIntegerToFloat(x, w, s, t, z)";
        fused(&format!("{} {{ {pairs} }}", head("")), &format!("{} {{ {integer} }}", head(", \"com.microsoft\" : 1")));
    }

    #[test]
    fn movement() {
        let head = format!("{HEAD}] > g (float[1,2,4,4] x) => (uint8 y) <float s = {{0.5}}, uint8 z = {{3}}>");
        let codes = format!("{head} {{ q = QuantizeLinear(x, s, z) y = MaxPool<kernel_shape = [2,2]>(q) }}");
        let numbers = "q = QuantizeLinear(x, s, z) q_DequantizeLinear_Output = DequantizeLinear(q, s, z) y_float = MaxPool<kernel_shape = [2,2]>(q_DequantizeLinear_Output)";
        let raised = format!("{head} {{ {numbers} y = QuantizeLinear(y_float, s, z) }}");
        check(run, &codes, &raised);
        fused(&raised, &codes);
        check_skipped(run, &raised, "");
    }

    #[test]
    fn moved_codes_keep_their_type() {
        let head = "<ir_version: 10, opset_import: [\"\" : 21]> g (float[2,3] x) => (int8 y) <float s = {0.5}>";
        let made = "q = QuantizeLinear<output_dtype = 3>(x, s)";
        check(
            run,
            &format!("{head} {{ {made} y = Transpose(q) }}"),
            &format!(
                "{head} {{ {made} q_DequantizeLinear_Output = DequantizeLinear(q, s)
                 y_float = Transpose(q_DequantizeLinear_Output) y = QuantizeLinear<output_dtype = 3>(y_float, s) }}"
            ),
        );
        // Opset 17 has no codes of 16 bits, but ONNX Runtime's domain does.
        let head = format!("{HEAD}, \"com.microsoft\" : 1] > g (float[2,3] x) => (uint16 y)");
        let head = format!("{head} <float s = {{0.5}}, uint16 z = {{3}}>");
        let made = "q = com.microsoft.QuantizeLinear(x, s, z)";
        check(
            run,
            &format!("{head} {{ {made} y = Transpose(q) }}"),
            &format!(
                "{head} {{ {made} q_DequantizeLinear_Output = com.microsoft.DequantizeLinear(q, s, z)
                 y_float = Transpose(q_DequantizeLinear_Output) y = com.microsoft.QuantizeLinear(y_float, s, z) }}"
            ),
        );
    }

    /// Indices have no scale, and what lies between codes is rounded in another way than what lies between numbers.
    #[test]
    fn what_does_more_than_move_stays() {
        let head = format!("{HEAD}] > g (float[1,2,4,4] x) => (uint8 y, int64 i) <float s = {{0.5}}, uint8 z = {{3}}>");
        let pool = "q = QuantizeLinear(x, s, z) y, i = MaxPool<kernel_shape = [2,2]>(q)";
        check_skipped(run, &format!("{head} {{ {pool} }}"), "");
        let resize = |from: &str, to: &str| format!("{to} = Resize<mode = \"linear\">({from}, , sizes)");
        let head = format!(
            "{HEAD}] > g (float[1,2,4,4] x) => (uint8 y) <float s = {{0.5}}, uint8 z = {{3}}, float[4] sizes = {{1.0,1.0,2.0,2.0}}>"
        );
        let made = "q = QuantizeLinear(x, s, z)";
        check_skipped(run, &format!("{head} {{ {made} {} }}", resize("q", "y")), "");
        let between = resize("p", "r");
        let raised = format!("{head} {{ {made} p = DequantizeLinear(q, s, z) {between} y = QuantizeLinear(r, s, z) }}");
        assert_eq!(fusions(&raised), 0);
    }

    /// ONNX Runtime takes one zero point for all channels, DequantizeLinear one for each scale.
    #[test]
    fn one_zero_point_for_all_channels() {
        let inputs = "uint8[1,1,2,2] x";
        let head = format!(
            "{HEAD}] > g ({inputs}) => (uint8 y) <{PARAMS}, int8[2,1,1,1] w = {{1,2}}, float[2] t = {{0.5,2.0}}"
        );
        check(
            run,
            &format!("{head}, int8 u = {{1}}> {{ y = QLinearConv(x, s, z, w, t, u, r, v) }}"),
            &format!(
                "{head}, int8[2] u_t = {{1,1}}> {{ x_DequantizeLinear_Output = DequantizeLinear(x, s, z)
                 w_DequantizeLinear_Output = DequantizeLinear<axis = 0>(w, t, u_t)
                 y_float = Conv(x_DequantizeLinear_Output, w_DequantizeLinear_Output) y = QuantizeLinear(y_float, r, v) }}"
            ),
        );
    }

    /// A QGemm multiplies its bias by alpha, a Gemm does not.
    #[test]
    fn the_bias_of_a_scaled_product() {
        both(
            "uint8[1,2] x",
            ", int8[2,2] w = {1,2,3,4}, float t = {0.5}, int8 u = {0}, int32[2] b = {5,6}",
            "x_DequantizeLinear_Output = DequantizeLinear(x, s, z) w_DequantizeLinear_Output = DequantizeLinear(w, t, u) b_DequantizeLinear_Output = DequantizeLinear(b, b_scale)
             y_float = Gemm<alpha = 4.0>(x_DequantizeLinear_Output, w_DequantizeLinear_Output, b_DequantizeLinear_Output) y = QuantizeLinear(y_float, r, v)",
            ", float b_scale = {1.0}",
            "y = com.microsoft.QGemm<alpha = 4.0>(x, s, z, w, t, u, b, r, v)",
            true,
        );
    }

    /// Without a zero point the runtime takes int8 codes for uint8.
    #[test]
    fn signed_codes_get_zero_points() {
        let head = "<ir_version: 10, opset_import: [\"\" : 21DOMAIN]> g (int8[2] x) => (int8 y) <float s = {0.5}ZERO>";
        let form = |domain: &str, zero: &str| head.replace("DOMAIN", domain).replace("ZERO", zero);
        let pairs = "a = DequantizeLinear(x, s) b = Add(a, a) y = QuantizeLinear<output_dtype = 3>(b, s)";
        let zeros = ["", "_1", "_2"].map(|i| format!(", int8 s_zero_point{i} = {{0}}")).concat();
        let operators = "moved: []\noperators: [{op: QLinearAdd, types: [[int8, int8, int8]]}]";
        fused_by(
            serde_yaml::from_str(operators).unwrap(),
            &format!("{} {{ {pairs} }}", form("", "")),
            &format!(
                "{} {{ y = com.microsoft.QLinearAdd(x, s, s_zero_point, x, s, s_zero_point_1, s, s_zero_point_2) }}",
                form(", \"com.microsoft\" : 1", &zeros)
            ),
        );
    }

    #[test]
    fn parts_that_nothing_reads_are_codes_as_well() {
        let head = format!("{HEAD}] > g (uint8[6] x) => (uint8 y)");
        let constants = "<float s = {0.5}, uint8 z = {3}>";
        let numbers = "r = DequantizeLinear(x, s, z) a, b, c = Split<axis = 0>(r) y = QuantizeLinear(c, s, z)";
        let codes = "a_quantized, b_quantized, y = Split<axis = 0>(x)";
        fused(&format!("{head} {constants} {{ {numbers} }}"), &format!("{head} {{ {codes} }}"));
    }

    /// Also those of which the target has no fast form, or whose scales are not constant: their Q/DQ form is not asked for.
    #[test]
    fn integer_operators_stay_if_they_are_asked_for() {
        let head = format!(
            "{HEAD}, \"com.microsoft\" : 1] > g (uint8[2] x, float r) => (uint8 y) <float s = {{0.5}}, uint8 z = {{3}}>"
        );
        let text = format!("{head} {{ y = com.microsoft.QLinearAdd(x, s, z, x, s, z, r, z) }}");
        let mut cx = Context::default();
        cx.options.qoperator = Some(Target::load("onnxruntime-cpu").unwrap().integer_ops());
        let mut model = crate::ir::text::parse(&text).unwrap();
        assert_eq!(run(&mut model, &mut cx).unwrap(), 0);
        assert_eq!(run(&mut model, &mut Context::default()).unwrap(), 1);
    }

    #[test]
    fn what_has_no_float_form_is_named() {
        let node = "y = com.microsoft.QLinearGlobalAveragePool<channels_last = 1>(x, s, z, r, v)";
        let head = format!("{HEAD}, \"com.microsoft\" : 1] > g (uint8[1,4,4,2] x) => (uint8 y) <{PARAMS}>");
        check_skipped(run, &format!("{head} {{ {node} }}"), "not_raised");
    }
}
