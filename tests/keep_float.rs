//! A node that the user keeps in float is float in ONNX Runtime, too, also between integer neighbours, where the runtime
//! would quantize its weights by itself.

mod common;

use std::fs;

use common::ort_try_run;
use ndarray::{Array, Array4};
use ndarray_npy::NpzWriter;
use qonvert::{
    Config, Job, Settings,
    ir::{Tensor, text},
    onnx_file, pipeline,
    runtime::{Runtime, tract::Tract},
};

/// Convolutions with a depthwise one between them, whose channels are of very different sizes.
fn model() -> String {
    let numbers = |count: usize, seed: usize| -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0).collect()
    };
    let list = |v: Vec<f32>| v.iter().map(|x| format!("{x:e}")).collect::<Vec<_>>().join(", ");
    let depthwise = numbers(32 * 9, 2).iter().enumerate().map(|(i, x)| x * 10f32.powi(-((i / 9 % 4) as i32))).collect();
    format!(
        "<ir_version: 8, opset_import: [\"\" : 17]>\n\
         agraph (float[1,3,16,16] x) => (float[1,8,16,16] y)\n\
         <float[32,3,3,3] w1 = {{{}}}, float[32,1,3,3] w2 = {{{}}}, float[32] b2 = {{{}}}, float[8,32,3,3] w3 = {{{}}}>\n{{\n\
         [first] a = Conv <pads: ints = [1, 1, 1, 1]> (x, w1)\n\
         [middle] b = Conv <group: int = 32, pads: ints = [1, 1, 1, 1]> (a, w2, b2)\n\
         [relu] c = Relu (b)\n\
         [last] y = Conv <pads: ints = [1, 1, 1, 1]> (c, w3)\n}}",
        list(numbers(32 * 27, 1)),
        list(depthwise),
        list(vec![0.01; 32]),
        list(numbers(8 * 32 * 9, 3)),
    )
}

fn sqnr(want: &Tensor, got: &Tensor) -> f64 {
    let (want, got) = (want.to_f32().unwrap(), got.to_f32().unwrap());
    let signal: f64 = want.iter().map(|x| f64::from(x * x)).sum();
    let noise: f64 = want.iter().zip(&got).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    10.0 * (signal / noise).log10()
}

#[test]
fn between_integer_neighbours() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    onnx_file::write(&text::parse(&model()).unwrap(), &path("model.onnx"), Default::default()).unwrap();
    let x: Array4<f32> = Array::from_shape_fn((16, 3, 16, 16), |(n, c, i, j)| {
        ((n * 31 + c * 17 + i * 5 + j * 3) as f32 * 0.37).sin() + 0.2 * (n as f32 * 1.7).cos()
    });
    let mut npz = NpzWriter::new(fs::File::create(path("data.npz")).unwrap());
    npz.add_array("x", &x).unwrap();
    npz.finish().unwrap();
    let config =
        "everywhere: true\nfloat_weights: keep\nbias_correction: false\nrules:\n- {nodes: middle, precision: float}\n";
    let settings = Settings::new(Config::from_yaml(config).unwrap()).unwrap();
    let mut job = Job::new(path("model.onnx"), path("out.onnx"), &settings);
    job.data = Some(path("data.npz"));
    let done = pipeline::quantize(&job).unwrap();
    assert!(done.plan.nodes["b"].fenced && done.plan.integer_nodes() == 2, "{:?}", done.plan.nodes);
    let sample =
        Tensor::from_f32(&[1, 3, 16, 16], x.index_axis(ndarray::Axis(0), 0).as_standard_layout().as_slice().unwrap());
    let ours = Tract.load(&done.model, &[]).unwrap().run(std::slice::from_ref(&sample)).unwrap();
    let run = |bytes: &[u8]| Some(ort_try_run(bytes, &[("x", sample.clone())], true)?.unwrap().remove(0));
    let Some(theirs) = run(&onnx_file::to_bytes(&done.model).unwrap()) else { return };
    let fenced = sqnr(&ours[0], &theirs);
    assert!(fenced > 50.0, "only {fenced:.1} dB");
    // The same without the fence: what the runtime does then is why there is one.
    let mut plan = done.plan;
    plan.nodes.get_mut("b").unwrap().fenced = false;
    job.plan = Some(plan);
    let without = pipeline::quantize(&job).unwrap();
    let bare = sqnr(&ours[0], &run(&onnx_file::to_bytes(&without.model).unwrap()).unwrap());
    assert!(bare < 45.0, "the fence is no longer needed: {bare:.1} dB without it");
}
