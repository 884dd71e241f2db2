//! Floats of 8 bits.

use std::fs;

use regex::Regex;

use super::{MACHINE, cli::place::Place};

#[test]
fn floats_of_8_bits() {
    let place = Place::new();
    golden!("float8", place.quantize("--precision fp8 --everywhere --dump-plan plan.yaml"));
    let file = place.bytes("out.onnx");
    assert!(file.len() < place.bytes("model.onnx").len() / 2);
    golden!("float8_inspect", place.run("inspect --nodes out.onnx"));
    let done = place.run("quantize model.onnx -o again.onnx --plan plan.yaml");
    assert!(done.code == 0 && place.bytes("again.onnx") == file, "{}", done.err);
    golden!("float8_tensorrt", place.quantize("--precision fp8 --target tensorrt --smooth --activation-type int8"));
    fs::write(place.path("rules.yaml"), "precision: fp8-e5m2\nrules: [{ops: Gemm, precision: float}]").unwrap();
    golden!(
        "float8_by_rule",
        place.quantize("--config rules.yaml --everywhere --weight-algorithm mse --keep-float-weights")
    );
    for (name, flags) in [
        ("error_float8_mode", "--precision fp8 --mode dynamic"),
        ("error_float8_observer", "--precision fp8 --observer entropy"),
        ("error_float8_target", "--precision fp8-e5m2 --target tensorrt"),
        ("error_float8_alone", "--target tensorrt"),
        ("error_float8_name", "--precision fp9"),
    ] {
        golden!(name, place.quantize(flags));
    }
    golden!("error_float8_no_data", place.run("quantize model.onnx -o no.onnx --precision fp8"));
    let tuned = place.run("tune model.onnx -o no.onnx --calibration data.npz --config rules.yaml");
    assert!(tuned.code == 2 && tuned.err.contains("precision is fp8-e5m2"), "{}", tuned.err);
}
