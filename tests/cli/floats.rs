//! Back to floats, and what differs between two models.

use std::fs;

use qonvert::{ir::text, onnx_file};

use super::*;

#[test]
fn back_to_floats() {
    let place = Place::new();
    golden!("help_dequantize", place.run("dequantize --help"));
    assert_eq!(place.quantize("--quiet").code, 0);
    golden!("dequantize", place.run("dequantize out.onnx -o float.onnx --data data.npz --report d.json"));
    let report: serde_json::Value = serde_json::from_slice(&place.bytes("d.json")).unwrap();
    assert_eq!((&report["clamps"], &report["left"]), (&"keep".into(), &serde_json::json!({})));
    assert!(report["removed"]["clamps"].as_array().is_some_and(|c| c.len() >= 2), "{report}");
    golden!("dequantize_relu", place.run("dequantize out.onnx -o relu.onnx --clamps relu"));
    golden!("dequantize_idle", place.run("dequantize model.onnx -o same.onnx"));
    assert!(place.bytes("same.onnx") == place.bytes("model.onnx"), "nothing is quantized, so nothing changes");
    golden!("error_dequantize_over", place.run("dequantize out.onnx -o out.onnx"));
    golden!("error_clamps", place.run("dequantize out.onnx -o x.onnx --clamps all"));
    assert_eq!(place.run("convert --format qoperator out.onnx integer.onnx").code, 0);
    assert_eq!(place.run("dequantize integer.onnx -o other.onnx --quiet").out, "");
    golden!("diff_back", place.run("diff float.onnx other.onnx --exit-code"));
}

/// Operators of unknown domains, and inputs in codes, pass as they are.
#[test]
fn what_is_not_known() {
    let place = Place::new();
    let text = r#"<ir_version: 8, opset_import: ["" : 17, "my.own" : 1]> g (uint8[1,4] x) => (float[1,4] y)
        <float s = {0.5}, uint8 z = {3}, int8[4,4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}, float t = {0.25}> {
            d = DequantizeLinear(x, s, z) [own] o = my.own.Twist<turns = 2>(d) q = QuantizeLinear(o, s, z)
            e = DequantizeLinear(q, s, z) v = DequantizeLinear(w, t) y = MatMul(e, v) }"#;
    onnx_file::write(&text::parse(text).unwrap(), &place.path("own.onnx"), Default::default()).unwrap();
    golden!("dequantize_own", place.run("dequantize own.onnx -o float.onnx --clamps none"));
    let read = onnx_file::read(&place.path("float.onnx")).unwrap();
    let own = read.all_nodes().into_iter().find(|&n| read.node(n).op_type == "Twist").unwrap();
    assert_eq!(read.node(own).int("turns"), Some(2));
    assert_eq!(read.opset("my.own"), Some(1));
    golden!("diff_own", place.run("diff own.onnx float.onnx"));
}

#[test]
fn differences() {
    let place = Place::new();
    golden!("help_diff", place.run("diff --help"));
    assert_eq!(place.quantize("--quiet").code, 0);
    golden!("diff", place.run("diff model.onnx out.onnx"));
    golden!("diff_same", place.run("diff out.onnx out.onnx --exit-code"));
    assert_eq!(place.run("convert --format qoperator out.onnx integer.onnx").code, 0);
    golden!("diff_forms", place.run("diff out.onnx integer.onnx"));
    assert_eq!(place.run("diff out.onnx integer.onnx --exit-code --quiet").code, 1);
    let line = "quantize model.onnx -o tensor.onnx --calibration data.npz --mode static --everywhere --per-tensor --observer min_max --quiet";
    assert_eq!(place.run(line).code, 0);
    golden!("diff_settings", place.run("diff out.onnx tensor.onnx --all --sort graph"));
    let done = place.run("diff model.onnx out.onnx --format json");
    let json: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(json["difference"]["layers"][0]["before"]["op"], "Conv");
    assert!(fs::metadata(place.path("out.onnx")).unwrap().len() == json["size"]["after"].as_u64().unwrap());
}
