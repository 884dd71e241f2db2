//! Weights that are not rounded to the nearest codes.

use std::fs;

use super::place::Place;

/// Weights rounded by what layers read: by flag and by rule, and from a plan, which says how but not what they read.
#[test]
fn weight_algorithms() {
    let place = Place::new();
    assert_eq!(place.quantize("-q").code, 0);
    let nearest = place.bytes("out.onnx");
    let done = place.quantize("--per-tensor --weight-algorithm adaround --dump-plan p.yaml");
    assert!(done.code == 0 && !done.out.contains("nearest codes"), "{}{}", done.out, done.err);
    let bytes = place.bytes("out.onnx");
    assert_eq!(place.quantize("--plan p.yaml -q").code, 0);
    assert!(place.bytes("out.onnx") == bytes);
    let done = place.run("quantize model.onnx -o out.onnx --plan p.yaml");
    assert!(done.code == 0 && done.out.contains("there is no calibration data"), "{}{}", done.out, done.err);
    assert!(place.bytes("out.onnx") != bytes);
    // A rule for one layer; layers between float ones, and data that are quantized at run time.
    place.write("rule.yaml", "rules: [{nodes: conv2, weight: {algorithm: mse}}]");
    assert_eq!(place.quantize("--config rule.yaml --dump-plan q.yaml -q").code, 0);
    assert_eq!(fs::read_to_string(place.path("q.yaml")).unwrap().matches("algorithm: mse").count(), 1);
    for more in ["--keep-float conv2", "--mode dynamic --everywhere"] {
        assert_eq!(place.quantize(&format!("{more} -q")).code, 0);
        let nearest = place.bytes("out.onnx");
        assert_eq!(place.quantize(&format!("{more} --weight-algorithm adaround -q")).code, 0);
        assert!(place.bytes("out.onnx") != nearest, "{more}");
    }
    assert_eq!(place.quantize("--weight-algorithm rtn -q").code, 0);
    assert!(place.bytes("out.onnx") == nearest);
    // A trained model with nothing but its weights in 8 bits: here these are all of the noise.
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/models");
    let sqnr = |algorithm: &str| {
        let run = format!(
            "quantize {models}/digits_transformer.dynamo.onnx -o w.onnx --calibration {models}/digits_calib.npz \
             --evaluation {models}/digits_eval.npz --weight-algorithm {algorithm} --report r.json -q"
        );
        assert_eq!(place.run(&run).code, 0);
        let report: serde_json::Value = serde_json::from_slice(&place.bytes("r.json")).unwrap();
        report["proof"]["outputs"][0]["sqnr"].as_f64().unwrap()
    };
    let (nearest, fitted) = (sqnr("rtn"), sqnr("adaround"));
    assert!(fitted > nearest + 4.0, "{nearest} {fitted}");
}
