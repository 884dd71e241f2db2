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
    for (name, flags) in [
        ("error_bits", "--mode weight-only --bits 3"),
        ("error_block_size", "--mode weight-only --block-size 48"),
        ("error_few_bits_algorithm", "--mode weight-only --weight-algorithm gpqt"),
        ("error_few_bits_idle", "--bits 4 --mode dynamic"),
    ] {
        golden!(name, place.run(&format!("quantize lm.onnx -o no.onnx {flags}")));
    }
}
