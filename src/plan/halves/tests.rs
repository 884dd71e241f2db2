use super::*;
use crate::{
    calibrate::halves::roundings,
    ir::{Tensor, testing::model},
    runtime::tract::Tract,
};

/// What the plan says of the node that makes a value: `None` for 16 bits, else why not.
fn reasons(model: &Model, data: Option<&[Tensor]>) -> BTreeMap<String, Option<String>> {
    let plan = decide(model, data, DType::Float16);
    let entry = |(name, n): (String, NodePlan)| (name, n.reason.filter(|_| n.becomes == Form::Float));
    plan.nodes.into_iter().map(entry).collect()
}

fn decide(model: &Model, data: Option<&[Tensor]>, dtype: DType) -> Plan {
    let target = Target::load("onnxruntime-cpu").unwrap();
    let mut seen = BTreeMap::new();
    if let Some(data) = data {
        let values = half_values(model);
        let feed = |i: usize| Ok(vec![data[i].clone()]);
        let samples: Vec<usize> = (0..data.len()).collect();
        let found = roundings(&Tract, model, dtype, &values, &samples, &feed, &|_, _| ()).unwrap();
        seen.extend(values.into_iter().zip(found));
    }
    let wishes = Wishes::default();
    decide_halves(&HalfTask { model, target: &target, dtype, io: false, wishes: &wishes, seen: &seen }).unwrap()
}

/// A normalization spelled out, between layers with weights.
const NORMALIZATION: &str = "float[1,4] x
    float[4,4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}
    float[] two = {2}
    float[] eps = {0.00001}
    a = MatMul(x, w)
    m = ReduceMean <axes = [-1]> (a)
    d = Sub(a, m)
    p = Pow(d, two)
    v = ReduceMean <axes = [-1]> (p)
    e = Add(v, eps)
    s = Sqrt(e)
    n = Div(d, s)
    y = MatMul(n, w)
    return y";

#[test]
fn squares_of_large_data_keep_32_bits() {
    let mut m = model(NORMALIZATION);
    m.set_opset("", 13);
    let large = [Tensor::from_f32(&[1, 4], &[-1500.0, 900.0, 40.0, 1200.0])];
    let found = reasons(&m, Some(&large));
    assert!(found["p"].as_ref().unwrap().contains("overflows: up to"), "{found:?}");
    assert!(found["v"].is_some() && found["s"].is_some());
    assert_eq!([&found["a"], &found["y"]], [&None, &None]);
    let small = [Tensor::from_f32(&[1, 4], &[-1.5, 0.9, 0.4, 1.2])];
    assert!(reasons(&m, Some(&small)).values().all(Option::is_none));
    // Without data squares are suspected.
    let blind = reasons(&m, None);
    assert!(
        ["p", "v", "e", "s"].iter().all(|n| blind[*n].as_ref().unwrap().starts_with("without data: ")),
        "{blind:?}"
    );
    assert_eq!([&blind["a"], &blind["y"]], [&None, &None]);
    // So is what is behind a node that keeps 32 bits for another reason.
    let mut tiny = model(&NORMALIZATION.replace("{0.00001}", "{0.000000000001}"));
    tiny.set_opset("", 13);
    let blind = reasons(&tiny, None);
    assert!(blind["e"].as_ref().unwrap().contains("constant") && blind["s"].is_some(), "{blind:?}");
}

#[test]
fn constants_that_do_not_fit() {
    let m = model(
        "float[1,2] x
        float[2,2] w = {100000, 1, 1, 1}
        float[] eps = {0.000000000001}
        a = MatMul(x, w)
        e = Add(a, eps)
        y = Relu(e)
        return y",
    );
    let found = reasons(&m, None);
    assert!(found["a"].as_ref().unwrap().contains("overflows: 1.0e5 of at most 65504"), "{found:?}");
    assert!(found["e"].as_ref().unwrap().contains("too small for 16 bits"), "{found:?}");
    assert!(found["y"].as_ref().unwrap().contains("stand alone"), "{found:?}");
}

#[test]
fn masks_are_limited_where_a_softmax_ends_them() {
    let text = |last: &str| {
        format!(
            "float[2,2] x
            float[2,2] mask = {{0, -1000000000, 0, 0}}
            m = Add(x, mask)
            y = {last}(m)
            return y"
        )
    };
    let plan = decide(&model(&text("Softmax")), None, DType::Float16);
    assert_eq!(plan.halves.unwrap().limited.get("mask"), Some(&16384.0));
    assert!(plan.nodes.values().all(|n| n.becomes == Form::Half));
    let plan = decide(&model(&text("Relu")), None, DType::Float16);
    assert!(plan.halves.unwrap().limited.is_empty());
    assert_eq!(plan.nodes["m"].becomes, Form::Float);
}

#[test]
fn what_becomes_an_index_keeps_32_bits() {
    let m = model(
        "float[4] x
        float[] scale = {2}
        a = Mul(x, scale)
        f = Floor(a)
        i = Cast <to = 7> (f)
        b = Exp(a)
        return i, b",
    );
    let found = reasons(&m, Some(&[Tensor::from_f32(&[4], &[1.0, 2.0, 3.0, 4.0])]));
    assert!(["a", "f", "i"].iter().all(|n| found[*n].as_ref().unwrap().contains("indices or sizes")), "{found:?}");
}

#[test]
fn islands_without_weights_are_not_worth_casts() {
    let m = model(
        "float[2,2] x
        float[2,2] w = {100000, 1, 1, 1}
        a = MatMul(x, w)
        b = Relu(a)
        y = MatMul(b, w)
        return y",
    );
    assert!(reasons(&m, None)["b"].as_ref().unwrap().contains("stand alone"));
}

#[test]
fn types_that_the_target_has_in_files_alone() {
    let m = model("float[1,64] x \n y = Relu(x) \n return y");
    let mut with_weight = m.clone();
    let w = with_weight.add_initializer(with_weight.main(), "w", Tensor::from_f32(&[64, 1], &[0.5; 64]));
    let n = with_weight.nodes(with_weight.main())[0];
    with_weight.node_mut(n).op_type = "MatMul".into();
    with_weight.push_input(n, Some(w));
    let plan = decide(&with_weight, None, DType::Bfloat16);
    assert_eq!(plan.stored_weights["w"].dtype, DType::Bfloat16);
    assert!(plan.nodes.values().all(|n| n.becomes == Form::Float && n.reason.is_some()));
    with_weight.set_opset("", 11);
    assert!(decide(&with_weight, None, DType::Bfloat16).stored_weights.is_empty());
}
