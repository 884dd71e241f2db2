//! 8 bit operators: `quant::integer` against ONNX Runtime's kernels, bit for bit, for every mix of types that has one.

mod common;
mod integer_parity {
    pub mod agree;
    pub mod draw;
    pub mod graph;
}

use integer_parity::{
    agree::{as_unsigned, same_bits, same_codes, same_reals, unsigned},
    draw::{Draw, Drawn, DrawnWeight, Mode},
    graph::{Case, Chain},
};
use qonvert::{
    ir::{DType, Tensor},
    quant::{
        QParams,
        integer::{self, Bias, Computed, Gemm, Pool, Window},
        pack,
    },
};

const U8: DType = DType::Uint8;
const S8: DType = DType::Int8;

/// Data, weight and output of `QLinearConv`, `QLinearMatMul` and `QGemm` for which ONNX Runtime has kernels.
const PRODUCTS: [[DType; 3]; 3] = [[U8, U8, U8], [U8, S8, U8], [S8, S8, S8]];
/// Both operands of `QGemm` with a float output and of `MatMulIntegerToFloat`.
const TO_FLOAT: [[DType; 2]; 3] = [[U8, U8], [U8, S8], [S8, S8]];
/// Both operands of `MatMulInteger` and `ConvInteger`: all mixes.
const TO_SUMS: [[DType; 2]; 4] = [[U8, U8], [U8, S8], [S8, U8], [S8, S8]];
/// The one type of all data of the other operators.
const ALIKE: [DType; 2] = [U8, S8];

const MICROSOFT: &str = "com.microsoft";

/// A convolution: dims of data and weight, groups, strides, dilations, pads.
type Conv = (&'static [usize], &'static [usize], usize, &'static [usize], &'static [usize], &'static [usize]);

const CONVOLUTIONS: &[Conv] = &[
    (&[1, 4, 5, 5], &[6, 4, 3, 3], 1, &[1, 1], &[1, 1], &[0, 0, 0, 0]),
    (&[2, 3, 7, 5], &[5, 3, 3, 3], 1, &[2, 1], &[1, 1], &[1, 0, 2, 1]),
    (&[1, 1, 1, 1], &[1, 1, 1, 1], 1, &[1, 1], &[1, 1], &[0, 0, 0, 0]),
    (&[1, 8, 9, 9], &[8, 1, 3, 3], 8, &[1, 1], &[1, 1], &[1, 1, 1, 1]),
    (&[1, 33, 6, 6], &[33, 1, 3, 3], 33, &[2, 2], &[1, 1], &[0, 1, 1, 0]),
    (&[1, 6, 5, 7], &[9, 2, 3, 2], 3, &[1, 1], &[2, 1], &[1, 1, 1, 1]),
    (&[2, 5, 19], &[7, 5, 3], 1, &[1], &[2], &[2, 1]),
    (&[1, 2, 4, 5, 3], &[3, 2, 2, 2, 2], 1, &[1, 2, 1], &[1, 1, 1], &[1, 0, 0, 0, 1, 1]),
    (&[1, 17, 3, 3], &[65, 17, 1, 1], 1, &[1, 1], &[1, 1], &[0, 0, 0, 0]),
    (&[1, 16, 8, 8], &[32, 16, 3, 3], 1, &[1, 1], &[1, 1], &[1, 1, 1, 1]),
    (&[1, 4, 6, 6], &[8, 1, 3, 3], 4, &[1, 1], &[1, 1], &[1, 1, 1, 1]),
    (&[1, 16, 9, 9], &[16, 1, 5, 5], 16, &[1, 1], &[1, 1], &[2, 2, 2, 2]),
    (&[1, 12, 15], &[12, 1, 3], 12, &[1], &[1], &[1, 1]),
    (&[1, 3, 1, 9], &[4, 3, 1, 3], 1, &[1, 3], &[1, 1], &[0, 2, 0, 0]),
];

#[test]
fn convolutions() {
    let mut draw = Draw::new(1);
    for &(x_dims, w_dims, groups, strides, dilations, pads) in CONVOLUTIONS {
        let window = Window { strides, dilations, pads };
        let attrs = |case: Case| {
            let case = case.ints("strides", strides).ints("dilations", dilations).ints("pads", pads);
            case.int("group", groups as i64)
        };
        for mode in Mode::ALL {
            for channels in [1, w_dims[0]] {
                for [dx, dw, dy] in PRODUCTS {
                    let what = (x_dims, w_dims, groups, mode, channels, dx, dw, dy);
                    let x = draw.data(dx, x_dims, mode);
                    let w = draw.weight(dw, w_dims, channels, mode);
                    let y = draw.output(dy, &x, &w, w_dims[1..].iter().product(), mode);
                    let bias = draw.flip().then(|| draw.bias(w_dims[0], mode));
                    let ours = integer::qlinear_conv(x.view(), w.view(), bias.as_deref(), window, groups, y);
                    let ours = ours.expect("it fits");
                    let case = Case::new().data(&x).weight(&w).params(y).bias(bias.as_deref());
                    let Some(theirs) = attrs(case).run("QLinearConv", "", &[dy]) else { return };
                    same_codes(&ours, &theirs[0], &what);
                    let chain = Chain::new().data(&x).weight(&w, 0).bias(bias.as_deref(), &x, &w);
                    let Some(theirs) = chain.run("Conv", attrs(Case::new()), y) else { return };
                    same_reals(&ours, y, &theirs, &("Q/DQ", what));
                }
            }
            for [dx, dw] in TO_SUMS {
                let (x, w) = (draw.data(dx, x_dims, mode), draw.weight(dw, w_dims, 1, mode));
                let ours = integer::conv_integer(x.view(), w.view(), window, groups).expect("it fits");
                let case = Case::new().fed(x.tensor()).constant(w.tensor()).zero(x.params).zeros(&w);
                let Some(theirs) = attrs(case).run("ConvInteger", "", &[DType::Int32]) else { return };
                same_codes(&ours, &theirs[0], &("ConvInteger", x_dims, w_dims, groups, dx, dw));
            }
        }
    }
}

/// Dims of both operands.
const MATRICES: &[(&[usize], &[usize])] = &[
    (&[3, 5], &[5, 7]),
    (&[1, 1], &[1, 1]),
    (&[17, 33], &[33, 65]),
    (&[2, 100], &[100, 3]),
    (&[5, 64], &[64, 16]),
    (&[1, 19], &[19, 40]),
    (&[2, 3, 5], &[5, 7]),
    (&[2, 3, 5], &[2, 5, 7]),
    (&[2, 1, 3, 5], &[3, 5, 4]),
    (&[5], &[5, 7]),
    (&[3, 5], &[5]),
];

#[test]
fn products_of_matrices() {
    let mut draw = Draw::new(2);
    for &(a_dims, b_dims) in MATRICES {
        let k = a_dims[a_dims.len() - 1];
        // Parameters of each column are written as [N] for a matrix and have dims of their own for a batch.
        let columns = if b_dims.len() == 1 { 1 } else { b_dims.iter().product::<usize>() / k };
        for (mode, channels) in Mode::ALL.into_iter().flat_map(|m| [(m, 1), (m, columns)]) {
            for [da, db, dy] in PRODUCTS {
                let what = (a_dims, b_dims, mode, channels, da, db, dy);
                let (a, b) = (draw.data(da, a_dims, mode), draw.weight(db, b_dims, channels, mode).by_column());
                let y = draw.output(dy, &a, &b, k, mode);
                let ours = integer::qlinear_matmul(a.view(), b.view(), y).expect("it fits");
                let case = Case::new().data(&a).weight(&b).params(y);
                let Some(theirs) = case.run("QLinearMatMul", "", &[dy]) else { return };
                same_codes(&ours, &theirs[0], &what);
                if b_dims.len() == 2 {
                    let chain = Chain::new().data(&a).weight(&b, 1);
                    let Some(theirs) = chain.run("MatMul", Case::new(), y) else { return };
                    same_reals(&ours, y, &theirs, &("Q/DQ", what));
                }
            }
            for [da, db] in TO_SUMS {
                let what = ("MatMulInteger", a_dims, b_dims, mode, channels, da, db);
                let (a, b) = (draw.data(da, a_dims, mode), draw.weight(db, b_dims, channels, mode).by_column());
                let ours = integer::matmul_integer(a.view(), b.view()).expect("it fits");
                let case = Case::new().fed(a.tensor()).constant(b.tensor()).zero(a.params).zeros(&b);
                let Some(theirs) = case.run("MatMulInteger", "", &[DType::Int32]) else { return };
                same_codes(&ours, &theirs[0], &what);
            }
            if b_dims.len() != 2 {
                continue;
            }
            let n = b_dims[1];
            for [da, db] in TO_FLOAT {
                let what = ("MatMulIntegerToFloat", a_dims, b_dims, mode, channels, da, db);
                let (a, b) = (draw.data(da, a_dims, mode), draw.weight(db, b_dims, channels, mode).by_column());
                let bias = draw.flip().then(|| draw.floats(n, 3.0));
                let ours = integer::matmul_integer_to_float(a.view(), b.view(), bias.as_deref()).expect("it fits");
                let case = Case::new().fed(a.tensor()).constant(b.tensor()).scale(a.params.scale).scales(&b);
                let case = case.zero(a.params).zeros(&b).float_bias(bias.as_deref());
                let Some(theirs) = case.run("MatMulIntegerToFloat", MICROSOFT, &[DType::Float]) else { return };
                same_bits(&ours, &theirs[0], &what);
            }
            for db in ALIKE {
                let what = ("DynamicQuantizeMatMul", a_dims, b_dims, mode, channels, db);
                let b = draw.weight(db, b_dims, channels, mode).by_column();
                let a = draw.numbers(a_dims.iter().product(), mode);
                let bias = draw.flip().then(|| draw.floats(n, 3.0));
                let ours = integer::dynamic_quantize_matmul(&a, a_dims, b.view(), bias.as_deref()).expect("it fits");
                let case = Case::new().fed(Tensor::from_f32(a_dims, &a)).constant(b.tensor()).scales(&b).zeros(&b);
                let case = case.float_bias(bias.as_deref());
                let Some(theirs) = case.run("DynamicQuantizeMatMul", MICROSOFT, &[DType::Float]) else { return };
                same_bits(&ours, &theirs[0], &what);
            }
        }
    }
}

#[test]
fn gemm() {
    let mut draw = Draw::new(3);
    for (m, k, n) in [(3, 5, 7), (1, 1, 1), (17, 33, 65), (2, 100, 3), (1, 19, 40)] {
        for (mode, channels) in Mode::ALL.into_iter().flat_map(|m| [(m, 1), (m, n)]) {
            for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
                for [da, db, dy] in PRODUCTS {
                    let gemm = Gemm { trans_a, trans_b, alpha: 1.0 };
                    let (a_dims, b_dims) =
                        (if trans_a { [k, m] } else { [m, k] }, if trans_b { [n, k] } else { [k, n] });
                    let (a, b) = (draw.data(da, &a_dims, mode), draw.weight(db, &b_dims, channels, mode));
                    let (y, codes) = (draw.output(dy, &a, &b, k, mode), draw.bias(n, mode));
                    let bias = Some(Bias { codes: &codes, dims: &[n] });
                    let ours = integer::qgemm(gemm, a.view(), b.view(), bias, y).expect("it fits");
                    let chain = Chain::new().data(&a).weight(&b, i64::from(!trans_b)).bias(Some(&codes), &a, &b);
                    let attrs = Case::new().int("transA", i64::from(trans_a)).int("transB", i64::from(trans_b));
                    let Some(theirs) = chain.run("Gemm", attrs, y) else { return };
                    same_reals(&ours, y, &theirs, &("Q/DQ", m, k, n, mode, channels, gemm, da, db));
                }
                for (i, alpha) in [1.0, 0.7, 2.5].into_iter().enumerate() {
                    let gemm = Gemm { trans_a, trans_b, alpha };
                    let a_dims = if trans_a { [k, m] } else { [m, k] };
                    let b_dims = if trans_b { [n, k] } else { [k, n] };
                    let all_dims = [vec![n], vec![m, 1], vec![m, n], vec![1]];
                    let bias_dims = all_dims.get(draw.below(5)).map(Vec::as_slice);
                    let bias_codes = bias_dims.map(|d| draw.bias(d.iter().product(), mode));
                    let bias = bias_dims.zip(bias_codes.as_deref()).map(|(dims, codes)| Bias { codes, dims });
                    let inputs = |a: &Drawn, b: &DrawnWeight| {
                        let case = Case::new().data(a).weight(b);
                        let case = match bias {
                            Some(bias) => {
                                case.constant(pack::pack(DType::Int32, bias.dims, bias.codes).expect("a bias"))
                            }
                            None => case.absent(),
                        };
                        case.int("transA", i64::from(trans_a)).int("transB", i64::from(trans_b)).float("alpha", alpha)
                    };
                    let [da, db, dy] = PRODUCTS[i];
                    let what = (m, k, n, mode, channels, gemm, bias, da, db);
                    let (a, b) = (draw.data(da, &a_dims, mode), draw.weight(db, &b_dims, channels, mode));
                    let b = b.with_all_zero_points();
                    let y = draw.output(dy, &a, &b, k, mode);
                    let y = QParams { scale: y.scale * alpha, ..y };
                    let ours = integer::qgemm(gemm, a.view(), b.view(), bias, y).expect("it fits");
                    let Some(theirs) = inputs(&a, &b).params(y).run("QGemm", MICROSOFT, &[dy]) else { return };
                    same_codes(&ours, &theirs[0], &what);
                    let ours = integer::qgemm_float(gemm, a.view(), b.view(), bias).expect("it fits");
                    let Some(theirs) = inputs(&a, &b).run("QGemm", MICROSOFT, &[DType::Float]) else { return };
                    same_bits(&ours, &theirs[0], &("float", what));
                }
            }
        }
    }
}

/// Dims of both operands, with every way to broadcast.
const PAIRS: &[(&[usize], &[usize])] = &[
    (&[3, 5], &[3, 5]),
    (&[1], &[1]),
    (&[2, 257], &[2, 257]),
    (&[64], &[]),
    (&[], &[65]),
    (&[4, 33], &[33]),
    (&[33], &[4, 33]),
    (&[4, 33], &[4, 1]),
    (&[4, 1], &[4, 33]),
    (&[2, 1, 17], &[1, 5, 17]),
    (&[7, 1], &[1, 19]),
    (&[1, 6, 1, 1], &[2, 6, 3, 5]),
];

#[test]
fn sums_and_products() {
    let mut draw = Draw::new(4);
    for &(a_dims, b_dims) in PAIRS {
        for (mode, dtype) in Mode::ALL.into_iter().flat_map(|m| ALIKE.map(|d| (m, d))) {
            for _ in 0..4 {
                let (a, b) = (draw.data(dtype, a_dims, Mode::Random), draw.data(dtype, b_dims, Mode::Random));
                let (a, b, y) = draw.related(a, b, dtype, mode, &[0.5, 0.25, 0.75, 1.5, 0.3, 1.0]);
                let what = ("QLinearAdd", a_dims, b_dims, mode, a.params, b.params, y);
                let ours = integer::qlinear_add(a.view(), b.view(), y).expect("they broadcast");
                let Some(theirs) = Case::new().data(&a).data(&b).params(y).run("QLinearAdd", MICROSOFT, &[dtype])
                else {
                    return;
                };
                same_codes(&ours, &theirs[0], &what);
                let Some(theirs) = Chain::new().data(&a).data(&b).run("Add", Case::new(), y) else { return };
                let (ua, ub, uy) = (unsigned(&a), unsigned(&b), as_unsigned(y));
                let ours = integer::qlinear_add(ua.view(), ub.view(), uy).expect("they broadcast");
                same_reals(&ours, uy, &theirs, &("Q/DQ", what));
                // A step of the product that makes halves frequent.
                let factor = [0.5, 0.25, 0.01, 0.03][draw.below(4)] * y.scale / a.params.scale;
                let b = Drawn { params: QParams { scale: draw.near(factor), ..b.params }, ..b };
                let what = ("QLinearMul", a_dims, b_dims, mode, a.params, b.params, y);
                let ours = integer::qlinear_mul(a.view(), b.view(), y).expect("they broadcast");
                let Some(theirs) = Case::new().data(&a).data(&b).params(y).run("QLinearMul", MICROSOFT, &[dtype])
                else {
                    return;
                };
                same_codes(&ours, &theirs[0], &what);
                let Some(theirs) = Chain::new().data(&a).data(&b).run("Mul", Case::new(), y) else { return };
                let (ua, ub, uy) = (unsigned(&a), unsigned(&b), as_unsigned(y));
                let ours = integer::qlinear_mul(ua.view(), ub.view(), uy).expect("they broadcast");
                same_reals(&ours, uy, &theirs, &("Q/DQ", what));
            }
        }
    }
}

#[test]
fn tables() {
    let mut draw = Draw::new(5);
    for (round, dtype) in (0..40).flat_map(|i| ALIKE.map(|d| (i, d))) {
        let mode = Mode::ALL[round % 3];
        let a = draw.every_code(dtype);
        let b = draw.data(dtype, &[[2, 3], [7, 3], [1, 3]][round % 3], mode);
        let c = Drawn { dims: vec![16, 16], ..a.clone() };
        let y = draw.params(dtype, mode);
        let what = (dtype, mode, a.params, b.params, y);

        let fine =
            QParams { scale: 2f32.powi(-8 - (round % 12) as i32), zero_point: if dtype == U8 { 0 } else { -128 }, ..y };
        let ours = integer::qlinear_sigmoid(a.view(), fine).expect("it fits");
        let Some(theirs) = Case::new().data(&a).params(fine).run("QLinearSigmoid", MICROSOFT, &[dtype]) else { return };
        same_codes(&ours, &theirs[0], &("QLinearSigmoid", what));
        let Some(theirs) = Chain::new().data(&a).run("Sigmoid", Case::new(), fine) else { return };
        same_reals(&ours, fine, &theirs, &("Q/DQ Sigmoid", what));

        let alpha = [0.01, 0.1, 0.2, 0.5][round % 4];
        let ours = integer::qlinear_leaky_relu(a.view(), alpha, y).expect("it fits");
        let case = Case::new().data(&a).params(y).float("alpha", alpha);
        let Some(theirs) = case.run("QLinearLeakyRelu", MICROSOFT, &[dtype]) else { return };
        same_codes(&ours, &theirs[0], &("QLinearLeakyRelu", what));
        let Some(theirs) = Chain::new().data(&a).run("LeakyRelu", Case::new().float("alpha", alpha), y) else { return };
        same_reals(&ours, y, &theirs, &("Q/DQ LeakyRelu", what));

        let last = draw.data(dtype, &[4, 3], mode);
        let parts = [b.view(), last.view(), b.view()];
        let ours = integer::qlinear_concat(&parts, 0, y).expect("they fit");
        let case = Case::new().params(y).data(&b).data(&last).data(&b).int("axis", 0);
        let Some(theirs) = case.run("QLinearConcat", MICROSOFT, &[dtype]) else { return };
        same_codes(&ours, &theirs[0], &("QLinearConcat", what));
        let chain = Chain::new().data(&b).data(&last).data(&b);
        let Some(theirs) = chain.run("Concat", Case::new().int("axis", 0), y) else { return };
        same_reals(&ours, y, &theirs, &("Q/DQ Concat", what));

        let other = draw.data(dtype, &[16], mode);
        let bits: Vec<bool> = (0..16).map(|_| draw.flip()).collect();
        let condition = Tensor::new(DType::Bool, vec![16, 1], bits.iter().map(|&b| u8::from(b)).collect::<Vec<_>>());
        let condition = condition.expect("a condition");
        let ours = integer::qlinear_where(&bits, &[16, 1], c.view(), other.view(), y).expect("they broadcast");
        let case = Case::new().fed(condition.clone()).data(&c).data(&other).params(y);
        let Some(theirs) = case.run("QLinearWhere", MICROSOFT, &[dtype]) else { return };
        same_codes(&ours, &theirs[0], &("QLinearWhere", what));
        let Some(theirs) = Chain::new().plain(condition).data(&c).data(&other).run("Where", Case::new(), y) else {
            return;
        };
        same_reals(&ours, y, &theirs, &("Q/DQ Where", what));
    }
}

/// Data, window, strides, pads.
type Window4 = (&'static [usize], &'static [usize], &'static [usize], &'static [usize]);

const POOLS: &[Window4] = &[
    (&[1, 3, 5, 5], &[2, 2], &[1, 1], &[0, 0, 0, 0]),
    (&[2, 5, 3, 7], &[3, 3], &[1, 2], &[1, 1, 1, 1]),
    (&[1, 17, 7, 7], &[3, 2], &[2, 2], &[1, 0, 0, 1]),
    (&[1, 1, 1, 1], &[1, 1], &[1, 1], &[0, 0, 0, 0]),
    (&[1, 33, 4, 4], &[4, 4], &[4, 4], &[0, 0, 0, 0]),
    (&[2, 4, 19], &[3], &[2], &[1, 1]),
    (&[1, 2, 4, 5, 3], &[2, 2, 2], &[2, 2, 1], &[0, 1, 0, 1, 1, 0]),
    (&[1, 3, 6, 6], &[3, 3], &[2, 2], &[0, 0, 0, 0]),
];

#[test]
fn averages() {
    let mut draw = Draw::new(6);
    for &(dims, kernel, strides, pads) in POOLS {
        for (mode, dtype) in Mode::ALL.into_iter().flat_map(|m| ALIKE.map(|d| (m, d))) {
            let x = draw.data(dtype, dims, Mode::Random);
            for (ceil_mode, count_include_pad) in [(false, false), (false, true), (true, false), (true, true)] {
                let (x, _, y) = draw.related(x.clone(), x.clone(), dtype, mode, &[0.5, 1.0, 0.25, 1.5, 4.0]);
                let what = (dims, kernel, strides, pads, ceil_mode, count_include_pad, mode, x.params, y);
                let window = Window { strides, dilations: &vec![1; kernel.len()], pads };
                let pool = Pool { kernel, window, ceil_mode, count_include_pad };
                let attrs = |case: Case| {
                    let case = case.ints("kernel_shape", kernel).ints("strides", strides).ints("pads", pads);
                    case.int("ceil_mode", ceil_mode.into()).int("count_include_pad", count_include_pad.into())
                };
                let case = attrs(Case::new().data(&x).params(y));
                let Ok(ours) = integer::qlinear_average_pool(x.view(), pool, y) else {
                    let Some(runs) = case.runs("QLinearAveragePool", MICROSOFT, dtype) else { return };
                    assert!(!runs, "the runtime takes what we refuse: {what:?}");
                    continue;
                };
                let Some(theirs) = case.run("QLinearAveragePool", MICROSOFT, &[dtype]) else { return };
                same_codes(&ours, &theirs[0], &what);
                let Some(theirs) = Chain::new().data(&x).run("AveragePool", attrs(Case::new()), y) else { return };
                let y = as_unsigned(y);
                let ours = integer::qlinear_average_pool(unsigned(&x).view(), pool, y).expect("it fits");
                same_reals(&ours, y, &theirs, &("Q/DQ", what));
            }
            let plane = dims[2..].iter().product::<usize>() as f32;
            let (x, _, y) = draw.related(x.clone(), x, dtype, mode, &[0.5, 1.0, 0.3, plane, plane / 2.0]);
            let what = ("QLinearGlobalAveragePool", dims, mode, x.params, y);
            let case = Case::new().data(&x).params(y);
            let Ok(ours) = integer::qlinear_global_average_pool(x.view(), y) else {
                let Some(runs) = case.runs("QLinearGlobalAveragePool", MICROSOFT, dtype) else { return };
                assert!(!runs, "the runtime takes what we refuse: {what:?}");
                continue;
            };
            let Some(theirs) = case.run("QLinearGlobalAveragePool", MICROSOFT, &[dtype]) else { return };
            same_codes(&ours, &theirs[0], &what);
            let Some(theirs) = Chain::new().data(&x).run("GlobalAveragePool", Case::new(), y) else { return };
            same_reals(&ours, y, &theirs, &("Q/DQ", what));
        }
    }
}

#[test]
fn softmax() {
    let mut draw = Draw::new(7);
    for dims in [&[40, 2][..], &[40, 3], &[30, 7], &[1, 1], &[9, 40], &[5, 257], &[3, 5, 6], &[2, 1000]] {
        for (mode, dtype) in Mode::ALL.into_iter().flat_map(|m| ALIKE.map(|d| (m, d))) {
            for axis in 0..dims.len() {
                let mut x = draw.data(dtype, dims, Mode::Random);
                x.params.scale = [0.01, 0.05, 0.1, 0.3, 1.0][draw.below(5)] * (1.0 + draw.uniform());
                let y = match mode {
                    Mode::Powers => {
                        QParams { scale: 1.0 / 256.0, zero_point: if dtype == U8 { 0 } else { -128 }, dtype }
                    }
                    Mode::Halves => QParams { scale: 1.0 / (2.0 + draw.below(200) as f32), ..draw.params(dtype, mode) },
                    Mode::Random => draw.params(dtype, mode),
                };
                for (opset, end) in [(13, axis + 1), (12, dims.len())] {
                    let what = (dims, axis, opset, x.params, y);
                    let ours = integer::qlinear_softmax(x.view(), axis, end, y).expect("it fits");
                    let case = Case::new().data(&x).params(y).int("axis", axis as i64).int("opset", opset);
                    let Some(theirs) = case.run("QLinearSoftmax", MICROSOFT, &[dtype]) else { return };
                    same_codes(&ours, &theirs[0], &what);
                    if opset == 13 {
                        let chain = Chain::new().data(&x);
                        let Some(theirs) = chain.run("Softmax", Case::new().int("axis", axis as i64), y) else {
                            return;
                        };
                        same_reals(&ours, y, &theirs, &("Q/DQ", what));
                    }
                }
            }
        }
    }
}

#[test]
fn numbers_quantized_by_themselves() {
    let mut draw = Draw::new(8);
    let fixed: [&[f32]; 6] = [&[], &[0.0, 0.0], &[-3.0], &[2.0, 3.0], &[1e-40], &[-0.0, 1e30, -1e30]];
    let drawn = (0..300).map(|i| draw.numbers([1, 3, 17, 64, 1000][i % 5], Mode::ALL[i % 3]));
    for x in fixed.into_iter().map(<[f32]>::to_vec).chain(drawn.collect::<Vec<_>>()) {
        let (codes, params) = integer::dynamic_quantize_linear(&x).expect("it quantizes");
        let case = Case::new().fed(Tensor::from_f32(&[x.len()], &x));
        let Some(theirs) = case.run("DynamicQuantizeLinear", "", &[U8, DType::Float, U8]) else { return };
        same_codes(&Computed { values: codes, dims: vec![x.len()] }, &theirs[0], &x);
        same_bits(&Computed { values: vec![params.scale], dims: vec![] }, &theirs[1], &x);
        same_codes(&Computed { values: vec![params.zero_point], dims: vec![] }, &theirs[2], &x);
    }
}

#[test]
fn averages_have_bounds() {
    let mut draw = Draw::new(10);
    let below = |x: f32| f32::from_bits(x.to_bits() - 1);
    let least = 1.0 / 4_294_967_296.0;
    for (scale, fits) in [(256.0, false), (below(256.0), true), (least, true), (below(least), false)] {
        let mut x = draw.data(U8, &[1, 2, 2, 2], Mode::Random);
        x.params.scale = 4.0 * scale;
        let y = QParams { scale: 1.0, ..draw.params(U8, Mode::Random) };
        assert_eq!(integer::qlinear_global_average_pool(x.view(), y).is_ok(), fits, "{scale}");
        let Some(runs) = Case::new().data(&x).params(y).runs("QLinearGlobalAveragePool", MICROSOFT, U8) else { return };
        assert_eq!(runs, fits, "{scale}");
    }
}

/// What this file leaves out, the runtime has not.
#[test]
fn other_mixes_have_no_kernel() {
    let mut draw = Draw::new(9);
    for [dx, dw, dy] in [U8, S8].into_iter().flat_map(|x| TO_SUMS.map(|[w, y]| [x, w, y])) {
        let known = PRODUCTS.contains(&[dx, dw, dy]);
        let (a, b) = (draw.data(dx, &[3, 4], Mode::Random), draw.weight(dw, &[4, 5], 1, Mode::Random));
        let (x, w) = (draw.data(dx, &[1, 4, 3, 3], Mode::Random), draw.weight(dw, &[2, 4, 1, 1], 1, Mode::Random));
        let y = draw.params(dy, Mode::Random);
        for (case, op, domain) in [
            (Case::new().data(&x).weight(&w).params(y), "QLinearConv", ""),
            (Case::new().data(&a).weight(&b).params(y), "QLinearMatMul", ""),
            (Case::new().data(&a).weight(&b).absent().params(y), "QGemm", MICROSOFT),
        ] {
            let Some(runs) = case.runs(op, domain, dy) else { return };
            assert_eq!(runs, known, "{op} of {dx} and {dw} to {dy}");
        }
        let (other, alike) = (draw.data(dw, &[3, 4], Mode::Random), dx == dw && dw == dy);
        for (case, op) in [
            (Case::new().data(&a).data(&other).params(y), "QLinearAdd"),
            (Case::new().data(&a).data(&other).params(y), "QLinearMul"),
            (Case::new().params(y).data(&a).data(&other).int("axis", 0), "QLinearConcat"),
        ] {
            let Some(runs) = case.runs(op, MICROSOFT, dy) else { return };
            assert_eq!(runs, alike, "{op} of {dx} and {dw} to {dy}");
        }
        for op in ["QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearGlobalAveragePool"] {
            let case = Case::new().data(&x).params(y);
            let case = if op == "QLinearSoftmax" { case.int("opset", 13) } else { case };
            let Some(runs) = case.runs(op, MICROSOFT, dy) else { return };
            assert_eq!(runs, dx == dy, "{op} of {dx} to {dy}");
        }
    }
    for [da, db] in TO_SUMS {
        let (a, b) = (draw.data(da, &[3, 4], Mode::Random), draw.weight(db, &[4, 5], 1, Mode::Random));
        let case = Case::new().fed(a.tensor()).constant(b.tensor()).scale(a.params.scale).scales(&b);
        let Some(runs) = case.zero(a.params).zeros(&b).runs("MatMulIntegerToFloat", MICROSOFT, DType::Float) else {
            return;
        };
        assert_eq!(runs, TO_FLOAT.contains(&[da, db]), "MatMulIntegerToFloat of {da} and {db}");
        let Some(runs) = Case::new().data(&a).weight(&b).runs("QGemm", MICROSOFT, DType::Float) else { return };
        assert_eq!(runs, TO_FLOAT.contains(&[da, db]), "QGemm of {da} and {db} to float");
    }
}
