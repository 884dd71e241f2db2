use super::*;
use crate::{
    analysis::types::infer,
    ir::testing::{find, model},
};

/// The values of the group and its constants, as `value:axes` and `node.input axes power`.
fn group(text: &str, value: &str) -> Result<(String, String), Refusal> {
    let m = model(text);
    let group = group_of(&m, &infer(&m), find(&m, value))?;
    let axes = |axes: &[usize]| axes.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let values = group.values.iter().map(|(v, a)| format!("{}:{}", m.value(*v).name(), axes(a)));
    let takes = group.takes.iter().map(|t| {
        let sign = if t.power == Power::Times { '*' } else { '/' };
        format!("{}.{}{sign}{}", m.node_label(t.node), t.input, axes(&t.axes))
    });
    Ok((values.collect::<Vec<_>>().join(" "), takes.collect::<Vec<_>>().join(" ")))
}

const CONVS: &str = "
    float[1,1,8,8] x
    float[2,1,3,3] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}
    float[2] b = {1,2}
    float[3,2,1,1] u = {1,2,3,4,5,6}
    float[2,1,1,1] d = {1,2}
    v = Conv(x, w, b)
";

fn convs(nodes: &str) -> Result<(String, String), Refusal> {
    group(&format!("{CONVS}{nodes}\nreturn y"), "v")
}

#[test]
fn between_convolutions() {
    let (values, takes) = convs("r = Relu(v)\np = MaxPool <kernel_shape = [2,2]> (r)\ny = Conv(p, u)").unwrap();
    assert_eq!(values, "v:1 r:1 p:1");
    assert_eq!(takes, "v.1/0 v.2/0 y.1*1");
    // A depthwise convolution takes the factors in: what it makes is free of them.
    let (values, takes) = convs("y = Conv <group = 2> (v, d)").unwrap();
    assert_eq!((&values[..], &takes[..]), ("v:1", "v.1/0 v.2/0 y.1*1"));
}

#[test]
fn a_sum_and_both_of_its_sides_share_their_factors() {
    let nodes = "
        float[2,2,1,1] e = {1,2,3,4}
        r = Relu(v)
        c = Conv(r, e)
        s = Add(r, c)
        y = Conv(s, u)";
    let (values, takes) = convs(nodes).unwrap();
    assert_eq!(values, "v:1 r:1 c:1 s:1");
    assert_eq!(takes, "v.1/0 v.2/0 c.1/0 c.1*1 y.1*1");
    // One reader that does not take factors in forbids them for all.
    assert!(convs(&format!("{nodes}\nt = Tanh(s)\nreturn t")).unwrap_err().contains("Tanh t"));
    assert!(convs("y = Conv(v, u)\nreturn v").unwrap_err().contains("output of the model"));
    assert!(convs("f = Conv(v, u)\ng = Conv(v, u)\ny = Add(f, g)").unwrap_err().contains("others read it too"));
}

#[test]
fn clamps_are_remembered() {
    let of = |clip: &str| {
        let m = model(&format!("{CONVS}float[] lo = {{0}}\nfloat[] six = {{6}}\nr = {clip}\ny = Conv(r, u)\nreturn y"));
        group_of(&m, &infer(&m), find(&m, "v")).unwrap().bounds.iter().map(|b| (b.lo, b.hi)).collect::<Vec<_>>()
    };
    assert_eq!(of("Clip(v, lo, six)"), [(0.0, 6.0)]);
    assert!(of("Clip(v, lo, _)").is_empty());
    let text = "float[] one = {1}\nr = Clip(v, one, _)\ny = Conv(r, u)";
    assert!(convs(text).unwrap_err().contains("0 is not between"));
}

#[test]
fn through_reshapes_and_the_product_of_attention() {
    let text = "
        float[b,t,3] x
        float[b,2,t,t] p
        float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}
        float[4] c = {1,2,3,4}
        float[4,2] o = {1,2,3,4,5,6,7,8}
        int64[4] split = {0, 0, 2, 2}
        int64[3] join = {0, 0, 4}
        m = MatMul(x, w)
        v = Add(m, c)
        h = Reshape(v, split)
        t1 = Transpose <perm = [0, 2, 1, 3]> (h)
        a = MatMul(p, t1)
        t2 = Transpose <perm = [0, 2, 1, 3]> (a)
        j = Reshape(t2, join)
        y = MatMul(j, o)
        return y";
    let (values, takes) = group(text, "j").unwrap();
    assert_eq!(values, "m:2 v:2 h:2,3 t1:1,3 a:1,3 t2:2,3 j:2");
    assert_eq!(takes, "m.1/1 v.1/0 y.1*0");
    // The left side of the product adds up along what would be its channels.
    assert!(group(&text.replace("MatMul(p, t1)", "MatMul(t1, p)"), "j").is_err());
}

#[test]
fn one_side_of_a_gate() {
    let text = "
        float[b,2] x
        float[2,2] w = {1,2,3,4}
        float[2,2] u = {1,2,3,4}
        float[2,2] o = {1,2,3,4}
        g = MatMul(x, w)
        s = Sigmoid(g)
        silu = Mul(g, s)
        up = MatMul(x, u)
        v = Mul(silu, up)
        y = MatMul(v, o)
        return y";
    let (values, takes) = group(text, "v").unwrap();
    assert_eq!((&values[..], &takes[..]), ("up:1 v:1", "up.1/1 y.1*0"));
    let square = text.replace("Mul(silu, up)", "Mul(up, up)");
    assert!(group(&square, "v").unwrap_err().contains("both of its sides"));
}

#[test]
fn behind_a_normalization() {
    let text = "
        float[b,t,2] x
        float[2] g = {1,2}
        float[2] b = {3,4}
        float[2,2] w = {1,2,3,4}
        n = LayerNormalization(x, g, b)
        y = MatMul(n, w)
        return y";
    let (_, takes) = group(text, "n").unwrap();
    assert_eq!(takes, "n.1/0 n.2/0 y.1*0");
    let m = model(&format!("{text}\nz = Add(n, x)\nreturn z"));
    let types = infer(&m);
    assert!(group_of(&m, &types, find(&m, "n")).is_err());
    // For the product alone it can be divided.
    assert_eq!(products_of(&m, &types, find(&m, "n")).len(), 1);
}

#[test]
fn reshapes_that_mix_channels() {
    let of = |shape: &str, weight: &str| {
        let text = format!(
            "{CONVS}int64[2] s = {{{shape}}}\nfloat[{weight},1] k = {{1,2}}\nr = Reshape(v, s)\ny = MatMul(r, k)\nreturn y"
        );
        group(&text.replace("[1,1,8,8] x", "[n,1,3,3] x"), "v")
    };
    // One number for each channel behind the convolution: its picture is 1 by 1.
    assert_eq!(of("-1, 2", "2").unwrap().0, "v:1 r:1");
    let wide = format!(
        "{CONVS}int64[2] s = {{1, -1}}\nfloat[72,1] k = {{{}}}\nr = Reshape(v, s)\ny = MatMul(r, k)\nreturn y",
        ["1"; 72].join(",")
    );
    assert!(group(&wide, "v").is_err());
}

#[test]
fn the_channel_of_each_element() {
    let of = |dims: &[usize], axes: &[usize], groups: usize| {
        let m = model("float[1] x\ny = Neg(x)\nreturn y");
        let node = m.nodes(m.main())[0];
        let take = Take { node, input: 1, axes: axes.to_vec(), groups, power: Power::Times };
        let channel = take.channel_of(dims);
        (take.channels(dims).unwrap(), (0..dims.iter().product()).map(channel).collect::<Vec<_>>())
    };
    assert_eq!(of(&[2, 3], &[1], 1), (3, vec![0, 1, 2, 0, 1, 2]));
    assert_eq!(of(&[2, 3], &[0], 1), (2, vec![0, 0, 0, 1, 1, 1]));
    // Two groups of two filters, each of which reads two channels.
    assert_eq!(of(&[4, 2, 1], &[1], 2), (4, vec![0, 1, 0, 1, 2, 3, 2, 3]));
    assert_eq!(of(&[1, 2, 1, 2], &[1, 3], 1), (4, vec![0, 1, 2, 3]));
}
