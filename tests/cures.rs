//! Cures that are asked for by name: what they gain, that they leave the file as it is where they gain nothing, and that they
//! say so.

use std::{fs, path::Path};

use ndarray::{Array, Array2, Axis, Dimension, RemoveAxis};
use ndarray_npy::NpzWriter;
use qonvert::{
    Config, Job, Settings,
    ir::{Tensor, text},
    onnx_file,
    pipeline::{self, Quantized},
    plan::{Form, Plan},
    runtime::{Runtime, tract::Tract},
};

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0).collect()
}

fn list(v: impl IntoIterator<Item = f32>) -> String {
    v.into_iter().map(|x| format!("{x:e}")).collect::<Vec<_>>().join(", ")
}

/// A folder with a model of one input `x`, and rows for it.
fn folder<D: Dimension>(model: &str, x: &Array<f32, D>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = text::parse(&format!("<ir_version: 8, opset_import: [\"\" : 17]>\n{model}")).unwrap();
    onnx_file::write(&model, &folder.path().join("model.onnx"), Default::default()).unwrap();
    let mut npz = NpzWriter::new(fs::File::create(folder.path().join("data.npz")).unwrap());
    npz.add_array("x", x).unwrap();
    npz.finish().unwrap();
    folder
}

/// All samples are for calibration: the proof has the same as data of its own.
fn quantize(folder: &Path, config: &str, plan: Option<Plan>) -> Quantized {
    let config = format!("mode: static\neverywhere: true\n{config}");
    let settings = Settings::new(Config::from_yaml(&config).unwrap()).unwrap();
    let mut job = Job::new(folder.join("model.onnx"), folder.join("out.onnx"), &settings);
    job.data = Some(folder.join("data.npz"));
    job.evaluation = Some(folder.join("data.npz"));
    job.plan = plan;
    pipeline::quantize(&job).unwrap()
}

fn bytes(of: &Quantized) -> Vec<u8> {
    onnx_file::to_bytes(&of.model).unwrap()
}

/// SQNR over some samples, dB.
fn sqnr<D: RemoveAxis>(of: &Quantized, x: &Array<f32, D>) -> f64 {
    let sessions = [&of.original, &of.model].map(|m| Tract.load(m, &[]).unwrap());
    let (mut signal, mut noise) = (0.0, 0.0);
    for row in x.axis_iter(Axis(0)) {
        let dims = [&[1][..], row.shape()].concat();
        let input = [Tensor::from_f32(&dims, &row.iter().copied().collect::<Vec<_>>())];
        let [want, got] = sessions.each_ref().map(|s| s.run(&input).unwrap()[0].to_f32().unwrap());
        signal += want.iter().map(|x| f64::from(x * x)).sum::<f64>();
        noise += want.iter().zip(&got).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    }
    10.0 * (signal / noise).log10()
}

fn code<'a>(of: &'a Quantized, code: &str) -> Option<&'a str> {
    of.diagnostics.iter().find(|d| d.code == code).map(|d| &d.message[..])
}

fn rows() -> Array2<f32> {
    Array::from_shape_fn((40, 32), |(n, c)| ((n * 31 + c * 17) as f32 * 0.37).sin())
}

/// Two heads that are joined, brought to one size and read by a last layer; the second is `small` times as large as the first.
fn heads(small: f32) -> String {
    let size = |channel: usize| if channel < 8 { 1.0 } else { small };
    format!(
        "agraph (float[n,4,6,6] x) => (float[n,16,6,6] y)\n\
         <float[32,4,1,1] w1 = {{{}}}, float[8,32,1,1] w2 = {{{}}}, float[32,32,1,1] w3 = {{{}}}, float[40,1,1] k = {{{}}},\n\
         float[16,40,1,1] w4 = {{{}}}>\n{{\n\
         h = Conv (x, w1) r = Relu (h) scores = Conv (r, w3) boxes = Conv (r, w2)\n\
         all = Concat <axis: int = 1> (boxes, scores) s = Mul (all, k) y = Conv (s, w4)\n}}",
        list(numbers(32 * 4, 1)),
        list(numbers(8 * 32, 2)),
        list(numbers(32 * 32, 3).into_iter().map(|w| w * small)),
        list((0..40).map(|c| 1.0 / size(c))),
        list(numbers(16 * 40, 4)),
    )
}

#[test]
fn parts_of_a_concat_keep_their_scales() {
    let x = Array::from_shape_fn((40, 4, 6, 6), |(n, c, i, j)| ((n * 31 + c * 17 + i * 5 + j * 3) as f32 * 0.37).sin());
    let uneven = folder(&heads(0.02), &x);
    let (plain, split) = (quantize(uneven.path(), "", None), quantize(uneven.path(), "split_concats: true", None));
    assert_eq!(plain.plan.nodes["all"].becomes, Form::Integer);
    let concat = &split.plan.nodes["all"];
    assert_eq!(concat.becomes, Form::Float);
    assert!(concat.reason.as_ref().unwrap().contains("its parts keep scales of their own"), "{concat:?}");
    assert!(split.plan.nodes["s"].reason.as_ref().unwrap().contains("behind a Concat whose parts keep scales"));
    assert!(code(&split, "concats_split").is_some());
    assert!(sqnr(&split, &x) > sqnr(&plain, &x) + 10.0, "{} {}", sqnr(&plain, &x), sqnr(&split, &x));
    assert!(split.plan.activations["scores"].scale < 0.1 * split.plan.activations["boxes"].scale);
    let saved = Plan::from_yaml(&split.plan.to_yaml().unwrap()).unwrap();
    assert!(bytes(&quantize(uneven.path(), "", Some(saved))) == bytes(&split));
    // Parts that are alike share a scale as before.
    let even = folder(&heads(0.9), &x);
    let (plain, asked) = (quantize(even.path(), "", None), quantize(even.path(), "split_concats: true", None));
    assert!(bytes(&plain) == bytes(&asked));
    assert!(code(&asked, "nothing_split").unwrap().contains("4 times the range"));
}

#[test]
fn mode_auto_splits_concats_where_nodes_would_go_back_to_float() {
    let x =
        Array::from_shape_fn((40, 3, 16, 16), |(n, c, i, j)| ((n * 31 + c * 17 + i * 5 + j * 3) as f32 * 0.37).sin());
    let detector = format!(
        "agraph (float[n,3,16,16] x) => (float[n,256,5] y)\n\
         <float[32,3,3,3] w1 = {{{}}}, float[32,32,3,3] w2 = {{{}}}, float[4,32,1,1] wb = {{{}}}, float[1,32,1,1] ws = {{{}}},\n\
         float[1] k = {{600}}, int64[3] rs = {{0, 5, -1}}>\n{{\n\
         h = Conv <pads: ints = [1, 1, 1, 1]> (x, w1) r = Relu (h) g = Conv <pads: ints = [1, 1, 1, 1]> (r, w2) q = Relu (g)\n\
         b = Conv (q, wb) c = Sigmoid (b) boxes = Mul (c, k) s = Conv (q, ws) scores = Sigmoid (s)\n\
         all = Concat <axis: int = 1> (boxes, scores) f = Reshape (all, rs) y = Transpose <perm: ints = [0, 2, 1]> (f)\n}}",
        list(numbers(32 * 27, 1)),
        list(numbers(32 * 32 * 9, 2).into_iter().map(|w| w * 0.1)),
        list(numbers(4 * 32, 3).into_iter().map(|w| w * 0.1)),
        list(numbers(32, 4).into_iter().map(|w| w * 0.1)),
    );
    let folder = folder(&detector, &x);
    let settings = Settings::new(Config::default()).unwrap();
    let data = Some(folder.path().join("data.npz"));
    let job = Job { data, ..Job::new(folder.path().join("model.onnx"), folder.path().join("out.onnx"), &settings) };
    let done = pipeline::quantize(&job).unwrap();
    let auto = done.auto.as_ref().unwrap();
    assert!(!auto.too_much() && code(&done, "concats_split").is_some(), "{auto:?}");
    let concat = done.plan.nodes["all"].reason.as_deref().unwrap();
    assert!(concat.contains("its parts keep scales of their own"), "{concat}");
    assert_eq!(done.plan.integer_nodes(), 3);
}

/// Two products, of which the second weighs the first channel of what it reads by `weight`.
fn products(weight: f32) -> String {
    let first = |i: usize, w: f32| if i < 32 { weight * w } else { w };
    format!(
        "agraph (float[n,32] x) => (float[n,32] y)\n<float[32,32] w1 = {{{}}}, float[32,32] w2 = {{{}}}>\n{{\n\
         h = MatMul (x, w1) t = Tanh (x) o = MatMul (t, w1) f = Add (h, o) y = MatMul (f, w2)\n}}",
        // The first channel is the first of the input, and nothing else.
        list((0..32 * 32).map(|i| match (i / 32, i % 32) {
            (0, 0) => 1.0,
            (_, 0) | (0, _) => 0.0,
            _ => numbers(32 * 32, 1)[i] * 0.2,
        })),
        list(numbers(32 * 32, 2).into_iter().enumerate().map(|(i, w)| first(i, w))),
    )
}

#[test]
fn ranges_by_the_answers() {
    let config = "activation: {observer: min_max}\n";
    let fitted = format!("{config}fit_ranges: true");
    // A channel that is far larger than the others, and that the answers hardly depend on.
    let mut x = rows();
    x.column_mut(0).mapv_inplace(|v| 30.0 * v);
    let idle = folder(&products(0.0), &x);
    let (plain, fit) = (quantize(idle.path(), config, None), quantize(idle.path(), &fitted, None));
    assert!(sqnr(&fit, &x) > sqnr(&plain, &x) + 1.0, "{} {}", sqnr(&plain, &x), sqnr(&fit, &x));
    assert!(code(&fit, "ranges_fitted").is_some(), "{:?}", fit.diagnostics);
    assert!(fit.table.ranges.values().any(|e| e.method == "output_error"));
    let saved = Plan::from_yaml(&fit.plan.to_yaml().unwrap()).unwrap();
    assert!(bytes(&quantize(idle.path(), "", Some(saved))) == bytes(&fit));
}

#[test]
fn what_is_rare_is_not_cut() {
    let config = "activation: {observer: min_max}\n";
    // Half of the samples have a channel that is large and counts. Those that ranges are chosen on do not show it.
    let mut x = rows();
    for (n, mut row) in x.axis_iter_mut(Axis(0)).enumerate() {
        row[0] = if n % 2 == 1 { 20.0 + row[0] } else { row[0] };
    }
    let folder = folder(&products(1.0), &x);
    let (plain, asked) =
        (quantize(folder.path(), config, None), quantize(folder.path(), &format!("{config}fit_ranges: true"), None));
    assert!(sqnr(&asked, &x) > sqnr(&plain, &x) - 0.1, "{} {}", sqnr(&plain, &x), sqnr(&asked, &x));
    for (name, before) in &plain.plan.activations {
        let after = asked.plan.activations[name].scale;
        assert!(
            after > 0.85 * before.scale || !["x", "h", "f"].contains(&&name[..]),
            "{name}: {} {after}",
            before.scale
        );
    }
}

#[test]
fn cures_without_effect_say_so() {
    let x = rows();
    let folder = folder(&products(1.0), &x);
    let config = "mode: dynamic\nfit_ranges: true\nsplit_concats: true\nabsorb_biases: true\n";
    let settings = Settings::new(Config::from_yaml(config).unwrap()).unwrap();
    let job = Job::new(folder.path().join("model.onnx"), folder.path().join("out.onnx"), &settings);
    let done = pipeline::quantize(&job).unwrap();
    let idle: Vec<&str> =
        done.diagnostics.iter().filter(|d| d.code == "settings_without_effect").map(|d| &d.message[..]).collect();
    for key in ["fit_ranges", "split_concats", "absorb_biases"] {
        assert!(idle.iter().any(|m| m.starts_with(&format!("no effect of {key}: "))), "{key}: {idle:?}");
    }
}

#[test]
fn fitted_weights_are_no_worse_than_the_nearest_codes() {
    let x = rows();
    for seed in 1..4 {
        let folder = folder(&products(seed as f32), &x);
        let of = |algorithm: &str| {
            let done =
                quantize(folder.path(), &format!("weight: {{algorithm: {algorithm}, per_channel: false}}"), None);
            let by = |done: &Quantized| {
                done.plan.nodes.values().filter_map(|n| Some(n.weight.as_ref()?.algorithm.clone())).collect::<Vec<_>>()
            };
            (sqnr(&done, &x), by(&done), code(&done, "nearest_is_better").is_some())
        };
        let nearest = of("rtn");
        for algorithm in ["adaround", "mse"] {
            let (fitted, by, said) = of(algorithm);
            assert!(fitted > nearest.0 - 0.3, "{seed} {algorithm}: {} {fitted}", nearest.0);
            // What is rounded otherwise than asked is said.
            assert_eq!(by.iter().any(|b| b == "rtn"), said, "{seed} {algorithm}: {by:?}");
        }
    }
}
