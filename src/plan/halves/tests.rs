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
    decide_for(&Target::load("onnxruntime-cpu").unwrap(), model, data, dtype)
}

fn decide_for(target: &Target, model: &Model, data: Option<&[Tensor]>, dtype: DType) -> Plan {
    let mut seen = BTreeMap::new();
    if let Some(data) = data {
        let values = half_values(model);
        let feed = |i: usize| Ok(vec![data[i].clone()]);
        let samples: Vec<usize> = (0..data.len()).collect();
        let found = roundings(&Tract, model, dtype, &values, &samples, &feed, &|_, _| ()).unwrap();
        seen.extend(values.into_iter().zip(found));
    }
    let wishes = Wishes::default();
    let for_answers = ForAnswers::default();
    let (io, store) = (false, true);
    decide_halves(&HalfTask {
        model,
        target,
        dtype,
        io,
        wishes: &wishes,
        seen: &seen,
        store,
        for_answers: &for_answers,
        only: None,
    })
    .unwrap()
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

#[test]
fn sums_that_are_too_long_for_the_target() {
    let m = model(
        "float[1,16,4,4] x
        float[2,8,1,1] c = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}
        float[4,2] w = {1, 1, 1, 1, 1, 1, 1, 1}
        a = Conv <group = 2> (x, c)
        b = MatMul(a, w)
        y = ReduceMean <axes = [1, 2, 3]> (b)
        return y",
    );
    let mut target = Target::load("onnxruntime-cpu").unwrap();
    for (longest, long) in
        [(None, &[][..]), (Some(16), &[]), (Some(8), &["y"]), (Some(7), &["a", "y"]), (Some(3), &["a", "b", "y"])]
    {
        target.halves.get_mut(&DType::Float16).unwrap().longest_sum = longest;
        let plan = decide_for(&target, &m, Some(&[Tensor::from_f32(&[1, 16, 4, 4], &[0.5; 256])]), DType::Float16);
        let said = |n: &NodePlan| n.reason.as_ref().is_some_and(|r| r.contains("too long for 16 bits"));
        let found: Vec<&String> = plan.nodes.iter().filter(|(_, n)| said(n)).map(|(name, _)| name).collect();
        assert_eq!(found, long, "{longest:?}");
    }
}

#[test]
fn squares_in_bodies_keep_32_bits_whatever_the_data() {
    let m = crate::ir::text::parse(
        "(bool c, float[2,2] x) => (float[2,2] y) <float two = {2}> {
            y = If (c) <then_branch = t () => (p) { d = Neg(x) p = Pow(d, two) }, else_branch = e () => (q) { q = Neg(x) }>
        }",
    )
    .unwrap();
    let (target, wishes, for_answers) =
        (Target::load("onnxruntime-cpu").unwrap(), Wishes::default(), ForAnswers::default());
    let mut seen = BTreeMap::new();
    let mut small = Rounding::default();
    small.update(DType::Float16, &[1.0, -1.0]);
    seen.extend(half_values(&m).into_iter().map(|v| (v, small.clone())));
    let task = HalfTask {
        model: &m,
        target: &target,
        dtype: DType::Float16,
        io: false,
        wishes: &wishes,
        seen: &seen,
        store: true,
        for_answers: &for_answers,
        only: None,
    };
    let plan = decide_halves(&task).unwrap();
    assert!(
        plan.nodes["p"].reason.as_ref().unwrap().contains("in a subgraph, whose values are not looked at: squares")
    );
}

#[test]
fn what_costs_most_at_the_outputs_goes_back() {
    let m = model(&format!(
        "float[1,8] x
        float[8,64] w = {{{}}}
        a = MatMul(x, w)
        b = Relu(a)
        t = Transpose(b)
        c = MatMul(t, x)
        y = Relu(c)
        return y",
        vec!["0.3"; 512].join(", ")
    ));
    let (target, wishes, seen) = (Target::load("onnxruntime-cpu").unwrap(), Wishes::default(), BTreeMap::new());
    let (none, empty) = (ForAnswers::default(), HalfNoise::new());
    fn task<'a>(base: &HalfTask<'a>, for_answers: &'a ForAnswers, dtype: DType) -> HalfTask<'a> {
        HalfTask { for_answers, dtype, ..*base }
    }
    let half = HalfTask {
        model: &m,
        target: &target,
        dtype: DType::Float16,
        io: false,
        wishes: &wishes,
        seen: &seen,
        store: true,
        for_answers: &none,
        only: None,
    };
    let of = |name: &str| crate::ir::testing::find(&m, name);
    let maker = |name: &str| m.producer(of(name)).unwrap();
    let plan = decide_halves(&half).unwrap();
    let sources = Answers::of(&half, &plan, &empty).unwrap().sources();
    // What is only moved is not rounded once more.
    assert!(sources.contains(&HalfSource::Value(of("b"))) && !sources.contains(&HalfSource::Value(of("t"))));
    let noise: HalfNoise =
        sources.iter().map(|&s| (s, vec![0.01])).chain([(HalfSource::Value(of("b")), vec![3.0])]).collect();
    let found = Answers::of(&half, &plan, &noise).unwrap().hold_to(0.5);
    // Its maker, and its readers past the Transpose, which would round it, too.
    let nodes: Vec<NodeId> = found.nodes.keys().copied().collect();
    assert_eq!(nodes, [maker("b"), maker("t"), maker("c")], "{found:?}");
    assert!(
        found.nodes[&maker("b")].contains("for the sake of the answers: rounding what it makes takes 303 %"),
        "{found:?}"
    );
    let plan = decide_halves(&task(&half, &found, DType::Float16)).unwrap();
    assert_eq!([plan.nodes["b"].becomes, plan.nodes["a"].becomes], [Form::Float, Form::Half]);
    // Weights alone, where the runtime has no operators: finer first, and in 32 bits where that is not enough.
    let stored = task(&half, &none, DType::Bfloat16);
    let plan = decide_halves(&stored).unwrap();
    assert_eq!(plan.stored_weights["w"].dtype, DType::Bfloat16);
    for (noise, dtype) in [(0.001, Some(DType::Bfloat16)), (0.9, Some(DType::Float16)), (90.0, None)] {
        let noise = HalfNoise::from([(HalfSource::Constants(maker("a")), vec![noise])]);
        let answers = Answers::of(&stored, &plan, &noise).unwrap();
        assert!(answers.has_free());
        let found = answers.hold_to(1.0);
        assert_eq!(found.costs(), dtype.is_none());
        let plan = decide_halves(&task(&half, &found, DType::Bfloat16)).unwrap();
        assert_eq!(plan.stored_weights.get("w").map(|s| s.dtype), dtype);
        let said = plan.nodes["a"].reason.as_ref().unwrap();
        assert_eq!(said.contains("costs too much in bfloat16"), dtype != Some(DType::Bfloat16), "{said}");
    }
}
