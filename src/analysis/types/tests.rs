//! Rules on small models: what is written next to a value is what inference says of it.

use super::infer;
use crate::ir::{Model, ValueId, text};

fn parse(graph: &str) -> Model {
    text::parse(&format!("<ir_version: 8, opset_import: [\"\" : 17]> g {graph}")).expect("the text is a model")
}

fn find(m: &Model, name: &str) -> ValueId {
    m.find_value(m.main(), name).expect("a value of this name")
}

/// Checks types, written as [`super::Types::text`] writes them.
fn check(graph: &str, want: &[(&str, &str)]) {
    let m = parse(graph);
    let types = infer(&m);
    for (name, ty) in want {
        assert_eq!(types.text(find(&m, name)), *ty, "{name}");
    }
}

#[test]
fn broadcasting_keeps_symbols() {
    check(
        "(float[b,3,1] x) => (z) <float[4] w = {1, 2, 3, 4}> { y = Add(x, w) z = Mul(y, x) c = Greater(z, w) }",
        &[("y", "float[b,3,4]"), ("z", "float[b,3,4]"), ("c", "bool[b,3,4]")],
    );
}

#[test]
fn convolution_windows() {
    check(
        "(float[b,3,h,32] x, float[8,3,3,3] w, float[3,5,2,2] k) => (a) {
            a = Conv <pads = [1, 1, 1, 1], strides = [1, 2]> (x, w)
            s = Conv <auto_pad = \"SAME_UPPER\", strides = [2, 2]> (x, w)
            p = MaxPool <kernel_shape = [2, 3], strides = [2, 2], ceil_mode = 1> (x)
            t = ConvTranspose <strides = [2, 2]> (x, k)
         }",
        &[
            ("a", "float[b,8,h,16]"),
            ("s", "float[b,8,floordiv(1+h, 2),16]"),
            ("p", "float[b,3,ceilwindow(h, 2, 2, 1, 0, 0),16]"),
            ("t", "float[b,5,2*h,64]"),
        ],
    );
}

#[test]
fn a_reshape_by_computed_sizes_keeps_symbols() {
    check(
        "(float[b,s,384] x) => (z) <int64[1] i = {0}, int64[1] heads = {12}, int64[1] h32 = {32}, int64[1] rest = {-1},
            int64[3] copy = {0, -1, 384}> {
            sh = Shape(x)
            b0 = Gather(sh, i)
            n = Mul(b0, heads)
            to = Concat <axis = 0> (n, rest, h32)
            y = Reshape(x, to)
            z = Reshape(y, copy)
         }",
        // 12 heads of 32 make 384: what is left over is the sequence.
        &[("y", "float[12*b,s,32]"), ("z", "float[12*b,floordiv(s, 12),384]")],
    );
}

#[test]
fn slices_of_symbolic_dims() {
    check(
        "(float[b,s] x) => (all) <int64[1] zero = {0}, int64[1] one = {1}, int64[1] last = {-1},
            int64[1] far = {9223372036854775807}> {
            all = Slice(x, zero, far, one)
            from = Slice(x, one, far, one)
            but = Slice(x, zero, last, one)
         }",
        &[("all", "float[b,s]"), ("from", "float[b,max(0, -1+s)]"), ("but", "float[b,max(0, -1+s)]")],
    );
}

#[test]
fn branches_are_merged() {
    let m = parse(
        "(float[b,3] x, bool c) => (y) {
            y = If (c) <then_branch = a () => (p) { p = Relu(x) }, else_branch = b () => (q) { q = Transpose(x) }>
         }",
    );
    let types = infer(&m);
    let dims = types.shape(find(&m, "y")).unwrap();
    assert!(dims.len() == 2 && dims.iter().all(|d| d.known().is_none()), "{dims:?}");
}

#[test]
fn a_loop_that_grows_its_state() {
    let m = parse(
        "(int64 turns, bool go, float[b,1] x) => (y, each) {
            y, each = Loop <body = body (int64 i, bool on, float[m,n] state) => (on, longer, x) {
                longer = Concat <axis = 1> (state, x)
            }> (turns, go, x)
         }",
    );
    let types = infer(&m);
    let y = types.shape(find(&m, "y")).unwrap();
    assert!(types.dim_text(y[0]) == "b" && y[1].known().is_none(), "{y:?}");
    assert_eq!(types.rank(find(&m, "each")), Some(3));
}

#[test]
fn malformed_nodes_leave_the_rest_alone() {
    let ops = "Conv Gemm MatMul Reshape Slice Gather Split Pad LSTM Resize TopK Concat Transpose Squeeze Unsqueeze Tile \
        Expand Range Where ConvTranspose Einsum GatherND OneHot DepthToSpace Flatten MaxPool ReduceSum If Loop Scan \
        Constant STFT DFT";
    let attributes = [
        "axis = -9",
        "axes = [7], perm = [0, 9], pads = [1]",
        "split = [-1, 4], kernel_shape = [0, -2]",
        "strides = [0, 0], dilations = [-1, 1], kernel_shape = [3, 3]",
        "to = 999, num_scan_inputs = 50",
        "starts = [1], ends = [9223372036854775807]",
    ];
    for op in ops.split_whitespace() {
        for inputs in ["", "x", "s, s", "i, x", "x, i, i, i", "s, i, x, ", "i, i, i, i, i"] {
            for attrs in attributes {
                let i = "<int64[3] i = {-9223372036854775808, 9223372036854775807, 0}>";
                infer(&parse(&format!("(float[b,3] x, float s) => (y) {i} {{ y, z = {op} <{attrs}> ({inputs}) }}")));
            }
        }
    }
}

#[test]
fn contents_of_shapes() {
    let m = parse(
        "(float[b,8] x) => (w) <int64[2] ones = {1, 1}, int64[1] neg = {-1}> {
            sh = Shape(x)
            n = Size(x)
            minus = Equal(sh, neg)
            w = Where(minus, ones, sh)
            r = ReduceProd <keepdims = 0> (sh)
         }",
    );
    let types = infer(&m);
    let text = |name: &str| {
        let ints = types.ints(find(&m, name)).unwrap_or(&[]);
        ints.iter().map(|&i| types.int_text(i)).collect::<Vec<_>>().join(" ")
    };
    assert_eq!([text("sh"), text("n"), text("minus"), text("w"), text("r")], ["b 8", "8*b", "0 0", "b 8", "8*b"]);
}

#[test]
fn an_initializer_that_callers_may_override_has_no_content() {
    let mut m = parse("(float[2,3] x) => (y) <int64[2] to = {3, 2}> { y = Reshape(x, to) }");
    let to = find(&m, "to");
    m.add_input(to);
    let types = infer(&m);
    assert!(types.ints(to).is_none() && types.known_shape(find(&m, "y")).is_none());
    assert_eq!(types.rank(find(&m, "y")), Some(2));
    m.remove_input(to);
    assert_eq!(infer(&m).known_shape(find(&m, "y")), Some(vec![3, 2]));
}
