//! Weights in few bits: what is written is computed by the built-in runtime as by ONNX Runtime, every product and table becomes the
//! kernel that the plan names, and no algorithm is worse than rounding to nearest.

mod common;

use std::{collections::BTreeMap, path::Path};

use common::{ort_optimize, ort_try_run, random::Random};
use qonvert::{
    Config, Job, Settings,
    config::{Format, Mode, Size},
    ir::{Model, Tensor, text},
    onnx_file, pipeline,
    report::Report,
    runtime::{Runtime, tract::Tract},
};

/// Rows of the data, which have few directions, as data of real layers have.
const ROWS: usize = 48;

fn constant(name: &str, dims: &[usize], random: &mut Random) -> String {
    let numbers: Vec<String> = random.floats(dims.iter().product(), 0.3).iter().map(|x| format!("{x:e}")).collect();
    let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
    format!("float[{}] {name} = {{{}}}", dims.join(","), numbers.join(","))
}

/// A table, a product of data with three dims, and two Gemms, one with its weight transposed. `columns` of the first Gemm.
fn net(opset: i64, columns: usize) -> Model {
    let mut random = Random(7);
    let constants: Vec<String> = [
        ("table", vec![40, 64]),
        ("w", vec![64, 96]),
        ("v", vec![96, columns]),
        ("c", vec![columns]),
        ("u", vec![32, columns]),
        ("d", vec![32]),
    ]
    .iter()
    .map(|(name, dims)| constant(name, dims, &mut random))
    .collect();
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : {opset}]> g (int64[1,4] i) => (float[4,32] y)
         <int64[2] shape = {{4, 96}}, {}> {{
            rows = Gather(table, i) [first] a = MatMul(rows, w) s = Reshape(a, shape) r = Relu(s)
            [second] b = Gemm(r, v, c) t = Relu(b) [third] y = Gemm<transB = 1>(t, u, d) }}",
        constants.join(", ")
    );
    text::parse(&text).unwrap_or_else(|e| panic!("{e}"))
}

fn data(folder: &Path) {
    let mut random = Random(3);
    let ids: Vec<i64> = (0..ROWS * 4).map(|_| random.below(40) as i64).collect();
    let array = ndarray::Array::from_shape_vec((ROWS, 4), ids).expect("a shape");
    let file = std::fs::File::create(folder.join("data.npz")).expect("a file");
    let mut npz = ndarray_npy::NpzWriter::new(file);
    npz.add_array("i", &array).expect("it writes");
    npz.finish().expect("it ends");
}

fn config(bits: usize, zero_points: bool, algorithm: &str) -> Config {
    let mut config = Config { mode: Mode::WeightOnly, ..Config::default() };
    let w = &mut config.weight_only;
    (w.bits, w.table_bits, w.symmetric, w.algorithm) = (bits, bits, !zero_points, algorithm.to_owned());
    w.block_size = 16;
    config
}

/// The written model and what the report counts.
fn quantized(model: &Model, config: Config, with_data: bool) -> (Model, BTreeMap<String, usize>, Vec<&'static str>) {
    let (written, report) = reported(model, config, with_data);
    let codes = report.diagnostics.iter().map(|d| d.code).collect();
    (written, report.nodes.kernels, codes)
}

fn reported(model: &Model, config: Config, with_data: bool) -> (Model, Report) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.onnx");
    onnx_file::write(model, &path, Default::default()).expect("it writes");
    data(folder.path());
    let settings = Settings::new(config).expect("settings");
    let job = Job {
        data: with_data.then(|| folder.path().join("data.npz")),
        ..Job::new(&path, folder.path().join("out.onnx"), &settings)
    };
    let report = pipeline::run(&job).unwrap_or_else(|e| panic!("{e}"));
    let written = onnx_file::read(&folder.path().join("out.onnx")).expect("it reads");
    (written, report)
}

fn inputs(seed: u64) -> Tensor {
    let mut random = Random(seed);
    Tensor::from_i64(&[1, 4], &[0; 4].map(|_: i64| random.below(40) as i64))
}

fn ours(model: &Model, samples: u64) -> Vec<f32> {
    let mut cx = qonvert::passes::Context::default();
    let mut raised = model.clone();
    qonvert::passes::raise(&mut raised, &mut cx).expect("it is raised");
    let session = Tract.load(&raised, &[]).unwrap_or_else(|e| panic!("{e}"));
    let run = |seed| session.run(&[inputs(seed)]).unwrap_or_else(|e| panic!("{e}")).remove(0).to_f32().expect("floats");
    (0..samples).flat_map(run).collect()
}

fn off(a: &[f32], b: &[f32]) -> f32 {
    let most = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / most
}

#[test]
fn both_runtimes_compute_the_same_and_with_kernels() {
    let folder = tempfile::tempdir().expect("a folder");
    for (bits, zero_points, format, columns) in [
        (8, true, Format::Qdq, 48),
        (8, false, Format::Qoperator, 48),
        (4, true, Format::Qdq, 48),
        (4, false, Format::Qdq, 45),
        (4, true, Format::Qoperator, 45),
        (2, true, Format::Qdq, 48),
        (2, false, Format::Qdq, 45),
        (2, true, Format::Qoperator, 48),
    ] {
        let case = format!("{bits} bits, zero points {zero_points}, {format:?}, {columns} columns");
        let config = Config { format, ..config(bits, zero_points, "auto") };
        let (model, kernels, codes) = quantized(&net(11, columns), config, false);
        assert_eq!(kernels, BTreeMap::from([("GatherBlockQuantized".into(), 1), ("MatMulNBits".into(), 3)]), "{case}");
        assert!(!codes.contains(&"plan_not_met"), "{case}: {codes:?}");
        let bytes = onnx_file::to_bytes(&model).expect("it encodes");
        let mine = ours(&model, 1);
        let Some(theirs) = ort_try_run(&bytes, &[("i", inputs(0))], true) else { return };
        let theirs = theirs.unwrap_or_else(|e| panic!("{case}: {e}")).remove(0).to_f32().expect("floats");
        // The kernel rounds its data to 8 bits in blocks.
        assert!(off(&theirs, &mine) < 0.02, "{case}: {}", off(&theirs, &mine));
        let path = folder.path().join("optimized.onnx");
        assert!(ort_optimize(&bytes, &path));
        let optimized = onnx_file::read(&path).expect("it reads");
        let count = |op: &str| optimized.all_nodes().iter().filter(|&&n| optimized.node(n).op_type == op).count();
        assert_eq!((count("MatMulNBits"), count("GatherBlockQuantized")), (3, 1), "{case}");
        assert_eq!(count("DequantizeLinear"), 0, "{case}");
    }
}

/// What the layers' outputs are off, all together, with data that ask for it and without.
#[test]
fn no_algorithm_is_worse_than_the_nearest_codes() {
    let model = net(17, 48);
    let float = ours(&model, 40);
    let error = |algorithm: &str, with_data: bool| {
        let (written, _, _) = quantized(&model, config(4, false, algorithm), with_data);
        let found = ours(&written, 40);
        found.iter().zip(&float).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    };
    let nearest = error("rtn", false);
    for (algorithm, with_data) in [("mse", false), ("hqq", false), ("mse", true), ("adaround", true), ("gptq", true)] {
        let found = error(algorithm, with_data);
        assert!(found < nearest, "{algorithm}: {found}, rtn: {nearest}");
    }
}

/// Whatever size is asked for, little of it is left.
#[test]
fn a_size_that_is_asked_for_is_used_up() {
    let model = net(17, 48);
    for step in 0..24 {
        let target = 9000 + 211 * step;
        let mut config = config(4, true, "rtn");
        config.weight_only.table_bits = 8;
        config.weight_only.target_size = Some(Size::Bytes(target));
        let (written, _, _) = quantized(&model, config, false);
        let size = onnx_file::to_bytes(&written).expect("it encodes").len() as u64;
        assert!(size <= target && size * 10 > target * 9, "{size} bytes, {target} were asked for");
    }
}

/// What awq does to a layer that reads channels of very different sizes, behind a gain that can take the factors in.
#[test]
fn awq_makes_weights_finer_where_much_is_read() {
    let mut random = Random(5);
    let gains: Vec<String> = (0..64).map(|i| if i % 16 == 3 { "12".to_owned() } else { "0.5".to_owned() }).collect();
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 17]> g (int64[1,4] i) => (float[1,4,48] y)
         <{}, float[64] g = {{{}}}, {}> {{
            rows = Gather(table, i) t = Tanh(rows) [gain] x = Mul(t, g) [out] y = MatMul(x, w) }}",
        constant("table", &[40, 64], &mut random),
        gains.join(","),
        constant("w", &[64, 48], &mut random)
    );
    let model = text::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let float = ours(&model, 40);
    let error = |algorithm: &str, with_data: bool| {
        let mut config = config(4, false, algorithm);
        config.weight_only.table_bits = 8;
        let (written, _, codes) = quantized(&model, config, with_data);
        let found = ours(&written, 40);
        (found.iter().zip(&float).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>(), codes)
    };
    let ((plain, _), (scaled, codes)) = (error("mse", true), error("awq", true));
    assert!(scaled < 0.7 * plain && codes.contains(&"evened_out"), "{scaled} after {plain}: {codes:?}");
    let ((none, codes), (mse, _)) = (error("awq", false), error("mse", false));
    assert!(none == mse && codes.contains(&"settings_without_effect"), "{none} {mse}: {codes:?}");
}

/// Layers get the bits that they need: as small as with the same bits in all layers, the answers are nearer.
#[test]
fn bits_are_spread_by_what_layers_do_to_the_answers() {
    let model = net(17, 48);
    let float = ours(&model, 40);
    let error =
        |written: &Model| -> f64 { ours(written, 40).iter().zip(&float).map(|(a, b)| f64::from(a - b).powi(2)).sum() };
    for with_data in [true, false] {
        let (uniform, kernels, _) = quantized(&model, config(4, true, "mse"), with_data);
        let size = onnx_file::to_bytes(&uniform).expect("it encodes").len();
        let mut config = config(4, true, "mse");
        config.weight_only.table_bits = 8;
        config.weight_only.target_size = Some(Size::Bytes(size as u64));
        let (spread, same, codes) = quantized(&model, config, with_data);
        let now = onnx_file::to_bytes(&spread).expect("it encodes").len();
        assert!(now <= size && now * 10 > size * 9, "{now} bytes, {size} were asked for");
        assert!(codes.contains(&"bits_spread") && kernels == same, "{codes:?} {same:?}");
        let (before, after) = (error(&uniform), error(&spread));
        assert!(after < before, "with data {with_data}: {after} after {before}");
        if let Some(theirs) = ort_try_run(&onnx_file::to_bytes(&spread).expect("it encodes"), &[("i", inputs(0))], true)
        {
            let theirs = theirs.unwrap_or_else(|e| panic!("{e}")).remove(0).to_f32().expect("floats");
            assert!(off(&theirs, &ours(&spread, 1)) < 0.02);
        }
    }
}

/// A square weight that one product reads as it is and another one transposed.
#[test]
fn a_weight_that_is_read_in_two_ways_has_codes_for_each() {
    let mut random = Random(11);
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 17]> g (int64[1,4] i) => (float[4,64] y)
         <int64[2] shape = {{4, 64}}, {}, {}> {{
            rows = Gather(table, i) s = Reshape(rows, shape) a = MatMul(s, w) y = Gemm<transB = 1>(a, w) }}",
        constant("table", &[40, 64], &mut random),
        constant("w", &[64, 64], &mut random)
    );
    let model = text::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let float = ours(&model, 1);
    for (bits, most) in [(8, 0.02), (4, 0.2)] {
        let (written, kernels, _) = quantized(&model, config(bits, true, "mse"), false);
        assert_eq!(kernels.get("MatMulNBits"), Some(&2), "{kernels:?}");
        assert!(off(&ours(&written, 1), &float) < most, "{bits} bits: {}", off(&ours(&written, 1), &float));
        let bytes = onnx_file::to_bytes(&written).expect("it encodes");
        if let Some(theirs) = ort_try_run(&bytes, &[("i", inputs(0))], true) {
            let theirs = theirs.unwrap_or_else(|e| panic!("{e}")).remove(0).to_f32().expect("floats");
            assert!(off(&theirs, &float) < most, "{bits} bits: {}", off(&theirs, &float));
        }
    }
}

/// Weights of a size that no float16 has: the proof computes with the scales that are written.
#[test]
fn small_weights_are_proved_as_they_are() {
    let mut random = Random(13);
    let small: Vec<String> = random.floats(64 * 32, 0.3).iter().map(|x| format!("{:e}", x * 1e-7)).collect();
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 17]> g (int64[1,4] i) => (float[1,4,32] y)
         <{}, float[64,32] w = {{{}}}> {{ rows = Gather(table, i) a = MatMul(rows, w) y = Relu(a) }}",
        constant("table", &[40, 64], &mut random),
        small.join(",")
    );
    let model = text::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let mut config = config(4, true, "auto");
    config.weight_only.table_bits = 8;
    let (_, report) = reported(&model, config, true);
    let sqnr = report.proof.expect("a proof").outputs[0].sqnr;
    assert!(sqnr.is_some_and(|db| db > 15.0), "{sqnr:?}");
}

/// Products that share a weight share its codes, and a node in a branch has its own.
#[test]
fn shared_weights_and_branches() {
    let mut random = Random(9);
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 17]> g (float[4,64] x, bool c) => (float[4,64] y) <{}, {}> {{
            a = MatMul(x, w) b = MatMul(a, w)
            y = If (c) <then_branch = t () => (p) {{ p = MatMul(b, v) }}, else_branch = e () => (q) {{ q = Relu(b) }}> }}",
        constant("w", &[64, 64], &mut random),
        constant("v", &[64, 64], &mut random),
    );
    let model = text::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let (written, kernels, _) = quantized(&model, config(4, false, "rtn"), false);
    assert_eq!(kernels["MatMulNBits"], 3);
    let bytes = onnx_file::to_bytes(&written).expect("it encodes");
    assert!(bytes.len() < 3 * 64 * 64, "{}", bytes.len());
    let x = Random(1).tensor(&[4, 64], 1.0);
    let truth = Tensor::new(qonvert::ir::DType::Bool, vec![], vec![1u8]).expect("a bool");
    let fed = [("x", x), ("c", truth)];
    let before = onnx_file::to_bytes(&model).expect("it encodes");
    let Some(theirs) = ort_try_run(&bytes, &fed, true) else { return };
    let theirs = theirs.unwrap_or_else(|e| panic!("{e}")).remove(0).to_f32().expect("floats");
    let float = ort_try_run(&before, &fed, true).expect("there").expect("it runs").remove(0).to_f32().expect("floats");
    let (signal, noise) = theirs.iter().zip(&float).fold((0.0, 0.0), |(s, n), (a, b)| (s + b * b, n + (a - b).powi(2)));
    assert!(noise < 0.03 * signal, "{noise} of {signal}");
}

/// Nets that were trained to two or three numbers: a sixteenth of their weights' size or less, and not a bit of the answer changes.
#[test]
fn trained_signs_are_kept_exactly() {
    for (name, bits) in [("binary", 1), ("ternary", 2)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("models/digits_{name}.onnx"));
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("out.onnx");
        let config = Config { mode: Mode::WeightOnly, ..Config::default() };
        let settings = Settings::new(config).expect("settings");
        pipeline::run(&Job::new(&path, &out, &settings)).unwrap_or_else(|e| panic!("{e}"));
        let (before, after) = (onnx_file::read(&path).expect("it reads"), onnx_file::read(&out).expect("it reads"));
        // Biases, and a convolution of a few weights, are not packed.
        let large = |m: &Model| -> usize {
            let tensors = m.value_ids().into_iter().filter_map(|v| m.value(v).initializer());
            tensors.filter(|t| t.rank() == 2).map(Tensor::byte_len).sum()
        };
        assert!(large(&before) >= 14 * large(&after), "{name}: {} to {}", large(&before), large(&after));
        let (small, whole) = (fs_len(&out), fs_len(&path));
        assert!(small * (20 / bits) < whole, "{name}: {small} of {whole}");
        let image = Random(4).tensor(&[3, 1, 8, 8], 1.0);
        let ours = |m: &Model| {
            Tract
                .load(m, &[])
                .and_then(|s| s.run(std::slice::from_ref(&image)))
                .unwrap_or_else(|e| panic!("{e}"))
                .remove(0)
        };
        assert!(ours(&after).same_content(&ours(&before)), "{name}");
        let theirs = |m: &Model| {
            let bytes = onnx_file::to_bytes(m).expect("it encodes");
            Some(ort_try_run(&bytes, &[("image", image.clone())], true)?.unwrap_or_else(|e| panic!("{e}")).remove(0))
        };
        let Some(float) = theirs(&before) else { return };
        assert!(theirs(&after).expect("it ran before").same_content(&float), "{name}");
        // Nothing is left of the unpacking once the file is loaded.
        let optimized = folder.path().join("optimized.onnx");
        assert!(ort_optimize(&onnx_file::to_bytes(&after).expect("it encodes"), &optimized));
        let optimized = onnx_file::read(&optimized).expect("it reads");
        assert!(
            !optimized
                .all_nodes()
                .iter()
                .any(|&n| ["BitShift", "Mod", "Mul"].contains(&&optimized.node(n).op_type[..]))
        );
    }
}

fn fs_len(path: &Path) -> usize {
    std::fs::metadata(path).expect("a file").len() as usize
}
