//! Makes an LSTM whose data are quantized at run time of each LSTM that the plan calls dynamic. Weights are transposed, and
//! stay in the graph where they were.
//!
//! ```text
//! before: y, h, c = LSTM(x, w, r, b)
//! after:  y, h, c = com.microsoft.DynamicQuantizeLSTM(x, w_quantized, r_quantized, b, , , , ,
//!                                                     w_scale, w_zero_point, r_scale, r_zero_point)
//! ```

use std::collections::HashMap;

use super::{
    Context,
    raise_dynamic_lstm::{OP, WEIGHTS},
    support::{pairs::import, permute},
};
use crate::{
    error::{Error, Result},
    ir::{Attr, DType, Model, NodeId, Tensor, ValueId},
    ops::MICROSOFT,
    plan::{Form, Plan, Weight, named_values},
    quant::{
        granularity::{Granularity, QuantizedWeight, channel_params, quantize_with},
        params::Range,
    },
};

/// Dynamic nodes of another pass; an Add is what that made of a Gemm.
const PRODUCTS: &[&str] = &["MatMul", "Gemm", "Conv", "Add"];
/// All that the kernel knows: `layout` is not among them.
const ATTRIBUTES: &[&str] =
    &["activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget"];

/// See the module's documentation. Without a plan there is nothing to do.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let Some(plan) = cx.plan.take() else { return Ok(0) };
    let done = quantize_all(model, &plan);
    cx.plan = Some(plan);
    done
}

/// Codes, scale and zero point.
type Parts = [ValueId; 3];

fn quantize_all(model: &mut Model, plan: &Plan) -> Result<usize> {
    let dynamic: Vec<_> = plan.nodes.iter().filter(|(_, n)| n.becomes == Form::Dynamic).collect();
    if dynamic.is_empty() {
        return Ok(0);
    }
    let names = named_values(model);
    let mut found: HashMap<NodeId, &Weight> = HashMap::new();
    for (name, entry) in dynamic {
        let Some(id) = names.get(name).and_then(|&v| model.producer(v)) else {
            return Err(Error::config("the plan makes this node dynamic, but the model has none of that name")
                .value(name)
                .help("a plan belongs to the model that it was made for, with the same Prepare passes"));
        };
        let node = model.node(id);
        let fail = |text: &str| Err(Error::config(text).node(model.node_label(id), &node.op_type));
        match &entry.weight {
            _ if node.op_type == OP || PRODUCTS.contains(&node.op_type.as_str()) => {}
            _ if !node.is("LSTM") => return fail("the plan makes this node dynamic, which only LSTM can be"),
            None => return fail("the plan makes this node dynamic, but says nothing of its weight"),
            Some(weight) => drop(found.insert(id, weight)),
        }
    }
    let mut shared = HashMap::new();
    // The order of the file, not of the names.
    let nodes: Vec<NodeId> = model.nodes_below(model.main()).into_iter().filter(|n| found.contains_key(n)).collect();
    for &id in &nodes {
        let (label, op) = (model.node_label(id), model.node(id).op_type.clone());
        quantize(model, id, found[&id], &mut shared).map_err(|e| e.node(label, op))?;
    }
    if !nodes.is_empty() {
        import(model, MICROSOFT);
    }
    Ok(nodes.len())
}

/// Makes the kernel of one node, in its place.
fn quantize(
    model: &mut Model,
    id: NodeId,
    plan: &Weight,
    shared: &mut HashMap<(ValueId, String), Parts>,
) -> Result<()> {
    let mut made = WEIGHTS.map(|(from, scale)| (from, scale, None));
    for (from, _, parts) in &mut made {
        *parts = Some(weight(model, id, *from, plan, shared)?);
    }
    let node = model.node(id);
    if node.int("layout").unwrap_or(0) != 0 {
        return Err(Error::config(format!("{OP} has no layout {}", node.int("layout").unwrap_or(0))));
    }
    let hidden = model.constant_input(id, 2).and_then(|r| r.dims().get(2).copied()).unwrap_or(0);
    let said = node.int("hidden_size").is_some();
    let node = model.node_mut(id);
    node.attributes.retain(|a| ATTRIBUTES.contains(&a.name.as_str()));
    if !said {
        node.attributes.push(Attr::new("hidden_size", hidden as i64));
    }
    node.op_type = OP.to_owned();
    node.domain = Some(MICROSOFT.to_owned());
    for (from, scale, parts) in made {
        let Some([codes, scales, zero_points]) = parts else { continue };
        model.set_input(id, from, Some(codes));
        model.set_input(id, scale, Some(scales));
        model.set_input(id, scale + 1, Some(zero_points));
    }
    Ok(())
}

/// Input `at` in codes. Nodes that share a weight share its codes, too.
fn weight(
    model: &mut Model,
    id: NodeId,
    at: usize,
    plan: &Weight,
    shared: &mut HashMap<(ValueId, String), Parts>,
) -> Result<Parts> {
    let constant = model.node(id).input(at).and_then(|v| Some((v, model.value(v).constant()?.clone())));
    let (value, tensor) = constant.ok_or_else(|| Error::config(format!("input {at} is not constant")))?;
    let key = (value, format!("{plan:?}"));
    if let Some(parts) = shared.get(&key) {
        return Ok(*parts);
    }
    let tensors = codes(&tensor, plan)?;
    let (graph, name) = (model.value(value).graph(), model.value(value).name().to_owned());
    let add = |(tensor, suffix): (Tensor, &str)| model.add_initializer(graph, &format!("{name}_{suffix}"), tensor);
    let [codes, scale, zero_point] = tensors;
    let parts = [(codes, "quantized"), (scale, "scale"), (zero_point, "zero_point")].map(add);
    shared.insert(key, parts);
    Ok(parts)
}

/// `[directions, gates, k]` as codes `[directions, k, gates]` with scales and zero points `[directions, gates]`, or
/// `[directions]` where the gates share one.
fn codes(tensor: &Tensor, plan: &Weight) -> Result<[Tensor; 3]> {
    if !matches!(plan.dtype, DType::Int8 | DType::Uint8) {
        return Err(Error::config(format!("{OP} has no weights of type {}", plan.dtype)));
    }
    let &[directions, gates, k] = tensor.dims() else {
        return Err(Error::malformed(format!(
            "a weight has shape {:?}, not [directions, gates, inputs]",
            tensor.dims()
        )));
    };
    let (dims, scale_dims) = match plan.axis {
        Some(1) if plan.symmetric => (vec![directions * gates, k], vec![directions, gates]),
        Some(1) => {
            return Err(Error::config(format!("{OP} has no zero points per channel"))
                .help("the plan's weight must be symmetric, or have no axis"));
        }
        Some(axis) => return Err(Error::config(format!("{OP} has scales along axis 1, not {axis}"))),
        None => (vec![directions, gates * k], vec![directions]),
    };
    let q = round(tensor, dims, plan)?;
    Ok([
        permute::transposed(&q.values.reshaped(tensor.dims().to_vec())?, &[0, 2, 1])?,
        q.scale.reshaped(scale_dims.clone())?,
        q.zero_point.reshaped(scale_dims)?,
    ])
}

/// Rounds to the nearest codes, with a scale for each row.
fn round(tensor: &Tensor, dims: Vec<usize>, plan: &Weight) -> Result<QuantizedWeight> {
    let target = plan.target();
    let (values, rows) = (tensor.to_f32()?, Granularity::PerChannel(0));
    let mut params = channel_params(&values, &dims, rows, target)?;
    if plan.symmetric {
        // Rows of zeros are no exception: the kernel wants the same zero point for all channels.
        let middle = target.params(Range::new(-1.0, 1.0))?.zero_point;
        params.iter_mut().for_each(|p| p.zero_point = middle);
    }
    plan.without_saturation(tensor, quantize_with(&values, &dims, rows, target, params)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ir::text, passes::testing::check_with};

    /// A context with a plan that makes these nodes dynamic.
    fn context(names: &[&str], weight: &str) -> Context {
        let node = |n: &&str| format!("  {n}: {{op: LSTM, becomes: dynamic, weight: {weight}}}\n");
        let nodes: String = names.iter().map(node).collect();
        let plan = Plan::from_yaml(&format!("target: t\nactivations: {{}}\nnodes:\n{nodes}")).unwrap();
        Context { plan: Some(plan), ..Context::default() }
    }

    fn error(model: &str, cx: &mut Context) -> String {
        run(&mut text::parse(model).unwrap(), cx).unwrap_err().to_string()
    }

    const PER_CHANNEL: &str = "{dtype: int8, axis: 1, symmetric: true}";

    /// One hidden unit, so four gates; two inputs.
    const MODEL: &str = "<ir_version: 8, opset_import: [\"\" : 14]> (float[s, b, 2] x) => (float y)
        <float[1, 4, 2] w = {127, -3, 0, 0, 63.5, 1, -254, 2}, float[1, 4, 1] r = {1, -2, 4, 0.5}> {
            y = LSTM <hidden_size = 1, layout = 0, clip = 3.0> (x, w, r)
        }";

    #[test]
    fn scales_for_each_gate() {
        check_with(
            run,
            &mut context(&["y"], PER_CHANNEL),
            MODEL,
            "<ir_version: 8, opset_import: [\"\" : 14, \"com.microsoft\" : 1]> (float[s, b, 2] x) => (float y)
            <int8[1, 2, 4] w_quantized = {127, 0, 127, -127, -3, 0, 2, 1}, float[1, 4] w_scale = {1, 1, 0.5, 2},
             int8[1, 4] w_zero_point = {0, 0, 0, 0}, int8[1, 1, 4] r_quantized = {127, -127, 127, 127},
             float[1, 4] r_scale = {0.007874016, 0.015748031, 0.031496063, 0.003937008},
             int8[1, 4] r_zero_point = {0, 0, 0, 0}> {
                y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 1, clip = 3.0>
                    (x, w_quantized, r_quantized, , , , , , w_scale, w_zero_point, r_scale, r_zero_point)
            }",
        );
    }

    #[test]
    fn one_scale_for_each_direction() {
        check_with(
            run,
            &mut context(&["y"], "{dtype: uint8, symmetric: false}"),
            "<ir_version: 8, opset_import: [\"\" : 14]> (float[s, b, 1] x) => (float y)
            <float[2, 4, 1] w = {0, 1, 2, 255, -2, -1, 0, 253}, float[2, 4, 1] r = {0, 0, 0, 0, -510, 0, 0, 0}> {
                y = LSTM <direction = \"bidirectional\"> (x, w, r)
            }",
            "<ir_version: 8, opset_import: [\"\" : 14, \"com.microsoft\" : 1]> (float[s, b, 1] x) => (float y)
            <uint8[2, 1, 4] w_quantized = {0, 1, 2, 255, 0, 1, 2, 255}, float[2] w_scale = {1, 1}, uint8[2] w_zero_point = {0, 2},
             uint8[2, 1, 4] r_quantized = {0, 0, 0, 0, 0, 255, 255, 255}, float[2] r_scale = {1, 2},
             uint8[2] r_zero_point = {0, 255}> {
                y = com.microsoft.DynamicQuantizeLSTM <direction = \"bidirectional\", hidden_size = 1>
                    (x, w_quantized, r_quantized, , , , , , w_scale, w_zero_point, r_scale, r_zero_point)
            }",
        );
    }

    #[test]
    fn unsigned_codes_have_one_zero_point_also_for_rows_of_zeros() {
        let [codes, _, zeros] = codes(
            &Tensor::from_f32(&[1, 4, 1], &[0.0, 1.0, -1.0, 0.0]),
            &Weight {
                dtype: DType::Uint8,
                axis: Some(1),
                symmetric: true,
                reduce_range: false,
                pair_axes: Vec::new(),
                learned: false,
                algorithm: "rtn".into(),
            },
        )
        .unwrap();
        assert_eq!(zeros.to_i64().unwrap(), [128; 4]);
        assert_eq!(codes.to_i64().unwrap(), [128, 255, 1, 128]);
    }

    #[test]
    fn nodes_share_codes_and_others_keep_the_float_weight() {
        let text = "<ir_version: 8, opset_import: [\"\" : 14]> (float[s, b, 2] x) => (float y, float z, float u)
            <float[1, 4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[1, 4, 1] r = {1, 2, 3, 4}> {
                y = LSTM <hidden_size = 1> (x, w, r)
                z = LSTM <hidden_size = 1, direction = \"reverse\"> (x, w, r)
                u = LSTM <hidden_size = 1> (x, w, r)
            }";
        let mut model = text::parse(text).unwrap();
        assert_eq!(run(&mut model, &mut context(&["y", "z"], PER_CHANNEL)).unwrap(), 2);
        model.verify().unwrap();
        let nodes = model.nodes(model.main());
        let inputs = |i: usize| model.node(nodes[i]).inputs();
        assert_eq!(inputs(0)[1..], inputs(1)[1..]);
        assert_eq!(model.value(inputs(2)[1].unwrap()).name(), "w");
    }

    #[test]
    fn says_what_is_wrong_with_a_plan() {
        let asked = |weight: &str| error(MODEL, &mut context(&["y"], weight));
        assert!(asked("{dtype: int8, axis: 1, symmetric: false}").contains("no zero points per channel"));
        assert!(asked("{dtype: int4, axis: 1, symmetric: true}").contains("no weights of type int4"));
        assert!(asked("{dtype: int8, axis: 0, symmetric: true}").contains("along axis 1, not 0"));
        assert!(asked("null").contains("says nothing of its weight"));
        let other = MODEL.replace("(x, w, r)", "(x, x, r)");
        assert!(error(&other, &mut context(&["y"], PER_CHANNEL)).contains("input 1 is not constant"));
        assert!(error(MODEL, &mut context(&["q"], PER_CHANNEL)).contains("none of that name"));
        let relu = "(float[2] x) => (float y) { y = Relu(x) }";
        assert!(error(relu, &mut context(&["y"], PER_CHANNEL)).contains("which only LSTM can be"));
    }
}
