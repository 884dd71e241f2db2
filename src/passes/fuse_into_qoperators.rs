//! Fuses DequantizeLinear, an operator and QuantizeLinear into the integer operator that computes the three.
//!
//! ```text
//! before: y_q = QuantizeLinear(Conv(DequantizeLinear(x_q, s, z), DequantizeLinear(w_q, t, u), DequantizeLinear(b_q, s·t)), r, v)
//! after:  y_q = QLinearConv(x_q, s, z, w_q, t, u, r, v, b_q)
//! ```
//!
//! Operators that only move elements then move codes, where both sides have one scale and zero point. Driven by the operator
//! facts ([`crate::ops::IntegerForm`]) and by the types that the target has; what has no integer operator stays as it is.

use std::collections::BTreeMap;

use super::{
    Context,
    support::{
        pairs::{Linear, import, moves_codes},
        replace::insert_instead,
    },
};
use crate::{
    analysis::types::{self, Types},
    error::Result,
    ir::{Attr, DType, Model, NodeId, NodeSpec, Tensor, ValueId},
    ops::{self, IntegerForm, MICROSOFT, OpSpec, Role, Slot},
    quant::bias::quantize_bias,
    target::IntegerOps,
};

/// How far the scale of a bias may be from the product of the others: rounding of tools that compute it otherwise.
const SAME_SCALE: f32 = 1e-6;

/// See the module's documentation. Only where the QOperator format is asked for.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let Some(has) = cx.options.qoperator.clone() else { return Ok(0) };
    let types = types::infer(model);
    let mut fused = 0;
    for id in model.all_nodes() {
        // A QuantizeLinear that went with the operator in front of it.
        if model.try_node(id).is_none() {
            continue;
        }
        let Some(plan) = Fusion::of(model, &types, &has, id) else { continue };
        plan.carry_out(model, &types)?;
        fused += 1;
    }
    Ok(fused)
}

/// What one node becomes.
struct Fusion {
    id: NodeId,
    op: &'static str,
    domain: &'static str,
    attributes: Vec<Attr>,
    inputs: Vec<Input>,
    /// The QuantizeLinear of each output; empty where the output stays float.
    outputs: Vec<Linear>,
    /// Outputs that nothing reads, among those, with a name.
    unused: BTreeMap<usize, String>,
    needs_zero_points: bool,
}

enum Input {
    /// Taken over, or left out.
    Value(Option<ValueId>),
    /// Scale and zero point of one of the pair.
    Params(Linear),
    /// A bias that has no fitting codes yet, with the name that they are derived from.
    Codes(String, Tensor),
}

impl Fusion {
    fn of(model: &Model, types: &Types, has: &IntegerOps, id: NodeId) -> Option<Self> {
        let spec = ops::spec(model, id)?;
        if moves_codes(model, id) {
            return Self::moving(model, types, has, id, spec);
        }
        let forms = [spec.integer, spec.to_float];
        forms.into_iter().flatten().find_map(|form| Self::computing(model, types, has, id, spec, form))
    }

    fn computing(
        model: &Model,
        types: &Types,
        has: &IntegerOps,
        id: NodeId,
        spec: &OpSpec,
        form: IntegerForm,
    ) -> Option<Self> {
        let node = model.node(id);
        let fits = |&(name, value): &(&str, f32)| node.float(name).is_none_or(|v| v == value);
        if node.outputs().len() != 1 || !form.fixed.iter().all(fits) {
            return None;
        }
        let (mut inputs, mut codes) = (Vec::new(), Vec::new());
        let output = node.output(0)?;
        let quantized = Linear::only_quantized(model, output).filter(|q| q.per_tensor(model).is_some());
        let triple = |i: usize, inputs: &mut Vec<Input>| -> Option<DType> {
            let dq = Linear::dequantized(model, node.input(i)?)?;
            fits_input(model, spec, id, i, &dq)?;
            inputs.extend([Input::Value(Some(dq.input)), Input::Params(dq)]);
            dq.codes(model, types)
        };
        for slot in form.inputs {
            match *slot {
                Slot::Codes(i) => codes.push(triple(i, &mut inputs)?),
                Slot::EachFrom(first) => {
                    let mut each = (first..node.inputs().len()).map(|i| triple(i, &mut inputs));
                    let dtype = each.next()??;
                    if !each.all(|d| d == Some(dtype)) {
                        return None;
                    }
                    codes.push(dtype);
                }
                Slot::OnlyCodes(i) => {
                    let dq = Linear::dequantized(model, node.input(i)?)?;
                    fits_input(model, spec, id, i, &dq)?;
                    inputs.push(Input::Value(Some(dq.input)));
                    codes.push(dq.codes(model, types)?);
                }
                Slot::Scale(i) => inputs.push(Input::Value(Some(Linear::dequantized(model, node.input(i)?)?.scale))),
                Slot::ZeroPoint(i) => inputs.push(Input::Value(Linear::dequantized(model, node.input(i)?)?.zero_point)),
                Slot::Plain(i) => inputs.push(Input::Value(Some(node.input(i)?))),
                Slot::Bias(i) => inputs.push(bias(model, id, i)?),
                Slot::Output => inputs.push(Input::Params(quantized?)),
                Slot::OptionalOutput => inputs.extend(quantized.map(Input::Params)),
            }
        }
        let makes_codes = form.inputs.iter().any(|s| matches!(s, Slot::Output | Slot::OptionalOutput));
        let quantized = quantized.filter(|_| makes_codes);
        codes.push(quantized.map_or(Some(DType::Float), |q| q.codes(model, types))?);
        if !has.has(form.op, &codes) {
            return None;
        }
        let mut attributes: Vec<Attr> = node.attributes.clone();
        attributes.retain(|a| !form.fixed.iter().any(|(name, _)| a.name == *name));
        if form.tells_opset {
            let opset = model.opset("").unwrap_or(1);
            attributes.push(Attr::new("opset", opset));
            if node.attr("axis").is_none() {
                attributes.push(Attr::new("axis", if opset < 13 { 1i64 } else { -1 }));
            }
        }
        while matches!(inputs.last(), Some(Input::Value(None))) {
            inputs.pop();
        }
        let (op, domain) = (form.op, form.domain);
        // Without one, the runtime takes codes for uint8.
        let others = codes.iter().any(|&d| d != DType::Uint8 && d != DType::Float);
        // Where some are there, it wants all.
        let pairs = || inputs.iter().filter_map(|i| if let Input::Params(pair) = i { Some(pair) } else { None });
        let some = pairs().any(|p| p.zero_point.is_some()) && pairs().any(|p| p.zero_point.is_none());
        let needs_zero_points = others || some || !form.zero_points_are_optional();
        let outputs = quantized.into_iter().collect();
        Some(Self { id, op, domain, attributes, inputs, outputs, unused: BTreeMap::new(), needs_zero_points })
    }

    fn moving(model: &Model, types: &Types, has: &IntegerOps, id: NodeId, spec: &'static OpSpec) -> Option<Self> {
        let node = model.node(id);
        let dq = Linear::dequantized(model, node.input(0)?)?;
        let params = dq.per_tensor(model)?;
        let dtype = dq.codes(model, types)?;
        let one = |v: &Option<ValueId>| {
            let q = Linear::only_quantized(model, (*v)?)?;
            (q.per_tensor(model)? == params && q.codes(model, types)? == dtype).then_some(q)
        };
        let is_unused = |v: &Option<ValueId>| v.is_none_or(|v| model.value(v).uses().is_empty());
        let name = |v: Option<ValueId>| format!("{}_quantized", v.map_or("unused", |v| model.value(v).name()));
        let unused = node.outputs().iter().enumerate().filter(|(_, v)| is_unused(v));
        let unused: BTreeMap<usize, String> = unused.map(|(i, v)| (i, name(*v))).collect();
        let outputs: Vec<Linear> = node.outputs().iter().filter(|v| !is_unused(v)).map(one).collect::<Option<_>>()?;
        if outputs.is_empty() || !has.moves(spec.name, dtype, model.opset("").unwrap_or(1)) {
            return None;
        }
        let others = node.inputs().iter().skip(1).map(|&v| Input::Value(v));
        let inputs = std::iter::once(Input::Value(Some(dq.input))).chain(others).collect();
        let attributes = node.attributes.clone();
        Some(Self { id, op: spec.name, domain: "", attributes, inputs, outputs, unused, needs_zero_points: false })
    }

    fn carry_out(self, model: &mut Model, types: &Types) -> Result<()> {
        let graph = model.node(self.id).graph();
        let mut spec = NodeSpec::new(self.op).attrs(self.attributes);
        if !self.domain.is_empty() {
            spec = spec.domain(self.domain);
            import(model, MICROSOFT);
        }
        for input in self.inputs {
            spec = match input {
                Input::Value(v) => spec.inputs([v]),
                Input::Codes(name, tensor) => spec.input(model.add_initializer(graph, &name, tensor)),
                Input::Params(pair) => {
                    let zero_point = match pair.zero_point {
                        None if self.needs_zero_points => Some(pair.zero_point_or_new(model, types)?),
                        given => given,
                    };
                    let scale = scalar(model, pair.scale);
                    spec.inputs([Some(scale), zero_point.map(|z| scalar(model, z))])
                }
            };
        }
        let made: Vec<Option<ValueId>> = if self.outputs.is_empty() {
            model.take_outputs(self.id)
        } else {
            self.outputs.iter().flat_map(|q| model.take_outputs(q.node)).collect()
        };
        let count = made.len() + self.unused.len();
        let mut made = made.into_iter();
        for i in 0..count {
            spec = match self.unused.get(&i) {
                Some(name) => spec.output(name),
                None => spec.output_value(made.next().flatten()),
            };
        }
        insert_instead(model, self.id, spec);
        self.outputs.iter().for_each(|q| model.remove_node(q.node));
        model.remove_node(self.id);
        Ok(())
    }
}

/// The constant, without a dimension if it is one number: integer operators take scalars alone for what is not by channel.
fn scalar(model: &mut Model, v: ValueId) -> ValueId {
    let one = model.value(v).constant().filter(|t| t.dims() == [1]).and_then(|t| t.reshaped(vec![]).ok());
    let (graph, name) = (model.value(v).graph(), model.value(v).name().to_owned());
    one.map_or(v, |t| model.add_initializer(graph, &name, t))
}

/// Whether the scales of an input are as the integer operators take them: one, or one for each channel of a weight.
fn fits_input(model: &Model, spec: &OpSpec, id: NodeId, i: usize, dq: &Linear) -> Option<()> {
    let scales = dq.scales(model)?;
    if scales.len() == 1 {
        return Some(());
    }
    let codes = model.value(dq.input).constant()?;
    // Kernels take no scales of columns for a batch of matrices.
    if model.node(id).is("MatMul") && codes.rank() != 2 {
        return None;
    }
    let axis = dq.axis_of(codes.rank())?;
    let along = spec.weight_axis(model.node(id), codes.rank())?;
    (spec.role(i) == Role::Weight && axis == along && codes.dims().get(axis) == Some(&scales.len())).then_some(())
}

/// The bias as int32 codes under the product of the scales of inputs 0 and 1. `None` where that cannot be.
fn bias(model: &Model, id: NodeId, i: usize) -> Option<Input> {
    let node = model.node(id);
    let Some(value) = node.input(i) else { return Some(Input::Value(None)) };
    let scales = |i: usize| Linear::dequantized(model, node.input(i)?)?.scales(model);
    let (data, weight) = (scales(0)?, scales(1)?);
    let &[data] = &data[..] else { return None };
    // A QGemm multiplies its bias by alpha, too.
    let data = data * node.float("alpha").unwrap_or(1.0);
    if !(data.is_finite() && data > 0.0) {
        return None;
    }
    let dq = Linear::dequantized(model, value);
    if let Some(dq) = dq.filter(|dq| model.value(dq.input).dtype() == Some(DType::Int32)) {
        let zeros = dq.zero_point.is_none_or(|z| zeros(model, z));
        let own = dq.scales(model)?;
        let product = |j: usize| data * weight[j % weight.len()];
        let same = |(j, &s): (usize, &f32)| (s - product(j)).abs() <= SAME_SCALE * s;
        let fits = own.len() == weight.len() || own.len() == 1 || weight.len() == 1;
        let count = own.len().max(weight.len());
        if zeros && fits && (0..count).all(|j| same((j, &own[j % own.len()]))) {
            return Some(Input::Value(Some(dq.input)));
        }
    }
    let name = model.value(value).name();
    let real = match dq {
        None => model.value(value).constant()?.clone(),
        Some(dq) => dequantize(model, &dq)?,
    };
    if real.rank() != 1 || real.dtype() != DType::Float {
        return None;
    }
    let q = quantize_bias(&real.to_f32().ok()?, data, &weight).ok()?;
    (q.saturated == 0).then(|| Input::Codes(format!("{name}_quantized"), q.values))
}

fn zeros(model: &Model, value: ValueId) -> bool {
    model.value(value).constant().and_then(|t| t.to_i64().ok()).is_some_and(|z| z.iter().all(|&z| z == 0))
}

/// The numbers of a constant behind a DequantizeLinear with one scale, or one for each element.
fn dequantize(model: &Model, dq: &Linear) -> Option<Tensor> {
    let codes = model.value(dq.input).constant()?;
    let (numbers, scales) = (codes.to_i64().ok()?, dq.scales(model)?);
    let zero_points = match dq.zero_point {
        None => vec![0],
        Some(z) => model.value(z).constant()?.to_i64().ok()?,
    };
    if ![1, numbers.len()].contains(&scales.len()) || codes.rank() != 1 || zero_points.is_empty() {
        return None;
    }
    let real = |(i, &c): (usize, &i64)| (c - zero_points[i % zero_points.len()]) as f32 * scales[i % scales.len()];
    let reals: Vec<f32> = numbers.iter().enumerate().map(real).collect();
    Some(Tensor::from_f32(codes.dims(), &reals))
}
