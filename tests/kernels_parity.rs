//! The plan's kernels are those that ONNX Runtime has: each node that the plan says computes in integers is found as that
//! kernel in the runtime's own optimized graph, as often as planned, and no other.

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::random::Random;
use ndarray::{ArrayD, IxDyn};
use ndarray_npy::NpzWriter;
use qonvert::{Config, Job, Settings, ir::text, onnx_file, pipeline, plan::Form};

/// Kernels that are integer by their name.
const KERNELS: &[&str] = &[
    "QLinearConv",
    "QLinearMatMul",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearAdd",
    "QLinearMul",
    "QLinearConcat",
    "QLinearSigmoid",
    "QLinearLeakyRelu",
    "QLinearSoftmax",
    "QLinearAveragePool",
    "QLinearGlobalAveragePool",
    "QLinearWhere",
    "DynamicQuantizeLSTM",
];

/// The model `x: float[shape]` with these constants and nodes; `y` is the output.
fn model(shape: &str, constants: &[(&str, &[usize])], nodes: &str) -> String {
    let constant = |(i, (name, dims)): (usize, &(&str, &[usize]))| {
        let list: Vec<String> =
            Random(i as u64 + 1).floats(dims.iter().product(), 0.2).iter().map(|v| format!("{v:e}")).collect();
        let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
        format!("float[{}] {name} = {{{}}}", dims.join(","), list.join(","))
    };
    let constants: Vec<String> = constants.iter().enumerate().map(constant).collect();
    format!(
        "<ir_version: 8, opset_import: [\"\" : 17]>\nagraph (float[{shape}] x) => (float y)\n<{}>\n{{\n{nodes}\n}}",
        constants.join(", ")
    )
}

fn count<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    names.filter(|n| KERNELS.contains(n)).for_each(|n| *counts.entry(n).or_default() += 1);
    counts
}

/// Quantizes wherever there is a kernel and compares with what the runtime makes of the file.
fn check(path: &Path, data: &Path, scratch: &Path, least: usize) {
    let config = Config { everywhere: true, ..Config::default() };
    let settings = Settings::new(config).unwrap();
    let mut job = Job::new(path, scratch.join("out.onnx"), &settings);
    job.data = Some(data.into());
    let done = pipeline::quantize(&job).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let computes = |form| matches!(form, Form::Integer | Form::Dynamic);
    let planned = done.plan.nodes.values().filter(|n| computes(n.becomes)).filter_map(|n| n.kernel.as_deref());
    let planned = count(planned);
    assert!(planned.values().sum::<usize>() >= least, "{}: only {planned:?} of {least}", path.display());
    let optimized = scratch.join("optimized.onnx");
    if !common::ort_optimize(&onnx_file::to_bytes(&done.model).unwrap(), &optimized) {
        return;
    }
    let runs = onnx_file::read(&optimized).unwrap();
    let found = count(runs.all_nodes().into_iter().map(|n| runs.node(n).op_type.as_str()));
    assert_eq!(found, planned, "{}", path.display());
}

/// The input's shape for data, the model, and how many kernels there must be at least.
fn check_text(shape: &[usize], text: &str, least: usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    onnx_file::write(&text::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}")), &path("m.onnx"), Default::default())
        .unwrap();
    let mut all = shape.to_vec();
    all[0] *= 12;
    let x = ArrayD::from_shape_vec(IxDyn(&all), Random(77).floats(all.iter().product(), 1.0)).unwrap();
    let mut npz = NpzWriter::new(fs::File::create(path("x.npz")).unwrap());
    npz.add_array("x", &x).unwrap();
    npz.finish().unwrap();
    check(&path("m.onnx"), &path("x.npz"), folder.path(), least);
}

#[test]
fn products_before_clamps() {
    let w: &[(&str, &[usize])] = &[("w", &[32, 32]), ("u", &[32, 32]), ("g", &[32]), ("b", &[32])];
    // What reads the clamp stays float.
    for clamp in ["r = Relu(h)", "r = Clip(h, zero, six)"] {
        let nodes = format!(
            "zero = Constant <value_float: float = 0.0> ()\nsix = Constant <value_float: float = 0.5> ()\nh = MatMul(x, w)\n\
             {clamp}\nn = LayerNormalization(r, g, b)\nh2 = MatMul(n, u)\nr2 = Relu(h2)\ny = Tanh(r2)"
        );
        check_text(&[1, 16, 32], &model("N,16,32", w, &nodes), 2);
        check_text(&[1, 16, 32], &model("1,16,32", w, &nodes), 2);
        let gemm = nodes.replace("MatMul(x, w)", "Gemm(x, w, b)").replace("MatMul(n, u)", "Gemm(n, u, b)");
        check_text(&[1, 32], &model("N,32", w, &gemm), 2);
        check_text(&[1, 32], &model("N,32", w, &nodes), 2);
    }
}

#[test]
fn products_before_sums() {
    let w: &[(&str, &[usize])] = &[("w", &[32, 32]), ("u", &[32, 32]), ("b", &[32])];
    for shape in ["N,32", "4,32", "N,8,32", "2,8,32"] {
        let dims: Vec<usize> = shape.split(',').map(|d| d.parse().unwrap_or(1)).collect();
        let nodes = "h = MatMul(x, w)\nt = Tanh(h)\nh2 = MatMul(t, u)\ny = Add(h2, x)";
        check_text(&dims, &model(shape, w, nodes), 2);
        let nodes = "h = MatMul(x, w)\na = Add(h, b)\nt = Tanh(a)\nh2 = MatMul(t, u)\na2 = Add(b, h2)\ny = Add(a2, x)";
        check_text(&dims, &model(shape, w, nodes), 2);
    }
}

#[test]
fn convolutions_and_what_joins_them() {
    let w: &[(&str, &[usize])] = &[
        ("w1", &[16, 3, 3, 3]),
        ("w2", &[16, 16, 3, 3]),
        ("wd", &[16, 1, 3, 3]),
        ("w3", &[8, 16, 1, 1]),
        ("w4", &[4, 24, 1, 1]),
        ("wg", &[4, 10]),
        ("b", &[16]),
        ("bg", &[10]),
    ];
    let p = "<pads: ints = [1, 1, 1, 1]>";
    let residual = format!(
        "a = Conv {p} (x, w1, b)\nr = Relu(a)\nc = Conv {p} (r, w2)\ns = Add(c, r)\nr2 = Relu(s)\nm = MaxPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (r2)\n\
         d = Conv <group: int = 16, pads: ints = [1, 1, 1, 1]> (m, wd, b)\ne = Conv(d, w3)\nk = Concat <axis: int = 1> (e, m)\nf = Conv(k, w4)\n\
         g = GlobalAveragePool(f)\nl = Flatten(g)\ny = Gemm(l, wg, bg)"
    );
    check_text(&[1, 3, 12, 12], &model("N,3,12,12", w, &residual), 8);
    let gated = format!(
        "a = Conv {p} (x, w1, b)\ns = Sigmoid(a)\nm = Mul(a, s)\nc = Conv {p} (m, w2)\nl = LeakyRelu <alpha: float = 0.1> (c)\ny = Conv(l, w3)"
    );
    check_text(&[1, 3, 12, 12], &model("N,3,12,12", w, &gated), 6);
}

#[test]
fn our_own_models() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let folder = tempfile::tempdir().unwrap();
    for name in ["digits_cnn", "digits_transformer"] {
        for exporter in ["torchscript", "dynamo"] {
            let path = models.join(format!("{name}.{exporter}.onnx"));
            check(&path, &models.join("digits_calib.npz"), folder.path(), 5);
        }
    }
}
