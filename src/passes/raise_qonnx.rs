//! Makes standard operators of the quantizers of QONNX, the form in which few-bit training tools exchange models.
//!
//! ```text
//! before: y = qonnx.custom_op.general.Quant <signed = 0, narrow = 0> (x, s, 0, 4)
//! after:  q = QuantizeLinear(x, s, 0); c = Clip(q, 0, 15); y = DequantizeLinear(c, s, 0)
//! before: y = qonnx.custom_op.general.BipolarQuant (x, s)
//! after:  p = GreaterOrEqual(x, 0); y = Where(p, s, -s)
//! ```
//!
//! Of constants the codes are computed here, whatever the rounding. Data that are rounded otherwise than to the nearest, or to more
//! than 8 bits, get the arithmetic spelled out, which no kernel computes in integers. The formulas are those of the operators'
//! documentation (github.com/fastmachinelearning/qonnx, docs/qonnx-custom-ops).

use super::{
    Context, convert_opset, eliminate_identity, fold_constants, lift_constants,
    support::{
        pairs::forget_import,
        quantizer::{Written, broadcast_axis, spread_zero_points},
    },
};
use crate::{
    analysis::types,
    diagnostics::Diagnostic,
    error::Result,
    ir::{DType, Model, Node, NodeId, NodeSpec, Place, Tensor, ValueId},
    quant::pack,
};

/// The domains under which tools have the operators.
const DOMAINS: &[&str] = &["qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general"];

/// Whether a node is a quantizer of QONNX.
pub fn is_quantizer(node: &Node) -> bool {
    let ours = node.domain.as_deref().is_some_and(|d| DOMAINS.contains(&d));
    ours && matches!(node.op_type.as_str(), "Quant" | "IntQuant" | "BipolarQuant")
}

/// The same, where there are such nodes, with what their scales are computed from folded before.
pub fn with_its_constants(model: &mut Model, cx: &mut Context) -> Result<usize> {
    if !model.all_nodes().into_iter().any(|n| is_quantizer(model.node(n))) {
        return Ok(0);
    }
    lift_constants::run(model, cx)?;
    eliminate_identity::run(model, cx)?;
    fold_constants::run(model, cx)?;
    run(model, cx)
}

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let ids: Vec<NodeId> = model.all_nodes().into_iter().filter(|&n| is_quantizer(model.node(n))).collect();
    if ids.is_empty() {
        return Ok(0);
    }
    // What they are written with needs it.
    convert_opset::run(model, cx)?;
    let types = types::infer(model);
    let mut changes = 0;
    for id in ids {
        let label = (model.node_label(id), model.node(id).op_type.clone());
        let found = Quant::of(model, id);
        let quant = match found {
            Ok(quant) => quant,
            Err(reason) => {
                let said = Diagnostic::warning("quantizer_not_known", format!("stays as it is: {reason}")).on(&label.0);
                if !cx.diagnostics.contains(&said) {
                    cx.diagnostics.push(said);
                }
                continue;
            }
        };
        let constant = model.value(quant.input).constant().filter(|t| t.dtype() == DType::Float).cloned();
        let rank = constant.as_ref().map(Tensor::rank).or_else(|| types.rank(quant.input));
        let done = match constant {
            Some(t) => quant.of_constant(model, id, &t),
            None => quant.of_data(model, id, rank),
        };
        done.map_err(|e| e.node(label.0, label.1))?;
        changes += 1;
    }
    DOMAINS.iter().for_each(|domain| forget_import(model, domain));
    cx.diagnostics.retain(|d| d.code != "quantizer_not_known" || changes == 0);
    Ok(changes)
}

/// How numbers become whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rounding {
    HalfEven,
    Ceil,
    Floor,
    /// Away from 0.
    Up,
    /// Towards 0.
    Down,
    HalfUp,
    HalfDown,
}

impl Rounding {
    fn named(name: &str) -> Option<Self> {
        Some(match name.to_uppercase().as_str() {
            "ROUND" | "HALF_EVEN" => Self::HalfEven,
            "CEIL" => Self::Ceil,
            "FLOOR" => Self::Floor,
            "UP" => Self::Up,
            "DOWN" | "ROUND_TO_ZERO" => Self::Down,
            "HALF_UP" => Self::HalfUp,
            "HALF_DOWN" => Self::HalfDown,
            _ => return None,
        })
    }

    fn of(self, x: f32) -> f32 {
        match self {
            Self::HalfEven => x.round_ties_even(),
            Self::Ceil => x.ceil(),
            Self::Floor => x.floor(),
            Self::Up => x.abs().ceil().copysign(x),
            Self::Down => x.trunc(),
            Self::HalfUp => (x.abs() + 0.5).floor().copysign(x),
            Self::HalfDown => (x.abs() - 0.5).ceil().copysign(x),
        }
    }
}

/// A quantizer with constant parameters.
struct Quant {
    input: ValueId,
    scale: Tensor,
    zero_point: Tensor,
    /// Least and greatest code; `None`: the sign alone.
    bounds: Option<(f32, f32)>,
    rounding: Rounding,
}

impl Quant {
    fn of(model: &Model, id: NodeId) -> std::result::Result<Self, String> {
        let node = model.node(id);
        let given = |i: usize, what: &str| {
            let t = model.constant_input(id, i).filter(|t| t.dtype() == DType::Float);
            t.cloned().ok_or_else(|| format!("its {what} is no constant float"))
        };
        let input = node.input(0).ok_or("it reads nothing")?;
        let scale = given(1, "scale")?;
        let zero = Tensor::from_f32(&[], &[0.0]);
        if node.op_type == "BipolarQuant" {
            return Ok(Self { input, scale, zero_point: zero, bounds: None, rounding: Rounding::HalfEven });
        }
        let zero_point = given(2, "zero point")?;
        let bits = given(3, "bit width")?.scalar_f32().ok_or("it has several bit widths")?;
        let (signed, narrow) = (node.int("signed").unwrap_or(1) != 0, node.int("narrow").unwrap_or(1) != 0);
        let name = node.string("rounding_mode").unwrap_or("ROUND");
        let rounding = Rounding::named(name).ok_or_else(|| format!("rounding_mode {name:?} is not known"))?;
        if !(1.0..=32.0).contains(&bits) {
            return Err(format!("its bit width is {bits}"));
        }
        let (half, all, cut) = ((bits - 1.0).exp2(), bits.exp2(), f32::from(u8::from(narrow)));
        let bounds = match signed {
            true if bits == 1.0 => None,
            true => Some((cut - half, half - 1.0)),
            false => Some((0.0, all - 1.0 - cut)),
        };
        Ok(Self { input, scale, zero_point, bounds, rounding })
    }

    /// Type of the codes with scales and zero points, where a type of 8 bits holds them.
    fn in_8_bits(&self, rank: Option<usize>) -> Option<(DType, Vec<f32>, Vec<i32>, usize)> {
        let (lo, hi) = self.bounds.unwrap_or((-1.0, 1.0));
        let scales = self.scale.to_f32().ok()?;
        let zeros = self.zero_point.to_f32().ok()?;
        let dtype = if lo < 0.0 { DType::Int8 } else { DType::Uint8 };
        let (least, most) = if lo < 0.0 { (-128.0, 127.0) } else { (0.0, 255.0) };
        let whole = zeros.iter().chain([&lo, &hi]).all(|v| v.fract() == 0.0 && (least..=most).contains(v));
        let positive = scales.iter().all(|s| s.is_finite() && *s > 0.0);
        let zeros = spread_zero_points(&zeros, scales.len())?;
        let axis = broadcast_axis(&self.scale, rank)?;
        (whole && positive).then_some((dtype, scales, zeros, axis))
    }

    /// A constant becomes codes, or the numbers where no type of 8 bits holds these.
    fn of_constant(&self, model: &mut Model, id: NodeId, t: &Tensor) -> Result<()> {
        let Some((dtype, scales, zero_points, axis)) = self.in_8_bits(Some(t.rank())) else {
            return self.spelled(model, id);
        };
        let inner: usize = t.dims().iter().skip(axis + 1).product::<usize>().max(1);
        let code = |(i, x): (usize, f32)| {
            let c = i / inner % scales.len();
            let y = x / scales[c] + zero_points[c] as f32;
            match self.bounds {
                None if y >= 0.0 => 1,
                None => -1,
                Some((lo, hi)) => self.rounding.of(y.clamp(lo, hi)) as i32,
            }
        };
        let codes: Vec<i32> = t.to_f32()?.into_iter().enumerate().map(code).collect();
        let codes = pack::pack(dtype, t.dims(), &codes)?;
        let (lo, hi) = self.bounds.unwrap_or((-1.0, 1.0));
        let bounds = (lo as i32, hi as i32);
        let new = Written { input: self.input, dtype, scales: &scales, zero_points: &zero_points, axis, bounds };
        new.instead_of(model, id, Some(codes))
    }

    fn of_data(&self, model: &mut Model, id: NodeId, rank: Option<usize>) -> Result<()> {
        let nearest = self.rounding == Rounding::HalfEven && model.opset("").is_some_and(|v| v >= 13);
        match (self.bounds, self.in_8_bits(rank)) {
            (Some((lo, hi)), Some((dtype, scales, zero_points, axis))) if nearest => {
                let bounds = (lo as i32, hi as i32);
                let new =
                    Written { input: self.input, dtype, scales: &scales, zero_points: &zero_points, axis, bounds };
                new.instead_of(model, id, None)
            }
            _ => self.spelled(model, id),
        }
    }

    /// In float arithmetic.
    fn spelled(&self, model: &mut Model, id: NodeId) -> Result<()> {
        let graph = model.node(id).graph();
        let outputs = model.take_outputs(id);
        let name = outputs.first().copied().flatten().map_or("quantizer", |v| model.value(v).name()).to_owned();
        let number =
            |model: &mut Model, what: &str, t: Tensor| model.add_initializer(graph, &format!("{name}_{what}"), t);
        let scalar = |v: f32| Tensor::from_f32(&[], &[v]);
        let scale = number(model, "scale", self.scale.clone());
        let Some((lo, hi)) = self.bounds else {
            let zero = number(model, "zero", scalar(0.0));
            let minus: Vec<f32> = self.scale.to_f32()?.iter().map(|s| -s).collect();
            let minus = number(model, "minus_scale", Tensor::from_f32(self.scale.dims(), &minus));
            let sign = NodeSpec::new("GreaterOrEqual").inputs([Some(self.input), Some(zero)]);
            let sign = model.insert_value(sign.output(format!("{name}_sign")), Place::Before(id))?;
            let chosen = NodeSpec::new("Where").inputs([Some(sign), Some(scale), Some(minus)]);
            model.insert(chosen.output_value(outputs.first().copied().flatten()), Place::Before(id));
            model.remove_node(id);
            return Ok(());
        };
        let step = |model: &mut Model, op: &str, with: &[ValueId], x: ValueId| {
            let inputs = std::iter::once(x).chain(with.iter().copied()).map(Some);
            model.insert_value(NodeSpec::new(op).inputs(inputs).output(format!("{name}_{op}")), Place::Before(id))
        };
        let zero_point = number(model, "zero_point", self.zero_point.clone());
        let (low, high) = (number(model, "least", scalar(lo)), number(model, "greatest", scalar(hi)));
        let mut x = step(model, "Div", &[scale], self.input)?;
        x = step(model, "Add", &[zero_point], x)?;
        x = step(model, "Clip", &[low, high], x)?;
        let half = number(model, "half", scalar(0.5));
        x = match self.rounding {
            Rounding::HalfEven => step(model, "Round", &[], x)?,
            Rounding::Ceil => step(model, "Ceil", &[], x)?,
            Rounding::Floor => step(model, "Floor", &[], x)?,
            away => {
                let (sign, mut size) = (step(model, "Sign", &[], x)?, step(model, "Abs", &[], x)?);
                size = match away {
                    Rounding::Up => step(model, "Ceil", &[], size)?,
                    Rounding::Down => step(model, "Floor", &[], size)?,
                    Rounding::HalfUp => {
                        let more = step(model, "Add", &[half], size)?;
                        step(model, "Floor", &[], more)?
                    }
                    _ => {
                        let less = step(model, "Sub", &[half], size)?;
                        step(model, "Ceil", &[], less)?
                    }
                };
                step(model, "Mul", &[sign], size)?
            }
        };
        x = step(model, "Sub", &[zero_point], x)?;
        let last = NodeSpec::new("Mul").inputs([Some(x), Some(scale)]);
        model.insert(last.output_value(outputs.first().copied().flatten()), Place::Before(id));
        model.remove_node(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::check;

    const HEAD: &str = "<ir_version: 8, opset_import: [\"\" : 17, \"qonnx.custom_op.general\" : 1]> g ";
    const PLAIN: &str = "<ir_version: 8, opset_import: [\"\" : 17]> g ";

    fn becomes(before: &str, after: &str) {
        check(run, &format!("{HEAD}{before}"), &format!("{PLAIN}{after}"));
    }

    #[test]
    fn data_to_the_nearest_code() {
        becomes(
            "(float[2] x) => (y) <float s = {0.5}, float z = {0}, float b = {4}> {
                y = qonnx.custom_op.general.Quant <signed = 0, narrow = 0, rounding_mode = \"ROUND\"> (x, s, z, b) }",
            "(float[2] x) => (y) <float y_scale = {0.5}, uint8 y_zero_point = {0}, uint8 y_least = {0}, uint8 y_greatest = {15}> {
                y_QuantizeLinear_Output = QuantizeLinear(x, y_scale, y_zero_point)
                y_Clip_Output = Clip(y_QuantizeLinear_Output, y_least, y_greatest)
                y = DequantizeLinear(y_Clip_Output, y_scale, y_zero_point) }",
        );
    }

    #[test]
    fn constants_with_scales_of_channels_and_any_rounding() {
        becomes(
            "(float[2,2] x) => (y) <float[2,2] w = {0.6, -0.6, 1.5, -9}, float[2,1] s = {0.5, 1}, float z = {0}, float b = {3}> {
                v = qonnx.custom_op.general.Quant <signed = 1, narrow = 1, rounding_mode = \"FLOOR\"> (w, s, z, b)
                y = MatMul(x, v) }",
            "(float[2,2] x) => (y) <int8[2,2] v_quantized = {1, -2, 1, -3}, float[2] v_scale = {0.5, 1}, int8[2] v_zero_point = {0, 0}> {
                v = DequantizeLinear <axis = 0> (v_quantized, v_scale, v_zero_point) y = MatMul(x, v) }",
        );
    }

    #[test]
    fn signs() {
        becomes(
            "(float[2,2] x) => (y) <float[2,2] w = {0.6, -0.6, 0, -9}, float s = {0.5}> {
                v = qonnx.custom_op.general.BipolarQuant (w, s)
                a = MatMul(x, v) y = qonnx.custom_op.general.BipolarQuant (a, s) }",
            "(float[2,2] x) => (y) <int8[2,2] v_quantized = {1, -1, 1, -1}, float v_scale = {0.5}, int8 v_zero_point = {0}, float y_scale = {0.5}, float y_zero = {0}, float y_minus_scale = {-0.5}> {
                v = DequantizeLinear(v_quantized, v_scale, v_zero_point) a = MatMul(x, v)
                y_sign = GreaterOrEqual(a, y_zero) y = Where(y_sign, y_scale, y_minus_scale) }",
        );
    }

    #[test]
    fn other_roundings_of_data_are_spelled_out() {
        becomes(
            "(float[2] x) => (y) <float s = {0.5}, float z = {0}, float b = {4}> {
                y = qonnx.custom_op.general.Quant <signed = 0, narrow = 0, rounding_mode = \"FLOOR\"> (x, s, z, b) }",
            "(float[2] x) => (y) <float y_scale = {0.5}, float y_zero_point = {0}, float y_least = {0}, float y_greatest = {15}> {
                y_Div = Div(x, y_scale) y_Add = Add(y_Div, y_zero_point) y_Clip = Clip(y_Add, y_least, y_greatest)
                y_Floor = Floor(y_Clip) y_Sub = Sub(y_Floor, y_zero_point) y = Mul(y_Sub, y_scale) }",
        );
    }
}
