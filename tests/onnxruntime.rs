//! ONNX Runtime as a runtime: what it gives, what it observes, and what its failures say.
//!
//! The library is the one that `ORT_DYLIB_PATH` names; without it these tests say SKIPPED, loudly, and pass.

#[path = "common/random.rs"]
mod random;

use std::{path::Path, process::Command};

use ndarray::Array;
use ndarray_npy::NpzWriter;
use qonvert::{
    Config, Error, Job, Report, Settings,
    ir::{DType, Model, Tensor, ValueId, text},
    onnx_file, pipeline,
    plan::{Form, Plan},
    runtime::{Runtime, onnxruntime::OnnxRuntime, tract::Tract},
};
use random::noise;
use tempfile::TempDir;

/// ONNX Runtime, or `None` (said on stderr) where `ORT_DYLIB_PATH` is not set.
fn onnx_runtime() -> Option<OnnxRuntime> {
    if std::env::var_os("ORT_DYLIB_PATH").is_none() {
        eprintln!("SKIPPED: ORT_DYLIB_PATH is not set, nothing was run with ONNX Runtime");
        return None;
    }
    Some(OnnxRuntime::open(None).unwrap())
}

fn model(opsets: &str, body: &str) -> Model {
    text::parse(&format!("<ir_version: 9, opset_import: [{opsets}]> {body}")).unwrap()
}

fn find(m: &Model, name: &str) -> ValueId {
    m.find_value(m.main(), name).unwrap()
}

#[test]
fn observes_values_constants_inputs_and_outputs_once() {
    let Some(runtime) = onnx_runtime() else { return };
    let m = model(
        r#""" : 17"#,
        "g (float[2] x) => (float[2] c) <float[2] w = {3, 4}> {
            a = Add (x, w)
            b = Relu (a)
            c = Mul (b, b)
            d = Neg (a)
        }",
    );
    let watch = ["a", "b", "c", "d", "x", "w"].map(|name| find(&m, name));
    let session = runtime.load(&m, &watch).unwrap();
    let mut seen = vec![Vec::new(); watch.len()];
    let outputs = session.run_observed(&[Tensor::from_f32(&[2], &[-5.0, 1.0])], &mut |i, value| {
        assert_eq!((value.dtype(), value.dims()), (DType::Float, &[2][..]));
        assert!(seen[i].is_empty(), "value {i} came twice");
        seen[i] = value.floats()?.into_owned();
        Ok(())
    });
    assert_eq!(outputs.unwrap()[0].to_f32().unwrap(), [0.0, 25.0]);
    let want = [[-2.0, 5.0], [0.0, 5.0], [0.0, 25.0], [2.0, -5.0], [-5.0, 1.0], [3.0, 4.0]];
    assert_eq!(seen, want.map(|w| w.to_vec()));
    let stop = session.run_observed(&[Tensor::from_f32(&[2], &[1.0, 1.0])], &mut |_, _| Err(Error::data("enough")));
    assert_eq!(stop.unwrap_err().to_string(), "enough");
}

#[test]
fn every_type_of_tensor_goes_in_and_comes_out() {
    let Some(runtime) = onnx_runtime() else { return };
    let types = [
        DType::Float,
        DType::Float16,
        DType::Bfloat16,
        DType::Double,
        DType::Bool,
        DType::Int8,
        DType::Int16,
        DType::Int32,
        DType::Int64,
        DType::Uint8,
        DType::Uint16,
        DType::Uint32,
        DType::Uint64,
    ];
    for dtype in types {
        let m = model(r#""" : 17"#, &format!("g ({dtype}[n] x) => ({dtype}[n] y) {{ y = Identity (x) }}"));
        let session = runtime.load(&m, &[]).unwrap();
        for n in [3, 0, 1] {
            let bytes: Vec<u8> = (0..dtype.byte_len(n).unwrap()).map(|i| (i % 2) as u8).collect();
            let x = Tensor::new(dtype, vec![n], bytes.clone()).unwrap();
            let y = &session.run(&[x]).unwrap()[0];
            assert_eq!((y.dtype(), y.dims(), &y.bytes().unwrap()[..]), (dtype, &[n][..], &bytes[..]));
        }
    }
    let m = model(r#""" : 17"#, "g (string[n] x) => (string[n] y) { y = Identity (x) }");
    let x = Tensor::strings(vec![2], vec!["ä".into(), "b c".into()]).unwrap();
    let y = &runtime.load(&m, &[]).unwrap().run(std::slice::from_ref(&x)).unwrap()[0];
    assert_eq!(format!("{y:?}"), format!("{x:?}"));
}

#[test]
fn both_runtimes_agree_on_every_value_of_a_trained_model() {
    let Some(runtime) = onnx_runtime() else { return };
    let m = onnx_file::read(Path::new("models/digits_cnn.torchscript.onnx")).unwrap();
    let floats = |&v: &ValueId| {
        let value = m.value(v);
        value.graph() == m.main() && value.producer().is_some() && !value.is_graph_output()
    };
    let watch: Vec<ValueId> = m.value_ids().into_iter().filter(floats).collect();
    let shape = m.value(m.required_inputs()[0]).shape().unwrap().dims.clone();
    let dims: Vec<usize> = shape.iter().map(|d| d.known().unwrap_or(1)).collect();
    let x: Vec<f32> = (0..dims.iter().product()).map(|i| (i as f32 * 0.7).sin() + 1.0).collect();
    let x = Tensor::from_f32(&dims, &x);
    let run = |runtime: &dyn Runtime| {
        let mut seen = vec![Vec::new(); watch.len()];
        let session = runtime.load(&m, &watch).unwrap();
        session
            .run_observed(std::slice::from_ref(&x), &mut |i, value| {
                if value.dtype().is_float() {
                    seen[i] = value.floats()?.into_owned();
                }
                Ok(())
            })
            .unwrap();
        seen
    };
    let (a, b) = (run(&runtime), run(&Tract));
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        assert_eq!(a.len(), b.len());
        let largest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (a, b) in a.iter().zip(b) {
            // Sums of a few hundred products, in another order.
            assert!((a - b).abs() <= 1e-5 * largest, "{}: {a} and {b}", m.value(watch[i]).name());
        }
    }
}

#[test]
fn refusals_name_the_node() {
    let Some(runtime) = onnx_runtime() else { return };
    let error = |body: &str| runtime.load(&model(r#""" : 17"#, body), &[]).err().unwrap();
    let unknown = error("g (float[2] x) => (float[2] y) { y = Frobnicate (x) }");
    assert!(unknown.to_string().contains("ONNX Runtime refused the model"), "{unknown}");
    assert!(unknown.to_string().contains("Frobnicate"), "{unknown}");
    assert!(unknown.help_text().is_some());
    let wrong = error("g (float[2] x, float[3] w) => (float[2] y) { y = Add (x, w) }");
    assert_eq!(wrong.at().op.as_deref(), Some("Add"), "{wrong}");
    assert_eq!(wrong.at().node.as_deref(), Some("y"), "{wrong}");

    let m = model(r#""" : 17"#, "g (float[2] x, int64[1] i) => (float[1] y) { y = Gather (x, i) }");
    let session = runtime.load(&m, &[]).unwrap();
    let x = Tensor::from_f32(&[2], &[1.0, 2.0]);
    let failed = session.run(&[x.clone(), Tensor::from_i64(&[1], &[7])]).unwrap_err();
    assert_eq!(failed.at().op.as_deref(), Some("Gather"), "{failed}");
    assert!(!failed.to_string().contains(".cc:"), "{failed}");
    let shape = session.run(&[Tensor::from_f32(&[3], &[1.0; 3]), Tensor::from_i64(&[1], &[0])]).unwrap_err();
    assert_eq!(shape.to_string(), r#"value "x": the model's input has shape [2], the data [3]"#);
    let done = session.run(&[x, Tensor::from_i64(&[1], &[1])]).unwrap();
    assert_eq!(done[0].to_f32().unwrap(), [2.0]);
}

#[test]
fn threads_share_the_sessions() {
    let Some(runtime) = onnx_runtime() else { return };
    let m = model(r#""" : 17"#, "g (float[n] x) => (float[n] y) { y = Relu (x) }");
    let session = runtime.load(&m, &[]).unwrap();
    std::thread::scope(|scope| {
        for t in 0..4 {
            let session = &session;
            scope.spawn(move || {
                for n in 1..40 {
                    let x = vec![t as f32; n];
                    let y = session.run(&[Tensor::from_f32(&[n], &x)]).unwrap();
                    assert_eq!(y[0].to_f32().unwrap(), x);
                }
            });
        }
    });
}

#[test]
fn the_graph_that_the_runtime_makes_can_be_read() {
    let Some(runtime) = onnx_runtime() else { return };
    let m = model(
        r#""" : 17"#,
        "g (float[2,3] x) => (float[2,4] z) <float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4] b = {1,2,3,4}> {
            y = MatMul (x, w)
            z = Add (y, b)
        }",
    );
    let made = runtime.optimized_graph(&m).unwrap();
    let ops: Vec<&str> = made.nodes(made.main()).iter().map(|&n| made.node(n).op_type.as_str()).collect();
    assert_eq!(ops, ["Gemm"]);
}

#[test]
fn large_weights_go_through_a_file() {
    let Some(runtime) = onnx_runtime() else { return };
    let mut m =
        model(r#""" : 17"#, "g (float[n,4096] x, float[4096,4608] w) => (float[n,4608] y) { y = MatMul (x, w) }");
    let w = find(&m, "w");
    let weight = Tensor::new(DType::Float, vec![4096, 4608], vec![0u8; 4096 * 4608 * 4]).unwrap();
    m.remove_input(w);
    m.set_initializer(w, Some(weight));
    let session = runtime.load(&m, &[]).unwrap();
    let out = session.run(&[Tensor::from_f32(&[1, 4096], &[1.0; 4096])]).unwrap();
    assert_eq!(out[0].dims(), [1, 4608]);
    let made = runtime.optimized_graph(&m).unwrap();
    assert_eq!(made.graph(made.main()).initializers().len(), 1);
    assert_eq!(made.value(made.graph(made.main()).initializers()[0]).initializer().unwrap().byte_len(), 75_497_472);
}

#[test]
fn a_file_that_is_no_library_is_an_error() {
    let Some(_) = onnx_runtime() else { return };
    let error = OnnxRuntime::open(Some(Path::new("Cargo.toml"))).unwrap_err();
    assert!(error.to_string().contains("Cargo.toml"), "{error}");
}

/// A folder with a model and data for its one input.
fn place(m: &Model, dims: &[usize], samples: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    onnx_file::write(m, &folder.path().join("model.onnx"), Default::default()).unwrap();
    let mut shape = vec![samples];
    shape.extend_from_slice(dims);
    let data = Array::from_shape_fn(shape, |i| {
        use ndarray::Dimension;
        noise(7, i.slice().iter().fold(7, |h, &k| (h * 31 + k) % 1_000_003))
    });
    let mut npz = NpzWriter::new(std::fs::File::create(folder.path().join("data.npz")).unwrap());
    npz.add_array("x", &data).unwrap();
    npz.finish().unwrap();
    folder
}

/// Weights that are declared as inputs of the text become numbers.
fn filled(mut m: Model) -> Model {
    for (k, v) in m.graph(m.main()).inputs().to_vec().into_iter().enumerate() {
        let Some(dims) = m.value(v).shape().and_then(|s| s.known()).filter(|_| m.value(v).name() != "x") else {
            continue;
        };
        let values: Vec<f32> = (0..dims.iter().product()).map(|i| 0.1 * noise(k as u32, i)).collect();
        m.remove_input(v);
        m.set_initializer(v, Some(Tensor::from_f32(&dims, &values)));
    }
    m
}

fn quantize(folder: &TempDir, runtime: &dyn Runtime, config: Config) -> qonvert::Result<(Plan, Report)> {
    let settings = Settings::new(config)?;
    let path = |name: &str| folder.path().join(name);
    let mut job = Job::new(path("model.onnx"), path("out.onnx"), &settings);
    (job.data, job.runtime) = (Some(path("data.npz")), runtime);
    let done = pipeline::quantize(&job)?;
    let plan = done.plan.clone();
    Ok((plan, pipeline::finish(&job, done)?))
}

#[test]
fn both_runtimes_lead_to_the_same_model_and_the_same_proof() {
    let Some(runtime) = onnx_runtime() else { return };
    let folder = tempfile::tempdir().unwrap();
    let run = |runtime: &dyn Runtime, plan: Option<Plan>| {
        let mut config = Config::default();
        config.calibration.samples = Some(50);
        // What it chooses does not leap where the data changes a little.
        config.activation.observer = "min_max".to_owned();
        let settings = Settings::new(config).unwrap();
        let mut job = Job::new("models/digits_cnn.torchscript.onnx", folder.path().join("out.onnx"), &settings);
        job.data = Some("models/digits_calib.npz".into());
        (job.runtime, job.plan) = (runtime, plan);
        let done = pipeline::quantize(&job).unwrap();
        let plan = done.plan.clone();
        (plan, pipeline::finish(&job, done).unwrap())
    };
    let (a, of_a) = run(&Tract, None);
    let (b, _) = run(&runtime, None);
    assert!(a.integer_nodes() > 2);
    assert_eq!(a.nodes, b.nodes);
    for ((name, a), b) in a.activations.iter().zip(b.activations.values()) {
        // Ranges are ends of sums of a few hundred products, which both add up in another order.
        assert!((a.scale - b.scale).abs() <= 1e-5 * a.scale, "{name}: {} and {}", a.scale, b.scale);
        assert!((a.zero_point - b.zero_point).abs() <= 1, "{name}");
    }
    // The same plan, proven on both. Noise comes from rounding; where a float sum lies at the middle of two codes, the
    // runtimes may choose either, which moves single codes by one but not the noise as a whole: 0.5 dB are 12 % of it.
    let (_, of_b) = run(&runtime, Some(a));
    let [a, b] = [of_a, of_b].map(|r| r.proof.unwrap());
    assert_eq!(a.samples, b.samples);
    for (a, b) in a.outputs.iter().zip(&b.outputs) {
        assert!((a.sqnr.unwrap() - b.sqnr.unwrap()).abs() < 0.5, "{a:?} and {b:?}");
        assert!((a.agreement.unwrap() - b.agreement.unwrap()).abs() < 0.02, "{a:?} and {b:?}");
    }
}

#[test]
fn operators_that_tract_lacks_can_be_calibrated_and_proven() {
    let Some(runtime) = onnx_runtime() else { return };
    let m = filled(model(
        r#""" : 17, "com.microsoft" : 1"#,
        "g (float[n,16,28,28] x, float[32,16,3,3] w1, float[32,32,1,1] w0, float[32,32,3,3] w2) => (float[n,32,24,24] y) {
            a = Conv (x, w1)
            b = com.microsoft.FusedConv <activation = \"Relu\"> (a, w0)
            y = Conv (b, w2)
        }",
    ));
    let folder = place(&m, &[16, 28, 28], 10);
    let refused = quantize(&folder, &Tract, Config::default()).unwrap_err();
    assert_eq!(refused.at().op.as_deref(), Some("FusedConv"), "{refused}");
    assert!(refused.help_text().unwrap().contains("--runtime onnxruntime"), "{refused:?}");
    let config = Config { everywhere: true, ..Config::default() };
    let (plan, report) = quantize(&folder, &runtime, config).unwrap();
    assert_eq!(plan.nodes.values().filter(|n| n.becomes == Form::Integer).count(), 2);
    let proof = report.proof.unwrap();
    assert!(proof.samples > 0 && proof.outputs[0].sqnr.unwrap() > 20.0, "{proof:?}");
}

/// A mean of many numbers between convolutions is many times slower in integers; the dense convolution behind it, apart from
/// it, is faster.
fn mixed(dense: bool) -> Model {
    let end = if dense { "Conv <pads = [1, 1, 1, 1]> (d, w3)" } else { "Neg (d)" };
    let channels = if dense { 64 } else { 32 };
    filled(model(
        r#""" : 17"#,
        &format!(
            "g (float[n,32,40,40] x, float[32,32,1,1] w1, float[32,32,1,1] w2, float[64,32,3,3] w3)
                => (float[n,{channels},40,40] y) {{
                [before] a = Conv (x, w1)
                [mean] b = AveragePool <kernel_shape = [7, 7], pads = [3, 3, 3, 3]> (a)
                [behind] c = Conv (b, w2)
                d = Tanh (c)
                [end] y = {end}
            }}"
        ),
    ))
}

#[test]
fn what_does_not_gain_is_put_back() {
    let Some(runtime) = onnx_runtime() else { return };
    let folder = place(&mixed(true), &[32, 40, 40], 8);
    let wrong = Config { everywhere: true, ..Config::default() };
    let (plan, _) = quantize(&folder, &runtime, wrong.clone()).unwrap();
    assert_eq!(plan.integer_nodes(), 4, "{plan:?}");
    let config = Config { never_slower: true, ..wrong };
    let (plan, report) = quantize(&folder, &runtime, config).unwrap();
    let measured = report.measured.unwrap();
    let form = |name: &str| (plan.nodes[name].becomes, plan.nodes[name].reason.clone().unwrap_or_default());
    for name in ["a", "b", "c"] {
        let (form, reason) = form(name);
        assert_eq!(form, Form::Float, "{measured:?}");
        assert!(reason.starts_with("measured: 0."), "{reason}");
    }
    assert_eq!(form("y").0, Form::Integer, "{measured:?}");
    assert_eq!((measured.regions, measured.not_measured, measured.slower), (2, 0, None));
    assert_eq!(measured.put_back.len(), 1);
    assert_eq!(measured.put_back[0].nodes, ["before", "mean", "behind"]);
    assert!(measured.put_back[0].speed.high < 1.0 && measured.whole.median > 1.0, "{measured:?}");
    // The weights of what went back are stored as those of other float nodes are.
    assert_eq!(plan.stored_weights.len(), 2);
}

#[test]
fn nothing_is_left_in_integers_where_nothing_gains() {
    let Some(runtime) = onnx_runtime() else { return };
    let folder = place(&mixed(false), &[32, 40, 40], 8);
    let config = Config { everywhere: true, never_slower: true, ..Config::default() };
    let (plan, report) = quantize(&folder, &runtime, config).unwrap();
    assert_eq!(plan.integer_nodes(), 0, "{:?}", report.measured);
    assert!(plan.activations.is_empty());
    assert!(report.nodes.reasons.iter().any(|r| r.reason.starts_with("measured: ")));
}

/// Without data what gains is weighed for sizes that stand for those that callers choose; it is measured on the same.
#[test]
fn without_data_the_sizes_of_placement_are_measured() {
    let Some(runtime) = onnx_runtime() else { return };
    // Only 64 steps can be cut into halves; one step cannot.
    let m = filled(model(
        r#""" : 17"#,
        "g (float[n,steps,256] x, float[256,512] w) => (float y) <int64[4] s = {0, 2, 32, 256}> {
            cut = Reshape (x, s)
            y = MatMul (cut, w)
        }",
    ));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    onnx_file::write(&m, &path, Default::default()).unwrap();
    let config = Config { never_slower: true, mode: qonvert::config::Mode::Dynamic, ..Config::default() };
    let settings = Settings::new(config).unwrap();
    let output = folder.path().join("out.onnx");
    let job = Job { runtime: &runtime, data: None, ..Job::new(&path, &output, &settings) };
    let done = pipeline::quantize(&job).unwrap();
    assert_eq!(done.plan.integer_nodes() + done.plan.nodes.values().filter(|n| n.reason.is_some()).count(), 2);
}

#[test]
fn bench_on_the_command_line() {
    if onnx_runtime().is_none() {
        return;
    }
    let folder = place(&mixed(true), &[32, 40, 40], 4);
    let other = filled(model(r#""" : 17"#, "g (float[n,64] x, float[64,4] w) => (float[n,4] y) { y = MatMul (x, w) }"));
    onnx_file::write(&other, &folder.path().join("other.onnx"), Default::default()).unwrap();
    let run = |line: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qonvert"));
        let done = command.current_dir(folder.path()).args(line.split_whitespace()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
    };
    let (code, out, err) =
        run("bench model.onnx model.onnx --data data.npz --batch 2 --rounds 6 --profile --json bench.json");
    assert_eq!((code, &err[..]), (0, ""), "{out}");
    assert!(out.contains("inputs: the first 2 samples of the data, stacked: x float[2, 32, 40, 40]"), "{out}");
    assert!(out.contains("  AveragePool    float           1"), "{out}");
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("bench.json")).unwrap()).unwrap();
    assert_eq!((&json["rounds"], &json["batch"], &json["threads"]), (&6.into(), &2.into(), &1.into()));
    // The same model twice: whatever else the machine does, both are about as fast.
    let speed = json["models"][1]["speed"]["median"].as_f64().unwrap();
    assert!((0.67..1.5).contains(&speed), "{speed}");
    let total: f64 = json["models"][0]["profile"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["microseconds"].as_f64().unwrap())
        .sum();
    assert!(total <= json["models"][0]["profile"]["microseconds"].as_f64().unwrap() * 1.2 && total > 0.0);

    let (code, out, _) = run("bench model.onnx --rounds 3 --dim n=3");
    assert!(code == 0 && out.contains("inputs: made up, since no --data is given: x float[3, 32, 40, 40]"), "{out}");
    // Weights in another file count, and are not written over.
    let weights = |external| onnx_file::WriteOptions { external_data: Some(external) };
    onnx_file::write(&other, &folder.path().join("far.onnx"), weights(true)).unwrap();
    let (code, _, err) = run("bench far.onnx other.onnx --rounds 3 --json far.json");
    assert_eq!((code, &err[..]), (0, ""));
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("far.json")).unwrap()).unwrap();
    assert!(json["models"][0]["bytes"].as_u64().unwrap() > 64 * 4 * 4, "{json}");
    // What is fixed in one of the models is fixed for all.
    let one = filled(model(r#""" : 17"#, "g (float[1,64] x, float[64,4] w) => (float[1,4] y) { y = MatMul (x, w) }"));
    onnx_file::write(&one, &folder.path().join("one.onnx"), Default::default()).unwrap();
    for (line, words) in [
        (
            "bench other.onnx one.onnx --batch 3",
            "value \"x\": the first dim of this input is fixed to 1, a batch needs 3",
        ),
        ("bench other.onnx --batch 3 --dim n=2", "a batch of 3 has no effect"),
        ("bench other.onnx --mean 0.5", "the flags for pictures have no effect: no --data is given"),
        ("bench far.onnx --json far.onnx.data", "is read as the weights of MODEL; writing --json over it"),
        ("bench model.onnx other.onnx", "other.onnx: takes x float[n, 64], model.onnx takes x float[n, 32, 40, 40]"),
        ("bench model.onnx --dim m=3", "--dim m: no input has a dim of this name"),
        ("bench model.onnx --data data.npz --batch 9", "the data has 4 samples, a batch of 9 needs more"),
        ("bench missing.onnx", "missing.onnx"),
        (
            "quantize model.onnx -o o.onnx --calibration data.npz --onnxruntime-lib a.so",
            "--onnxruntime-lib has no effect",
        ),
        ("quantize model.onnx -o o.onnx --calibration data.npz --never-slower --onnxruntime-lib a.so", "no such file"),
    ] {
        let (code, _, err) = run(line);
        assert!(code == 2 && err.contains(words), "{line}: {err}");
    }
}
