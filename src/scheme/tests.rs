use super::*;
use crate::{
    ir::{DType, NodeSpec, Place, Tensor},
    quant::Range,
};

/// x -> conv1 -> bn1 -> relu1 -> conv2 -> head (MatMul) -> bias (Add) -> y
fn model() -> Model {
    let mut m = Model::new(8);
    let g = m.main();
    m.opset_imports.push((None, 17));
    let mut v = m.add_value(g, "x");
    m.add_input(v);
    for (name, op) in [
        ("conv1", "Conv"),
        ("bn1", "BatchNormalization"),
        ("relu1", "Relu"),
        ("conv2", "Conv"),
        ("head", "MatMul"),
        ("bias", "Add"),
    ] {
        let w = m.add_initializer(g, &format!("{name}.w"), Tensor::from_f32(&[1], &[1.0]));
        let spec = NodeSpec::new(op).name(name).input(v).input(w).output(format!("{name}.out"));
        let node = m.insert(spec, Place::End(g));
        v = m.node(node).output(0).unwrap();
    }
    m.add_output(g, v);
    m
}

fn node(m: &Model, name: &str) -> NodeId {
    m.all_nodes().into_iter().find(|&n| m.node_label(n) == name).unwrap()
}

fn resolve(yaml: &str, original: &Model, now: &Model) -> Result<Resolved> {
    Settings::new(Config::from_yaml(yaml)?)?.resolve(original, now)
}

fn floats(r: &Resolved, m: &Model) -> Vec<String> {
    r.wishes.keep_float.keys().map(|&n| m.node_label(n)).collect()
}

#[test]
fn selectors_narrow_each_other_and_later_rules_win() {
    let m = model();
    let kept = |rules: &str| floats(&resolve(&format!("rules: [{rules}]"), &m, &m).unwrap(), &m);
    assert_eq!(kept("{nodes: 'conv*', precision: float}"), ["conv1", "conv2"]);
    assert_eq!(kept("{nodes: '/1$/', ops: [Conv, Relu], precision: float}"), ["conv1", "relu1"]);
    assert_eq!(kept("{between: [bn1.out, conv2], precision: float}"), ["relu1", "conv2"]);
    assert_eq!(kept("{between: [x, relu1.out], ops: Conv, precision: float}"), ["conv1"]);
    assert_eq!(kept("{nodes: '*', precision: float}, {nodes: [conv1, head], precision: int8}").len(), 4);
    let r =
        resolve("rules: [{nodes: conv1, force: true}, {ops: Conv, force: false}, {nodes: head, force: true}]", &m, &m)
            .unwrap();
    assert_eq!(r.wishes.force.into_iter().collect::<Vec<_>>(), [node(&m, "head")]);
}

#[test]
fn settings_of_values_and_weights() {
    let m = model();
    let yaml = "activation: {symmetric: true, observer: mse}\nrules:\n\
                - {ops: [Conv], weight: {per_channel: false}, activation: {observer: percentile, percentile: 99}}\n\
                - {nodes: conv2, weight: {dtype: uint8}}\n\
                - {nodes: bn1, activation: {range: [0, 6], symmetric: false}}\n\
                - {values: x, activation: {dtype: int8, range: [-1, 1]}}\n";
    let r = resolve(yaml, &m, &m).unwrap();
    assert!(r.wishes.symmetric && r.scheme.activation.symmetric && r.scheme.per_channel);
    let (target, per_channel) = r.scheme.weights[&node(&m, "conv2")];
    assert_eq!((target.dtype, target.symmetric, per_channel), (DType::Uint8, true, false));
    let v = |name: &str| m.find_value(m.main(), name).unwrap();
    assert_eq!(r.choice(v("conv1.out")).method.name, "percentile");
    assert_eq!(r.choice(v("conv1.out")).options.percentile, 99.0);
    assert_eq!(r.choice(v("head.out")).method.name, "mse");
    // The clamp behind bn1 may vanish into it: the range stands behind it then.
    assert_eq!([r.ranges[&v("bn1.out")], r.ranges[&v("relu1.out")]], [Range::new(0.0, 6.0); 2]);
    assert!(!r.target(v("relu1.out")).symmetric);
    assert_eq!((r.target(v("x")).dtype, r.ranges[&v("x")]), (DType::Int8, Range::new(-1.0, 1.0)));
}

#[test]
fn rules_that_match_nothing_are_errors() {
    let m = model();
    let cases = [
        ("nodes: conv3", "rule 1 (nodes: conv3): no node is called \"conv3\"", "did you mean \"conv1\" or \"conv2\"?"),
        ("nodes: [conv1, xyz]", "no node is called \"xyz\"", "bn1, conv1"),
        ("nodes: '*.weight*'", "no node is called", ""),
        ("ops: [conv]", "no operator \"conv\"", "did you mean \"Conv\"?"),
        ("between: [conv2, conv1]", "no way leads from \"conv2\" to \"conv1\"", "direction"),
        ("between: [convx, conv1]", "no value or node is called \"convx\"", "conv1"),
        ("nodes: conv1, ops: Relu", "no node fits all", "several rules"),
        ("nodes: '/(/'", "no regular expression", ""),
    ];
    for (selector, message, help) in cases {
        let e = resolve(&format!("rules: [{{{selector}, precision: float}}]"), &m, &m).unwrap_err();
        assert!(e.to_string().contains(message), "{selector}: {e}");
        assert!(e.help_text().unwrap_or_default().contains(help), "{selector}: {:?}", e.help_text());
    }
    let e = resolve("rules: [{values: input, activation: {range: [0, 1]}}]", &m, &m).unwrap_err();
    assert!(e.to_string().contains("no value is called \"input\""));
}

#[test]
fn names_of_the_original_hold_after_fusions() {
    let before = model();
    let mut m = before.clone();
    // bn1 vanishes into conv1; head and bias become one Gemm, which makes what bias made.
    let (bn, head, bias) = (node(&m, "bn1"), node(&m, "head"), node(&m, "bias"));
    let (from, to) = (m.node(bn).output(0).unwrap(), m.node(bn).input(0).unwrap());
    m.replace_all_uses(from, to);
    m.remove_node(bn);
    let (x, y) = (m.node(head).input(0).unwrap(), m.node(bias).output(0).unwrap());
    let gemm = m.insert(NodeSpec::new("Gemm").name("gemm").input(x).output("new"), Place::End(m.main()));
    let new = m.node(gemm).output(0).unwrap();
    m.replace_all_uses(y, new); // a graph's output keeps its name
    m.remove_node(bias);
    m.remove_node(head);
    m.verify().unwrap();

    let kept = |rule: &str| resolve(&format!("rules: [{{{rule}, precision: float}}]"), &before, &m);
    assert_eq!(floats(&kept("nodes: bias").unwrap(), &m), ["gemm"]);
    assert_eq!(floats(&kept("ops: MatMul").unwrap(), &m), ["gemm"]);
    assert_eq!(floats(&kept("nodes: gemm").unwrap(), &m), ["gemm"]);
    assert_eq!(floats(&kept("between: [conv1, relu1]").unwrap(), &m), ["conv1", "relu1"]);
    let folded = kept("nodes: bn1").unwrap();
    assert!(folded.wishes.keep_float.is_empty());
    assert_eq!(folded.diagnostics[0].code, "rule_on_folded_node");
    assert_eq!(folded.diagnostics[0].subject.as_deref(), Some("bn1"));
}

#[test]
fn codes_of_16_bits_need_a_new_opset_and_gain_nothing() {
    let mut m = model();
    let wide = "rules: [{values: x, activation: {dtype: uint16}}]";
    let e = resolve(wide, &m, &m).unwrap_err();
    assert_eq!(e.message(), "activations of type uint16 need opset 21, the model has 17");
    m.set_opset("", 21);
    assert_eq!(resolve(wide, &m, &m).unwrap().diagnostics[0].code, "no_wide_kernels");
}

#[test]
fn nodes_of_subgraphs_have_names_too() {
    let m = crate::ir::text::parse(
        "<ir_version: 8, opset_import: [\"\" : 17]> g (bool c, float[2] x) => (y) {
            [neg] z = Neg(x)
            [choice] y = If (c) <then_branch = t () => (a) { [inner] a = Abs(z) },
                        else_branch = e () => (b) { [neg] b = Exp(z) }>
        }",
    )
    .unwrap();
    let kept = |rules: &str| {
        let r = resolve(&format!("rules: [{rules}]"), &m, &m).unwrap();
        r.wishes.keep_float.keys().map(|&n| m.node(n).op_type.clone()).collect::<Vec<_>>()
    };
    assert_eq!(kept("{nodes: inner, precision: float}"), ["Abs"]);
    assert_eq!(kept("{ops: [Exp], precision: float}"), ["Exp"]);
    assert_eq!(kept("{between: [x, neg], precision: float}"), ["Neg"]);
    let r = resolve("rules: [{nodes: choice, precision: float}]", &m, &m).unwrap();
    assert!(r.wishes.keeps_float(&m, node(&m, "inner")).unwrap().contains("rule 1"));
    assert!(r.wishes.keeps_float(&m, node(&m, "neg")).is_none());
}
