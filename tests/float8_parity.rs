//! Floats of 8 bits: codes and numbers are those of ONNX Runtime, and whole models load and answer there as in the built-in
//! runtime.

mod common;

use std::path::Path;

use common::{ort_run, ort_try_run};
use qonvert::{
    calibrate::dataset::{Dataset, DatasetOptions, InputSpec},
    config::{Config, Numbers},
    ir::{DType, Model, Tensor, text},
    onnx_file,
    pipeline::{self, Job},
    plan::Form,
    quant::float8::Float8,
    report::Report,
    runtime::{Runtime, tract::Tract},
    scheme::Settings,
};

/// Every number of 16-bit floats, the middle between each and the next, and what is far from them.
fn numbers() -> Vec<f32> {
    let halves = (0..=u16::MAX).map(|bits| half::f16::from_bits(bits).to_f32());
    let between = (0..u16::MAX).map(|bits| {
        let [a, b] = [bits, bits + 1].map(|b| half::f16::from_bits(b).to_f32());
        (a + b) / 2.0
    });
    let far = [3e38, -3e38, 1e9, f32::MIN_POSITIVE, 1e-30, -1e-30, 57344.1, 61440.0, 65536.0, -0.0];
    halves.chain(between).chain(far).collect()
}

fn model(body: &str, opset: i64, outputs: &str, constants: &str) -> Model {
    let ir_version = if opset < 23 { 10 } else { 11 };
    let head = format!("<ir_version: {ir_version}, opset_import: [\"\" : {opset}]> g (float[N,M] x) => ({outputs})");
    text::parse(&format!("{head} <{constants}> {{ {body} }}")).unwrap_or_else(|e| panic!("{body}: {e}"))
}

/// The bits of numbers, one NaN for all.
fn bits(t: &Tensor) -> Vec<u32> {
    let all = t.to_f32().expect("floats").into_iter();
    all.map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// What both runtimes make of a model.
fn both(model: &Model, x: &Tensor) -> (Vec<u32>, Option<Vec<u32>>) {
    let ours = Tract.load(model, &[]).unwrap().run(std::slice::from_ref(x)).unwrap().remove(0);
    let theirs = ort_run(&onnx_file::to_bytes(model).expect("it encodes"), &[("x", x.clone())]);
    (bits(&ours), theirs.map(|t| bits(&t[0])))
}

#[test]
fn every_number_gets_the_code_of_the_runtime() {
    let x = numbers();
    let x = Tensor::from_f32(&[1, x.len()], &x);
    for dtype in Float8::TYPES {
        let float = Float8::of(dtype).unwrap();
        for (opset, scale) in [(19, 1.0), (21, 0.37), (23, 3e-5)] {
            let body = "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)";
            let constants = format!("float s = {{{scale:?}}}, {dtype} z = {{0}}");
            let (ours, theirs) = both(&model(body, opset, "float y", &constants), &x);
            // What is written to files is made by the same function: each code stands for one number.
            let all = x.to_f32().unwrap();
            let coded = all.iter().map(|x| float.number(float.code(x / scale, true)) * scale);
            let coded = Tensor::from_f32(&[all.len()], &coded.collect::<Vec<f32>>());
            assert!(bits(&coded) == ours, "{dtype}");
            let Some(theirs) = theirs else { continue };
            for ((x, a), b) in all.iter().zip(&ours).zip(&theirs) {
                let [a, b] = [*a, *b].map(f32::from_bits);
                assert!(a.to_bits() == b.to_bits(), "{dtype}, opset {opset}: {x:e} becomes {a}, in ONNX Runtime {b}");
            }
        }
    }
}

#[test]
fn scales_of_channels() {
    let x: Vec<f32> = (0..60).map(|i| (i as f32 * 0.7).sin() * (1 + i) as f32).collect();
    let x = Tensor::from_f32(&[15, 4], &x);
    for dtype in Float8::TYPES {
        let constants = format!("float[4] s = {{0.5, 0.01, 3, 0.1}}, {dtype}[4] z = {{0, 0, 0, 0}}");
        for axis in [1, -1] {
            let body =
                format!("q = QuantizeLinear <axis = {axis}> (x, s, z) y = DequantizeLinear <axis = {axis}> (q, s, z)");
            let (ours, theirs) = both(&model(&body, 19, "float y", &constants), &x);
            assert!(theirs.is_none_or(|t| t == ours), "{dtype}, axis {axis}");
        }
        // Of constants, too: all codes.
        let codes: Vec<String> = (0..=255).map(|c: u8| c.to_string()).collect();
        let constants = format!("{dtype}[64,4] c = {{{}}}, float[4] s = {{0.5, 0.01, 3, 0.1}}", codes.join(", "));
        let body = "d = DequantizeLinear <axis = 1> (c, s) y = MatMul (d, x)";
        let one = Tensor::from_f32(&[4, 4], &[1., 0., 0., 0., 0., 1., 0., 0., 0., 0., 1., 0., 0., 0., 0., 1.]);
        let (ours, theirs) = both(&model(body, 19, "float y", &constants), &one);
        let kernel = |bits: &[u32]| bits.iter().filter(|b| f32::from_bits(**b).is_nan()).count();
        assert!(theirs.is_none_or(|t| kernel(&t) == kernel(&ours)), "{dtype}");
    }
}

/// The model as it is written, and the report on it.
fn written(model: &Path, data: &Path, config: Config) -> (Model, Report) {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out.onnx");
    let settings = Settings::new(config).expect("a configuration");
    let job = Job { data: Some(data.to_owned()), ..Job::new(model, &output, &settings) };
    let report = pipeline::run(&job).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
    (onnx_file::read(&output).expect("what was written can be read"), report)
}

#[test]
fn small_models_answer_alike_in_both_runtimes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let data = folder.join("digits_calib.npz");
    for name in ["digits_cnn.torchscript", "digits_transformer.dynamo"] {
        let path = folder.join(format!("{name}.onnx"));
        let original = onnx_file::read(&path).expect("a model");
        let samples =
            Dataset::open(&data, &InputSpec::of_model(&original).unwrap(), &DatasetOptions::default()).unwrap();
        let input = original.value(original.required_inputs()[0]).name().to_owned();
        let sample = samples.sample(0).expect("a sample").remove(0);
        for precision in [Numbers::Fp8, Numbers::Fp8E5m2, Numbers::Fp8Fnuz, Numbers::Fp8E5m2Fnuz] {
            let config = Config { precision, everywhere: true, ..Config::default() };
            let (made, report) = written(&path, &data, config);
            assert!(report.passed(), "{name} in {precision:?}: {:?}", report.verdict);
            assert!(report.nodes.float8 > 0 && report.size.after * 10 < report.size.before * 6, "{:?}", report.size);
            assert!(report.diagnostics.iter().any(|d| d.code == "no_float8_kernels"), "{:?}", report.diagnostics);
            assert!(made.opset("").unwrap() >= 19);
            let ours = Tract.load(&made, &[]).unwrap().run(std::slice::from_ref(&sample)).unwrap();
            let bytes = onnx_file::to_bytes(&made).unwrap();
            // Optimized, ONNX Runtime makes integers of biases, which overflow beside the small scales of these types.
            let optimize = !matches!(precision, Numbers::Fp8E5m2 | Numbers::Fp8E5m2Fnuz);
            let theirs = ort_try_run(&bytes, &[(&input, sample.clone())], optimize);
            let Some(theirs) = theirs.map(|t| t.expect("it runs")) else { continue };
            let (a, b) = (ours[0].to_f32().unwrap(), theirs[0].to_f32().unwrap());
            let (power, noise) = a
                .iter()
                .zip(&b)
                .fold((0.0, 0.0), |(p, n), (a, b)| (p + f64::from(a * a), n + f64::from((a - b).powi(2))));
            // Sums in another order move single numbers to the next code.
            assert!(noise * 300.0 <= power, "{name} in {precision:?}: {noise:e} of {power:e}");
        }
    }
}

#[test]
fn a_plan_and_a_written_file_serve_again() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let (path, data) = (folder.join("digits_cnn.torchscript.onnx"), folder.join("digits_calib.npz"));
    let settings = Settings::new(Config { precision: Numbers::Fp8, everywhere: true, ..Config::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first.onnx");
    let job = Job { data: Some(data.clone()), ..Job::new(&path, &first, &settings) };
    let done = pipeline::quantize(&job).unwrap();
    let plan = qonvert::plan::Plan::from_yaml(&done.plan.to_yaml().unwrap()).unwrap();
    assert!(plan.nodes.values().any(|n| n.becomes == Form::Float8));
    pipeline::finish(&job, done).unwrap();
    // By the plan, without data.
    let plain = Settings::new(Config::default()).unwrap();
    let again = dir.path().join("again.onnx");
    pipeline::run(&Job { plan: Some(plan), ..Job::new(&path, &again, &plain) }).unwrap();
    assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&again).unwrap());
    // What is in floats of 8 bits stays so, whatever else is asked for.
    for config in [Config { precision: Numbers::Fp8, ..Config::default() }, Config::default()] {
        let (passed, report) = written(&first, &data, config);
        let float8 = |m: &Model| {
            let all = m.value_ids().into_iter().filter_map(|v| m.value(v).initializer());
            all.filter(|t| t.dtype() == DType::Float8E4M3FN && t.rank() > 1).count()
        };
        assert!(report.passed(), "{:?}", report.verdict);
        assert_eq!(float8(&passed), float8(&onnx_file::read(&first).unwrap()));
    }
}
