//! The built-in runtime's QuantizeLinear and DequantizeLinear against ONNX Runtime, bit for bit.

mod common;

use common::{ort_try_run, random::Random};
use qonvert::{
    ir::{DType, Dim, Model, NodeSpec, Place, Shape, Tensor, Type},
    onnx_file,
    runtime::{Runtime, tract::Tract},
};

/// Numbers of every kind: random ones, exact multiples of half a step, huge and tiny ones.
fn numbers(count: usize, step: f32) -> Vec<f32> {
    let mut draw = Random(7);
    (0..count)
        .map(|i| match i % 4 {
            0 => (2.0 * draw.uniform() - 1.0) * 150.0 * step,
            1 => (draw.below(600) as f32 - 300.0) * 0.5 * step,
            2 => (draw.below(6000) as f32 - 3000.0) * 0.1 * step,
            _ => [1e30, -1e30, 0.0, -0.0, 1e-40, f32::INFINITY, f32::NEG_INFINITY, 300.0 * step][draw.below(8)],
        })
        .collect()
}

/// x → QuantizeLinear → DequantizeLinear. The numbers are the first output, the codes the second, if asked for.
fn pair(x: &Tensor, scales: &[f32], zero_point: &Tensor, axis: Option<i64>, with_codes: bool) -> Model {
    let mut m = Model::new(10);
    m.set_opset("", 21);
    let g = m.main();
    let declare = |m: &mut Model, v, dtype| {
        let dims = x.dims().iter().map(|&d| Dim::Known(d as i64)).collect();
        m.value_mut(v).ty = Some(Type::tensor(dtype, Some(Shape::new(dims))));
    };
    let input = m.add_value(g, "x");
    declare(&mut m, input, DType::Float);
    m.add_input(input);
    let codes = zero_point.dtype();
    let dims = zero_point.dims().to_vec();
    let scale = m.add_initializer(g, "scale", Tensor::from_f32(&dims, scales));
    let zero_point = m.add_initializer(g, "zero_point", zero_point.clone());
    let axis = |spec: NodeSpec| axis.map_or(spec.clone(), |a| spec.attr("axis", a));
    let spec = NodeSpec::new("QuantizeLinear").input(input).input(scale).input(zero_point).output("q");
    let n = m.insert(axis(spec), Place::End(g));
    let q = m.node(n).output(0).expect("it has an output");
    declare(&mut m, q, codes);
    let spec = NodeSpec::new("DequantizeLinear").input(q).input(scale).input(zero_point).output("y");
    let n = m.insert(axis(spec), Place::End(g));
    let y = m.node(n).output(0).expect("it has an output");
    declare(&mut m, y, DType::Float);
    m.add_output(g, y);
    if with_codes {
        m.add_output(g, q);
    }
    m
}

fn check(x: &Tensor, scales: &[f32], zero_point: &Tensor, axis: Option<i64>) {
    let model = pair(x, scales, zero_point, axis, true);
    let bytes = onnx_file::to_bytes(&model).expect("the model encodes");
    let run = |m: &Model| Tract.load(m, &[]).expect("it loads").run(std::slice::from_ref(x)).expect("it runs");
    let ours = run(&model);
    // Without the codes as an output, both nodes become one.
    let fused = run(&pair(x, scales, zero_point, axis, false));
    assert!(fused[0].same_content(&ours[0]), "the pair in one differs");
    let Some(theirs) = ort_try_run(&bytes, &[("x", x.clone())], false) else { return };
    for (ours, theirs) in ours.iter().zip(theirs.expect("ONNX Runtime runs it")) {
        assert_eq!((ours.dtype(), ours.dims()), (theirs.dtype(), theirs.dims()));
        assert!(ours.same_content(&theirs), "{ours:?} of {zero_point:?} differs");
    }
}

fn zeros(dtype: DType, values: &[i32], dims: &[usize]) -> Tensor {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()[..dtype.bits() / 8].to_vec()).collect::<Vec<u8>>();
    Tensor::new(dtype, dims.to_vec(), bytes).expect("a zero point")
}

#[test]
fn per_tensor() {
    for (dtype, zero) in [
        (DType::Uint8, 0),
        (DType::Uint8, 128),
        (DType::Uint8, 37),
        (DType::Int8, 0),
        (DType::Int8, -128),
        (DType::Uint16, 32768),
        (DType::Int16, -5),
    ] {
        for scale in [0.1, 0.037, 1.0, 1.0 / 255.0, 3e-5, 12.5] {
            let x = Tensor::from_f32(&[37, 41], &numbers(37 * 41, scale));
            check(&x, &[scale], &zeros(dtype, &[zero], &[]), None);
        }
    }
}

#[test]
fn per_axis() {
    let x = Tensor::from_f32(&[4, 3, 50], &numbers(600, 0.1));
    for (axis, count) in [(0, 4), (1, 3), (2, 50), (-2, 3)] {
        let scales: Vec<f32> = (0..count).map(|i| 0.03 + 0.011 * i as f32).collect();
        let zero_points: Vec<i32> = (0..count).map(|i| 100 + i).collect();
        check(&x, &scales, &zeros(DType::Uint8, &zero_points, &[count as usize]), Some(axis));
    }
}
