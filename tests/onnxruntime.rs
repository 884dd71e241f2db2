//! ONNX Runtime as a runtime: what it gives, what it observes, and what its failures say.
//!
//! The library is the one that `ORT_DYLIB_PATH` names; without it these tests say SKIPPED, loudly, and pass.

use std::path::Path;

use qonvert::{
    Error,
    ir::{DType, Model, Tensor, ValueId, text},
    onnx_file,
    runtime::{Runtime, onnxruntime::OnnxRuntime, tract::Tract},
};

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
