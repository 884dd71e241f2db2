//! One plan in both forms, Q/DQ pairs and integer operators: ONNX Runtime answers the same, and no scale or zero point is lost
//! from one form to the other and back.

mod common;

use std::{collections::BTreeSet, path::Path};

use qonvert::{
    Config, Job, Settings,
    config::Format,
    ir::{Model, Tensor},
    onnx_file,
    passes::Context,
    pipeline::{self, convert_model},
    target::Target,
    validate,
};

fn count(model: &Model, which: impl Fn(&str) -> bool) -> usize {
    model.all_nodes().into_iter().filter(|&n| which(&model.node(n).op_type)).count()
}

fn integer(op: &str) -> bool {
    op.starts_with("QLinear") || op == "QGemm" || op == "MatMulIntegerToFloat"
}

/// The scales and zero points of all pairs.
fn params(model: &Model) -> BTreeSet<(Vec<u8>, Vec<i64>)> {
    let pairs = model.all_nodes().into_iter().filter(|&n| {
        let node = model.node(n);
        node.is("QuantizeLinear") || node.is("DequantizeLinear")
    });
    pairs
        .map(|n| {
            let scale = model.constant_input(n, 1).expect("a constant scale").bytes().unwrap().to_vec();
            let zero = model.constant_input(n, 2).map_or_else(Vec::new, |t| t.to_i64().unwrap());
            (scale, if zero.iter().all(|&z| z == 0) { vec![] } else { zero })
        })
        .collect()
}

fn answers(model: &Model, inputs: &[(&str, Tensor)]) -> Option<Vec<Tensor>> {
    common::ort_run(&onnx_file::to_bytes(model).unwrap(), inputs)
}

#[test]
fn both_forms_answer_the_same() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let target = Target::load("onnxruntime-cpu").unwrap();
    for (name, least) in
        [("digits_cnn.torchscript", 4), ("digits_cnn.dynamo", 4), ("digits_transformer.torchscript", 2)]
    {
        let path = models.join(format!("{name}.onnx"));
        let quantize = |format, plan| {
            let config = Config { everywhere: true, format, ..Config::default() };
            let settings = Settings::new(config).unwrap();
            let mut job = Job::new(&path, "unused.onnx", &settings);
            job.data = Some(models.join("digits_calib.npz"));
            job.plan = plan;
            pipeline::quantize(&job).unwrap()
        };
        let pairs = quantize(Format::Qdq, None);
        let data = pairs.dataset.as_ref().unwrap();
        let operators = quantize(Format::Qoperator, Some(pairs.plan.clone())).model;
        let pairs = &pairs.model;
        assert_eq!(count(pairs, integer), 0);
        let fused = count(&operators, integer);
        assert!(fused >= least, "{name}: {fused}");
        let microsoft = count(&operators, |op| integer(op) && !["QLinearConv", "QLinearMatMul"].contains(&op)) > 0;
        assert_eq!(operators.opset("com.microsoft").is_some(), microsoft, "{name}");

        let mut cx = Context::default();
        let there = convert_model(pairs, Format::Qoperator, &target, &mut cx).unwrap();
        assert_eq!(count(&there, integer), fused, "{name}");
        let back = convert_model(&operators, Format::Qdq, &target, &mut Context::default()).unwrap();
        assert_eq!((count(&back, integer), back.opset("com.microsoft")), (0, None), "{name}");
        assert_eq!(params(&back), params(pairs), "{name}");

        let input = pairs.required_inputs()[0];
        let input = pairs.value(input).name();
        for sample in 0..4 {
            let feed = [(input, data.sample(sample).unwrap().remove(0))];
            let Some(want) = answers(pairs, &feed) else { break };
            for (what, model) in [("written", &operators), ("converted", &there), ("converted back", &back)] {
                let got = answers(model, &feed).unwrap();
                let same = want.iter().zip(&got).all(|(a, b)| a.same_content(b));
                assert!(same, "{name}, {what}: {want:?} became {got:?}");
            }
        }
        // The built-in runtime runs the integer operators as the pairs that they came from.
        let runtime = qonvert::runtime::tract::Tract;
        let compared = validate::compare(&runtime, pairs, &operators, data, &[0, 1, 2, 3], &|_, _| {}).unwrap();
        assert!(compared.outputs.iter().all(|o| o.sqnr_db == f64::INFINITY), "{name}: {:?}", compared.outputs);
    }
}
