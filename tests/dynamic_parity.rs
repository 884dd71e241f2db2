//! The dynamic form: what is written for products whose data are quantized at run time is computed by the built-in runtime
//! as by ONNX Runtime, bit for bit, and becomes the kernels that the plan names.

mod common;

use std::{collections::BTreeMap, path::Path};

use common::{ort_optimize, ort_try_run, random::Random};
use qonvert::{
    Config, Job, Settings,
    config::Mode,
    ir::{DType, Model, Tensor, text},
    onnx_file,
    passes::{self, Context, Stage},
    pipeline,
    plan::{Form, Plan},
    runtime::{Runtime, tract::Tract},
};

fn codes(dtype: DType, dims: &[usize], seed: usize) -> Tensor {
    let code = |i: usize| ((i * 7919 + seed * 104_729 + 13) % 256) as u8;
    Tensor::new(dtype, dims.to_vec(), (0..dims.iter().product()).map(code).collect::<Vec<u8>>()).expect("a tensor")
}

fn numbers(dims: &[usize], seed: usize, size: f32) -> Tensor {
    Random(seed as u64).tensor(dims, size)
}

/// Both runtimes on a model; every element of every output must be the same. `optimize`: ONNX Runtime fuses its kernels.
fn check(model: &Model, inputs: &[(&str, Tensor)], optimize: bool) {
    let printed = || text::print(model);
    let fed: Vec<Tensor> = inputs.iter().map(|i| i.1.clone()).collect();
    let ours = Tract.load(model, &[]).and_then(|s| s.run(&fed)).unwrap_or_else(|e| panic!("{e}\n{}", printed()));
    let bytes = onnx_file::to_bytes(model).expect("it encodes");
    let Some(theirs) = ort_try_run(&bytes, inputs, optimize) else { return };
    let theirs = theirs.unwrap_or_else(|e| panic!("{e}\n{}", printed()));
    assert_eq!(ours.len(), theirs.len());
    for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!((a.dtype(), a.dims()), (b.dtype(), b.dims()));
        assert!(a.same_content(b), "output {i} differs: {a:?} {b:?}\n{}", printed());
    }
}

fn parse(text: &str) -> Model {
    text::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

const HEAD: &str = "<ir_version: 8, opset_import: [\"\" : 17]>";

#[test]
fn quantizing_at_run_time() {
    let model = parse(&format!(
        "{HEAD} g (float[n] x) => (uint8[n] q, float s, uint8 z) {{ q, s, z = DynamicQuantizeLinear(x) }}"
    ));
    let ties: Vec<f32> = (-128..127).map(|i| i as f32 + 0.5).chain([-128.0, 127.0]).collect();
    let tiny: Vec<f32> = (0..50).map(|i| i as f32 * 1e-42).collect();
    let cases: [&[f32]; 15] = [
        &[0.0; 9],
        &[-0.0, -0.0],
        &[3.25; 5],
        &[-3.25; 5],
        &[-1.0, -2.55, -0.3],
        &[1.0, 2.55, 0.3],
        &ties,
        &tiny,
        &[1e-40],
        &[1e-38, -1e-38],
        &[3e38, 1.0, -1.0],
        &[1e30, -1e30, 5.0],
        &[0.1, -0.7, 1e-9],
        &[-1.0, 1.0],
        &[254.0, 0.5, 1.5, 2.5, 255.0],
    ];
    for case in cases {
        check(&model, &[("x", Tensor::from_f32(&[case.len()], case))], false);
    }
    for seed in 0..200 {
        let size = [1.0, 0.01, 37.5, 1e-6][seed % 4];
        let mut x = numbers(&[97], seed, size).to_f32().expect("floats");
        x.iter_mut().for_each(|v| *v += size * ((seed % 7) as f32 - 3.0) * 0.4);
        check(&model, &[("x", Tensor::from_f32(&[97], &x))], false);
    }
}

#[test]
fn products_of_codes() {
    for (wt, wd) in [("int8", DType::Int8), ("uint8", DType::Uint8)] {
        for (xt, xd) in [("uint8", DType::Uint8), ("int8", DType::Int8)] {
            for zeros in ["", ", xz", ", , wz", ", xz, wz", ", xz, wv"] {
                let model = parse(&format!(
                    "{HEAD} g ({xt}[3, 5, 700] x, {wt}[700, 6] w, {xt} xz, {wt} wz, {wt}[6] wv) => (int32[3, 5, 6] y) {{
                        y = MatMulInteger (x, w{zeros})
                    }}"
                ));
                let inputs = [
                    ("x", codes(xd, &[3, 5, 700], 1)),
                    ("w", codes(wd, &[700, 6], 2)),
                    ("xz", codes(xd, &[], 9)),
                    ("wz", codes(wd, &[], 5)),
                    ("wv", codes(wd, &[6], 6)),
                ];
                check(&model, &inputs, false);
            }
        }
    }
}

#[test]
fn convolutions_of_codes() {
    for (wt, wd) in [("int8", DType::Int8), ("uint8", DType::Uint8)] {
        for zeros in ["", ", xz", ", xz, wz"] {
            for (attributes, group) in [
                ("strides = [1, 1]", 1),
                ("pads = [1, 1, 1, 1], strides = [2, 1]", 1),
                ("auto_pad = \"SAME_UPPER\"", 1),
                ("group = 2, pads = [0, 1, 2, 1], dilations = [2, 1]", 2),
                ("group = 6, pads = [1, 1, 1, 1]", 6),
            ] {
                let c = 6 / group;
                let model = parse(&format!(
                    "{HEAD} g (uint8[2, 6, 7, 9] x, {wt}[6, {c}, 3, 3] w, uint8 xz, {wt} wz) => (int32[a, b, c, d] y) {{
                        y = ConvInteger <{attributes}> (x, w{zeros})
                    }}"
                ));
                let inputs = [
                    ("x", codes(DType::Uint8, &[2, 6, 7, 9], 1)),
                    ("w", codes(wd, &[6, c, 3, 3], 2)),
                    ("xz", codes(DType::Uint8, &[], 9)),
                    ("wz", codes(wd, &[], 5)),
                ];
                check(&model, &inputs, false);
            }
        }
    }
}

/// A layer with its constants filled in.
fn layer(head: &str, constants: &[(&str, &[usize])], body: &str) -> Model {
    let declared: Vec<String> = constants.iter().map(|(name, _)| format!("float {name} = {{0}}")).collect();
    let mut model = parse(&format!("{HEAD} g {head} <{}> {{ {body} }}", declared.join(", ")));
    for (seed, (name, dims)) in constants.iter().enumerate() {
        let v = model.find_value(model.main(), name).expect("it is declared");
        model.set_initializer(v, Some(numbers(dims, seed + 3, 0.3)));
    }
    model
}

/// The layer with these nodes made dynamic.
fn written(mut model: Model, nodes: &[(&str, &str, &str)]) -> Model {
    let node = |(name, op, weight): &(&str, &str, &str)| {
        format!("  {name}: {{op: {op}, becomes: dynamic, weight: {weight}}}\n")
    };
    let nodes: String = nodes.iter().map(node).collect();
    let plan =
        Plan::from_yaml(&format!("target: onnxruntime-cpu\nactivations: {{}}\nnodes:\n{nodes}")).expect("a plan");
    let mut cx = Context { plan: Some(plan), ..Context::default() };
    for stage in [Stage::Adjust, Stage::Insert, Stage::Lower, Stage::Cleanup] {
        passes::run_stage(stage, &mut model, &mut cx).expect("the passes run");
    }
    model.verify().expect("the model is sound");
    model
}

fn kernels(model: &Model, scratch: &Path) -> Option<BTreeMap<String, usize>> {
    let to = scratch.join("optimized.onnx");
    ort_optimize(&onnx_file::to_bytes(model).expect("it encodes"), &to).then(|| {
        let model = onnx_file::read(&to).expect("ONNX Runtime writes models");
        let mut counts = BTreeMap::new();
        for n in model.all_nodes() {
            *counts.entry(model.node(n).op_type.clone()).or_default() += 1;
        }
        counts
    })
}

/// Runs in both runtimes bit for bit, and becomes nothing but these kernels.
fn becomes(model: &Model, x: &[usize], expected: &[(&str, usize)]) {
    for (seed, size) in [(1, 1.0), (2, 0.003), (3, 250.0)] {
        check(model, &[("x", numbers(x, seed, size))], true);
        check(model, &[("x", numbers(x, seed, size))], false);
    }
    let scratch = tempfile::tempdir().expect("a folder");
    let Some(found) = kernels(model, scratch.path()) else { return };
    let expected: BTreeMap<String, usize> = expected.iter().map(|&(k, n)| (k.to_owned(), n)).collect();
    assert_eq!(found, expected, "{}", text::print(model));
}

const WEIGHTS: [&str; 4] = [
    "{dtype: int8, axis: 1, symmetric: true}",
    "{dtype: int8, symmetric: true}",
    "{dtype: uint8, axis: 1, symmetric: false}",
    "{dtype: uint8, symmetric: true}",
];

#[test]
fn matrix_products_become_one_kernel() {
    let constants: &[(&str, &[usize])] = &[("w", &[37, 29]), ("b", &[29])];
    for weight in WEIGHTS {
        for (shape, dims) in [("n, 37", &[5, 37][..]), ("2, n, 37", &[2, 3, 37])] {
            let bare = layer(&format!("(float[{shape}] x) => (float y)"), constants, "y = MatMul(x, w)");
            becomes(&written(bare, &[("y", "MatMul", weight)]), dims, &[("DynamicQuantizeMatMul", 1)]);
            let head = format!("(float[{shape}] x) => (float y)");
            let biased = layer(&head, constants, "m = MatMul(x, w) y = Add(m, b)");
            becomes(&written(biased, &[("m", "MatMul", weight)]), dims, &[("DynamicQuantizeMatMul", 1)]);
        }
    }
}

#[test]
fn gemms_become_the_same_kernel() {
    for weight in WEIGHTS {
        let head = "(float[n, 37] x) => (float y)";
        let gemm = layer(head, &[("w", &[37, 29]), ("b", &[29])], "y = Gemm(x, w, b)");
        becomes(&written(gemm, &[("y", "Gemm", weight)]), &[6, 37], &[("DynamicQuantizeMatMul", 1)]);
        let turned = layer(head, &[("w", &[29, 37])], "y = Gemm <transB = 1> (x, w)");
        let weight = weight.replace("axis: 1", "axis: 0");
        becomes(&written(turned, &[("y", "Gemm", &weight)]), &[6, 37], &[("DynamicQuantizeMatMul", 1)]);
    }
}

#[test]
fn readers_of_the_same_data_share_it() {
    let constants: &[(&str, &[usize])] = &[("w", &[37, 29]), ("v", &[37, 1]), ("b", &[29])];
    let model = layer(
        "(float[n, 5, 37] x) => (float y, float z, float u)",
        constants,
        "m = MatMul(x, w) y = Add(b, m) z = MatMul(x, v) u = MatMul(x, w)",
    );
    let nodes = [("m", "MatMul", WEIGHTS[0]), ("z", "MatMul", WEIGHTS[0]), ("u", "MatMul", WEIGHTS[1])];
    becomes(&written(model, &nodes), &[2, 5, 37], &[("DynamicQuantizeLinear", 1), ("MatMulIntegerToFloat", 3)]);
}

#[test]
fn convolutions_become_a_chain() {
    let cases: [(&str, &[usize], &[usize]); 3] = [
        ("pads = [1, 1, 1, 1], strides = [2, 1]", &[2, 6, 7, 9], &[8, 6, 3, 3]),
        ("group = 6, pads = [1, 0, 1, 0]", &[1, 6, 7, 9], &[6, 1, 3, 3]),
        ("pads = [2, 0]", &[1, 4, 11], &[5, 4, 3]),
    ];
    for (attributes, x, w) in cases {
        for (weight, inputs) in [
            ("{dtype: uint8, axis: 0, symmetric: true}", "(x, w, b)"),
            ("{dtype: int8, axis: 0, symmetric: true}", "(x, w)"),
            ("{dtype: uint8, symmetric: false}", "(x, w, b)"),
        ] {
            let dims: Vec<String> = x.iter().map(usize::to_string).collect();
            let head = format!("(float[{}] x) => (float y)", dims.join(","));
            let body = format!("y = Conv <{attributes}> {inputs}");
            let model = layer(&head, &[("w", w), ("b", &[w[0]])], &body);
            let model = written(model, &[("y", "Conv", weight)]);
            let adds = inputs.contains('b').then_some(("Add", 1));
            let chain = [("DynamicQuantizeLinear", 1), ("ConvInteger", 1), ("Cast", 1), ("Mul", 2)];
            let chain: Vec<_> = chain.into_iter().chain(adds).collect();
            becomes(&model, x, &chain);
        }
    }
}

#[test]
fn what_is_written_can_be_read_and_written_again() {
    let constants: &[(&str, &[usize])] = &[("w", &[37, 29]), ("b", &[29])];
    let model = layer("(float[n, 37] x) => (float y)", constants, "m = MatMul(x, w) y = Add(m, b)");
    let model = written(model, &[("m", "MatMul", WEIGHTS[0])]);
    let count = |m: &Model, op: &str| m.all_nodes().iter().filter(|&&n| m.node(n).op_type == op).count();
    let mut again = model.clone();
    let mut cx = Context::default();
    passes::raise(&mut again, &mut cx).expect("it is raised");
    passes::run_stage_to_end(Stage::Prepare, &mut again, &mut cx).expect("it is prepared");
    assert_eq!((count(&again, "MatMul"), count(&again, "MatMulInteger")), (1, 0), "{}", text::print(&again));
    let x = [numbers(&[4, 37], 5, 1.0)];
    let run = |m: &Model| Tract.load(m, &[]).and_then(|s| s.run(&x)).expect("it runs")[0].to_f32().expect("floats");
    let (before, float) = (run(&model), run(&again));
    assert!(before.iter().zip(&float).all(|(a, b)| (a - b).abs() < 1e-4), "the same numbers in another order");
    passes::run_stage(Stage::Lower, &mut again, &mut cx).expect("it is fused");
    assert_eq!(run(&again), before, "all scales are the same, bit for bit");
}

/// Without data: the plan's kernels are those of the runtime's optimized graph.
#[test]
fn a_model_without_data() {
    let constants: &[(&str, &[usize])] =
        &[("q", &[256, 256]), ("k", &[256, 256]), ("v", &[256, 256]), ("o", &[256, 256]), ("small", &[256, 2])];
    let model = layer(
        "(float[batch, words, 256] x) => (float y, float z)",
        constants,
        "a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) t = Transpose <perm = [0, 2, 1]> (b) s = MatMul(a, t)
        p = Softmax(s) d = MatMul(p, c) y = MatMul(d, o) m = ReduceMean <axes = [1], keepdims = 0> (y) z = MatMul(m, small)",
    );
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.onnx");
    onnx_file::write(&model, &path, Default::default()).expect("it is written");
    let settings = Settings::new(Config { mode: Mode::Dynamic, ..Config::default() }).expect("settings");
    let job = Job::new(&path, folder.path().join("out.onnx"), &settings);
    let done = pipeline::quantize(&job).unwrap_or_else(|e| panic!("{e}"));
    let planned = |kernel: &str| done.plan.nodes.values().filter(|n| n.kernel.as_deref() == Some(kernel)).count();
    assert_eq!((planned("MatMulIntegerToFloat"), planned("DynamicQuantizeMatMul")), (3, 1), "{:?}", done.plan);
    assert_eq!(done.plan.nodes["s"].reason.as_deref(), Some("its second operand is not constant"));
    assert!(done.plan.nodes["z"].reason.as_deref().is_some_and(|r| r.contains("more than it gains")));
    assert!(done.plan.nodes.values().all(|n| n.becomes != Form::Integer));
    let Some(found) = kernels(&done.model, folder.path()) else { return };
    assert_eq!((found["MatMulIntegerToFloat"], found["DynamicQuantizeMatMul"]), (3, 1), "{found:?}");
}
