//! Models in 16-bit floats: they load in ONNX Runtime and answer as the original does there; what overflows is found by data.

mod common;

use std::{fs::File, path::Path};

use common::{ort_run, random::Random};
use ndarray::Array2;
use ndarray_npy::NpzWriter;
use qonvert::{
    calibrate::dataset::{Dataset, DatasetOptions, InputSpec},
    config::{Config, IoTypes, Mode, Numbers, Precision, Rule},
    ir::{DType, Model, Tensor, text},
    onnx_file,
    pipeline::{self, Job},
    report::Report,
    scheme::Settings,
};

/// The model as it is written, and the report on it.
fn written(model: &Path, data: Option<&Path>, precision: Numbers, io_types: IoTypes) -> (Model, Report) {
    let config = Config { precision, io_types, ..Config::default() };
    written_so(model, data, None, config)
}

/// The same with more to say: with data for the proof alone, and any configuration.
fn written_so(model: &Path, data: Option<&Path>, proof: Option<&Path>, config: Config) -> (Model, Report) {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out.onnx");
    let settings = Settings::new(config).expect("a configuration");
    let (data, evaluation) = (data.map(Path::to_owned), proof.map(Path::to_owned));
    let job = Job { data, evaluation, ..Job::new(model, &output, &settings) };
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

/// Writes a model and data for it.
fn files(folder: &Path, model: &Model, x: &Array2<f32>, condition: bool) -> [std::path::PathBuf; 2] {
    let (path, data) = (folder.join("model.onnx"), folder.join("data.npz"));
    onnx_file::write(model, &path, onnx_file::WriteOptions::default()).expect("it can be written");
    let mut file = NpzWriter::new(File::create(&data).expect("a file"));
    file.add_array("x", x).expect("an array");
    if condition {
        file.add_array("c", &ndarray::Array1::from_elem(x.nrows(), true)).expect("an array");
    }
    file.finish().expect("a file");
    [path, data]
}

fn spread(seed: u64, size: f32) -> Array2<f32> {
    let mut draw = Random(seed);
    Array2::from_shape_fn((24, 16), |_| (2.0 * draw.uniform() - 1.0) * size)
}

/// A normalization in single operators, of data whose squares are two millions: with and without data to find that by, in
/// the main graph and in the body of an If.
#[test]
fn planted_overflows_are_found_and_nothing_is_infinite() {
    let body = "m = ReduceMean <axes = [-1]> (h) d = Sub(h, m) p = Pow(d, two) v = ReduceMean <axes = [-1]> (p)
        e = Add(v, eps) s = Sqrt(e)";
    let head = r#"<ir_version: 8, opset_import: ["": 13]> g"#;
    let constants = "<float two = {2}, float eps = {0.00001}, float thousand = {1000}>";
    let plain = format!(
        "{head} (float[n,16] x) => (float[n,16] y) {constants} {{ t = Tanh(x) h = Mul(t, thousand) {body} y = Div(d, s) }}"
    );
    let inside = format!(
        "{head} (float[n,16] x, bool[1] c) => (float[n,16] y) {constants} {{
            t = Tanh(x) h = Mul(t, thousand)
            i = If (c) <then_branch = t () => (float[n,16] z) {{ {body} z = Div(d, s) }},
                        else_branch = e () => (float[n,16] q) {{ q = Identity(h) }}>
            y = MatMul(i, w) }}"
    );
    let x = spread(7, 4.0);
    for (text, in_if) in [(plain, false), (inside.replace("MatMul(i, w)", "Identity(i)"), true)] {
        let mut original = text::parse(&text).expect("a model");
        let weight = original.add_initializer(original.main(), "w", Random(3).tensor(&[16, 16], 0.5));
        let last = original.nodes(original.main()).pop().expect("a node");
        if in_if {
            original.node_mut(last).op_type = "MatMul".into();
            original.push_input(last, Some(weight));
        }
        let folder = tempfile::tempdir().expect("a folder");
        let [path, data] = files(folder.path(), &original, &x, in_if);
        for with_data in [true, false] {
            let config = Config { precision: Numbers::Fp16, ..Config::default() };
            let (calibration, proof) = if with_data { (Some(&*data), None) } else { (None, Some(&*data)) };
            let (half, report) = written_so(&path, calibration, proof, config);
            // In the built-in runtime.
            let proof = report.proof.as_ref().expect("a proof");
            assert!(report.passed() && proof.samples > 0 && proof.broken().next().is_none(), "{:?}", proof.outputs);
            assert!(proof.outputs.iter().all(|o| o.sqnr.is_none_or(|s| s > 40.0)), "{:?}", proof.outputs);
            let said: Vec<&str> = report.nodes.reasons.iter().filter(|r| r.op == "Pow").map(|r| &*r.reason).collect();
            let why = match (in_if, with_data) {
                (false, true) => "overflows: up to",
                (true, true) => "in a subgraph, whose values are not looked at: squares",
                (_, false) => "without data: squares of more than 255 overflow",
            };
            assert!(said.len() == 1 && said[0].contains(why), "{said:?}");
            // In ONNX Runtime, which is also asked whether all of them are finite.
            let mut inputs = vec![("x", Tensor::from_f32(&[24, 16], x.as_slice().expect("in order")))];
            if in_if {
                inputs.push(("c", Tensor::new(DType::Bool, vec![1], vec![1u8]).expect("a bool")));
            }
            if let Some(sqnr) = sqnr(&original, &half, &inputs) {
                assert!(sqnr > 40.0, "{sqnr:.1} dB with data: {with_data}, in an If: {in_if}");
            }
        }
    }
}

/// What is large is subtracted again: nothing overflows, and yet little is left of the answers.
#[test]
fn the_answers_decide_what_keeps_32_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = r#"<ir_version: 8, opset_import: ["": 13]> g (float[n,16] x) => (float[n,16] y)
        <float[16,16] v, float[16,16] w> { h = Tanh(x) l = MatMul(h, v) b = Add(l, h) c = Sub(b, l) y = MatMul(c, w) }"#;
    let text =
        text.replace("<float[16,16] v, float[16,16] w>", "").replace("(h, v)", "(h, h)").replace("(c, w)", "(c, c)");
    let mut original = text::parse(&text).expect("a model");
    for (name, size, seed) in [("l", 800.0, 3), ("y", 0.5, 4)] {
        let main = original.main();
        let weight = original.add_initializer(main, &format!("{name}_weight"), Random(seed).tensor(&[16, 16], size));
        let n = original
            .nodes(main)
            .into_iter()
            .find(|&n| original.node(n).output(0).is_some_and(|v| original.value(v).name() == name));
        original.set_input(n.expect("a node"), 1, Some(weight));
    }
    let x = spread(5, 2.0);
    let [path, data] = files(folder.path(), &original, &x, false);
    let inputs = [("x", Tensor::from_f32(&[24, 16], x.as_slice().expect("in order")))];
    let (half, report) = written(&path, Some(&data), Numbers::Fp16, IoTypes::Keep);
    let auto = report.auto.as_ref().expect("it is judged");
    assert!(auto.used_before > 100.0 && auto.used_after <= 1.0 && auto.floated >= 2, "{auto:?}");
    let said = |op: &str| {
        report.nodes.reasons.iter().any(|r| r.op == op && r.reason.starts_with("for the sake of the answers"))
    };
    assert!(said("Add") && said("Sub"), "{:?}", report.nodes.reasons);
    // Weights of the nodes that keep 32 bits are stored in 16, as far as the answers bear it.
    let halves = report.halves.as_ref().expect("halves");
    assert!(halves.nodes + halves.stored_weights > 0, "{halves:?}");
    if let Some(sqnr) = sqnr(&original, &half, &inputs) {
        assert!(sqnr > 40.0, "{sqnr:.1} dB");
    }
    // Without data nobody knows, and that is said.
    let (_, report) = written(&path, None, Numbers::Fp16, IoTypes::Keep);
    assert!(report.auto.is_none());
    assert!(report.diagnostics.iter().any(|d| d.code == "without_data" && d.message.contains("NOT judged")));
}

#[test]
fn weights_that_bfloat16_harms_are_stored_in_float16() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let (path, data) = (folder.join("digits_cnn.dynamo.onnx"), folder.join("digits_calib.npz"));
    let with = |max_loss| {
        let config = Config { precision: Numbers::Bf16, max_loss: Some(max_loss), ..Config::default() };
        written_so(&path, Some(&data), None, config).1
    };
    let (loose, strict) = (with(0.5), with(0.002));
    let of = |r: &Report| r.halves.as_ref().map(|h| [h.stored_weights, h.in_float16]).expect("halves");
    assert!(of(&loose)[1] == 0 && of(&strict)[1] > 0, "{:?} {:?}", of(&loose), of(&strict));
    let used = |r: &Report| r.auto.as_ref().map(|a| a.used_after).expect("judged");
    assert!(used(&strict) <= 1.0 && strict.size.after <= loose.size.after + 64, "{:?}", strict.size);
    let noise = |r: &Report| r.auto.as_ref().and_then(|a| a.after).expect("judged");
    assert!(noise(&strict) > noise(&loose), "{:?} {:?}", strict.auto, loose.auto);
}

fn rule(ops: &str, precision: Precision) -> Rule {
    Rule { ops: vec![ops.to_owned()], precision: Some(precision), ..Rule::default() }
}

#[test]
fn rules_bring_nodes_into_16_bits_beside_integers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let (path, data) = (folder.join("digits_cnn.dynamo.onnx"), folder.join("digits_calib.npz"));
    let original = onnx_file::read(&path).expect("a model");
    let spec = InputSpec::of_model(&original).expect("inputs");
    let samples = Dataset::open(&data, &spec, &DatasetOptions::default()).expect("data");
    let inputs = [("image", samples.sample(0).expect("a sample").remove(0))];
    // Those of weights that are stored are none of these.
    let casts = |m: &Model, to: DType| {
        let to = Some(i64::from(to.to_onnx()));
        let computed = |n| m.node(n).input(0).is_some_and(|v| m.value(v).initializer().is_none());
        let all = m.all_nodes().into_iter();
        all.filter(|&n| m.node(n).is("Cast") && m.node(n).int("to") == to && computed(n)).count()
    };
    let some =
        |nodes: &str, precision| Rule { nodes: vec![nodes.to_owned()], precision: Some(precision), ..Rule::default() };
    for (mode, rules, halves, integers) in [
        // Between integers, in front of the output, and behind each other.
        (Mode::Static, vec![some("node_Conv_208", Precision::Fp16)], 1, true),
        (Mode::Auto, vec![some("node_Conv_208", Precision::Fp16), rule("Gemm", Precision::Fp16)], 2, true),
        (Mode::Static, vec![some("node_Conv_208", Precision::Fp16), some("node_relu_3", Precision::Fp16)], 2, true),
        (Mode::WeightOnly, vec![rule("Conv", Precision::Fp16)], 13, false),
        // Clamps that vanish into integer nodes stay gone.
        (Mode::Static, vec![some("node_Conv_208", Precision::Fp16), rule("Relu", Precision::Fp16)], 2, true),
        // All but one, which later rules have in integers.
        (Mode::Static, vec![some("*", Precision::Fp16), some("node_Conv_208", Precision::Int8)], 20, true),
    ] {
        let config = Config { mode, rules: rules.clone(), ..Config::default() };
        let (half, report) = written_so(&path, Some(&data), None, config);
        let found = report.halves.as_ref().expect("halves");
        assert!(
            found.nodes >= halves && (report.nodes.integer > 0) == integers,
            "{rules:?}: {found:?} {:?}",
            report.nodes
        );
        assert!(report.passed(), "{rules:?}");
        let broken: Vec<_> = report.diagnostics.iter().filter(|d| d.code == "plan_not_met").collect();
        assert!(broken.is_empty(), "{broken:?}");
        assert!(report.diagnostics.iter().any(|d| d.code == "half_speed" && d.message.contains("slower")));
        if halves <= 2 {
            // What hands floats of 16 bits to each other needs no Casts in between.
            let behind = rules.len() == 2 && mode == Mode::Static;
            let islands = if behind { found.nodes - 1 } else { found.nodes };
            assert_eq!([casts(&half, DType::Float16), casts(&half, DType::Float)], [islands; 2], "{rules:?}");
        }
        if let Some(sqnr) = sqnr(&original, &half, &inputs) {
            assert!(sqnr > 15.0, "{sqnr:.1} dB with {rules:?}");
        }
    }
    // Weights alone where the runtime has no operators.
    let config = Config { mode: Mode::Static, rules: vec![rule("Gemm", Precision::Bf16)], ..Config::default() };
    let (half, report) = written_so(&path, Some(&data), None, config);
    assert!(
        report.nodes.integer > 0 && report.halves.as_ref().is_some_and(|h| h.stored_weights == 1),
        "{:?}",
        report.halves
    );
    assert!(sqnr(&original, &half, &inputs).is_none_or(|sqnr| sqnr > 15.0));
}

#[test]
fn rules_that_contradict_16_bits_are_refused() {
    let refused = |precision, rules| {
        let e = Settings::new(Config { precision, rules, ..Config::default() }).expect_err("it is refused");
        format!("{e} {}", e.help_text().unwrap_or_default())
    };
    let text = refused(Numbers::Fp16, vec![rule("Conv", Precision::Int8)]);
    assert!(
        text.contains("rule 1 (ops: Conv) wants integers, but with precision: fp16") && text.contains("nodes: '*'"),
        "{text}"
    );
    let text = refused(Numbers::Bf16, vec![rule("Conv", Precision::Fp16)]);
    assert!(text.contains("for float16") && text.contains("precision: bf16 for bfloat16"), "{text}");
    let text = refused(Numbers::Int8, vec![rule("Conv", Precision::Fp16), rule("Gemm", Precision::Bf16)]);
    assert!(
        text.contains("rule 2 (ops: Gemm) asks for bfloat16") && text.contains("rule 1 (ops: Conv) for float16"),
        "{text}"
    );
}
