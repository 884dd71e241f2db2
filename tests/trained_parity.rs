//! Models that were trained with quantizers, in the forms that exporters leave: the codes are those of training, all products
//! become integer kernels, and the answers stay.

mod common;

use std::{collections::BTreeMap, fs::File, path::Path};

use common::{ort_optimize, ort_run, random::Random};
use ndarray::{IxDyn, OwnedRepr};
use ndarray_npy::NpzReader;
use qonvert::{
    Config, Job, Settings,
    config::{Format, Mode},
    ir::{DType, Model, NodeSpec, Place, Tensor, text},
    kernels::{self, Becomes},
    onnx_file::{self, WriteOptions},
    passes, pipeline,
    plan::Plan,
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
    quantized_file(&models().join(format!("digits_qat_{form}.{exporter}.onnx")), config, data)
}

fn quantized_file(path: &Path, config: Config, data: bool) -> (Model, Report) {
    let settings = Settings::new(config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut job = Job::new(path, folder.path().join("out.onnx"), &settings);
    job.data = data.then(|| models().join("digits_calib.npz"));
    let report = pipeline::run(&job).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
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

/// Two layers of signs and a last one, with biases that are no multiples of anything. What makes signs of data may be another
/// operator, and the layers in front of them may have no biases.
fn net_of_signs(of_data: Option<&str>, biases: bool) -> Model {
    let mut random = Random(11);
    let mut constant = |name: &str, dims: &[usize], size: f32| {
        let numbers: Vec<String> =
            random.floats(dims.iter().product(), size).iter().map(|x| format!("{x:e}")).collect();
        let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
        format!("float[{}] {name} = {{{}}}", dims.join(","), numbers.join(","))
    };
    let constants = [
        constant("w", &[16, 1, 3, 3], 1.0),
        constant("b", &[16], 0.4),
        constant("v", &[16, 16, 3, 3], 1.0),
        constant("c", &[16], 3.0),
        constant("u", &[16, 8], 1.0),
        constant("d", &[8], 1.0),
    ];
    let quant = "qonnx.custom_op.general.Quant <signed = 1, narrow = 1, rounding_mode = \"ROUND\">";
    let sign = "qonnx.custom_op.general.BipolarQuant";
    let bipolar = |x: &str| format!("{sign} ({x}, one)");
    let made = |x: &str| of_data.map_or_else(|| bipolar(x), |op| format!("{op} ({x})"));
    let (p, q) = (made("a"), made("e"));
    // Without biases sums are 0 now and then: in floats, too, if the scale is a power of two.
    let (b, c, t) = if biases { (", b", ", c", 0.17) } else { ("", "", 0.125) };
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 17, \"qonnx.custom_op.general\" : 1]> g (float[1,1,8,8] x) => (float[1,8] y)
         <float s = {{0.0078125}}, float one = {{1}}, float z = {{0}}, float eight = {{8}}, float t = {{{t}}}, {}> {{
            xq = {quant} (x, s, z, eight)
            wq = {sign} (w, t) vq = {sign} (v, t) uq = {quant} (u, s, z, eight)
            a = Conv <pads = [1,1,1,1], kernel_shape = [3,3]> (xq, wq{b}) p = {p}
            e = Conv <pads = [1,1,1,1], kernel_shape = [3,3]> (p, vq{c}) q = {q}
            m = GlobalAveragePool(q) f = Flatten(m) fq = {quant} (f, s, z, eight) y = Gemm(fq, uq, d) }}",
        constants.join(", ")
    );
    text::parse(&text).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn signs_are_found_by_integers_to_the_last_one() {
    let folder = tempfile::tempdir().unwrap();
    let (path, data) = (folder.path().join("signs.onnx"), folder.path().join("data.npz"));
    let images = ndarray::Array::from_shape_vec((24, 1, 8, 8), Random(5).floats(24 * 64, 0.98)).unwrap();
    let mut npz = ndarray_npy::NpzWriter::new(File::create(&data).unwrap());
    npz.add_array("x", &images).unwrap();
    npz.finish().unwrap();
    let nets = [(None, true), (Some("Sign"), true), (Some("Sign"), false)];
    for (net, given) in nets.into_iter().flat_map(|net| [(net, None), (net, Some(data.clone()))]) {
        onnx_file::write(&net_of_signs(net.0, net.1), &path, WriteOptions::default()).unwrap();
        let settings = Settings::new(Config::default()).unwrap();
        let mut job = Job::new(&path, folder.path().join("out.onnx"), &settings);
        (job.data, job.evaluation) = (given, Some(data.clone()));
        let report = pipeline::run(&job).unwrap();
        let model = onnx_file::read(&job.output).unwrap();
        let predicted = kernels::predict(&model, &settings.target);
        let integer = predicted.nodes.iter().filter(|n| PRODUCTS.contains(&&*n.op) && n.becomes == Becomes::Integer);
        assert_eq!(integer.count(), 3, "{net:?}: {:?}", report.nodes.reasons);
        // One sign of a thousand would be 30 dB.
        let proof = report.proof.unwrap();
        assert!(proof.outputs[0].sqnr.is_none_or(|s| s > 60.0), "{:?}", proof.outputs[0].sqnr);
    }
}

/// A step of arithmetic with numbers of its own.
type Step = (&'static str, Vec<f32>);

/// Ways in which training code rounds to the codes from `lo` to `hi` with scale `s` and zero point `z`.
fn ways((s, z, lo, hi): (f32, f32, f32, f32)) -> Vec<Vec<Step>> {
    let step = |op, numbers: &[f32]| (op, numbers.to_vec());
    let (there, back, round) = (step("Div", &[s]), step("Mul", &[s]), step("Round", &[]));
    let (plus, minus, clip) = (step("Add", &[z]), step("Sub", &[z]), step("Clip", &[lo, hi]));
    let (low, high) = (lo - z, hi - z);
    vec![
        vec![there.clone(), plus.clone(), clip.clone(), round.clone(), minus.clone(), back.clone()],
        vec![there.clone(), plus.clone(), round.clone(), clip.clone(), minus.clone(), back.clone()],
        vec![
            there.clone(),
            round.clone(),
            plus.clone(),
            step("Max", &[lo]),
            step("Min", &[hi]),
            minus.clone(),
            back.clone(),
        ],
        vec![there.clone(), step("Clip", &[low, high]), plus, round.clone(), minus, back.clone()],
        vec![step("Clip", &[low * s, high * s]), there.clone(), round.clone(), back.clone()],
        vec![step("Add", &[z * s]), there, clip, round, back, step("Sub", &[z * s])],
    ]
}

/// Spells the quantizers of one scale in one of the ways, with the detour that gradients take where it is asked for.
fn spell(model: &mut Model, way: usize, detour: bool) -> usize {
    let mut cx = passes::Context::default();
    passes::lift_constants::run(model, &mut cx).unwrap();
    passes::eliminate_identity::run(model, &mut cx).unwrap();
    let mut spelled = 0;
    for id in model.all_nodes() {
        let Some(there) = model.node(id).input(0).and_then(|v| model.producer(v)) else { continue };
        if !model.node(id).is("DequantizeLinear") || !model.node(there).is("QuantizeLinear") {
            continue;
        }
        let number = |i| model.constant_input(id, i).unwrap().clone();
        let (scale, zero, input) = (number(1), number(2), model.node(there).input(0).unwrap());
        let [s] = scale.to_f32().unwrap()[..] else { continue };
        let z = unpack(&zero).unwrap()[0] as f32;
        let (lo, hi) = if zero.dtype() == DType::Uint8 { (0.0, 255.0) } else { (-128.0, 127.0) };
        let mut x = input;
        for (op, numbers) in &ways((s, z, lo, hi))[way] {
            let main = model.main();
            let add = |&n: &f32| Some(model.add_initializer(main, "number", Tensor::from_f32(&[], &[n])));
            let numbers: Vec<_> = numbers.iter().map(add).collect();
            let spec = NodeSpec::new(*op).input(x).inputs(numbers).output("step");
            x = model.insert_value(spec, Place::Before(id)).unwrap();
        }
        if detour {
            for (op, a, b) in [("Sub", Some(x), Some(input)), ("Add", Some(input), None)] {
                let spec = NodeSpec::new(op).inputs([a, b.or(Some(x))]).output("step");
                x = model.insert_value(spec, Place::Before(id)).unwrap();
            }
        }
        let old = model.node(id).output(0).unwrap();
        assert!(model.replace_all_uses(old, x));
        model.remove_node(id);
        spelled += 1;
    }
    passes::remove_dead::run(model, &mut cx).unwrap();
    spelled
}

#[test]
fn quantizers_that_are_spelled_out_are_the_same() {
    let (images, labels) = evaluation();
    let answers = |model: &Model| {
        let input = model.value(model.required_inputs()[0]).name();
        Some(ort_run(&onnx_file::to_bytes(model).unwrap(), &[(input, images.clone())])?.remove(0))
    };
    let folder = tempfile::tempdir().unwrap();
    let original = models().join("digits_qat_eager.torchscript.onnx");
    let (pairs, _) = quantized_file(&original, Config::default(), false);
    let settings = Settings::new(Config::default()).unwrap();
    let expected = answers(&pairs);
    for (way, detour) in (0..6).map(|way| (way, way % 2 == 1)) {
        let mut model = onnx_file::read(&original).unwrap();
        assert!(spell(&mut model, way, detour) >= 14, "{way}");
        let path = folder.path().join("spelled.onnx");
        onnx_file::write(&model, &path, WriteOptions::default()).unwrap();
        let (model, report) = quantized_file(&path, Config::default(), false);
        let predicted = kernels::predict(&model, &settings.target);
        let products = predicted.nodes.iter().filter(|n| PRODUCTS.contains(&&*n.op));
        let integer = products.filter(|n| n.becomes == Becomes::Integer).count();
        assert_eq!(integer, 7, "{way}: {:?}", report.nodes.reasons);
        let Some((a, b)) = expected.as_ref().zip(answers(&model)) else { continue };
        let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
        let noise: f32 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum();
        let signal: f32 = a.iter().map(|a| a * a).sum();
        // Half-way points are rounded to even codes, or to even steps from the zero point.
        assert!(noise < signal * 1e-4, "{way}: {noise} of {signal}");
        assert!(correct(&Tensor::from_f32(&[labels.len(), 10], &b), &labels).abs_diff(532) <= 2, "{way}");
    }
}

#[test]
fn a_plan_is_carried_out_again() {
    let settings = Settings::new(Config::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut job = Job::new(models().join("digits_qat_few.torchscript.onnx"), folder.path().join("out.onnx"), &settings);
    job.data = Some(models().join("digits_calib.npz"));
    let first = pipeline::quantize(&job).unwrap();
    let yaml = first.plan.to_yaml().unwrap();
    assert!(yaml.contains("learned: true") && yaml.contains("clip:"), "{yaml}");
    (job.plan, job.data) = (Some(Plan::from_yaml(&yaml).unwrap()), None);
    let again = pipeline::quantize(&job).unwrap();
    assert!(onnx_file::to_bytes(&first.model).unwrap() == onnx_file::to_bytes(&again.model).unwrap());
}

#[test]
fn integer_operators_compute_the_same() {
    for (form, exporter) in [("fx", "torchscript"), ("few", "qcdq")] {
        let (pairs, _) = quantized(form, exporter, Config::default(), true);
        let config = Config { format: Format::Qoperator, ..Config::default() };
        let (operators, report) = quantized(form, exporter, config, true);
        assert!(operators.all_nodes().into_iter().any(|n| operators.node(n).is("QLinearConv")));
        assert!(report.proof.unwrap().outputs[0].agreement.is_none_or(|a| a > 0.9));
        let (images, labels) = evaluation();
        let right = |model: &Model| {
            let input = model.value(model.required_inputs()[0]).name();
            let answers = ort_run(&onnx_file::to_bytes(model).unwrap(), &[(input, images.clone())])?;
            Some(correct(&answers[0], &labels))
        };
        if let Some((a, b)) = right(&pairs).zip(right(&operators)) {
            assert!(a.abs_diff(b) <= 1, "{form}: {a} right as pairs, {b} as operators");
        }
    }
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

/// What looks for noise and its causes sees the model without its quantizers, as the plan does.
#[test]
fn sensitivity_measures_what_training_rounds() {
    let settings = Settings::new(Config::default()).unwrap();
    let mut job = Job::new(models().join("digits_qat_fx.torchscript.onnx"), "", &settings);
    job.data = Some(models().join("digits_calib.npz"));
    let how = pipeline::MeasureSensitivity { most_units: 100, samples: 8, one_by_one: false };
    let found = pipeline::measure_sensitivity(&job, how).unwrap().found;
    let noisy = |ops: &[String], sqnr: Option<f64>| ops[0] == "Conv" && sqnr.is_some_and(|db| db < 70.0);
    let convs = found.units.iter().filter(|u| noisy(&u.ops, u.alone.sqnr)).count();
    assert_eq!(convs, 5, "{:?}", found.units.iter().map(|u| (&u.ops, u.alone.sqnr)).collect::<Vec<_>>());
}
