//! Channels of very different sizes: evened out, or with a bias that moves on, one scale fits them all, the float model stays
//! what it was, and the plan that says so gives the same file again.

use std::{fs, path::Path};

use ndarray::{Array, Array2, Array4, Axis};
use ndarray_npy::NpzWriter;
use qonvert::{
    Config, Job, Settings,
    ir::{Model, Tensor, text},
    onnx_file,
    passes::{self, Context, Stage},
    pipeline::{self, Quantized},
    plan::{Plan, TakenBy},
    runtime::{Runtime, tract::Tract},
};

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0).collect()
}

fn list(v: impl IntoIterator<Item = f32>) -> String {
    v.into_iter().map(|x| format!("{x:e}")).collect::<Vec<_>>().join(", ")
}

/// Two products whose data hold few channels far larger than the rest, which the weights make up for. Beside one of them
/// another node reads the data.
fn matrices() -> String {
    let large = |channel: usize| if channel % 16 == 3 { 40.0 } else { 1.0 };
    let sizes: Vec<f32> = (0..64).map(large).collect();
    let weight = |seed| numbers(64 * 128, seed).into_iter().enumerate().map(|(i, x)| x / large(i / 128));
    format!(
        "<ir_version: 8, opset_import: [\"\" : 17]>\n\
         agraph (float[n,32] x) => (float[n,128] y, float[n,128] z, float[n,64] seen)\n\
         <float[32,64] w1 = {{{}}}, float[32,64] w2 = {{{}}}, float[64] s1 = {{{}}}, float[64] s2 = {{{}}},\n\
         float[64,128] u1 = {{{}}}, float[64,128] u2 = {{{}}}>\n{{\n\
         a = MatMul (x, w1) b = Tanh (a) own = Mul (b, s1) y = MatMul (own, u1)\n\
         c = MatMul (x, w2) d = Tanh (c) shared = Mul (d, s2) z = MatMul (shared, u2) seen = Exp (d)\n\
         }}",
        list(numbers(32 * 64, 1)),
        list(numbers(32 * 64, 2)),
        list(sizes.clone()),
        list(sizes),
        list(weight(3)),
        list(weight(4)),
    )
    .replace("seen = Exp (d)", "e = Abs (shared) seen = Sqrt (e)")
}

/// Convolutions with a depthwise one between them, whose channels are of very different sizes.
fn convolutions() -> String {
    let depthwise = numbers(32 * 9, 2).into_iter().enumerate().map(|(i, x)| x * 10f32.powi(-((i / 9 % 4) as i32)));
    let last = numbers(8 * 32, 3).into_iter().enumerate().map(|(i, x)| x * 10f32.powi((i % 4) as i32));
    format!(
        "<ir_version: 8, opset_import: [\"\" : 17]>\n\
         agraph (float[1,3,16,16] x) => (float[1,8,16,16] y)\n\
         <float[32,3,3,3] w1 = {{{}}}, float[32,1,3,3] w2 = {{{}}}, float[8,32,1,1] w3 = {{{}}}>\n{{\n\
         a = Conv <pads: ints = [1, 1, 1, 1]> (x, w1) r = Relu (a)\n\
         b = Conv <group: int = 32, pads: ints = [1, 1, 1, 1]> (r, w2) c = Relu (b)\n\
         y = Conv (c, w3)\n}}",
        list(numbers(32 * 27, 1)),
        list(depthwise),
        list(last),
    )
}

fn quantize(folder: &Path, config: &str, plan: Option<Plan>) -> Quantized {
    let config = format!("mode: static\neverywhere: true\n{config}");
    let settings = Settings::new(Config::from_yaml(&config).unwrap()).unwrap();
    let mut job = Job::new(folder.join("model.onnx"), folder.join("out.onnx"), &settings);
    job.data = Some(folder.join("data.npz"));
    job.plan = plan;
    pipeline::quantize(&job).unwrap()
}

/// The least SQNR of all outputs, dB.
fn sqnr(original: &Model, other: &Model, sample: &Tensor) -> f64 {
    let run = |m: &Model| Tract.load(m, &[]).unwrap().run(std::slice::from_ref(sample)).unwrap();
    let each = run(original).into_iter().zip(run(other)).map(|(want, got)| {
        let (want, got) = (want.to_f32().unwrap(), got.to_f32().unwrap());
        let signal: f64 = want.iter().map(|x| f64::from(x * x)).sum();
        let noise: f64 = want.iter().zip(&got).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        10.0 * (signal / noise).log10()
    });
    each.fold(f64::INFINITY, f64::min)
}

/// A folder with this model and pictures for it, and the first of these.
fn pictures(model: &str) -> (tempfile::TempDir, Tensor) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    onnx_file::write(&text::parse(model).unwrap(), &path("model.onnx"), Default::default()).unwrap();
    let x: Array4<f32> = Array::from_shape_fn((24, 3, 16, 16), |(n, c, i, j)| {
        ((n * 31 + c * 17 + i * 5 + j * 3) as f32 * 0.37).sin() + 0.2 * (n as f32 * 1.7).cos()
    });
    let mut npz = NpzWriter::new(fs::File::create(path("data.npz")).unwrap());
    npz.add_array("x", &x).unwrap();
    npz.finish().unwrap();
    let first = x.index_axis(Axis(0), 0);
    let sample = Tensor::from_f32(&[1, 3, 16, 16], first.as_standard_layout().as_slice().unwrap());
    (folder, sample)
}

/// Quantizes with and without; returns the plan with, after the checks that hold for any model.
fn check(folder: &Path, with: &str, without: &str, sample: &Tensor, gain: f64) -> Plan {
    let (plain, even) = (quantize(folder, without, None), quantize(folder, with, None));
    let (before, after) = (sqnr(&plain.original, &plain.model, sample), sqnr(&even.original, &even.model, sample));
    assert!(after > before + gain, "{before:.1} dB became {after:.1} dB");
    let mut float = pipeline::prepare(&even.original, &mut Context::default()).unwrap();
    passes::run_stage(
        Stage::Scale,
        &mut float,
        &mut Context { plan: Some(even.plan.of_channels()), ..Context::default() },
    )
    .unwrap();
    let kept = sqnr(&even.original, &float, sample);
    assert!(kept > 100.0, "the float model is {kept:.1} dB beside the original");
    let saved = Plan::from_yaml(&even.plan.to_yaml().unwrap()).unwrap();
    assert_eq!(saved, even.plan);
    let again = quantize(folder, "", Some(saved));
    assert!(onnx_file::to_bytes(&again.model).unwrap() == onnx_file::to_bytes(&even.model).unwrap());
    even.plan
}

#[test]
fn outliers_move_into_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    onnx_file::write(&text::parse(&matrices()).unwrap(), &path("model.onnx"), Default::default()).unwrap();
    let x: Array2<f32> = Array::from_shape_fn((64, 32), |(n, c)| ((n * 31 + c * 17) as f32 * 0.37).sin());
    let mut npz = NpzWriter::new(fs::File::create(path("data.npz")).unwrap());
    npz.add_array("x", &x).unwrap();
    npz.finish().unwrap();
    let sample = Tensor::from_f32(&[1, 32], x.index_axis(Axis(0), 5).as_slice().unwrap());
    let plan = check(folder.path(), "smooth: true", "", &sample, 6.0);
    let by = |name: &str| plan.channel_factors.get(name).map(|f| f.taken_by);
    assert_eq!((by("own"), by("shared")), (Some(TakenBy::Constants), Some(TakenBy::Mul)));
    // The Mul that came in does not compute in integers, and says why.
    let inserted = plan.nodes.values().find(|n| n.reason.as_ref().is_some_and(|r| r.contains("evens out")));
    assert!(inserted.is_some_and(|n| n.op == "Mul"), "{:?}", plan.nodes);
}

#[test]
fn weights_with_one_scale_meet_half_way() {
    let (folder, sample) = pictures(&convolutions());
    let one_scale = "weight: {per_channel: false}\n";
    let plan = check(folder.path(), &format!("{one_scale}equalize: true"), one_scale, &sample, 6.0);
    assert!(plan.channel_factors.values().all(|f| f.taken_by == TakenBy::Constants && f.factors.len() == 32));
    // With a scale for each channel there is nothing to even out.
    assert!(quantize(folder.path(), "equalize: true", None).plan.channel_factors.is_empty());
}

/// A convolution with some channels far above 0, whose biases the next layer could have. `pads` are those of the next layer.
fn biased(pads: usize) -> String {
    let bias = (0..16).map(|i| if i % 5 == 2 { 90.0 + i as f32 } else { 0.1 });
    format!(
        "<ir_version: 8, opset_import: [\"\" : 17]>\n\
         agraph (float[1,3,16,16] x) => (float[1,8,h,w] y)\n\
         <float[16,3,3,3] w1 = {{{}}}, float[16] b1 = {{{}}}, float[8,16,3,3] w2 = {{{}}}>\n{{\n\
         a = Conv <pads: ints = [1, 1, 1, 1]> (x, w1, b1) r = Relu (a)\n\
         y = Conv <pads: ints = [{pads}, {pads}, {pads}, {pads}]> (r, w2)\n}}",
        list(numbers(16 * 27, 1)),
        list(bias),
        list(numbers(8 * 16 * 9, 3)),
    )
}

#[test]
fn biases_move_on_to_the_next_layer() {
    let (folder, sample) = pictures(&biased(0));
    // The answers themselves are as large as before: it is the noise that is less.
    let plan = check(folder.path(), "absorb_biases: true", "", &sample, 6.0);
    let shifts = &plan.absorbed_biases["r"].shifts;
    assert!(shifts.iter().enumerate().all(|(i, s)| (*s > 50.0) == (i % 5 == 2)), "{shifts:?}");
    assert!(plan.activations["r"].scale < 0.3 * quantize(folder.path(), "", None).plan.activations["r"].scale);
    // On the border of what a layer pads, a 0 would stand for more: nothing moves, and not a byte changes.
    let (folder, _) = pictures(&biased(1));
    let (plain, asked) = (quantize(folder.path(), "", None), quantize(folder.path(), "absorb_biases: true", None));
    assert!(onnx_file::to_bytes(&plain.model).unwrap() == onnx_file::to_bytes(&asked.model).unwrap());
    let note = asked.diagnostics.iter().find(|d| d.code == "nothing_absorbed").unwrap();
    assert!(note.message.contains("of which the second pads nothing"), "{}", note.message);
}
