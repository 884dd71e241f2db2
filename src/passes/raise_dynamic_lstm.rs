//! Brings com.microsoft's DynamicQuantizeLSTM into the form of an LSTM whose data go through DynamicQuantizeLinear, and
//! whose weights a DequantizeLinear makes. Scales and zero points stay as they are, bit for bit; the codes are transposed.
//!
//! ```text
//! before: y, h, c = com.microsoft.DynamicQuantizeLSTM(x, w, r, b, , , , , w_scale, w_zero_point, r_scale, r_zero_point)
//! after:  x' = DequantizeLinear(q, s, z), where q, s, z = DynamicQuantizeLinear(x)
//!         y, h, c = LSTM(x', DequantizeLinear(w_transposed, w_scale, w_zero_point), DequantizeLinear(r_transposed, …), b)
//! ```
//!
//! A DequantizeLinear has scales along one axis: those of two directions and their channels lie along the rows of a matrix,
//! of which a Reshape makes the weight.
//!
//! Unlike the other passes of this stage it changes what is computed: the kernel quantizes the state, too, at each step,
//! which is inside the operator and which no Q/DQ form says. So only a conversion to the Q/DQ form asks for it, which says so;
//! whatever else reads such files runs and keeps the kernel as it is. The inverse of [`super::fuse_into_dynamic_lstm`].

use std::collections::HashMap;

use super::{
    Context, convert_opset,
    support::{
        convert::convert,
        pairs::{dynamic_pair, stay},
        permute,
        replace::behind_maker,
    },
};
use crate::{
    diagnostics::{Diagnostic, count},
    error::{Error, Result},
    ir::{DType, GraphId, Model, NodeId, NodeSpec, Place, Tensor, ValueId},
    ops::MICROSOFT,
};

/// The operator.
pub(super) const OP: &str = "DynamicQuantizeLSTM";
/// Behind the names of codes whose last axes have changed places, and of scales that have lost the first.
pub(super) const SUFFIXES: [&str; 2] = ["_transposed", "_flat"];
/// W and R among the inputs, with the scale of each, behind which its zero point follows.
pub(super) const WEIGHTS: [(usize, usize); 2] = [(1, 8), (2, 10)];
/// DequantizeLinear has scales per channel from here on.
const PER_AXIS: i64 = 13;

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    if !cx.options.float_state {
        return Ok(0);
    }
    let of = |model: &Model, id: NodeId| {
        let node = model.node(id);
        node.op_type == OP && node.domain.as_deref() == Some(MICROSOFT)
    };
    let nodes: Vec<NodeId> = model.all_nodes().into_iter().filter(|&n| of(model, n)).collect();
    let (found, odd): (Vec<NodeId>, Vec<NodeId>) =
        nodes.into_iter().partition(|&n| WEIGHTS.iter().all(|&at| Weight::of(model, n, at).is_some()));
    let labels = |model: &Model, nodes: &[NodeId]| nodes.iter().map(|&n| model.node_label(n)).collect::<Vec<_>>();
    if !odd.is_empty() {
        let text = "its weights or their scales are not constant, or of shapes that the operator does not have";
        let text = format!("{}: {text}", stay(&labels(model, &odd), OP));
        cx.diagnostics.push(Diagnostic::note("not_raised", text));
    }
    if found.is_empty() {
        return Ok(0);
    }
    if model.opset("").is_none_or(|v| v < PER_AXIS) {
        let mut newer = model.clone();
        if let Err(e) = convert_opset::convert_to(&mut newer, PER_AXIS, cx) {
            let stay = stay(&labels(model, &found), OP);
            let text = format!("{stay}: the Q/DQ form needs opset {PER_AXIS}, and {e}");
            cx.diagnostics.push(Diagnostic::note("not_raised", text));
            return Ok(0);
        }
        *model = newer;
    }
    let text = format!(
        "{} ({:?}{}) became LSTM: no Q/DQ form says that the state is quantized at each step, so ONNX Runtime computes {} in \
         float, slower, and the numbers differ a little",
        count(found.len(), "DynamicQuantizeLSTM layer"),
        model.node_label(found[0]),
        if found.len() > 1 { " and others" } else { "" },
        if found.len() > 1 { "them" } else { "it" },
    );
    let help = "--format qoperator keeps the kernel, and makes it of the Q/DQ form again, with the same codes";
    cx.diagnostics.push(Diagnostic::note("state_not_quantized", text).help(help));
    let mut made = Made::default();
    for &id in &found {
        let (label, op) = (model.node_label(id), model.node(id).op_type.clone());
        raise(model, id, &mut made).map_err(|e| e.node(label, op))?;
    }
    Ok(found.len())
}

/// What nodes share.
#[derive(Default)]
struct Made {
    data: HashMap<(GraphId, ValueId), ValueId>,
    weights: HashMap<Weight, ValueId>,
}

fn raise(model: &mut Model, id: NodeId, made: &mut Made) -> Result<()> {
    let mut inputs: Vec<Option<ValueId>> = model.node(id).inputs().iter().copied().take(8).collect();
    let Some(x) = inputs.first().copied().flatten() else {
        return Err(Error::malformed(format!("{OP} has no data")));
    };
    inputs[0] = Some(data(model, id, x, made)?);
    for at in WEIGHTS {
        let weight = Weight::of(model, id, at).ok_or_else(|| Error::bug("a weight that was sound is no more"))?;
        let known = made.weights.get(&weight).copied();
        let value = known.map_or_else(|| weight.dequantized(model), Ok)?;
        made.weights.insert(weight, value);
        inputs[at.0] = Some(value);
    }
    let attributes = model.node(id).attributes.clone();
    model.node_mut(id).domain = None;
    convert(model, id, "LSTM", &inputs, attributes);
    Ok(())
}

/// Data in codes and back, once for all layers of a graph that read them.
fn data(model: &mut Model, id: NodeId, x: ValueId, made: &mut Made) -> Result<ValueId> {
    let graph = model.node(id).graph();
    if let Some(&known) = made.data.get(&(graph, x)) {
        return Ok(known);
    }
    let real = dynamic_pair(model, x, behind_maker(model, x, graph))?;
    made.data.insert((graph, x), real);
    Ok(real)
}

/// A constant weight of the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Weight {
    /// `[directions, inputs, columns]`.
    codes: ValueId,
    /// `[directions]` or `[directions, columns]`.
    scale: ValueId,
    /// Of the same shape.
    zero_point: Option<ValueId>,
}

impl Weight {
    /// The weight with this place among the inputs, if all of it is sound and constant.
    fn of(model: &Model, id: NodeId, (at, scale): (usize, usize)) -> Option<Self> {
        let node = model.node(id);
        let weight = Self { codes: node.input(at)?, scale: node.input(scale)?, zero_point: node.input(scale + 1) };
        let (codes, scale) = (model.value(weight.codes).constant()?, model.value(weight.scale).constant()?);
        let &[directions, _, columns] = codes.dims() else { return None };
        let eight_bits = matches!(codes.dtype(), DType::Int8 | DType::Uint8);
        let fits = scale.dims() == [directions] || scale.dims() == [directions, columns];
        let zeros = match weight.zero_point {
            None => true,
            Some(z) => {
                let z = model.value(z).constant()?;
                z.dims() == scale.dims() && z.dtype() == codes.dtype()
            }
        };
        (eight_bits && scale.dtype() == DType::Float && fits && zeros && !codes.is_empty()).then_some(weight)
    }

    /// The weight in float, as LSTM takes it.
    fn dequantized(self, model: &mut Model) -> Result<ValueId> {
        let constant = |v: ValueId| model.value(v).constant().cloned().ok_or_else(|| Error::bug("it was constant"));
        let (codes, scale) = (constant(self.codes)?, constant(self.scale)?);
        let codes = permute::transposed(&codes, &[0, 2, 1])?;
        let dims = codes.dims().to_vec();
        let (rows, axis) = match (scale.rank(), dims[0]) {
            (1, _) => (dims.clone(), 0),
            (_, 1) => (dims.clone(), 1),
            _ => (vec![dims[0] * dims[1], dims[2]], 0),
        };
        let (graph, name) = (model.value(self.codes).graph(), model.value(self.codes).name().to_owned());
        let reshaped = rows != dims;
        let codes = model.add_initializer(graph, &format!("{name}{}", SUFFIXES[0]), codes.reshaped(rows)?);
        let scale = flat(model, self.scale, scale)?;
        let zero_point = match self.zero_point.and_then(|z| Some((z, model.value(z).constant()?.clone()))) {
            None => None,
            Some((z, t)) => Some(flat(model, z, t)?),
        };
        let base = name.strip_suffix("_quantized").unwrap_or(&name);
        let spec = NodeSpec::new("DequantizeLinear")
            .inputs([Some(codes), Some(scale)])
            .inputs(zero_point.map(Some))
            .attr("axis", axis)
            .output(format!("{base}_DequantizeLinear_Output"));
        let real = model.insert_value(spec, Place::Start(graph))?;
        if !reshaped {
            return Ok(real);
        }
        let shape: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
        let shape = model.add_initializer(graph, &format!("{base}_shape"), Tensor::from_i64(&[3], &shape));
        let spec = NodeSpec::new("Reshape").inputs([Some(real), Some(shape)]).output(format!("{base}_Reshape_Output"));
        let maker = model.producer(real).ok_or_else(|| Error::bug("the new value has no producer"))?;
        model.insert_value(spec, Place::After(maker))
    }
}

/// A scale or zero point along one axis.
fn flat(model: &mut Model, v: ValueId, t: Tensor) -> Result<ValueId> {
    if t.rank() == 1 {
        return Ok(v);
    }
    let (graph, name) = (model.value(v).graph(), format!("{}{}", model.value(v).name(), SUFFIXES[1]));
    Ok(model.add_initializer(graph, &name, t.reshaped(vec![t.len()])?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::text,
        passes::{
            fuse_into_dynamic_lstm,
            testing::{check_skipped, check_with},
        },
        target::Target,
    };

    fn asked() -> Context {
        let mut cx = Context::default();
        cx.options.float_state = true;
        cx
    }

    fn back() -> Context {
        let mut cx = Context::default();
        cx.options.qoperator = Some(Target::load("onnxruntime-cpu").unwrap().integer_ops());
        cx
    }

    fn there_and_back(before: &str, after: &str) {
        check_with(run, &mut asked(), before, after);
        check_with(fuse_into_dynamic_lstm::run, &mut back(), after, before);
    }

    const HEAD: &str = "<ir_version: 8, opset_import: [\"\" : 17, \"com.microsoft\" : 1]>";

    #[test]
    fn scales_for_each_channel_of_one_direction() {
        there_and_back(
            &format!(
                "{HEAD} g (float[s, b, 2] x) => (float y, float c)
                <int8[1, 2, 4] w_quantized = {{1, 2, 3, 4, 5, 6, 7, 8}}, float[1, 4] w_scale = {{1, 2, 3, 4}},
                 int8[1, 4] w_zero_point = {{0, 0, 0, 0}}, uint8[1, 1, 4] r_quantized = {{1, 2, 3, 4}}, float[1] r_scale = {{2}},
                 uint8[1] r_zero_point = {{3}}, float[1, 8] b = {{0, 1, 2, 3, 4, 5, 6, 7}}> {{
                    y, , c = com.microsoft.DynamicQuantizeLSTM <hidden_size = 1, clip = 3.0>
                        (x, w_quantized, r_quantized, b, , , , , w_scale, w_zero_point, r_scale, r_zero_point)
                }}"
            ),
            &format!(
                "{HEAD} g (float[s, b, 2] x) => (float y, float c)
                <int8[1, 4, 2] w_quantized_transposed = {{1, 5, 2, 6, 3, 7, 4, 8}}, float[4] w_scale_flat = {{1, 2, 3, 4}},
                 int8[4] w_zero_point_flat = {{0, 0, 0, 0}}, uint8[1, 4, 1] r_quantized_transposed = {{1, 2, 3, 4}}, float[1] r_scale = {{2}},
                 uint8[1] r_zero_point = {{3}}, float[1, 8] b = {{0, 1, 2, 3, 4, 5, 6, 7}}> {{
                    r_DequantizeLinear_Output = DequantizeLinear <axis = 0> (r_quantized_transposed, r_scale, r_zero_point)
                    w_DequantizeLinear_Output = DequantizeLinear <axis = 1> (w_quantized_transposed, w_scale_flat, w_zero_point_flat)
                    x_quantized, x_scale, x_zero_point = DynamicQuantizeLinear(x)
                    x_DequantizeLinear_Output = DequantizeLinear(x_quantized, x_scale, x_zero_point)
                    y, , c = LSTM <hidden_size = 1, clip = 3.0>
                        (x_DequantizeLinear_Output, w_DequantizeLinear_Output, r_DequantizeLinear_Output, b)
                }}"
            ),
        );
    }

    /// Two layers that share data, W, and all that R is made of; the state of the second begins somewhere.
    #[test]
    fn two_directions_and_what_layers_share() {
        let lstm = |y: &str, h: &str| {
            format!(
                "{y} = com.microsoft.DynamicQuantizeLSTM <direction = \"bidirectional\", hidden_size = 1>
                    (x, w, r, , , {h}, , , t, , u, v)"
            )
        };
        let raised = |y: &str, rest: &str| {
            format!(
                "{y} = LSTM <direction = \"bidirectional\", hidden_size = 1>
                    (x_DequantizeLinear_Output, w_DequantizeLinear_Output, r_Reshape_Output{rest})"
            )
        };
        there_and_back(
            &format!(
                "{HEAD} g (float[s, 1, 1] x, float[2, 1, 1] h) => (float y, float z)
                <int8[2, 1, 4] w = {{1, 2, 3, 4, 5, 6, 7, 8}}, float[2] t = {{1, 2}},
                 int8[2, 1, 4] r = {{1, 2, 3, 4, 5, 6, 7, 8}}, float[2, 4] u = {{1, 2, 3, 4, 5, 6, 7, 8}},
                 int8[2, 4] v = {{1, 1, 1, 1, 2, 2, 2, 2}}> {{ {} {} }}",
                lstm("y", ""),
                lstm("z", "h")
            ),
            &format!(
                "{HEAD} g (float[s, 1, 1] x, float[2, 1, 1] h) => (float y, float z)
                <int8[2, 4, 1] w_transposed = {{1, 2, 3, 4, 5, 6, 7, 8}}, float[2] t = {{1, 2}},
                 int8[8, 1] r_transposed = {{1, 2, 3, 4, 5, 6, 7, 8}}, float[8] u_flat = {{1, 2, 3, 4, 5, 6, 7, 8}},
                 int8[8] v_flat = {{1, 1, 1, 1, 2, 2, 2, 2}}, int64[3] r_shape = {{2, 4, 1}}> {{
                    r_DequantizeLinear_Output = DequantizeLinear <axis = 0> (r_transposed, u_flat, v_flat)
                    r_Reshape_Output = Reshape(r_DequantizeLinear_Output, r_shape)
                    w_DequantizeLinear_Output = DequantizeLinear <axis = 0> (w_transposed, t)
                    x_quantized, x_scale, x_zero_point = DynamicQuantizeLinear(x)
                    x_DequantizeLinear_Output = DequantizeLinear(x_quantized, x_scale, x_zero_point)
                    {} {}
                }}",
                raised("y", ""),
                raised("z", ", , , h")
            ),
        );
    }

    /// In a branch, with weights of the main graph; an operator set that has no scales per channel yet.
    #[test]
    fn in_subgraphs_of_old_models() {
        let before = "<ir_version: 6, opset_import: [\"\" : 11, \"com.microsoft\" : 1]> g (float[s, 1, 1] x, bool k) => (float y)
            <int8[1, 1, 4] w = {1, 2, 3, 4}, float[1, 4] t = {1, 2, 3, 4}> {
                y = If (k) <
                    then_branch = a () => (float a_y) {
                        n = Neg(x)
                        a_y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 1> (n, w, w, , , , , , t, , t)
                    },
                    else_branch = b () => (float b_y) {
                        b_y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 1> (x, w, w, , , , , , t, , t)
                    }
                >
            }";
        let mut model = text::parse(before).unwrap();
        let mut cx = asked();
        assert_eq!(run(&mut model, &mut cx).unwrap(), 2);
        model.verify().unwrap();
        assert_eq!(model.opset(""), Some(13));
        let count = |m: &Model, op: &str| m.all_nodes().iter().filter(|&&n| m.node(n).op_type == op).count();
        let counts = ["LSTM", "DynamicQuantizeLinear", "DequantizeLinear", OP].map(|op| count(&model, op));
        assert_eq!(counts, [2, 2, 3, 0]);
        assert!(cx.diagnostics.iter().any(|d| d.message.starts_with("2 DynamicQuantizeLSTM layers (\"")));
        assert_eq!(fuse_into_dynamic_lstm::run(&mut model, &mut back()).unwrap(), 2);
        model.verify().unwrap();
        assert_eq!(count(&model, OP), 2);
    }

    #[test]
    fn what_stays() {
        let model = |scale: &str, zero: &str| {
            format!(
                "{HEAD} g (float[s, b, 1] x) => (float y) <int8[1, 1, 4] w = {{1, 2, 3, 4}}, {scale}, {zero}> {{
                    y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 1> (x, w, w, , , , , , t, z, t, z)
                }}"
            )
        };
        let sound = model("float[1] t = {1}", "int8[1] z = {0}");
        // Only a conversion asks.
        check_skipped(run, &sound, "");
        for odd in [
            model("float t = {1}", "int8[1] z = {0}"),
            model("float[1, 4] t = {1, 2, 3, 4}", "int8[1] z = {0}"),
            model("float[1] t = {1}", "uint8[1] z = {0}"),
            sound.replace("(x, w, w,", "(x, w, x,"),
            sound.replace("int8[1, 1, 4] w", "int8[1, 4] w"),
        ] {
            let mut model = text::parse(&odd).unwrap();
            let mut cx = asked();
            assert_eq!(run(&mut model, &mut cx).unwrap(), 0, "{odd}");
            assert_eq!(cx.diagnostics[0].code, "not_raised");
        }
    }
}
