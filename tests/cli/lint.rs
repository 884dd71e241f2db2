//! Quantized models looked at and mended.

use qonvert::{ir::text, onnx_file};
use regex::Regex;

use super::{MACHINE, cli::place::Place};

/// Symmetric int8 around a Relu, a value with two readers, scales that differ around a MaxPool, a weight on the wrong axis, a pair around
/// nothing, and a constant that nothing reads.
const TROUBLED: &str = r#"<ir_version: 8, opset_import: ["" : 17], producer_name: "another tool">
net (float[1,4,64,64] image) => (float[1,3] y)
   <float s = {0.02}, float r = {0.05}, float v = {0.11}, int8 o = {0}, int8[16,4,1,1] k = {@K}, float[16] t = {@T}, int8[16] u = {@U},
    int8[16,3] h = {@H}, int64[2] flat = {1, -1}, float[2,3] left = {1, 2, 3, 4, 5, 6}> {
   [q0] q = QuantizeLinear (image, s, o)
   [d0] d = DequantizeLinear (q, s, o)
   [dk] w = DequantizeLinear <axis = 0> (k, t, u)
   [conv] a = Conv (d, w)
   [relu] ar = Relu (a)
   [q1] aq = QuantizeLinear (ar, r, o)
   [d1] ad = DequantizeLinear (aq, r, o)
   [d2] ae = DequantizeLinear (aq, r, o)
   [pool] p = MaxPool <kernel_shape = [64, 64]> (ad)
   [q2] pq = QuantizeLinear (p, v, o)
   [d3] pd = DequantizeLinear (pq, v, o)
   [pool2] p2 = GlobalAveragePool (ae)
   [q3] p2q = QuantizeLinear (p2, v, o)
   [d4] p2d = DequantizeLinear (p2q, v, o)
   [sum] c = Add (pd, p2d)
   [q4] cq = QuantizeLinear (c, v, o)
   [d5] cd = DequantizeLinear (cq, v, o)
   [flatten] f = Reshape (cd, flat)
   [dh] hw = DequantizeLinear <axis = 0> (h, t, u)
   [head] m = MatMul (f, hw)
   [act] e = Tanh (m)
   [q5] eq = QuantizeLinear (e, s, o)
   [d6] y = DequantizeLinear (eq, s, o)
}"#;

#[test]
fn what_is_wrong_and_its_repair() {
    let place = Place::new();
    let codes = |n: i32, step: i32| (0..n).map(|i| (i * step % 255 - 127).to_string()).collect::<Vec<_>>().join(",");
    let scales: Vec<String> = (0..16).map(|i| format!("0.0{}", i % 9 + 1)).collect();
    let troubled = TROUBLED.replace("@K", &codes(64, 37)).replace("@H", &codes(48, 53));
    let troubled = troubled.replace("@T", &scales.join(",")).replace("@U", &["0"; 16].join(","));
    onnx_file::write(&text::parse(&troubled).unwrap(), &place.path("bad.onnx"), Default::default()).unwrap();
    golden!("lint", place.run("lint bad.onnx"));
    golden!("lint_denied", place.run("lint bad.onnx -q --deny warning"));
    golden!("lint_only", place.run("lint bad.onnx --only unequal_scales,wrong_axis -v"));
    golden!("lint_fix", place.run("lint --fix -o good.onnx bad.onnx"));
    let left = place.run("lint good.onnx --deny warning --format json");
    let report: serde_json::Value = serde_json::from_str(&left.out).unwrap();
    assert_eq!((left.code, &report["form"], &report["quantized"]), (0, &"qdq".into(), &true.into()), "{}", left.out);
    let bytes = place.bytes("good.onnx");
    assert_eq!(place.run("lint --fix -o good.onnx bad.onnx -q").code, 0);
    assert!(place.bytes("good.onnx") == bytes, "the same input twice gives the same bytes");
    // The same in integer operators stays in these.
    assert_eq!(place.run("convert --format qoperator good.onnx integer.onnx -q").code, 0);
    let done = place.run("lint integer.onnx --fix -o integer2.onnx --format json");
    let report: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((done.code, &report["form"], &report["output"]), (0, &"qoperator".into(), &"integer2.onnx".into()));
    assert!(text::print(&onnx_file::read(&place.path("integer2.onnx")).unwrap()).contains("QLinearAdd"));
}

#[test]
fn nothing_to_say() {
    let place = Place::new();
    golden!("lint_float", place.run("lint model.onnx"));
    assert_eq!(place.quantize("-q").code, 0);
    golden!("lint_clean", place.run("lint out.onnx --skip saturating_sums --deny note"));
    golden!("lint_clean_fix", place.run("lint out.onnx --skip saturating_sums --fix -o again.onnx"));
    assert!(place.bytes("again.onnx") == place.bytes("out.onnx"), "what is not mended is written as it was");
}

#[test]
fn wrong_words() {
    let place = Place::new();
    golden!("error_lint_rule", place.run("lint model.onnx --only symetric_clamps"));
    golden!("error_lint_over", place.run("lint model.onnx --fix -o model.onnx"));
    golden!("error_lint_cpu", place.run("lint model.onnx --cpu avx"));
    golden!("error_lint_output", place.run("lint model.onnx --fix"));
    golden!("lint_list", place.run("lint --list"));
    golden!("help_lint", place.run("lint --help"));
}
