//! Weights in few bits.

use std::fs;

use ndarray::Array;
use ndarray_npy::NpzWriter;
use qonvert::{ir::text, onnx_file};
use regex::Regex;

use super::{MACHINE, cli::place::Place, random::noise};

/// A table and two products, of random weights.
fn language_model(place: &Place) {
    let floats = |seed: u32, count: usize| {
        let all: Vec<String> = (0..count).map(|i| format!("{:e}", 0.1 * noise(seed, i))).collect();
        all.join(",")
    };
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 17]> g (int64[N,4] ids) => (float[N,4,48] logits)
         <float[30,64] table = {{{}}}, float[64,64] w = {{{}}}, float[64,48] head = {{{}}}> {{
            [embed] rows = Gather(table, ids) [up] a = MatMul(rows, w) [act] b = Relu(a) [out] logits = MatMul(b, head) }}",
        floats(1, 30 * 64),
        floats(2, 64 * 64),
        floats(3, 64 * 48)
    );
    onnx_file::write(&text::parse(&text).unwrap(), &place.path("lm.onnx"), Default::default()).unwrap();
    let mut npz = NpzWriter::new(fs::File::create(place.path("ids.npz")).unwrap());
    npz.add_array("ids", &Array::from_shape_fn((40, 4), |(i, j)| ((i * 7 + j * 3) % 30) as i64)).unwrap();
    npz.finish().unwrap();
}

#[test]
fn weights_in_few_bits() {
    let place = Place::new();
    language_model(&place);
    fs::write(place.path("bits2.yaml"), "{mode: weight-only, weight_only: {bits: 2}}").unwrap();
    golden!("weight_only", place.run("quantize lm.onnx -o out.onnx --mode weight-only --dump-plan plan.yaml"));
    golden!("weight_only_with_data", place.run("quantize lm.onnx -o data.onnx --preset int4 --calibration ids.npz"));
    let done = place.run("quantize lm.onnx -o again.onnx --plan plan.yaml");
    assert!(done.code == 0 && place.bytes("again.onnx") == place.bytes("out.onnx"), "{}", done.err);
    fs::write(place.path("rules.yaml"), "rules: [{nodes: out, precision: weight-only, weight_only: {bits: 8}}]")
        .unwrap();
    golden!("weight_only_by_rule", place.run("quantize lm.onnx -o rule.onnx --mode dynamic --config rules.yaml"));
    golden!(
        "weight_only_idle",
        place.run("quantize lm.onnx -o idle.onnx --mode weight-only --bits 2 --per-tensor --smooth")
    );
    golden!(
        "bits_spread",
        place.run("quantize lm.onnx -o spread.onnx --mode weight-only --target-bits 6 --calibration ids.npz")
    );
    let done = place.run("quantize lm.onnx -o size.onnx --mode weight-only --target-size 20kB --keep-float out");
    let size = place.bytes("size.onnx").len();
    assert!(
        done.code == 0 && size <= 20_000 && done.out.contains(&size.to_string()),
        "{size}: {} {}",
        done.out,
        done.err
    );
    fs::write(
        place.path("fixed.yaml"),
        "{mode: weight-only, weight_only: {target_bits: 4}, rules: [{nodes: out, weight_only: {bits: 8}}]}",
    )
    .unwrap();
    let done = place.run("quantize lm.onnx -o fixed.onnx --config fixed.yaml --dump-plan fixed-plan.yaml");
    let plan = String::from_utf8(place.bytes("fixed-plan.yaml")).unwrap();
    let out = plan.split("  logits:").nth(1).unwrap_or_default();
    assert!(
        done.code == 0 && out.contains("dtype: uint8") && done.out.contains("bits of 2 weights"),
        "{plan} {}",
        done.err
    );
    for (name, flags) in [
        ("error_target_bits", "--mode weight-only --target-bits 2.1"),
        ("error_target_size", "--mode weight-only --target-size 1kB"),
        ("error_target_mode", "--target-size 1MB --mode dynamic"),
        ("error_target_beside_bits", "--preset bits2.yaml --target-bits 4"),
        ("error_bits", "--mode weight-only --bits 3"),
        ("error_block_size", "--mode weight-only --block-size 48"),
        ("error_few_bits_algorithm", "--mode weight-only --weight-algorithm gpqt"),
        ("error_few_bits_idle", "--bits 4 --mode dynamic"),
    ] {
        golden!(name, place.run(&format!("quantize lm.onnx -o no.onnx {flags}")));
    }
}

#[test]
fn what_weights_in_few_bits_cost() {
    let place = Place::new();
    language_model(&place);
    let done = place.run("sensitivity lm.onnx --calibration ids.npz --mode weight-only --bits 2 --keep-float act");
    assert!(done.code == 0 && done.out.contains("all together: 3 units"), "{} {}", done.out, done.err);
    let lines: Vec<&str> = done.out.lines().skip(1).take(3).collect();
    assert!(["embed", "up", "out"].iter().all(|n| lines.iter().any(|l| l.contains(n))), "{}", done.out);
    // The table has 8 bits, so it does least.
    assert!(lines[2].contains("embed"), "{}", done.out);
    // Nothing is left of the answers with signs alone where the table is rounded to them, too.
    let done =
        place.run("quantize lm.onnx -o signs.onnx --calibration ids.npz --mode weight-only --bits 1 --table-bits 2");
    assert!(done.out.starts_with("COLLAPSED") || done.out.contains("only loosely"), "{}", done.out);
    if done.out.starts_with("COLLAPSED") {
        assert!(done.out.contains("caused by") && done.out.contains("precision: float"), "{}", done.out);
    }
}
