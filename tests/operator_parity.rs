//! Operators that the built-in runtime wires itself, or refuses, because tract's own differ from ONNX Runtime: compared with
//! it on small layers.

mod common;

use common::{ort_run, random::Random};
use qonvert::{
    ir::{Model, Tensor, text},
    onnx_file,
    runtime::{Runtime, tract::Tract},
};

/// Relative to what is above 1, and absolute below.
const TOLERANCE: f32 = 5e-6;

/// `y = call`, of data `x` of this shape; the constants are declared in ONNX's textual syntax.
fn model(opset: i64, dims: &[usize], constants: &str, call: &str) -> Model {
    let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
    let ir_version = if opset < 23 { 9 } else { 11 };
    let constants = if constants.is_empty() { String::new() } else { format!("<{constants}>") };
    text::parse(&format!(
        "<ir_version: {ir_version}, opset_import: [\"\" : {opset}]>
         g (float[{}] x) => (float y) {constants} {{ y = {call} }}",
        dims.join(", ")
    ))
    .unwrap_or_else(|e| panic!("{call}: {e}"))
}

/// Numbers between `-size` and `size`.
fn numbers(dims: &[usize], size: f32) -> Tensor {
    Random(7).tensor(dims, size)
}

fn check(model: &Model, x: &Tensor, call: &str) {
    let session = Tract.load(model, &[]).unwrap_or_else(|e| panic!("{call}: {e}"));
    let ours = session.run(std::slice::from_ref(x)).unwrap_or_else(|e| panic!("{call}: {e}")).remove(0);
    let bytes = onnx_file::to_bytes(model).expect("it encodes");
    let Some(theirs) = ort_run(&bytes, &[("x", x.clone())]) else { return };
    let theirs = &theirs[0];
    assert_eq!((ours.dtype(), ours.dims()), (theirs.dtype(), theirs.dims()), "{call}");
    let (a, b) = (ours.to_f32().expect("floats"), theirs.to_f32().expect("floats"));
    for (a, b) in a.iter().zip(&b) {
        let same = a == b || (a.is_nan() && b.is_nan());
        assert!(same || (a - b).abs() <= TOLERANCE * b.abs().max(1.0), "{call} of {:?}: {a}, not {b}", x.dims());
    }
}

fn checked(opset: i64, dims: &[usize], size: f32, constants: &str, call: &str) {
    check(&model(opset, dims, constants, call), &numbers(dims, size), call);
}

#[test]
fn numbers_outside_of_a_small_integer_type() {
    for to in [2, 3, 4, 5] {
        let text = format!(
            "<ir_version: 9, opset_import: [\"\" : 13]>
             g (float[60] x) => (float y) {{ c = Cast <to = {to}> (x) y = Cast <to = 1> (c) }}"
        );
        for size in [100.0, 1000.0, 1e6] {
            check(&text::parse(&text).unwrap(), &numbers(&[60], size), &text);
        }
    }
}

#[test]
fn functions_far_from_zero() {
    for size in [1.0, 10.0, 300.0] {
        checked(13, &[40], size, "", "Softplus(x)");
        checked(12, &[40], size, "", "Celu(x)");
        checked(12, &[40], size, "", "Celu <alpha = 0.5> (x)");
        // tract's sigmoid never gets to 0: 5e-7 are left, times the number.
        checked(24, &[40], size.min(10.0), "", "Swish <alpha = 1.7> (x)");
        for p in [1, 2, 3] {
            checked(13, &[2, 3, 4, 5], size, "", &format!("GlobalLpPool <p = {p}> (x)"));
        }
        for axis in ["", "<axis = 0>", "<axis = 1>", "<axis = -1>"] {
            for opset in [11, 13] {
                checked(opset, &[2, 3, 40], size, "", &format!("LogSoftmax {axis} (x)"));
            }
        }
        for keep in [0, 1] {
            let call = format!("ReduceLogSumExp <keepdims = {keep}, axes = [-1, 0]> (x)");
            checked(13, &[3, 4, 5], size, "", &call);
            let call = format!("ReduceLogSumExp <keepdims = {keep}> (x, a)");
            checked(18, &[3, 4, 5], size, "int64[1] a = {1}", &call);
            checked(18, &[3, 4, 5], size, "", &format!("ReduceLogSumExp <keepdims = {keep}> (x)"));
        }
    }
    let infinite = [f32::NEG_INFINITY, f32::INFINITY, 1.0, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY];
    let call = "ReduceLogSumExp <axes = [1]> (x)";
    check(&model(13, &[2, 3], "", call), &Tensor::from_f32(&[2, 3], &infinite), call);
    let far = Tensor::from_f32(&[1, 2, 1, 3], &[1000.0, 1001.0, 1002.0, -500.0, -502.0, -501.0]);
    let call = "MeanVarianceNormalization(x)";
    check(&model(13, far.dims(), "", call), &far, call);
}

#[test]
fn a_constant_of_zeros() {
    let text = "<ir_version: 8, opset_import: [\"\" : 13]> g (float[2, 1] x) => (float y)
                <int64[2] s = {2, 3}> { z = ConstantOfShape(s) y = Add(x, z) }";
    check(&text::parse(text).expect("it parses"), &numbers(&[2, 1], 1.0), "ConstantOfShape");
}

/// Corners on corners, where scale times length is no whole number.
#[test]
fn resizing_by_scales() {
    for mode in ["linear", "cubic", "nearest"] {
        for (h, w) in [(7, 9), (5, 3), (4, 11)] {
            let attributes = format!("mode = \"{mode}\", coordinate_transformation_mode = \"align_corners\"");
            let constants = "float[4] s = {1, 1, 1.5, 0.7}";
            checked(13, &[1, 2, h, w], 1.0, constants, &format!("Resize <{attributes}> (x, , s)"));
            let call = format!("Resize <{attributes}, axes = [-1, 2]> (x, , s)");
            checked(18, &[1, 2, h, w], 1.0, "float[2] s = {0.7, 1.5}", &call);
            let call = format!(
                "Resize <mode = \"{mode}\", coordinate_transformation_mode = \"tf_crop_and_resize\"> (x, r, s)"
            );
            let constants = format!("{constants}, float[8] r = {{0, 0, 0.1, 0.2, 1, 1, 0.8, 0.9}}");
            checked(13, &[1, 2, h, w], 1.0, &constants, &call);
        }
    }
}

#[test]
fn transposed_convolutions_of_a_given_shape() {
    for (kernel, strides, dilations) in [([3, 3], [2, 2], [1, 1]), ([2, 4], [2, 3], [2, 1]), ([1, 2], [3, 1], [1, 2])] {
        let natural: Vec<i64> = (0..2).map(|i| 4 * strides[i] + (kernel[i] - 1) * dilations[i] + 1).collect();
        for less in [[0, 0], [1, 2], [3, 1], [-1, 0]] {
            for pad in ["NOTSET", "SAME_UPPER", "SAME_LOWER"] {
                let (h, w) = (natural[0] - less[0], natural[1] - less[1]);
                // More than the window reaches is not said to mean anything beyond a stride.
                if h < 1 || w < 1 || (less[0] < 0 && strides[0] == 1) {
                    continue;
                }
                let call = format!(
                    "ConvTranspose <auto_pad = \"{pad}\", strides = [{}, {}], dilations = [{}, {}], \
                     output_shape = [{h}, {w}]> (x, w)",
                    strides[0], strides[1], dilations[0], dilations[1]
                );
                let dims = [2, 3, kernel[0] as usize, kernel[1] as usize];
                let mut layer = model(11, &[1, 2, 5, 5], "float w = {0}", &call);
                let v = layer.find_value(layer.main(), "w").expect("it is there");
                layer.set_initializer(v, Some(numbers(&dims, 1.0)));
                check(&layer, &numbers(&[1, 2, 5, 5], 1.0), &call);
            }
        }
    }
}

#[test]
fn what_would_be_wrong_is_an_error_that_names_the_node() {
    for (opset, dims, constants, call, words) in [
        (13, &[2, 3][..], "", "Einsum <equation = \"ij->\"> (x)", "without output axes"),
        (13, &[2, 3], "", "Einsum <equation = \"i ... , i -> i...\"> (x, x)", "before an ellipsis"),
        (20, &[2, 6, 8, 1], "", "DFT(x)", "without an axis"),
        (
            16,
            &[1, 1, 4, 4],
            "float[1, 1, 1, 2] g = {0, 0}",
            "GridSample <mode = \"bicubic\", padding_mode = \"border\"> (x, g)",
            "mode = cubic",
        ),
        (23, &[1, 1, 2, 4], "", "Attention <is_causal = 1> (x, x, x, , x, x)", "is_causal"),
        (23, &[1, 1, 2, 4], "", "Attention <softcap = 0.5> (x, x, x)", "softcap"),
        (
            19,
            &[1, 1, 4, 4],
            "float[4] s = {1, 1, 1.5, 1.5}",
            "Resize <coordinate_transformation_mode = \"half_pixel_symmetric\", nearest_mode = \"floor\"> (x, , s)",
            "half_pixel_symmetric",
        ),
        (
            13,
            &[1, 1, 4, 4],
            "float[4] s = {1, 1, 0.25, 1}",
            "Resize <mode = \"cubic\", coordinate_transformation_mode = \"pytorch_half_pixel\"> (x, , s)",
            "a length of 1",
        ),
        (13, &[1, 1, 4, 4], "", "Celu <alpha = \"no number\"> (x)", "alpha"),
    ] {
        let model = model(opset, dims, constants, call);
        let error = Tract.load(&model, &[]).and_then(|s| s.run(&[numbers(dims, 1.0)])).err();
        let text = error.unwrap_or_else(|| panic!("{call} runs")).to_string();
        let op = call.split([' ', '(']).next().unwrap_or_default();
        assert!(text.contains(words) && text.contains(&format!("node \"y\" ({op})")), "{call}: {text}");
    }
}
