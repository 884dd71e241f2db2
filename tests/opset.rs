//! The converter of old files, against ONNX Runtime: each operator gives the same numbers in its old and its new form.

mod common;

use std::collections::BTreeSet;

use common::{ort_try_run, random::Random};
use qonvert::{
    ir::{DType, Model, Tensor, text},
    onnx_file::to_bytes,
    passes::{Context, convert_opset},
};

/// Versions that bring conversions, and the newest.
const TARGETS: [i64; 10] = [9, 10, 11, 13, 14, 17, 18, 21, 25, 28];

/// Numbers in [-2, 2) that look random.
fn noise(dims: &[usize]) -> Tensor {
    Random(0x2545_f491_4f6c_dd1d).tensor(dims, 2.0)
}

/// What an operator's change is tested with: the operators that it covers, the version it starts from, the graph, its
/// inputs, and how far the results may differ.
struct Case {
    covers: &'static [&'static str],
    opset: i64,
    graph: &'static str,
    inputs: Vec<(&'static str, Tensor)>,
    tolerance: f32,
}

fn parse(graph: &str, opset: i64) -> Model {
    text::parse(&format!("<ir_version: 8, opset_import: [\"\" : {opset}]> {graph}"))
        .unwrap_or_else(|e| panic!("{e}: {graph}"))
}

fn close(a: &Tensor, b: &Tensor, tolerance: f32) -> bool {
    if a.dtype() != b.dtype() || a.dims() != b.dims() {
        return false;
    }
    match a.dtype() {
        DType::Float => {
            let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
            a.iter().zip(&b).all(|(a, b)| a == b || (a - b).abs() <= tolerance * a.abs().max(1.0))
        }
        _ => a.same_content(b),
    }
}

fn check(case: &Case) {
    let old = parse(case.graph, case.opset);
    let run = |m: &Model, optimize| ort_try_run(&to_bytes(m).unwrap(), &case.inputs, optimize);
    let Some(want) = run(&old, false) else { return };
    let want = want.unwrap_or_else(|e| panic!("{e}\n{}", text::print(&old)));
    for target in TARGETS.into_iter().filter(|&t| t > case.opset) {
        let mut new = old.clone();
        let mut cx = Context::default();
        convert_opset::convert_to(&mut new, target, &mut cx).unwrap_or_else(|e| panic!("{e}: {}", case.graph));
        new.verify().unwrap();
        assert_eq!(new.opset(""), Some(target));
        for optimize in [false, true] {
            let got = match run(&new, optimize).expect("it ran before") {
                // ONNX Runtime lags behind the newest versions.
                Err(e) if target > 21 && e.contains("Could not find an implementation") => continue,
                result => result.unwrap_or_else(|e| panic!("opset {target}: {e}\n{}", text::print(&new))),
            };
            assert_eq!(want.len(), got.len());
            for (w, g) in want.iter().zip(&got) {
                assert!(
                    close(w, g, case.tolerance),
                    "opset {} to {target}, optimize {optimize}:\n{}\n{w:?} {:?}\n{g:?} {:?}",
                    case.opset,
                    text::print(&new),
                    w.to_f32(),
                    g.to_f32()
                );
            }
        }
        assert_eq!(convert_opset::convert_to(&mut new, target, &mut cx).unwrap(), 0, "a second time changes nothing");
    }
}

macro_rules! cases {
    ($($name:ident: [$($op:literal),*] $opset:literal, $tolerance:literal, { $($input:literal: $value:expr),* }, $graph:literal;)*) => {
        fn cases() -> Vec<Case> {
            vec![$(Case {
                covers: &[$($op),*],
                opset: $opset,
                graph: $graph,
                inputs: vec![$(($input, $value)),*],
                tolerance: $tolerance,
            }),*]
        }

        mod parity {
            $(#[test]
            fn $name() {
                let case = super::cases().into_iter().nth(super::Index::$name as usize).unwrap();
                super::check(&case);
            })*
        }

        #[allow(non_camel_case_types)]
        enum Index { $($name),* }
    };
}

fn image() -> Tensor {
    noise(&[2, 3, 4, 5])
}

cases! {
    batch_normalization_spatial: ["BatchNormalization"] 7, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (float[2,3,4,5] y) <float[3] s = {1, 2, 0.5}, float[3] v = {1, 0.3, 2}> {
            y = BatchNormalization <spatial = 1, momentum = 0.5> (x, s, v, s, v) }";
    batch_normalization_per_element: ["BatchNormalization"] 7, 1e-6, { "x": noise(&[2, 1, 2, 2]) },
        "g (float[2,1,2,2] x) => (float[2,1,2,2] y)
            <float[1,2,2] s = {1, 2, 0.5, 3}, float[1,2,2] v = {1, 0.3, 2, 0.1}> {
            y = BatchNormalization <spatial = 0, epsilon = 0.01> (x, s, v, s, v) }";
    batch_normalization_nine: ["BatchNormalization"] 9, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (float[2,3,4,5] y) <float[3] s = {1, 2, 0.5}, float[3] v = {1, 0.3, 2}> {
            y = BatchNormalization <epsilon = 0.1> (x, s, v, s, v) }";
    mean_variance_normalization: ["MeanVarianceNormalization"] 8, 1e-5, { "x": image() },
        "g (float[2,3,4,5] x) => (float[2,3,4,5] y, float[2,3,4,5] z, float[2,3,4,5] u, float[2,3,4,5] v) {
            y = MeanVarianceNormalization (x)
            z = MeanVarianceNormalization <across_channels = 1> (x)
            u = MeanVarianceNormalization <normalize_variance = 0> (x)
            v = MeanVarianceNormalization <across_channels = 1, normalize_variance = 0> (x) }";
    scan: ["Scan"] 8, 0e0, { "s": noise(&[3, 2]), "x": noise(&[3, 4, 2]) },
        "g (float[3,2] s, float[3,4,2] x) => (float[3,2] f, float[3,4,2] y) <float[2] k = {1, 2}> {
            f, y = Scan <num_scan_inputs = 1, body = b (float[2] a, float[2] e) => (float[2] c, float[2] d) {
                m = Mul (a, k)
                c = Add (m, e)
                d = Neg (c) }> (\"\", s, x) }";
    scan_backwards: ["Scan"] 8, 0e0, { "s": noise(&[1, 2]), "x": noise(&[1, 4, 2]) },
        "g (float[1,2] s, float[1,4,2] x) => (float[1,4,2] y) {
            f, y = Scan <num_scan_inputs = 1, directions = [1],
                body = b (float[2] a, float[2] e) => (float[2] c, float[2] d) {
                c = Add (a, e)
                d = Neg (c) }> (\"\", s, x) }";
    upsample: ["Upsample", "Resize"] 7, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (float[2,3,8,15] y) { y = Upsample <scales = [1.0, 1.0, 2.0, 3.0]> (x) }";
    upsample_fraction: ["Upsample"] 7, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (float[a,b,c,d] y) {
            y = Upsample <mode = \"nearest\", scales = [1.0, 1.0, 1.3, 2.6]> (x) }";
    upsample_linear: ["Upsample"] 7, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (float[a,b,c,d] y) {
            y = Upsample <mode = \"linear\", scales = [1.0, 1.0, 1.5, 2.0]> (x) }";
    upsample_nine: ["Upsample"] 9, 0e0, { "x": image(), "s": Tensor::from_f32(&[4], &[1.0, 1.0, 2.0, 1.7]) },
        "g (float[2,3,4,5] x, float[4] s) => (float[a,b,c,d] y, float[a,b,c,d] z) {
            y = Upsample <mode = \"linear\"> (x, s)
            z = Upsample (x, s) }";
    resize_ten: ["Resize"] 10, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (float[a,b,c,d] y) <float[4] s = {1, 1, 2, 1.7}> { y = Resize (x, s) }";
    resize_ten_smaller: ["Resize"] 10, 0e0, { "x": noise(&[1, 1, 7, 9]) },
        "g (float[1,1,7,9] x) => (float[a,b,c,d] y) <float[4] s = {1, 1, 0.6, 0.3}> { y = Resize (x, s) }";
    resize_ten_both_ways: ["Resize"] 10, 0e0, { "x": noise(&[1, 1, 7, 9]) },
        "g (float[1,1,7,9] x) => (float[a,b,c,d] y) <float[4] s = {1, 1, 0.6, 2.3}> { y = Resize (x, s) }";
    resize_ten_linear: ["Resize"] 10, 0e0, { "x": noise(&[1, 1, 7, 9]) },
        "g (float[1,1,7,9] x) => (float[a,b,c,d] y) <float[4] s = {1, 1, 0.6, 2.3}> {
            y = Resize <mode = \"linear\"> (x, s) }";
    resize_eleven: ["Resize"] 11, 0e0, { "x": noise(&[1, 1, 7, 9]) },
        "g (float[1,1,7,9] x) => (float[a,b,c,d] y, float[a,b,c,d] z, float[a,b,c,d] u)
            <float[0] e = {}, float[4] s = {1, 1, 0.6, 2.3}, int64[4] n = {1, 1, 10, 5}> {
            y = Resize <mode = \"nearest\", nearest_mode = \"floor\",
                coordinate_transformation_mode = \"tf_half_pixel_for_nn\"> (x, e, s)
            z = Resize <mode = \"linear\", coordinate_transformation_mode = \"pytorch_half_pixel\"> (x, e, e, n)
            u = Resize <mode = \"cubic\", coordinate_transformation_mode = \"align_corners\"> (x, e, s) }";
    dropout: ["Dropout"] 7, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (float[2,3,4,5] y, float[2,3,4,5] z) {
            y, m = Dropout <ratio = 0.3> (x)
            w = Dropout (x)
            z = Mul (w, m) }";
    dropout_ten: ["Dropout"] 10, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (float[2,3,4,5] y, bool[2,3,4,5] m) { y, m = Dropout <ratio = 0.3> (x) }";
    slice: ["Slice"] 7, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (float[a,b,c,d] y, float[a,b,c,d] z) {
            y = Slice <axes = [1, 3], starts = [1, -4], ends = [9223372036854775807, -1]> (x)
            z = Slice <starts = [0, 1], ends = [1, 2147483647]> (x) }";
    top_k: ["TopK"] 7, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (float[2,3,4,2] v, int64[2,3,4,2] i, float[2,2,4,5] u, int64[2,2,4,5] j) {
            v, i = TopK <k = 2> (x)
            u, j = TopK <k = 2, axis = 1> (x) }";
    clip: ["Clip"] 7, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (float[2,3,4,5] y, float[2,3,4,5] z, float[2,3,4,5] u, float[2,3,4,5] v) {
            y = Clip <min = -0.5, max = 1.0> (x)
            z = Clip <min = 0.0> (x)
            u = Clip <max = 0.25> (x)
            v = Clip (x) }";
    pad: ["Pad"] 7, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (float[a,b,c,d] y, float[a,b,c,d] z, float[a,b,c,d] u, float[a,b,c,d] v) {
            y = Pad <pads = [0, 0, 1, 2, 0, 0, 0, -1]> (x)
            z = Pad <mode = \"constant\", value = 1.5, pads = [0, 1, 1, 2, 0, 0, 0, 1]> (x)
            u = Pad <mode = \"reflect\", pads = [0, 0, 1, 2, 0, 0, 1, 1]> (x)
            v = Pad <mode = \"edge\", value = 3.0, pads = [0, 0, 1, 2, 0, 0, 1, 1]> (x) }";
    scatter: ["Scatter"] 9, 0e0, { "x": noise(&[3, 3]), "u": noise(&[2, 3]) },
        "g (float[3,3] x, float[2,3] u) => (float[3,3] y) <int64[2,3] i = {0, 1, 2, 2, 0, 1}> {
            y = Scatter <axis = 0> (x, i, u) }";
    softmax: ["Softmax", "LogSoftmax", "Hardmax"] 7, 1e-6, { "x": image() },
        "g (float[2,3,4,5] x) => (float[2,3,4,5] y, float[2,3,4,5] z, float[2,3,4,5] u, float[2,3,4,5] v, float[2,3,4,5] w) {
            y = Softmax (x)
            z = LogSoftmax <axis = 2> (x)
            u = Hardmax <axis = 1> (x)
            v = Softmax <axis = 3> (x)
            w = Softmax <axis = 0> (x) }";
    softmax_unknown_shape: ["Softmax", "LogSoftmax", "Hardmax"] 11, 1e-6, { "x": image() },
        "g (float[] x) => (float[] y, float[] z, float[] u, float[] v) {
            y = Softmax (x)
            z = LogSoftmax <axis = -2> (x)
            u = Hardmax <axis = 2> (x)
            v = Softmax <axis = -1> (x) }";
    softmax_batch_unknown: ["Softmax"] 7, 1e-6, { "x": image() },
        "g (float[n,3,4,m] x) => (float[n,3,4,m] y) { y = Softmax <axis = 2> (x) }";
    softmax_of_pixels: ["Softmax"] 7, 1e-6, { "x": noise(&[2, 3, 1, 1]) },
        "g (float[n,3,1,1] x) => (float[n,3,1,1] y) { y = Softmax (x) }";
    reductions: ["ReduceSum", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
        "ReduceMin", "ReduceProd", "ReduceSumSquare"] 7, 1e-6, { "x": image() },
        "g (float[2,3,4,5] x) => (float[] a, float[] b, float[] c, float[] d, float[] e, float[] f, float[] h, float[] i, float[] j, float[] k, float[] l) {
            a = ReduceSum <axes = [1, 2]> (x)
            b = ReduceL1 <axes = [0]> (x)
            c = ReduceL2 <axes = [3], keepdims = 0> (x)
            p = Abs (x)
            d = ReduceLogSum <axes = [1]> (p)
            e = ReduceLogSumExp <axes = [1, 3], keepdims = 1> (x)
            f = ReduceMax <axes = [2, 3]> (x)
            h = ReduceMean <axes = [2, 3], keepdims = 0> (x)
            i = ReduceMin (x)
            j = ReduceProd <axes = [1]> (x)
            k = ReduceSumSquare <keepdims = 0> (x)
            l = ReduceSum <keepdims = 0> (x) }";
    split: ["Split"] 7, 0e0, { "x": noise(&[4, 6]) },
        "g (float[4,6] x) => (float[4,1] a, float[4,5] b, float[2,6] c, float[2,6] d) {
            a, b = Split <axis = 1, split = [1, 5]> (x)
            c, d = Split (x) }";
    squeeze: ["Squeeze", "Unsqueeze"] 7, 0e0, { "x": noise(&[1, 3, 1, 2]) },
        "g (float[1,3,1,2] x) => (float[3,1,2] a, float[3,2] b, float[1,1,3,1,1,2] c) {
            a = Squeeze <axes = [0]> (x)
            b = Squeeze (x)
            c = Unsqueeze <axes = [0, 4]> (x) }";
    roi_align: ["RoiAlign"] 10, 0e0, { "x": noise(&[1, 2, 8, 8]) },
        "g (float[1,2,8,8] x) => (float[2,2,3,3] y)
            <float[2,4] r = {0, 0, 5, 6, 1, 2, 7, 7}, int64[2] i = {0, 0}> {
            y = RoiAlign <output_height = 3, output_width = 3, sampling_ratio = 2, spatial_scale = 0.9> (x, r, i) }";
    grid_sample: ["GridSample"] 16, 0e0, { "x": noise(&[1, 2, 4, 5]), "i": noise(&[1, 3, 3, 2]) },
        "g (float[1,2,4,5] x, float[1,3,3,2] i) => (float[1,2,3,3] a, float[1,2,3,3] b, float[1,2,3,3] c, float[1,2,3,3] d) {
            a = GridSample (x, i)
            b = GridSample <mode = \"bilinear\", align_corners = 1> (x, i)
            c = GridSample <mode = \"bicubic\", padding_mode = \"border\"> (x, i)
            d = GridSample <mode = \"nearest\", padding_mode = \"reflection\"> (x, i) }";
    fourier: ["DFT"] 17, 1e-6, { "x": noise(&[2, 8, 6, 1]) },
        "g (float[2,8,6,1] x) => (float[] a, float[] b, float[] c) <int64 n = {4}> {
            a = DFT (x)
            b = DFT <axis = 2, onesided = 1> (x)
            c = DFT <axis = 2> (x, n) }";
    group_normalization: ["GroupNormalization"] 18, 1e-6, { "x": noise(&[2, 4, 3]) },
        "g (float[2,4,3] x) => (float[2,4,3] y) <float[2] s = {1, 2}, float[2] b = {-1, 0.5}> {
            y = GroupNormalization <num_groups = 2> (x, s, b) }";
    group_normalization_unknown_shape: ["GroupNormalization"] 18, 1e-6,
        { "x": noise(&[2, 4, 3]), "s": noise(&[2]), "b": noise(&[2]) },
        "g (float[n,c,w] x, float[2] s, float[2] b) => (float[n,c,w] y) {
            y = GroupNormalization <num_groups = 2> (x, s, b) }";
    experiments: ["Affine", "ImageScaler", "ParametricSoftplus", "Scale", "ScaledTanh", "Crop"] 8, 1e-6, { "x": image() },
        "g (float[2,3,4,5] x) => (float[] a, float[] b, float[] c, float[] d, float[] e, float[] f, float[] h) {
            a = Affine <alpha = 2.0, beta = 3.0> (x)
            b = ImageScaler <scale = 2.0, bias = [1.0, 2.0, 3.0]> (x)
            c = ParametricSoftplus <alpha = 0.5, beta = 2.0> (x)
            d = Scale <scale = 2.0> (x)
            e = ScaledTanh <alpha = 0.5, beta = 2.0> (x)
            f = Crop <border = [1, 0, 2, 1]> (x)
            h = Crop <border = [1, 1, 0, 0], scale = [2, 3]> (x) }";
    dynamic_slice: ["DynamicSlice"] 8, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (float[] y) <int64[1] s = {1}, int64[1] e = {3}, int64[1] a = {2}> {
            y = DynamicSlice (x, s, e, a) }";
    inside_subgraphs: [] 7, 0e0, { "x": image(), "c": Tensor::from_u8(DType::Bool, &[], vec![1]) },
        "g (float[2,3,4,5] x, bool c) => (float[] y) {
            y = If <then_branch = t () => (float[] a) {
                b = Clip <min = 0.0> (x)
                a = LogSoftmax <axis = 1> (b) },
              else_branch = e () => (float[] a) { a = Softmax <axis = 2> (x) }> (c) }";
    // Changes that the specification made in words only, or where ONNX Runtime never followed it.
    pooling: [] 10, 2e-7, { "x": noise(&[1, 2, 7, 7]) },
        "g (float[1,2,7,7] x) => (float[] a, float[] b, float[] c, float[] d, float[] e) {
            a = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1, count_include_pad = 1> (x)
            b = AveragePool <kernel_shape = [3, 3], strides = [2, 2], auto_pad = \"SAME_LOWER\"> (x)
            c = AveragePool <kernel_shape = [2, 2], strides = [3, 3], pads = [0, 0, 1, 1], ceil_mode = 1> (x)
            d = MaxPool <kernel_shape = [3, 3], strides = [2, 2], auto_pad = \"SAME_UPPER\", dilations = [1, 1]> (x)
            e = MaxPool <kernel_shape = [2, 2], strides = [3, 3], pads = [0, 0, 1, 1], ceil_mode = 1> (x) }";
    transposed_convolution_padding: [] 7, 0e0, { "x": noise(&[1, 2, 7, 7]), "w": noise(&[2, 2, 3, 3]) },
        "g (float[1,2,7,7] x, float[2,2,3,3] w) => (float[] a, float[] b, float[] c) {
            a = ConvTranspose <auto_pad = \"SAME_UPPER\", output_shape = [14, 14], strides = [2, 2]> (x, w)
            b = ConvTranspose <auto_pad = \"SAME_LOWER\", strides = [2, 2]> (x, w)
            c = ConvTranspose <output_shape = [14, 14], strides = [2, 2]> (x, w) }";
    one_hot_of_negative_indices: [] 9, 0e0, { "i": Tensor::from_i64(&[4], &[-1, 0, 2, 7]) },
        "g (int64[4] i) => (float[4,3] y) <int64 d = {3}, float[2] v = {0, 1}> { y = OneHot (i, d, v) }";
    recurrent: [] 7, 0e0, { "x": noise(&[4, 2, 3]), "w": noise(&[1, 8, 3]), "r": noise(&[1, 8, 2]) },
        "g (float[4,2,3] x, float[1,8,3] w, float[1,8,2] r) => (float[] a, float[] b, float[] c) {
            a, h = LSTM <hidden_size = 2> (x, w, r)
            gw, gx = Split <axis = 1, split = [6, 2]> (w)
            gr, gs = Split <axis = 1, split = [6, 2]> (r)
            b = GRU <hidden_size = 2, linear_before_reset = 1> (x, gw, gr)
            c = RNN <hidden_size = 2> (x, gx, gs) }";
    suppression: [] 10, 0e0, { "b": noise(&[1, 6, 4]), "s": noise(&[1, 1, 6]) },
        "g (float[1,6,4] b, float[1,1,6] s) => (int64[] y) <int64 n = {3}, float t = {0.4}, float m = {0}> {
            y = NonMaxSuppression (b, s, n, t, m) }";
    comparisons: [] 7, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (bool[] a, bool[] b, float[] c, float[] d, float[] e) <float h = {0.5}> {
            a = Greater (x, h)
            b = Less (x, h)
            p = Abs (x)
            c = Pow (p, h)
            d = Max (x, p)
            e = PRelu (x, h) }";
    quantization: [] 10, 0e0, { "x": image() },
        "g (float[2,3,4,5] x) => (float[2,3,4,5] y) <float s = {0.02}, uint8 z = {100}> {
            q = QuantizeLinear (x, s, z)
            y = DequantizeLinear (q, s, z) }";
}

#[test]
fn every_conversion_has_a_case() {
    let covered: BTreeSet<&str> = cases().iter().flat_map(|c| c.covers.iter().copied()).collect();
    // No runtime has these; converting them is an error.
    let gone = BTreeSet::from(["ATen", "ConstantFill", "GRUUnit", "GivenTensorFill"]);
    let converted: BTreeSet<&str> = convert_opset::converted().map(|(op, _)| op).collect();
    assert_eq!(converted.difference(&gone).copied().collect::<BTreeSet<_>>(), covered);
}

#[test]
fn functions_have_their_own_version() {
    let mut m = text::parse(
        "<ir_version: 8, opset_import: [\"\" : 13, \"f\" : 1]>
         g (float[2,3,4] x) => (float[] y) { y = f.mean (x) }
         <domain: \"f\", opset_import: [\"\" : 13]>
         mean (x) => (y) { m = ReduceMean <axes = [1]> (x)
                           y = Mul (m, m) }",
    )
    .unwrap();
    let inputs = [("x", noise(&[2, 3, 4]))];
    let want = ort_try_run(&to_bytes(&m).unwrap(), &inputs, true);
    assert!(convert_opset::convert_to(&mut m, 18, &mut Context::default()).unwrap() > 0);
    m.verify().unwrap();
    assert_eq!(m.functions[0].opset_imports[0].1, 18);
    let reduce = m.nodes(m.functions[0].graph).into_iter().find(|&n| m.node(n).is("ReduceMean")).unwrap();
    assert!(m.node(reduce).ints("axes").is_none() && m.node(reduce).input(1).is_some());
    if let Some(want) = want {
        let got = ort_try_run(&to_bytes(&m).unwrap(), &inputs, true).unwrap().unwrap();
        assert!(close(&want.unwrap()[0], &got[0], 0.0));
    }
}

fn refusal(graph: &str, opset: i64) -> String {
    let e = convert_opset::convert_to(&mut parse(graph, opset), 13, &mut Context::default()).unwrap_err();
    assert!(e.help_text().is_some(), "{e}");
    e.to_string()
}

#[test]
fn refusals_name_the_node_and_the_reason() {
    let gone = refusal("g (float[2] x) => (float[2] y) { y = ATen (x) }", 9);
    assert_eq!(
        gone,
        "node \"y\" (ATen): this experimental operator was taken out of ONNX with opset 10 and has no successor"
    );
    let old = refusal("g (float[2] x) => (float[2] y) { [n] y = Relu (x) }", 6);
    assert_eq!(old, "node \"n\" (Relu): opset 6 is too old, the oldest that can be upgraded is 7");
    let malformed = refusal("g (float[2] x) => (float[1] y) { y = Slice <starts = [1]> (x) }", 9);
    assert_eq!(malformed, "node \"y\" (Slice): lacks attribute \"ends\"");
    let wrong = refusal("g (float[2] x) => (float[1] y) { y = TopK <k = 1.5> (x) }", 9);
    assert_eq!(wrong, "node \"y\" (TopK): attribute \"k\" is not an integer");
    let newer = convert_opset::convert_to(&mut Model::new(8), 99, &mut Context::default()).unwrap_err();
    assert_eq!(newer.message(), "opset 99 is not known, the newest is 28");
}

#[test]
fn a_model_that_lists_its_weights_as_inputs_keeps_them_constant() {
    let mut m = text::parse(
        "<ir_version: 3, opset_import: [\"\" : 8]>
         g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Mul (x, w) }",
    )
    .unwrap();
    assert!(convert_opset::run(&mut m, &mut Context::default()).unwrap() > 0);
    assert_eq!((m.opset(""), m.ir_version), (Some(13), 7));
    assert_eq!(m.graph(m.main()).inputs().len(), 1);
    assert_eq!(convert_opset::run(&mut m, &mut Context::default()).unwrap(), 0);
}
