//! Weights for processors whose kernels add pairs of products with 16 bits: which layers could saturate there.
//!
//! Whether a sum can saturate depends on the codes of the weights alone. Where none can, nothing changes; else the plan names
//! the axes of the pairs, and rounding spreads the channels in question over fewer codes ([`quant::saturation`]). That costs
//! no time, and at worst the one bit that a reduced range takes of all channels of all layers.
//!
//! uint8 weights would be exact with all their codes, but take 1.1 to 1.9 times as long on AVX2 and 1.3 to 3.5 times with
//! VNNI, and gain little. MobileNet v1 (0.25): SQNR 24.5 dB with narrowed channels, 24.2 with uint8, 20.3 with a reduced range,
//! 9.6 with sums that saturate. Super-resolution loses 0.23 dB of PSNR with narrowed channels, 0.17 with uint8, 2.9 with a
//! reduced range. Who wants uint8 all the same says so by rule, and nothing is narrowed there.
//!
//! [`quant::saturation`]: crate::quant::saturation

use std::collections::BTreeMap;

use super::{Form, Learned, Plan, Weight, known, named_values};
use crate::{
    error::Result,
    ir::{Model, NodeId, Tensor},
    ops::{self, Class, OpSpec, Role},
    quant::{
        quantize_weight,
        saturation::{ANY_CODE, Pairs},
    },
    target::Target,
};

/// Marks the weights of the plan whose codes could make a kernel of the target saturate.
pub(super) fn avoid(model: &Model, target: &Target, plan: &mut Plan) -> Result<()> {
    let names = named_values(model);
    let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (name, entry) in &plan.nodes {
        let (Some(kernel), Some(weight)) = (&entry.kernel, &entry.weight) else { continue };
        let Some(id) = names.get(name.as_str()).and_then(|&v| model.producer(v)) else { continue };
        let Some(spec) = ops::spec(model, id) else { continue };
        // Codes of 16 bits have no integer kernels.
        let input = model.node(id).input(0).and_then(|v| plan.activations.get(model.value(v).name()));
        if !matches!(entry.becomes, Form::Integer | Form::Dynamic)
            || input.is_some_and(|a| a.dtype.bits() > 8)
            // Codes of training stay what they are.
            || weight.learned
            || !target.saturates(kernel, weight.dtype, is_depthwise(model, id, weight_dims(model, id)))
        {
            continue;
        }
        let (label, op) = (model.node_label(id), &model.node(id).op_type);
        let axes = pair_axes(model, id, spec, weight).map_err(|e| e.node(label, op))?;
        found.extend(axes.map(|axes| (name.clone(), axes)));
    }
    for (name, axes) in found {
        if let Some(weight) = plan.nodes.get_mut(&name).and_then(|n| n.weight.as_mut()) {
            weight.pair_axes = axes;
        }
    }
    Ok(())
}

/// The nodes whose weights keep the codes of training although sums of their products could saturate on the target.
pub(crate) fn of_training(model: &Model, target: &Target, plan: &Plan, learned: &Learned) -> Result<Vec<String>> {
    let names = named_values(model);
    let mut found = Vec::new();
    for (name, entry) in &plan.nodes {
        let (Some(kernel), Some(weight)) = (&entry.kernel, entry.weight.as_ref().filter(|w| w.learned)) else {
            continue;
        };
        let Some(id) = names.get(name.as_str()).and_then(|&v| model.producer(v)) else { continue };
        let depthwise = is_depthwise(model, id, weight_dims(model, id));
        if entry.becomes != Form::Integer || !target.saturates(kernel, weight.dtype, depthwise) {
            continue;
        }
        let (Some(spec), Some(codes)) = (ops::spec(model, id), learned.weight_of(model, id)?) else { continue };
        let dims = codes.values.dims();
        let Some(axes) = sum_axes(spec, dims.len(), spec.weight_axis(model.node(id), dims.len())) else { continue };
        let input = model.node(id).input(0).and_then(|v| plan.activations.get(model.value(v).name()));
        let data = input.and_then(|a| a.clip).map_or(ANY_CODE, |[low, high]| (low, high));
        if Pairs::along(dims, &axes)?.saturating_with(&codes, data)?.contains(&true) {
            found.push(model.node_label(id));
        }
    }
    Ok(found)
}

/// The axes that the products of a node add along, in the order of their depth, if a pair of neighbours can saturate.
fn pair_axes(model: &Model, id: NodeId, spec: &OpSpec, plan: &Weight) -> Result<Option<Vec<usize>>> {
    let node = model.node(id);
    for at in (0..node.inputs().len()).filter(|&i| spec.role(i) == Role::Weight) {
        let Some(tensor) = model.constant_input(id, at) else { continue };
        let Some(axes) = sum_axes(spec, tensor.rank(), spec.weight_axis(node, tensor.rank())) else { continue };
        let pairs = Pairs::along(tensor.dims(), &axes)?;
        let rounded = match by_direction(spec, plan, tensor) {
            Some(dims) => plain(plan, &tensor.reshaped(dims)?, Some(0)),
            None => plain(plan, tensor, plan.axis),
        };
        // Codes that are not the nearest may be larger.
        if known::reads(&plan.algorithm) || pairs.saturating(&rounded?)?.contains(&true) {
            return Ok(Some(axes));
        }
    }
    Ok(None)
}

fn plain(plan: &Weight, tensor: &Tensor, axis: Option<usize>) -> Result<crate::quant::QuantizedWeight> {
    quantize_weight(tensor, plan.dtype, axis, plan.symmetric, plan.reduce_range)
}

/// A recurrent layer's weight as rows that have a scale of their own.
fn by_direction(spec: &OpSpec, plan: &Weight, tensor: &Tensor) -> Option<Vec<usize>> {
    let &[directions, gates, k] = tensor.dims() else { return None };
    let rows = if plan.axis.is_some() { vec![directions * gates, k] } else { vec![directions, gates * k] };
    (spec.class == Class::Recurrent).then_some(rows)
}

/// The axes of a weight that products add along: of a convolution taps, and within a tap channels; of a matrix its other axis.
pub(crate) fn sum_axes(spec: &OpSpec, rank: usize, channels: Option<usize>) -> Option<Vec<usize>> {
    match (spec.name, channels?) {
        (_, _) if rank < 2 => None,
        ("Conv", _) => Some((2..rank).chain([1]).collect()),
        (_, channels) if spec.class == Class::Recurrent => (channels + 1 < rank).then(|| vec![rank - 1]),
        (_, channels) if channels + 1 == rank => Some(vec![rank - 2]),
        (_, _) => Some(vec![rank - 1]),
    }
}

fn weight_dims(model: &Model, id: NodeId) -> &[usize] {
    model.constant_input(id, 1).map_or(&[][..], Tensor::dims)
}

/// Whether a convolution with a weight of this shape computes each channel by itself, one output for one input.
pub(crate) fn is_depthwise(model: &Model, id: NodeId, weight: &[usize]) -> bool {
    let groups = model.node(id).int("group").unwrap_or(1);
    matches!(weight, &[outputs, 1, ..] if groups > 1 && usize::try_from(groups) == Ok(outputs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::{DType, testing::model},
        plan::{Known, NodePlan},
        quant::{pack::unpack, saturation::dot},
    };

    /// Numbers from -1 to 1 that look random.
    fn noise(i: usize) -> f32 {
        let mut x = (i as u32 + 1).wrapping_mul(0x9E37_79B9);
        x = (x ^ (x >> 15)).wrapping_mul(0x2C1B_3C6D);
        f64::from(x ^ (x >> 13)) as f32 / u32::MAX as f32 * 2.0 - 1.0
    }

    fn planned(body: &str, kernel: &str, axis: Option<usize>, dtype: DType, cpu: &str) -> (Model, Weight) {
        let m = model(body);
        let target = Target::load("onnxruntime-cpu").unwrap().on_cpu(cpu).unwrap();
        let op = m.node(m.nodes(m.main())[0]).op_type.clone();
        let weight = Weight {
            dtype,
            axis,
            symmetric: true,
            reduce_range: false,
            pair_axes: Vec::new(),
            learned: false,
            algorithm: "rtn".into(),
        };
        let entry = NodePlan {
            kernel: Some(kernel.into()),
            weight: Some(weight),
            ..NodePlan::new(None, &op, if op == "LSTM" { Form::Dynamic } else { Form::Integer })
        };
        let mut plan = Plan::default();
        plan.nodes.insert("y".into(), entry);
        avoid(&m, &target, &mut plan).unwrap();
        let weight = plan.nodes.remove("y").unwrap().weight.unwrap();
        (m, weight)
    }

    fn axes(body: &str, kernel: &str, axis: Option<usize>) -> Vec<usize> {
        planned(body, kernel, axis, DType::Int8, "avx2").1.pair_axes
    }

    #[test]
    fn only_where_neighbours_saturate() {
        // Neighbours are channels within a tap, here 1 and 1, or taps where there is one channel.
        let conv = |w: &str| format!("float[1,2,1,2] x \n float[1,2,1,2] w = {{{w}}} \n y = Conv(x, w) \n return y");
        assert_eq!(axes(&conv("1, 0, 1, 0"), "QLinearConv", Some(0)), [2, 3, 1]);
        assert_eq!(axes(&conv("1, 1, 0, 0"), "QLinearConv", Some(0)), [0; 0]);
        assert_eq!(axes(&conv("1, 0, -1, 0"), "QLinearConv", Some(0)), [0; 0]);
        let grouped = |outputs: usize| {
            let w = vec!["1"; outputs * 2].join(",");
            format!("float[1,2,2] x \n float[{outputs},1,2] w = {{{w}}} \n y = Conv <group = 2> (x, w) \n return y")
        };
        assert_eq!(axes(&grouped(4), "QLinearConv", Some(0)), [2, 1]);
        assert_eq!(axes(&grouped(2), "QLinearConv", Some(0)), [0; 0]); // depthwise
        let matrix =
            |op: &str, w: &str| format!("float[1,2] x \n float[2,2] w = {{{w}}} \n y = {op}(x, w) \n return y");
        assert_eq!(axes(&matrix("MatMul", "1, 0, 1, 0"), "QLinearMatMul", Some(1)), [0]);
        assert_eq!(axes(&matrix("MatMul", "1, 0, 1, 0"), "MatMulIntegerToFloat", None), [0]);
        assert_eq!(axes(&matrix("MatMul", "1, 1, 0, 0"), "QLinearMatMul", Some(1)), [0; 0]);
        assert_eq!(axes(&matrix("Gemm <transB = 1>", "1, 1, 0, 0"), "QGemm", Some(0)), [1]);
        assert_eq!(axes(&matrix("Gemm <transB = 1>", "1, 0, 1, 0"), "QGemm", Some(0)), [0; 0]);
        // The state's weight counts as the data's does, and each direction has scales of its own.
        let lstm = |w: &str, r: &str| {
            format!(
                "float[1,1,2] x \n float[1,4,2] w = {{{w}}} \n float[1,4,2] r = {{{r}}} \n \
                 y = LSTM <hidden_size = 2> (x, w, r) \n return y"
            )
        };
        let (danger, none) = ("1, 1, 0, 0, 0, 0, 0, 0", "1, 0, 0, 1, 0, 0, 0, 0");
        for axis in [None, Some(1)] {
            assert_eq!(axes(&lstm(danger, none), "DynamicQuantizeLSTM", axis), [2]);
            assert_eq!(axes(&lstm(none, danger), "DynamicQuantizeLSTM", axis), [2]);
            assert_eq!(axes(&lstm(none, none), "DynamicQuantizeLSTM", axis), [0; 0]);
        }
        // Another processor, another type, another kernel.
        let body = matrix("MatMul", "1, 0, 1, 0");
        for (kernel, dtype, cpu) in [
            ("QLinearMatMul", DType::Int8, "vnni"),
            ("QLinearMatMul", DType::Uint8, "avx2"),
            ("ConvInteger", DType::Int8, "avx2"),
        ] {
            assert_eq!(planned(&body, kernel, Some(1), dtype, cpu).1.pair_axes, [0; 0], "{kernel} {dtype} {cpu}");
        }
    }

    /// The depth of each output of a convolution, as the kernel gathers it: all channels of a tap, then the next tap.
    fn gathered(codes: &[i32], dims: &[usize]) -> Vec<Vec<i8>> {
        let (outputs, channels, taps) = (dims[0], dims[1], dims[2] * dims[3]);
        let depth = |o: usize| {
            let places = (0..taps).flat_map(move |t| (0..channels).map(move |c| (o * channels + c) * taps + t));
            places.map(|i| codes[i] as i8).collect()
        };
        (0..outputs).map(depth).collect()
    }

    /// Whether the instruction computes all outputs right, for activations of many kinds.
    fn is_exact(depths: &[Vec<i8>]) -> bool {
        depths.iter().enumerate().all(|(o, w)| {
            let random =
                |s: usize| w.iter().enumerate().map(|(i, _)| ((noise(i + 997 * s) + 1.0) * 127.5) as u8).collect();
            let driven = |up: bool| w.iter().map(|&w| if (w > 0) == up { 255 } else { 0 }).collect::<Vec<u8>>();
            let mut inputs = vec![driven(true), driven(false), vec![255; w.len()]];
            inputs.extend((0..20).map(|s| random(o + s)));
            let plain = |a: &[u8]| a.iter().zip(w).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum::<i32>();
            inputs.iter().all(|a| dot(a, w) == plain(a))
        })
    }

    #[test]
    fn planned_layers_are_exact() {
        for (outputs, channels, kernel, axis) in
            [(8, 5, 3, Some(0)), (8, 5, 3, None), (6, 1, 5, Some(0)), (4, 16, 1, Some(0))]
        {
            let dims = [outputs, channels, kernel, kernel];
            let count = dims.iter().product();
            let numbers: Vec<String> = (0..count).map(|i| noise(i).to_string()).collect();
            let body = format!(
                "float[1,{channels},8,8] x \n float[{outputs},{channels},{kernel},{kernel}] w = {{{}}} \n y = Conv(x, w) \n return y",
                numbers.join(",")
            );
            let codes = |cpu: &str| {
                let (m, weight) = planned(&body, "QLinearConv", axis, DType::Int8, cpu);
                let q = weight
                    .quantize(m.constant_input(m.nodes(m.main())[0], 1).unwrap(), None, None, Known::default())
                    .unwrap();
                gathered(&unpack(&q.values).unwrap(), &dims)
            };
            assert!(!is_exact(&codes("vnni")), "{dims:?}");
            assert!(is_exact(&codes("avx2")), "{dims:?}");
        }
    }
}
