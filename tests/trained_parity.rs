//! Models that were trained with quantizers, in the forms that exporters leave: the codes are those of training, all products
//! become integer kernels, and the answers stay.

mod common;

use std::{collections::BTreeMap, fs::File, path::Path};

use common::{ort_optimize, ort_run};
use ndarray::{IxDyn, OwnedRepr};
use ndarray_npy::NpzReader;
use qonvert::{
    Config, Job, Settings,
    config::Mode,
    ir::{Model, Tensor},
    kernels::{self, Becomes},
    onnx_file, pipeline,
    quant::pack::unpack,
    report::Report,
};

const PRODUCTS: [&str; 3] = ["Conv", "Gemm", "MatMul"];

fn models() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models"))
}

/// The files with the form whose training they come from.
fn files() -> Vec<(&'static str, &'static str)> {
    ["eager", "fx", "inputs"]
        .into_iter()
        .flat_map(|form| [(form, "torchscript"), (form, "dynamo")])
        .chain([("few", "torchscript"), ("few", "qcdq")])
        .collect()
}

fn quantized(form: &str, exporter: &str, config: Config, data: bool) -> (Model, Report) {
    let settings = Settings::new(config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut job = Job::new(
        models().join(format!("digits_qat_{form}.{exporter}.onnx")),
        folder.path().join("out.onnx"),
        &settings,
    );
    job.data = data.then(|| models().join("digits_calib.npz"));
    let report = pipeline::run(&job).unwrap_or_else(|e| panic!("{form}, {exporter}: {e}"));
    (onnx_file::read(&job.output).unwrap(), report)
}

/// The codes of training, by layer.
fn codes_of_training(form: &str) -> BTreeMap<String, (Vec<usize>, Vec<i32>)> {
    let mut npz = NpzReader::new(File::open(models().join("digits_qat_codes.npz")).unwrap()).unwrap();
    let names: Vec<String> = npz.names().unwrap();
    let ours = names.into_iter().filter(|n| n.starts_with(&format!("{form}.")));
    let read = |name: String| {
        let array = npz.by_name::<OwnedRepr<i8>, IxDyn>(&name).unwrap();
        let codes = array.iter().map(|&c| i32::from(c)).collect();
        (name, (array.shape().to_vec(), codes))
    };
    ours.map(read).collect()
}

/// A matrix turned.
fn turned(dims: &[usize], codes: &[i32]) -> Vec<i32> {
    let &[rows, columns] = dims else { return codes.to_vec() };
    (0..columns).flat_map(|c| (0..rows).map(move |r| codes[r * columns + c])).collect()
}

#[test]
fn codes_are_those_of_training() {
    for (form, exporter) in files() {
        let (model, _) = quantized(form, exporter, Config::default(), true);
        let stored: Vec<Vec<i32>> = model
            .value_ids()
            .into_iter()
            .filter_map(|v| model.value(v).initializer())
            .filter(|t| t.len() > 1 && t.dtype().bits() == 8)
            .filter_map(|t| unpack(t).ok())
            .collect();
        for (layer, (dims, codes)) in codes_of_training(form) {
            let is = |found: &Vec<i32>, factor: i32| {
                let alike = |codes: &[i32]| {
                    found.len() == codes.len() && found.iter().zip(codes).all(|(f, c)| *f == c * factor)
                };
                alike(&codes) || alike(&turned(&dims, &codes))
            };
            // Codes of few bits leave room for the bias: they are multiples by a power of two.
            let factors: &[i32] = if form == "few" { &[1, 8, 64] } else { &[1] };
            let found = factors.iter().any(|&f| stored.iter().any(|s| is(s, f)));
            assert!(found, "{form}, {exporter}: the file has other codes than training for {layer}");
        }
    }
}

#[test]
fn all_products_become_integer_kernels_and_answers_stay() {
    let (images, labels) = evaluation();
    for (form, exporter) in files() {
        let (model, report) = quantized(form, exporter, Config::default(), true);
        let settings = Settings::new(Config::default()).unwrap();
        let predicted = kernels::predict(&model, &settings.target);
        let products = predicted.nodes.iter().filter(|n| PRODUCTS.contains(&&*n.op));
        let kinds: Vec<Becomes> = products.map(|n| n.becomes).collect();
        assert!(kinds.len() == 7 && kinds.iter().all(|b| *b == Becomes::Integer), "{form}, {exporter}: {kinds:?}");
        let told: Vec<&str> = report.diagnostics.iter().map(|d| d.code).collect();
        assert!(told.contains(&"trained_quantizers") && !told.contains(&"plan_not_met"), "{told:?}");
        let bytes = onnx_file::to_bytes(&model).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let optimized = folder.path().join("optimized.onnx");
        if !ort_optimize(&bytes, &optimized) {
            continue;
        }
        let loaded = onnx_file::read(&optimized).unwrap();
        let float = |op: &str| PRODUCTS.contains(&op) || op.starts_with("Fused");
        let left: Vec<&str> =
            loaded.all_nodes().into_iter().map(|n| &*loaded.node(n).op_type).filter(|op| float(op)).collect();
        assert!(left.is_empty(), "{form}, {exporter}: {left:?} in ONNX Runtime");
        // QONNX's own operators are in no runtime; its standard form computes the same.
        let original = if form == "few" { "qcdq" } else { exporter };
        let original = onnx_file::read(&models().join(format!("digits_qat_{form}.{original}.onnx"))).unwrap();
        let right = |model: &Model| {
            let input = model.value(model.required_inputs()[0]).name();
            let logits = ort_run(&onnx_file::to_bytes(model).unwrap(), &[(input, images.clone())]).unwrap().remove(0);
            correct(&logits, &labels)
        };
        let (before, after) = (right(&original), right(&model));
        assert!(before.abs_diff(after) <= 1, "{form}, {exporter}: {before} of {} right, then {after}", labels.len());
    }
}

fn evaluation() -> (Tensor, Vec<i64>) {
    let mut npz = NpzReader::new(File::open(models().join("digits_eval.npz")).unwrap()).unwrap();
    let images = npz.by_name::<OwnedRepr<f32>, IxDyn>("image").unwrap();
    let labels = npz.by_name::<OwnedRepr<i64>, IxDyn>("labels").unwrap();
    let numbers: Vec<f32> = images.iter().copied().collect();
    (Tensor::from_f32(images.shape(), &numbers), labels.iter().copied().collect())
}

fn correct(logits: &Tensor, labels: &[i64]) -> usize {
    let scores = logits.to_f32().unwrap();
    let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i64;
    scores.chunks(scores.len() / labels.len()).zip(labels).filter(|(row, l)| best(row) == **l).count()
}

#[test]
fn without_data_what_training_tells_is_enough_or_the_node_is_named() {
    let (model, report) = quantized("eager", "torchscript", Config::default(), false);
    let settings = Settings::new(Config::default()).unwrap();
    let predicted = kernels::predict(&model, &settings.target);
    let integer = |p: &kernels::Prediction| {
        p.nodes.iter().filter(|n| PRODUCTS.contains(&&*n.op) && n.becomes == Becomes::Integer).count()
    };
    assert_eq!(integer(&predicted), 7);
    assert!(report.diagnostics.iter().any(|d| d.code == "derived_ranges"));
    // In TensorRT's style the sums have no quantizers, and what makes them stays float without data.
    let (model, report) = quantized("inputs", "torchscript", Config::default(), false);
    assert_eq!(integer(&kernels::predict(&model, &settings.target)), 5);
    let text = report.nodes.reasons.iter().map(|r| format!("{r:?}")).collect::<Vec<_>>().join("\n");
    assert!(text.contains("give --calibration"), "{text}");
}

#[test]
fn mode_qat_insists() {
    let settings = Settings::new(Config { mode: Mode::Qat, ..Config::default() }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let job = Job::new(models().join("digits_cnn.torchscript.onnx"), folder.path().join("out.onnx"), &settings);
    let error = pipeline::run(&job).unwrap_err();
    assert!(error.to_string().contains("no quantizer"), "{error}");
    quantized("fx", "torchscript", Config { mode: Mode::Qat, ..Config::default() }, false);
}
