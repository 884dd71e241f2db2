//! Models in 16-bit floats: they load in ONNX Runtime and answer as the original does there; what overflows is found by data.

mod common;

use std::{fs::File, path::Path};

use common::{ort_run, random::Random};
use ndarray::Array2;
use ndarray_npy::NpzWriter;
use qonvert::{
    calibrate::dataset::{Dataset, DatasetOptions, InputSpec},
    config::{Config, IoTypes, Numbers},
    ir::{DType, Model, Tensor, text},
    onnx_file,
    pipeline::{self, Job},
    report::Report,
    scheme::Settings,
};

/// The model as it is written, and the report on it.
fn written(model: &Path, data: Option<&Path>, precision: Numbers, io_types: IoTypes) -> (Model, Report) {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out.onnx");
    let settings = Settings::new(Config { precision, io_types, ..Config::default() }).expect("a configuration");
    let job = Job { data: data.map(Path::to_owned), ..Job::new(model, &output, &settings) };
    let report = pipeline::run(&job).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
    (onnx_file::read(&output).expect("what was written can be read"), report)
}

/// The least signal to noise over outputs of both models in ONNX Runtime, dB; `None` without it.
fn sqnr(original: &Model, half: &Model, inputs: &[(&str, Tensor)]) -> Option<f64> {
    let run = |m: &Model| ort_run(&onnx_file::to_bytes(m).expect("it encodes"), inputs);
    let mut least = f64::INFINITY;
    for (a, b) in run(original)?.iter().zip(&run(half)?) {
        let (a, b) = (a.to_f32().expect("floats"), b.to_f32().expect("floats"));
        assert!(b.iter().all(|x| x.is_finite()), "an output is not finite");
        let sum = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>();
        let noise = sum(&mut a.iter().zip(&b).map(|(a, b)| a - b));
        least = least.min(10.0 * (sum(&mut a.iter().copied()) / noise).log10());
    }
    Some(least)
}

#[test]
fn small_models_load_and_answer_alike() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let data = folder.join("digits_calib.npz");
    for name in
        ["digits_cnn.dynamo", "digits_cnn.torchscript", "digits_transformer.dynamo", "digits_transformer.torchscript"]
    {
        let path = folder.join(format!("{name}.onnx"));
        let original = onnx_file::read(&path).expect("a model");
        let spec = InputSpec::of_model(&original).expect("inputs");
        let samples = Dataset::open(&data, &spec, &DatasetOptions::default()).expect("data");
        let input = original.value(original.required_inputs()[0]).name().to_owned();
        let inputs = [(&input[..], samples.sample(0).expect("a sample").remove(0))];
        for (precision, data, least) in
            [(Numbers::Fp16, Some(&data), 40.0), (Numbers::Fp16, None, 40.0), (Numbers::Bf16, Some(&data), 25.0)]
        {
            let (half, report) = written(&path, data.map(|d| &**d), precision, IoTypes::Keep);
            assert!(report.passed() && report.size.after * 10 < report.size.before * 7, "{name}: {:?}", report.size);
            let Some(sqnr) = sqnr(&original, &half, &inputs) else { continue };
            assert!(sqnr > least, "{name} in {precision:?}: {sqnr:.1} dB");
        }
    }
}

/// A normalization in single operators: squares of its data are up to a million and more.
const NORMALIZATION: &str = r#"<ir_version: 8, opset_import: ["": 13]>
    g (float[n,16] x) => (float[n,16] y) <float two = {2}, float eps = {0.00001}> {
        m = ReduceMean <axes = [-1]> (x)
        d = Sub(x, m)
        p = Pow(d, two)
        v = ReduceMean <axes = [-1]> (p)
        e = Add(v, eps)
        s = Sqrt(e)
        z = Div(d, s)
        y = MatMul(z, w)
    }"#;

#[test]
fn what_overflows_in_the_data_keeps_32_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut original = text::parse(NORMALIZATION.replace("MatMul(z, w)", "Identity(z)").as_str()).expect("a model");
    let w = original.add_initializer(original.main(), "w", Random(3).tensor(&[16, 16], 0.5));
    let last = original.nodes(original.main()).pop().expect("a node");
    original.node_mut(last).op_type = "MatMul".into();
    original.push_input(last, Some(w));
    let (path, data) = (folder.path().join("model.onnx"), folder.path().join("data.npz"));
    onnx_file::write(&original, &path, onnx_file::WriteOptions::default()).expect("it can be written");
    let mut draw = Random(5);
    let x = Array2::from_shape_fn((24, 16), |_| (2.0 * draw.uniform() - 1.0) * 1500.0);
    let mut file = NpzWriter::new(File::create(&data).expect("a file"));
    file.add_array("x", &x).expect("an array");
    file.finish().expect("a file");
    let (half, report) = written(&path, Some(&data), Numbers::Fp16, IoTypes::Keep);
    assert!(report.passed());
    let reasons: Vec<_> = report.nodes.reasons.iter().map(|r| (&r.op[..], &r.reason[..])).collect();
    assert!(reasons.iter().any(|(op, why)| *op == "Pow" && why.contains("overflows: up to")), "{reasons:?}");
    assert_eq!(report.halves.as_ref().map(|h| h.dtype), Some(DType::Float16));
    let inputs = [("x", Tensor::from_f32(&[24, 16], x.as_slice().expect("in order")))];
    if let Some(sqnr) = sqnr(&original, &half, &inputs) {
        assert!(sqnr > 40.0, "{sqnr:.1} dB");
    }
    // The same with inputs and outputs in 16 bits.
    let (half, report) = written(&path, Some(&data), Numbers::Fp16, IoTypes::Half);
    let ends = |m: &Model| {
        let g = m.graph(m.main());
        [g.inputs()[0], g.outputs()[0]].map(|v| m.value(v).ty.as_ref().and_then(qonvert::ir::Type::dtype))
    };
    assert_eq!(ends(&half), [Some(DType::Float16); 2]);
    assert!(report.passed() && report.proof.is_some_and(|p| p.samples > 0));
}
