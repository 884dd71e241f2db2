//! Models of every form come back to floats: nothing quantized is left, weights are what their codes stand for, and the answers
//! are those of the quantized model but for the rounding of values.

mod common;

use std::path::Path;

use qonvert::{
    Config, Job, Settings,
    calibrate::dataset::Dataset,
    config::{Format, IoTypes, Mode, Numbers},
    difference::Difference,
    ir::{Model, Tensor},
    onnx_file,
    passes::{
        Context,
        remove_quantization::{Clamps, is_quantization},
    },
    pipeline::{self, dequantize_model},
    runtime::tract::Tract,
    target::Target,
    validate,
};

const MODELS: [&str; 2] = ["digits_cnn.torchscript", "digits_transformer.dynamo"];

fn quantized(name: &str, config: Config) -> (Model, Model, Dataset) {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let path = models.join(format!("{name}.onnx"));
    let settings = Settings::new(config).unwrap();
    let mut job = Job::new(&path, "unused.onnx", &settings);
    job.data = Some(models.join("digits_calib.npz"));
    let done = pipeline::quantize(&job).unwrap();
    let original = onnx_file::read(&path).unwrap();
    let data = pipeline::open_data(&models.join("digits_calib.npz"), &original, &Default::default()).unwrap();
    (original, done.model, data)
}

fn forms() -> Vec<(&'static str, Config)> {
    let all = || Config { everywhere: true, ..Config::default() };
    let mode = |mode| Config { mode, ..all() };
    let precision = |precision| Config { precision, ..all() };
    vec![
        ("pairs", mode(Mode::Static)),
        ("integer operators", Config { format: Format::Qoperator, ..mode(Mode::Static) }),
        ("run time", mode(Mode::Dynamic)),
        ("few bits", mode(Mode::WeightOnly)),
        ("16 bits", precision(Numbers::Fp16)),
        ("16 bits at the ends", Config { io_types: IoTypes::Half, ..precision(Numbers::Fp16) }),
        ("8-bit floats", precision(Numbers::Fp8)),
    ]
}

/// Signal to noise of the second model's answers beside the first's, dB.
fn apart(a: &Model, b: &Model, data: &Dataset) -> f64 {
    let samples: Vec<usize> = (0..40).collect();
    validate::compare(&Tract, a, b, data, &samples, &|_, _| {}).unwrap().least_sqnr().unwrap_or(f64::INFINITY)
}

/// The float constants of a model.
fn floats(model: &Model) -> Vec<Vec<f32>> {
    let constants = model.value_ids().into_iter().filter_map(|v| model.value(v).constant());
    constants.filter(|t| t.dtype().is_float()).map(|t| t.to_f32().unwrap()).collect()
}

#[test]
fn every_form_comes_back() {
    for name in MODELS {
        for (form, config) in forms() {
            let (original, quantized, data) = quantized(name, config);
            let mut cx = Context::default();
            let float = dequantize_model(&quantized, Clamps::Keep, false, &mut cx).unwrap();
            let left: Vec<_> = float.all_nodes().into_iter().filter(|&n| is_quantization(float.node(n))).collect();
            assert!(left.is_empty(), "{name}, {form}: {left:?} {:?}", cx.diagnostics);
            assert!(cx.removed.weights + cx.removed.widened > 0, "{name}, {form}");
            assert_eq!(float.opset(""), quantized.opset(""), "{name}, {form}");
            let small = |t: &Tensor| t.len() > 8 && t.dtype().bits() < 32;
            let stored = float.value_ids().into_iter().filter_map(|v| float.value(v).constant()).filter(|t| small(t));
            assert_eq!(stored.count(), 0, "{name}, {form}");
            // The data are of the original's types.
            if !form.contains("ends") {
                let (before, after) = (apart(&original, &quantized, &data), apart(&original, &float, &data));
                assert!(after > before - 1.5, "{name}, {form}: {before} dB, then {after} dB");
                let same = apart(&quantized, &float, &data);
                assert!(same > before.min(40.0) - 6.0, "{name}, {form}: {same} dB from the quantized one");
                let bytes = onnx_file::to_bytes(&float).unwrap();
                let input = float.required_inputs()[0];
                let sample = data.sample(0).unwrap().remove(0);
                common::ort_run(&bytes, &[(float.value(input).name(), sample)]);
            }
        }
    }
}

/// Bit for bit what DequantizeLinear makes, by its formula spelled out.
#[test]
fn weights_are_what_their_codes_stand_for() {
    let (_, quantized, _) = quantized(MODELS[0], forms().remove(0).1);
    let float = floats(&dequantize_model(&quantized, Clamps::Keep, false, &mut Context::default()).unwrap());
    let mut found = 0;
    for n in quantized.all_nodes() {
        let (Some(codes), Some(scale)) = (quantized.constant_input(n, 0), quantized.constant_input(n, 1)) else {
            continue;
        };
        if !quantized.node(n).is("DequantizeLinear") {
            continue;
        }
        let (codes, scale, dims) = (codes.to_i64().unwrap(), scale.to_f32().unwrap(), codes.dims());
        let axis = quantized.node(n).int("axis").unwrap_or(1) as usize;
        let inner: usize = dims.iter().skip(axis + 1).product();
        let of = |i: usize| if scale.len() == 1 { scale[0] } else { scale[i / inner % scale.len()] };
        let want: Vec<f32> = codes.iter().enumerate().map(|(i, &c)| c as f32 * of(i)).collect();
        let zero = quantized.constant_input(n, 2).is_none_or(|z| z.to_i64().unwrap().iter().all(|&z| z == 0));
        assert!(zero, "weights of the preset are symmetric");
        assert!(float.contains(&want), "no constant is {:?}…", &want[..want.len().min(4)]);
        found += 1;
    }
    assert!(found >= 4, "{found}");
}

/// A Relu that the quantizer did besides is not lost.
#[test]
fn without_clamps_answers_are_wrong() {
    let (original, quantized, data) = quantized(MODELS[0], forms().remove(0).1);
    let back = |clamps| {
        let mut cx = Context::default();
        let model = dequantize_model(&quantized, clamps, false, &mut cx).unwrap();
        (apart(&original, &model, &data), cx.removed.clamps.len())
    };
    let relus = |m: &Model| m.all_nodes().into_iter().filter(|&n| m.node(n).is("Relu")).count();
    assert!(relus(&quantized) < relus(&original), "no Relu was absorbed: nothing to see here");
    let [(keep, kept), (relu, put), (none, nothing)] = [Clamps::Keep, Clamps::Relu, Clamps::None].map(back);
    assert!(keep > 25.0 && relu > 25.0 && none < 15.0, "{keep} {relu} {none}");
    assert!(kept >= put && put > 0 && nothing == 0, "{kept} {put}");
}

#[test]
fn differences_are_told() {
    let target = Target::load("onnxruntime-cpu").unwrap();
    let forms = forms();
    let (original, pairs, _) = quantized(MODELS[0], forms[0].1.clone());
    let (_, operators, _) = quantized(MODELS[0], forms[1].1.clone());
    let between = |a: &Model, b: &Model| Difference::between(a, b, &target).unwrap();
    assert!(between(&pairs, &pairs).is_none());
    let forms = between(&pairs, &operators);
    assert!(forms.only_form() && !forms.is_none(), "{forms:?}");
    let there = between(&original, &pairs);
    let conv: Vec<_> = there.layers.iter().filter(|p| p.before.op == "Conv").collect();
    assert!(!conv.is_empty());
    for pair in &conv {
        assert_eq!((pair.before.precision.as_str(), pair.after.precision.as_str()), ("float32", "uint8 x int8"));
        assert_eq!(pair.after.kernel.as_deref(), Some("QLinearConv"));
        // Batch normalizations are folded, some of them into what reads them as well.
        assert!(pair.weight_difference.unwrap().sqnr.unwrap() > 8.0, "{pair:?}");
        assert!(pair.after.bytes < pair.before.bytes, "{pair:?}");
        assert_eq!(pair.after.weight.as_ref().unwrap().granularity, "per channel");
    }
    // The same numbers under other names, in another order of forms.
    let mut renamed = pairs.clone();
    for v in renamed.value_ids() {
        let (value, main) = (renamed.value(v), renamed.main());
        if !renamed.graph(main).outputs().contains(&v) && !value.is_input() {
            let name = format!("other_{}", v_number(&renamed, v));
            renamed.rename(v, &name);
        }
    }
    for n in renamed.all_nodes() {
        renamed.node_mut(n).name = None;
    }
    let renamed = between(&pairs, &renamed);
    assert!(renamed.gone.is_empty() && renamed.new.is_empty(), "{:?} {:?}", renamed.gone, renamed.new);
    assert!(renamed.layers.iter().all(|p| p.is_same()), "{renamed:?}");
}

fn v_number(model: &Model, v: qonvert::ir::ValueId) -> usize {
    model.value_ids().iter().position(|&other| other == v).unwrap()
}

/// Quantizers of training, however exporters spell them, go as well: all of them, and what they saturate at stays.
#[test]
fn models_of_training_come_back() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let mut found = 0;
    for path in std::fs::read_dir(&models).unwrap().map(|e| e.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("digits_qat_") || !name.ends_with(".onnx") {
            continue;
        }
        found += 1;
        let original = onnx_file::read(&path).unwrap();
        let mut cx = Context::default();
        let float = dequantize_model(&original, Clamps::Keep, false, &mut cx).unwrap();
        let left = |n: &&_| is_quantization(float.node(**n)) || float.node(**n).is("Round");
        assert_eq!(float.all_nodes().iter().filter(left).count(), 0, "{name}: {:?}", cx.diagnostics);
        assert!(cx.removed.quantizers >= 7 && !cx.removed.clamps.is_empty(), "{name}");
        if name.contains(".torchscript") && name.contains("_few") {
            continue; // QONNX: nothing here runs the original
        }
        let data = pipeline::open_data(&models.join("digits_calib.npz"), &original, &Default::default()).unwrap();
        let apart = apart(&original, &float, &data);
        // The roundings that go are those of 16 codes in the few-bit ones.
        let least = if name.contains("_few") { 12.0 } else { 28.0 };
        assert!(apart > least, "{name}: {apart} dB");
    }
    assert_eq!(found, 8);
}
