//! Corrects biases for the shift that rounding the weights causes: the mean of the input, by channel, times the rounding
//! errors of the weights is what the layer's output is off on average, and the bias takes that back.
//!
//! Markus Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.2, with
//! the means from calibration. Where the weights are rounded by what layers read, these means are of all that one output
//! multiplies; else of channels, and where a convolution pads, the taps that lie on the padding are left out in the share of
//! positions where they do, as if the input were alike everywhere.
//!
//! ```text
//! before: y = Conv(x, w, b)
//! after:  y = Conv(x, w, b'), b' = b + (w - rounded(w)) · mean(x)
//! ```

use super::{
    Context,
    support::linear::{Kind, Linear},
};
use crate::{
    analysis::types::{self, Types},
    error::Result,
    ir::{DType, Model, Node, NodeId, Tensor},
    plan::{Form, KnownReads, Plan},
};

/// See the module's documentation. Without a plan there is nothing to do.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let Some(plan) = cx.plan.take() else { return Ok(0) };
    let done = correct_all(model, &plan, &cx.known);
    cx.plan = Some(plan);
    done
}

fn correct_all(model: &mut Model, plan: &Plan, known: &KnownReads) -> Result<usize> {
    if plan.input_means.is_empty() {
        return Ok(0);
    }
    let types = types::infer(model);
    let mut changes = 0;
    for node in model.nodes(model.main()) {
        let (label, op) = (model.node_label(node), model.node(node).op_type.clone());
        changes += usize::from(correct(model, &types, plan, known, node).map_err(|e| e.node(label, op))?);
    }
    Ok(changes)
}

fn correct(model: &mut Model, types: &Types, plan: &Plan, known: &KnownReads, node: NodeId) -> Result<bool> {
    let Some(mut layer) = Linear::of(model, types, node).filter(|l| l.takes_bias()) else { return Ok(false) };
    let input = model.node(node).input(0).and_then(|v| plan.input_means.get(model.value(v).name()));
    let Some(means) = input.filter(|m| m.values.len() == layer.ins) else { return Ok(false) };
    let Some(weight) = model.constant_input(node, 1).cloned() else { return Ok(false) };
    // Means of the input's channels say nothing of a batch of weights, or of outputs that overlap.
    if layer.kind == Kind::ConvTranspose || (layer.kind == Kind::MatMul && weight.rank() != 2) {
        return Ok(false);
    }
    let bias: Vec<f32> = layer.bias(model)?.into_iter().map(|b| b as f32).collect();
    let Some(rounded) = rounded(model, plan, known, node, &weight, &bias)? else { return Ok(false) };
    let name = model.node(node).input(1).map_or("", |v| model.value(v).name());
    if let Some(reads) = known.of(name).reads() {
        let shift = reads.shift(&weight.to_f32()?, &rounded);
        return layer.shift(model, &shift);
    }
    let errors: Vec<f32> = weight.to_f32()?.iter().zip(rounded).map(|(w, r)| w - r).collect();
    let seen = match layer.kind {
        Kind::Conv => taps_seen(model.node(node), weight.dims(), &means.shape),
        _ => Vec::new(),
    };
    let shift = layer.mean_of(&errors, &means.values, &seen);
    layer.shift(model, &shift)
}

/// What the runtime will compute with in the weight's place; `None` where that is the weight itself.
fn rounded(
    model: &Model,
    plan: &Plan,
    known: &KnownReads,
    node: NodeId,
    weight: &Tensor,
    bias: &[f32],
) -> Result<Option<Vec<f32>>> {
    let name = |v| model.value(v).name();
    let n = model.node(node);
    let known = known.of(n.input(1).map_or("", name));
    let entry = n.output(0).and_then(|v| plan.nodes.get(name(v)));
    if let Some(how) = entry.filter(|e| e.becomes == Form::Dynamic).and_then(|e| e.weight.as_ref()) {
        return how.quantize_alike(weight, known)?.dequantized().map(Some);
    }
    if let Some(entry) = entry.filter(|e| matches!(e.becomes, Form::Integer | Form::Float8)) {
        let Some(how) = &entry.weight else { return Ok(None) };
        let input = n.input(0).and_then(|v| plan.activations.get(name(v))).map(|a| a.params());
        return how
            .quantize(weight, Some(bias).filter(|_| n.input(2).is_some()), input, known)?
            .dequantized()
            .map(Some);
    }
    let stored = n.input(1).and_then(|v| plan.stored_weights.get(name(v))).filter(|s| s.dtype == DType::Int8);
    stored.map(|s| s.quantize(weight, known)?.dequantized()).transpose()
}

/// For each tap of a convolution's kernel, row-major, the share of output positions at which it meets the input. Empty
/// where that is not known.
fn taps_seen(node: &Node, weight: &[usize], input: &[usize]) -> Vec<f64> {
    let (kernel, sizes) = (weight.get(2..).unwrap_or_default(), input.get(2..).unwrap_or_default());
    let rank = kernel.len();
    let list = |name: &str, count: usize, default: i64| match node.ints(name) {
        Some(v) if v.len() == count => v.to_vec(),
        _ => vec![default; count],
    };
    let (strides, dilations, pads) = (list("strides", rank, 1), list("dilations", rank, 1), list("pads", 2 * rank, 0));
    let auto = node.string("auto_pad").unwrap_or("NOTSET");
    if sizes.len() != rank {
        return Vec::new();
    }
    let mut seen = vec![1.0];
    for i in 0..rank {
        let (size, taps, stride, dilation) = (sizes[i] as i64, kernel[i] as i64, strides[i], dilations[i]);
        if stride < 1 || dilation < 1 || !(1..1 << 31).contains(&size) || !(1..1 << 31).contains(&taps) {
            return Vec::new();
        }
        let reach = (taps - 1).saturating_mul(dilation).saturating_add(1);
        let (before, positions) = if auto.starts_with("SAME") {
            let positions = size.saturating_add(stride - 1) / stride;
            let padding = ((positions - 1) * stride).saturating_add(reach).saturating_sub(size).max(0);
            (if auto == "SAME_LOWER" { padding - padding / 2 } else { padding / 2 }, positions)
        } else {
            let (before, after) = if auto == "VALID" { (0, 0) } else { (pads[i], pads[i + rank]) };
            (before, size.saturating_add(before).saturating_add(after).saturating_sub(reach) / stride + 1)
        };
        if before < 0 || positions < 1 {
            return Vec::new();
        }
        let share = |tap: i64| {
            let offset = tap.saturating_mul(dilation).saturating_sub(before);
            // Positions p with 0 <= p * stride + offset < size.
            let first = if offset >= 0 { 0 } else { offset.saturating_neg().saturating_add(stride - 1) / stride };
            let end = if offset >= size { 0 } else { (size - 1 - offset) / stride + 1 };
            (end.min(positions) - first).max(0) as f64 / positions as f64
        };
        let along: Vec<f64> = (0..taps).map(share).collect();
        seen = seen.iter().flat_map(|s| along.iter().map(move |a| s * a)).collect();
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        calibrate::Means,
        ir::{
            DType,
            testing::{find, model},
        },
        plan::{NodePlan, StoredWeight, Weight},
    };

    fn means(shape: &[usize], values: &[f32]) -> Means {
        Means { count: 1, shape: shape.to_vec(), values: values.to_vec() }
    }

    fn integer(weight: Weight) -> NodePlan {
        NodePlan { weight: Some(weight), ..NodePlan::new(None, "Conv", Form::Integer) }
    }

    fn int8(axis: Option<usize>) -> Weight {
        Weight {
            dtype: DType::Int8,
            axis,
            symmetric: true,
            reduce_range: false,
            pair_axes: Vec::new(),
            learned: false,
            algorithm: "rtn".into(),
        }
    }

    fn bias_after(text: &str, plan: Plan, node: usize, input: usize) -> Vec<f32> {
        let mut m = model(text);
        let mut cx = Context { plan: Some(plan), ..Context::default() };
        assert_eq!(run(&mut m, &mut cx).unwrap(), 1);
        m.verify().unwrap();
        let node = m.nodes(m.main())[node];
        m.constant_input(node, input).unwrap().to_f32().unwrap()
    }

    #[test]
    fn the_mean_of_the_output_stays() {
        // One scale, 1: 0.4 becomes 0 and 126.6 becomes 127.
        let text = "float[1,2,1,1] x \n float[2,2,1,1] w = {127, 0.4, 126.6, 5} \n float[2] b = {1, 2} \n \
                    y = Conv(x, w, b) \n return y";
        let mut plan = Plan::default();
        plan.nodes.insert("y".into(), integer(int8(None)));
        plan.input_means.insert("x".into(), means(&[1, 2, 1, 1], &[10.0, 100.0]));
        let bias = bias_after(text, plan, 0, 2);
        assert!((bias[0] - 41.0).abs() < 1e-3 && (bias[1] + 2.0).abs() < 1e-3, "{bias:?}");
    }

    #[test]
    fn a_bias_is_made_where_there_is_room_for_one() {
        let text = "float[1,2] x \n float[2,1] w = {127, 0.4} \n y = Gemm(x, w) \n return y";
        let mut plan = Plan::default();
        plan.input_means.insert("x".into(), means(&[1, 2], &[1.0, 10.0]));
        let stored = StoredWeight { dtype: DType::Int8, first_axis: 1, last_axis: 1, algorithm: "rtn".into() };
        plan.stored_weights.insert("w".into(), stored);
        let bias = bias_after(text, plan.clone(), 0, 2);
        assert!((bias[0] - 4.0).abs() < 1e-4, "{bias:?}");
        // Not behind a MatMul: the plan speaks of the values that there are.
        let mut m = model("float[1,2] x \n float[2,1] w = {127, 0.4} \n y = MatMul(x, w) \n return y");
        let mut cx = Context { plan: Some(plan), ..Context::default() };
        assert_eq!(run(&mut m, &mut cx).unwrap(), 0);
    }

    #[test]
    fn a_shared_bias_is_corrected_for_one_reader_only() {
        let text = "float[1,1,1] x \n float[1,1,1] w = {127} \n float[1,1,1] u = {127.4} \n float[1] b = {0} \n \
                    y = Conv(x, w, b) \n z = Conv(y, u, b) \n return z";
        let mut plan = Plan::default();
        let stored = StoredWeight { dtype: DType::Int8, first_axis: 0, last_axis: 0, algorithm: "rtn".into() };
        plan.nodes.insert("y".into(), integer(int8(Some(0))));
        plan.stored_weights.insert("w".into(), stored);
        plan.input_means.insert("x".into(), means(&[1, 1, 1], &[1.0]));
        let mut m = model(text);
        run(&mut m, &mut Context { plan: Some(plan), ..Context::default() }).unwrap();
        let z = m.producer(find(&m, "z")).unwrap();
        assert_eq!(m.constant_input(z, 2).unwrap().to_f32().unwrap(), [0.0]);
    }

    #[test]
    fn taps_on_the_padding() {
        let conv = |attributes: &str| {
            let m = model(&format!(
                "float[1,1,4] x \n float[1,1,3] w = {{1,1,1}} \n y = Conv <{attributes}> (x, w) \n return y"
            ));
            taps_seen(m.node(m.nodes(m.main())[0]), &[1, 1, 3], &[1, 1, 4])
        };
        assert_eq!(conv("pads = [1, 1]"), [0.75, 1.0, 0.75]);
        assert_eq!(conv("pads = [0, 1], strides = [2]"), [1.0, 1.0, 0.5]);
        assert_eq!(conv("auto_pad = \"SAME_UPPER\", strides = [2]"), [1.0, 1.0, 0.5]);
        assert_eq!(conv("auto_pad = \"SAME_LOWER\", strides = [2]"), [0.5, 1.0, 1.0]);
        assert_eq!(conv("pads = [2, 2], dilations = [2]"), [0.5, 1.0, 0.5]);
        assert_eq!(conv("auto_pad = \"VALID\""), [1.0, 1.0, 1.0]);
        assert_eq!(conv("pads = [-1, 0]"), Vec::<f64>::new());
    }
}
