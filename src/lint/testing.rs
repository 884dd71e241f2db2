//! Tests of rules: the example in the documentation of each, and text to text.

use super::{Context, Form, LINTS, Lint, Names, repair};
use crate::{
    ir::{Model, text},
    passes::{self, testing},
    target::Target,
};

fn target() -> Target {
    Target::load("onnxruntime-cpu").expect("built in")
}

/// How many findings a rule has in a model that this text describes.
pub(super) fn findings(lint: &Lint, text: &str) -> Vec<String> {
    let model = text::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let target = target();
    let cx = Context::of(&model, &target, Form::Qdq);
    (lint.find)(&cx).unwrap().iter().map(|f| Names::of(&model).spot(&model, f).sentence(&f.fact)).collect()
}

/// Mends a model with one rule. The name is that of a rule.
fn mend(name: &'static str, model: &mut Model) -> usize {
    let lint = super::by_name(name).expect("a rule");
    let (fixed, _) = repair(model, &target(), Form::Qdq, &Names::of(&model.clone()), &[lint]).unwrap();
    fixed.iter().map(|f| f.findings.len()).sum()
}

/// The `before:` and `after:` of a file's documentation.
fn example(text: &str) -> (String, Option<String>) {
    let lines = text.lines().map_while(|l| l.strip_prefix("//!"));
    let code: Vec<&str> =
        lines.skip_while(|l| l.trim() != "```text").skip(1).take_while(|l| l.trim() != "```").collect();
    let code = code.join("\n");
    let code = code.trim().strip_prefix("before:").expect("an example begins with before:");
    match code.split_once("\n after:") {
        Some((before, after)) => (before.to_owned(), Some(after.to_owned())),
        None => (code.to_owned(), None),
    }
}

macro_rules! examples {
    ($($name:ident),* $(,)?) => {
        const RUNS: &[(&str, testing::Run)] = &[$((stringify!($name), |model: &mut Model, _: &mut passes::Context| Ok(mend(stringify!($name), model)))),*];
    };
}

examples! {
    unused_constants, old_opset, bad_zero_points, bad_scales, contrib_pairs, wrong_axis, scales_of_data, scales_of_data, int8_activations, constant_types,
    pairs_around_clamps, symmetric_clamps, unequal_scales, turned_weights, mixed_readers, bias_scales, idle_pairs, slow_kernels,
    weights_at_run_time, leftovers, slow_weights,
}

#[test]
fn each_rule_does_what_its_file_says() {
    let failed: Vec<&str> =
        LINTS.iter().map(|lint| lint.name).filter(|name| std::panic::catch_unwind(|| holds(name)).is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// Holds a rule against its example.
fn holds(name: &str) {
    {
        let lint = super::by_name(name).expect("a rule");
        let (before, after) = example(lint.text);
        let run = RUNS.iter().find(|(name, _)| *name == lint.name);
        match after {
            Some(after) => {
                assert!(!findings(lint, &before).is_empty(), "{} finds nothing in its example", lint.name);
                testing::check(run.expect("it has an example with a repair").1, &before, &after);
                assert!(findings(lint, &after).is_empty(), "{} finds something in what it made", lint.name);
            }
            // What depends on the processor has tests of its own.
            None if lint.name == "saturating_sums" => {}
            None => assert!(!findings(lint, &before).is_empty(), "{} finds nothing in its example", lint.name),
        }
    }
}

/// What looks like it, and is not.
#[test]
fn rules_leave_alone_what_is_right() {
    let conv = |x: &str, q: &str, z: &str| {
        format!(
            "(float[1,1,8,8] x) => (float[1,1,8,8] y) <float s = {{0.3}}, {x} o = {{3}}, {q} p = {{{z}}}, int8[1,1,1,1] c = {{5}}, float t = {{0.1}}, int8 u = {{0}}> {{
             q = QuantizeLinear(x, s, o) d = DequantizeLinear(q, s, o) w = DequantizeLinear(c, t, u) a = Conv(d, w) r = Relu(a)
             rq = QuantizeLinear(r, s, p) y = DequantizeLinear(rq, s, p) }}"
        )
    };
    let table = "(int64[3] i) => (float[3,2] y) <int8[2,2] c = {1, -2, 3, -128}, float s = {0.3}, int8 z = {-1}> { t = DequantizeLinear(c, s, z) y = Gather(t, i) }";
    let pool = "(uint8[1,1,4,4] c) => (float[1,1,2,2] y) <float s = {0.5}, uint8 z = {3}, int8 u = {-125}> { x = DequantizeLinear(c, s, z) m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) q = QuantizeLinear(m, s, Z) y = DequantizeLinear(q, s, Z) }";
    let gemm = "(uint8[1,2] xq) => (float[1,1] y) <float s = {0.5}, uint8 z = {3}, int8[2,1] c = {5, 6}, float t = {0.1}, int8 u = {0}, int32[1] b = {100}, float r = {0.0500001}> { x = DequantizeLinear(xq, s, z) w = DequantizeLinear(c, t, u) bias = DequantizeLinear(b, r) y = Gemm(x, w, bias) }";
    for (rule, text) in [
        ("symmetric_clamps", conv("uint8", "uint8", "0")),
        ("symmetric_clamps", conv("int8", "int8", "-128")),
        ("int8_activations", conv("int8", "int8", "-128")),
        ("idle_pairs", conv("uint8", "uint8", "0")),
        ("slow_kernels", conv("uint8", "uint8", "0")),
        ("lost_kernels", conv("uint8", "uint8", "0")),
        ("weights_at_run_time", conv("uint8", "uint8", "0")),
        // Nobody quantizes what is gathered: another type gains nothing.
        ("constant_types", table.to_owned()),
        ("unequal_scales", pool.replace('Z', "z")),
        // The same numbers in another type.
        ("unequal_scales", pool.replace('Z', "u")),
        ("bias_scales", gemm.to_owned()),
        ("bad_scales", gemm.to_owned()),
        ("bad_zero_points", gemm.to_owned()),
        ("wrong_axis", gemm.to_owned()),
        ("scales_of_data", conv("uint8", "uint8", "0")),
        ("old_opset", gemm.to_owned()),
        ("few_codes", gemm.to_owned()),
    ] {
        let found = findings(super::by_name(rule).unwrap(), &text);
        assert!(found.is_empty(), "{rule}: {found:?} in {text}");
    }
}

/// The runtime makes kernels of layers that it cannot run: of data with several scales, and of biases with operators of a later version.
#[test]
fn what_fails_at_run_time_is_an_error() {
    let text = "(float[1,2,4,4] x) => (float[1,2,4,4] y) <float[2] s = {0.3, 0.2}, uint8[2] o = {3, 4}, float r = {0.5}, uint8 p = {9}, int8[2,1,1,1] c = {5, 6}, float t = {0.1}> {
        q = QuantizeLinear<axis = 1>(x, s, o) d = DequantizeLinear<axis = 1>(q, s, o) w = DequantizeLinear(c, t) a = Conv<group = 2>(d, w)
        aq = QuantizeLinear(a, r, p) y = DequantizeLinear(aq, r, p) }";
    let found = findings(super::by_name("scales_of_data").unwrap(), text);
    assert!(found.len() == 1 && found[0].contains("2 scales; the runtime fails when it runs Conv"), "{found:?}");
    let old = "<ir_version: 7, opset_import: [\"\" : 10]> (float[1,2,4,4] x) => (float[1,2,4,4] y) <float s = {0.3}, uint8 o = {3}, int8[2,2,1,1] c = {5, 6, 7, 8}, float t = {0.1}, int8 u = {0}, float[2] b = {0.5, 1}> {
        q = QuantizeLinear(x, s, o) d = DequantizeLinear(q, s, o) w = DequantizeLinear(c, t, u) a = Conv(d, w, b)
        aq = QuantizeLinear(a, s, o) y = DequantizeLinear(aq, s, o) }";
    let found = findings(super::by_name("old_opset").unwrap(), old);
    assert!(found.len() == 1 && found[0].contains("opset 11, the file says 10"), "{found:?}");
    let mut model = text::parse(old).unwrap();
    assert_eq!((mend("old_opset", &mut model), model.opset("")), (1, Some(11)));
    assert!(findings(super::by_name("old_opset").unwrap(), &old.replace("Conv(d, w, b)", "Conv(d, w)")).is_empty());
    let pool = "(float[1,1,4,4] x) => (float[1,1,2,2] y) <float[1] s = {0.3}, uint8[1] o = {3}> {
        q = QuantizeLinear(x, s, o) d = DequantizeLinear(q, s, o) a = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(d)
        aq = QuantizeLinear(a, s, o) y = DequantizeLinear(aq, s, o) }";
    let lint = super::by_name("bad_scales").unwrap();
    assert_eq!(findings(lint, pool).len(), 2);
    let mut model = text::parse(pool).unwrap();
    assert_eq!(mend("bad_scales", &mut model), 2);
    assert!(findings(lint, &text::print(&model)).is_empty());
    assert!(findings(lint, &pool.replace("[1] s", " s").replace("[1] o", " o")).is_empty());
}

/// Tools take clamps in front of quantizers out, and training saturates on purpose: what a pair cut off is still cut off without it.
#[test]
fn a_clamp_that_was_saturation_stays() {
    let with = |scale: &str, zero: &str| {
        format!(
            "(float[1,2,4,4] x) => (float[1,2,4,4] y) <float[2,1,2,2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}, float s = {{{scale}}}, uint8 z = {{{zero}}}> {{
             a = ConvTranspose<group = 2, pads = [0, 0, 1, 1]>(x, w) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z) y = Exp(d) }}"
        )
    };
    let nodes = |text: &str| {
        let mut model = text::parse(text).unwrap();
        assert_eq!(mend("idle_pairs", &mut model), 1);
        let main = model.main();
        model.nodes(main).into_iter().map(|n| model.node(n).op_type.clone()).collect::<Vec<_>>()
    };
    let clipped = ["ConvTranspose", "Clip", "Exp"];
    assert_eq!(nodes(&with("0.31", "0")), clipped);
    assert_eq!(nodes(&with("0.023529412", "0")), clipped); // 0 to 6
    assert_eq!(nodes(&with("0.31", "77")), clipped);
    let bounded = with("0.31", "77").replace("q = QuantizeLinear(a", "b = Tanh(a) q = QuantizeLinear(b");
    assert_eq!(nodes(&bounded), ["ConvTranspose", "Tanh", "Exp"]);
}

/// Sums saturate on one kind of processor, and weights are narrowed for that one alone.
#[test]
fn sums_that_saturate() {
    let text = "(float[1,2] x) => (float[1,2] y) <float s = {0.3}, uint8 o = {3}, int8[2,2] c = {127, 127, 127, -1}, float[2] t = {0.1, 0.1}, int8[2] u = {0, 0}> {
        q = QuantizeLinear(x, s, o) d = DequantizeLinear(q, s, o) w = DequantizeLinear<axis = 1>(c, t, u) y = MatMul(d, w) }";
    let lint = super::by_name("saturating_sums").unwrap();
    assert!(findings(lint, text)[0].contains("avx2"));
    let other = target().on_cpu("avx2").unwrap();
    let mut model = text::parse(text).unwrap();
    let (fixed, _) = repair(&mut model, &other, Form::Qdq, &Names::default(), &[lint]).unwrap();
    assert!(fixed[0].findings[0].contains("1 of 2 channels"), "{fixed:?}");
    assert!(matches!(&fixed[0].changes[..], [super::Changes::As(how)] if how.contains("dB")));
    let cx = Context::of(&model, &other, Form::Qdq);
    assert!((lint.find)(&cx).unwrap().is_empty());
    let codes = model.value_ids().into_iter().find(|&v| model.value(v).name() == "c").unwrap();
    let codes = crate::quant::pack::unpack(model.value(codes).constant().unwrap()).unwrap();
    assert_eq!((codes[1], codes[3]), (127, -1), "the other channel stays");
    assert!(codes[0] <= 64 && codes[2] <= 64, "{codes:?}");
}

#[test]
fn piles_of_codes() {
    let codes = |f: &dyn Fn(i32) -> i32| (0..1024).map(|i| f(i).to_string()).collect::<Vec<_>>().join(", ");
    let text = |codes: &str| {
        format!(
            "(float[1024] x) => (float[1024] y) <int8[1024] c = {{{codes}}}, float s = {{0.1}}, int8 z = {{0}}> {{ d = DequantizeLinear(c, s, z) y = Add(x, d) }}"
        )
    };
    let lint = super::by_name("saturated_codes").unwrap();
    let even = |i: i32| (i * 37) % 255 - 127;
    assert!(findings(lint, &text(&codes(&even))).is_empty());
    let cut = |i: i32| (even(i) * 2).clamp(-127, 127);
    let found = findings(lint, &text(&codes(&cut)));
    assert!(found[0].contains("-127 and 127"), "{found:?}");
    let few = |i: i32| (even(i) / 64) * 127;
    assert!(findings(lint, &text(&codes(&few))).is_empty(), "few numbers by nature");
}

/// More zero points than scales, of a bias: nothing can be made of it, and nothing fails.
#[test]
fn odd_constants_are_left() {
    let text = "(float[1,2] x) => (float[1,2] y) <int32[2] b = {1, 2}, float s = {0.5}, int32[2] z = {1, 2}> { d = DequantizeLinear(b, s, z) y = Add(x, d) }";
    for lint in LINTS {
        findings(lint, text);
    }
    let mut model = text::parse(text).unwrap();
    let all: Vec<&'static Lint> = LINTS.iter().collect();
    repair(&mut model, &target(), Form::Qdq, &Names::default(), &all).unwrap();
}
