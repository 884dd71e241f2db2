//! Fuses an LSTM between data that DynamicQuantizeLinear quantizes and weights that a DequantizeLinear makes into
//! com.microsoft's DynamicQuantizeLSTM, with the same codes, scales and zero points.
//!
//! ```text
//! before: x' = DequantizeLinear(q, s, z), where q, s, z = DynamicQuantizeLinear(x)
//!         y = LSTM(x', DequantizeLinear(w_transposed, w_scale, w_zero_point), DequantizeLinear(r_transposed, …), b)
//! after:  y = com.microsoft.DynamicQuantizeLSTM(x, w, r, b, , , , , w_scale, w_zero_point, r_scale, r_zero_point)
//! ```
//!
//! ONNX Runtime makes nothing of the Q/DQ form, and would dequantize the weights at each run. Only where there is a plan, or
//! the QOperator format is asked for: a conversion to Q/DQ form has just taken the kernel apart. The inverse of
//! [`super::raise_dynamic_lstm`].

use std::collections::HashMap;

use super::{
    Context,
    raise_dynamic_lstm::{OP, SUFFIXES, WEIGHTS},
    support::{
        convert::convert,
        pairs::{Linear, import},
        permute,
    },
};
use crate::{
    error::{Error, Result},
    ir::{DType, Model, NodeId, Tensor, ValueId},
    ops::MICROSOFT,
};

/// Codes, scale and zero point.
type Parts = (ValueId, ValueId, Option<ValueId>);

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    if cx.options.qoperator.is_none() && cx.plan.is_none() {
        return Ok(0);
    }
    let mut made = HashMap::new();
    let mut fused = 0;
    for id in model.all_nodes() {
        let Some((x, weights)) = layer(model, id) else { continue };
        let (label, op) = (model.node_label(id), model.node(id).op_type.clone());
        fuse(model, id, x, weights, &mut made).map_err(|e| e.node(label, op))?;
        fused += 1;
    }
    if fused > 0 {
        import(model, MICROSOFT);
    }
    Ok(fused)
}

/// The data and the weights of an LSTM that the kernel can stand for.
fn layer(model: &Model, id: NodeId) -> Option<(ValueId, [Weight; 2])> {
    let node = model.node(id);
    if !node.is("LSTM") || node.int("layout").unwrap_or(0) != 0 {
        return None;
    }
    let dq = Linear::dequantized(model, node.input(0)?)?;
    let quantize = model.producer(dq.input).filter(|&q| model.node(q).is("DynamicQuantizeLinear"))?;
    let parts = [Some(dq.input), Some(dq.scale), dq.zero_point];
    if model.node(quantize).outputs() != parts {
        return None;
    }
    let x = model.node(quantize).input(0)?;
    let weights = WEIGHTS.map(|(at, _)| node.input(at).and_then(|v| Weight::of(model, v)));
    let [Some(w), Some(r)] = weights else { return None };
    // Both belong to one layer.
    let fits = w.dims[..2] == r.dims[..2] && r.dims[1] == r.dims[2].checked_mul(4)?;
    fits.then_some((x, [w, r]))
}

/// A weight as codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Weight {
    /// As LSTM has it: `[directions, columns, inputs]`.
    dims: [usize; 3],
    codes: ValueId,
    scale: ValueId,
    zero_point: Option<ValueId>,
    /// Whether there is a scale for each channel.
    each: bool,
}

impl Weight {
    /// The codes of which a weight is made, if the kernel has such scales and zero points.
    fn of(model: &Model, v: ValueId) -> Option<Self> {
        let reshape = model.producer(v).filter(|&n| model.node(n).is("Reshape"));
        let dq = Linear::dequantized(model, reshape.map_or(Some(v), |n| model.node(n).input(0))?)?;
        let (codes, scale) = (model.value(dq.input).constant()?, model.value(dq.scale).constant()?);
        let dims: Vec<usize> = match reshape {
            None => codes.dims().to_vec(),
            Some(n) => {
                let shape = model.constant_input(n, 1)?.to_i64().ok()?;
                shape.iter().map(|&d| usize::try_from(d).ok().filter(|d| *d > 0)).collect::<Option<_>>()?
            }
        };
        let dims: [usize; 3] = dims.try_into().ok()?;
        let [directions, columns, inputs] = dims;
        let rows = directions.checked_mul(columns).filter(|_| !codes.is_empty())?;
        let lies = dq.axis_of(codes.rank())?;
        let each = match (codes.dims() == dims, lies) {
            _ if scale.rank() != 1 => return None,
            (true, 0) if scale.len() == directions => false,
            (true, 1) if directions == 1 && scale.len() == columns => true,
            (false, 0) if codes.dims() == [rows, inputs] && scale.len() == rows => true,
            _ => return None,
        };
        let eight_bits = matches!(codes.dtype(), DType::Int8 | DType::Uint8) && scale.dtype() == DType::Float;
        // One zero point for all channels of a direction.
        let zeros = match dq.zero_point {
            None => true,
            Some(z) => {
                let zeros = model.value(z).constant()?.to_i64().ok()?;
                zeros.len() == scale.len()
                    && zeros.chunks((zeros.len() / directions).max(1)).all(|of| of.iter().all(|z| *z == of[0]))
            }
        };
        let weight = Self { dims, codes: dq.input, scale: dq.scale, zero_point: dq.zero_point, each };
        (eight_bits && zeros).then_some(weight)
    }

    /// Its parts as the kernel has them.
    fn parts(self, model: &mut Model) -> Result<Parts> {
        let [directions, columns, inputs] = self.dims;
        let codes = constant(model, self.codes)?.reshaped(vec![directions, columns, inputs])?;
        let codes = renamed(model, self.codes, SUFFIXES[0], permute::transposed(&codes, &[0, 2, 1])?);
        let mut unfolded = |v: ValueId| -> Result<ValueId> {
            if !self.each {
                return Ok(v);
            }
            let t = constant(model, v)?.reshaped(vec![directions, columns])?;
            Ok(renamed(model, v, SUFFIXES[1], t))
        };
        Ok((codes, unfolded(self.scale)?, self.zero_point.map(unfolded).transpose()?))
    }
}

fn constant(model: &Model, v: ValueId) -> Result<Tensor> {
    model.value(v).constant().cloned().ok_or_else(|| Error::bug("a constant that was found is none"))
}

/// A new constant beside one, named as before it got a suffix.
fn renamed(model: &mut Model, v: ValueId, suffix: &str, t: Tensor) -> ValueId {
    let (graph, name) = (model.value(v).graph(), model.value(v).name().to_owned());
    model.add_initializer(graph, name.strip_suffix(suffix).unwrap_or(&name), t)
}

/// Makes the kernel of one node, in its place. Nodes that share a weight share its codes, too.
fn fuse(
    model: &mut Model,
    id: NodeId,
    x: ValueId,
    weights: [Weight; 2],
    made: &mut HashMap<Weight, Parts>,
) -> Result<()> {
    let mut inputs: Vec<Option<ValueId>> = model.node(id).inputs().to_vec();
    inputs.resize(12, None);
    inputs[0] = Some(x);
    for ((at, scale_at), weight) in WEIGHTS.into_iter().zip(weights) {
        let parts = match made.get(&weight) {
            Some(parts) => *parts,
            None => weight.parts(model)?,
        };
        made.insert(weight, parts);
        (inputs[at], inputs[scale_at], inputs[scale_at + 1]) = (Some(parts.0), Some(parts.1), parts.2);
    }
    let node = model.node(id);
    let mut attributes = node.attributes.clone();
    attributes.retain(|a| a.name != "layout");
    if node.int("hidden_size").is_none() {
        attributes.push(crate::ir::Attr::new("hidden_size", weights[1].dims[2] as i64));
    }
    convert(model, id, OP, &inputs, attributes);
    model.node_mut(id).domain = Some(MICROSOFT.to_owned());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::text,
        passes::testing::{check_skipped, check_with},
        plan::Plan,
        target::Target,
    };

    fn model(constants: &str, body: &str) -> String {
        format!(
            "<ir_version: 8, opset_import: [\"\" : 17]> g (float[s, b, 1] x) => (float y)
            <int8[1, 4, 1] w = {{1, 2, 3, 4}}, {constants}> {{
                f = DequantizeLinear <axis = 1> (w, t, z)
                q, s, o = DynamicQuantizeLinear(x)
                {body}
            }}"
        )
    }

    const CONSTANTS: &str = "float[4] t = {1, 2, 3, 4}, int8[4] z = {5, 5, 5, 5}";
    const BODY: &str = "d = DequantizeLinear(q, s, o) y = LSTM <layout = 0> (d, f, f)";

    fn asked() -> Context {
        let mut cx = Context::default();
        cx.options.qoperator = Some(Target::load("onnxruntime-cpu").unwrap().integer_ops());
        cx
    }

    #[test]
    fn with_a_plan_or_where_it_is_asked_for() {
        let after =
            "<ir_version: 8, opset_import: [\"\" : 17, \"com.microsoft\" : 1]> g (float[s, b, 1] x) => (float y)
            <int8[1, 1, 4] w_1 = {1, 2, 3, 4}, float[1, 4] t_1 = {1, 2, 3, 4}, int8[1, 4] z_1 = {5, 5, 5, 5}> {
                y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 1> (x, w_1, w_1, , , , , , t_1, z_1, t_1, z_1)
            }";
        let before = model(CONSTANTS, BODY);
        check_with(run, &mut asked(), &before, after);
        check_with(run, &mut Context { plan: Some(Plan::default()), ..Context::default() }, &before, after);
        check_skipped(run, &before, "");
    }

    #[test]
    fn what_the_kernel_has_not_stays() {
        let several = CONSTANTS.replace("{5, 5, 5, 5}", "{5, 5, 4, 5}");
        let wide = CONSTANTS.replace("float[4] t", "float[1] t2 = {1}, float[4] t");
        for odd in [
            model(&several, BODY),
            model(CONSTANTS, &BODY.replace("layout = 0", "layout = 1")),
            model(CONSTANTS, &BODY.replace("(d, f, f)", "(x, f, f)")),
            model(CONSTANTS, &BODY.replace("(q, s, o)", "(q, s)")),
            model(&wide, &BODY.replace("(d, f, f)", "(d, f, x)")),
            model(CONSTANTS, &BODY.replace("y = LSTM <layout = 0>", "y = GRU")),
        ] {
            let mut odd = text::parse(&odd).unwrap();
            assert_eq!(run(&mut odd, &mut asked()).unwrap(), 0, "{}", text::print(&odd));
        }
    }
}
