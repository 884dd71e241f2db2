//! ONNX's and ONNX Runtime's 8 bit operators on numbers, bit for bit as ONNX Runtime's CPU kernels compute them.
//!
//! Codes are `i32`, tensors are slices with dims; there is no graph here. What these functions share:
//!
//! - Sums of products are exact integers of 32 bits (they wrap, as the kernels' do). Kernels for CPUs without VNNI add
//!   pairs of u8×s8 products in 16 bits first, which saturates for extreme codes: that is not modelled here.
//! - A sum becomes a code with *one* multiplication by an `f32` scale. The scale is a chain of `f32` operations whose
//!   order each function states: another order is another code on points half-way between two.
//! - Halves go to even. Most kernels round and then add the zero point ([`Output::round_then_add`]). Sums, products and
//!   average pools add it as `f32` first ([`Output::add_then_round`]): halves then go to the even *code*.
//! - What a kernel multiplies and adds in one step is [`f32::mul_add`] here. It depends on the CPU: this is the
//!   arithmetic of x86-64 with FMA (AVX2 and AVX512 alike). Only [`qlinear_add`] and [`qlinear_sigmoid`] are concerned.
//! - Scales are expected to be positive and normal, and numbers finite. Others give some code, never a panic.
//!
//! Errors are those of shapes: a tensor that has not as many codes as its dims say, dims that do not go together, and
//! parameters for another count of channels. Types of codes may be mixed freely, although not every mix has a kernel.

mod convolution;
mod dynamic;
mod elementwise;
mod gemm;
mod matmul;
mod pooling;
mod shape;
mod softmax;
mod table;
pub mod window;

pub use convolution::{Window, conv_integer, qlinear_conv};
pub use dynamic::{dynamic_quantize_linear, dynamic_quantize_matmul};
pub use elementwise::{qlinear_add, qlinear_mul};
pub use gemm::{Bias, Gemm, qgemm, qgemm_float};
pub use matmul::{matmul_integer, matmul_integer_to_float, qlinear_matmul};
pub use pooling::{Pool, mean_scale, qlinear_average_pool, qlinear_global_average_pool};
pub use softmax::qlinear_softmax;
pub use table::{qlinear_concat, qlinear_leaky_relu, qlinear_sigmoid, qlinear_where};
pub use window::Windows;

use super::params::{QParams, type_range};
use crate::{
    error::{Error, Result},
    ir::DType,
};

/// A tensor of codes under one scale and zero point.
#[derive(Debug, Clone, Copy)]
pub struct Codes<'a> {
    /// The codes, the last dim running fastest.
    pub codes: &'a [i32],
    /// The dims.
    pub dims: &'a [usize],
    /// What the codes stand for.
    pub params: QParams,
}

impl Codes<'_> {
    fn check(&self, what: &str) -> Result<()> {
        shape::check_len(self.codes.len(), self.dims, what)
    }

    /// The codes' distances from the zero point.
    fn steps(&self) -> Vec<i32> {
        self.codes.iter().map(|c| c.wrapping_sub(self.params.zero_point)).collect()
    }

    /// As a weight whose parameters hold for the whole.
    pub fn as_weight(&self) -> Weight<'_> {
        let (scales, zero_points) =
            (std::slice::from_ref(&self.params.scale), std::slice::from_ref(&self.params.zero_point));
        Weight { codes: self.codes, dims: self.dims, scales, zero_points }
    }
}

/// A tensor of codes under parameters for the whole or for each output channel.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a> {
    /// The codes, the last dim running fastest.
    pub codes: &'a [i32],
    /// The dims.
    pub dims: &'a [usize],
    /// One scale, or one for each channel.
    pub scales: &'a [f32],
    /// One zero point, or one for each channel; the count may differ from that of the scales.
    pub zero_points: &'a [i32],
}

impl Weight<'_> {
    /// Whether there are as many codes as the dims say, and one or `channels` scales and zero points.
    fn check(&self, channels: usize, what: &str) -> Result<()> {
        shape::check_len(self.codes.len(), self.dims, what)?;
        let counts = [("scales", self.scales.len()), ("zero points", self.zero_points.len())];
        match counts.into_iter().find(|&(_, n)| n != 1 && n != channels) {
            None => Ok(()),
            Some((of, n)) => Err(Error::malformed(format!("{what} has {channels} channels and {n} {of}"))),
        }
    }

    fn scale(&self, channel: usize) -> f32 {
        one_or_each(self.scales, channel)
    }

    fn zero_point(&self, channel: usize) -> i32 {
        one_or_each(self.zero_points, channel)
    }
}

/// The element for a channel of a list that has one for all or one for each.
fn one_or_each<T: Copy>(list: &[T], channel: usize) -> T {
    if list.len() == 1 { list[0] } else { list[channel] }
}

/// A tensor that an operator computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Computed<T> {
    /// The elements, the last dim running fastest.
    pub values: Vec<T>,
    /// The dims.
    pub dims: Vec<usize>,
}

/// How real numbers, counted in steps of the output's scale, become codes of the output.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    zero_point: i32,
    lo: i32,
    hi: i32,
}

impl Output {
    /// Error: `params` are not those of a type of up to 16 bits.
    pub fn new(params: QParams) -> Result<Self> {
        let (lo, hi) = type_range(params.dtype)?;
        Ok(Self { zero_point: params.zero_point, lo, hi })
    }

    /// `saturate(round(steps) + zero_point)`.
    pub fn round_then_add(&self, steps: f32) -> i32 {
        (steps.round_ties_even() as i32).saturating_add(self.zero_point).clamp(self.lo, self.hi)
    }

    /// `saturate(round(steps + zero_point))`, the sum in `f32`.
    pub fn add_then_round(&self, steps: f32) -> i32 {
        self.round(steps + self.zero_point as f32)
    }

    /// The code nearest to a number that has the zero point in it.
    pub fn round(&self, real_code: f32) -> i32 {
        (real_code.round_ties_even() as i32).clamp(self.lo, self.hi)
    }
}

/// A table of all codes of 8 bits: for operators that look each code up.
struct Table<T> {
    lo: i32,
    values: Vec<T>,
}

impl<T: Copy> Table<T> {
    /// Error: `dtype` has more than 8 bits.
    fn new(dtype: DType, of: impl Fn(i32) -> T) -> Result<Self> {
        let (lo, hi) = type_range(dtype)?;
        if hi - lo > 255 {
            return Err(Error::unsupported(format!("there are no tables of {dtype}: codes have 8 bits at most")));
        }
        Ok(Self { lo, values: (lo..=hi).map(of).collect() })
    }

    /// Codes beyond the type count as its last ones.
    fn get(&self, code: i32) -> T {
        self.values[code.saturating_sub(self.lo).clamp(0, self.values.len() as i32 - 1) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(scale: f32, zero_point: i32) -> QParams {
        QParams { scale, zero_point, dtype: DType::Uint8 }
    }

    fn codes<'a>(codes: &'a [i32], dims: &'a [usize]) -> Codes<'a> {
        Codes { codes, dims, params: params(1.0, 1) }
    }

    #[test]
    fn where_the_zero_point_is_added_decides_halves() {
        let out = Output::new(params(1.0, 1)).unwrap();
        assert_eq!((out.round_then_add(0.5), out.add_then_round(0.5)), (1, 2));
        assert_eq!((out.round_then_add(1.5), out.add_then_round(1.5)), (3, 2));
        assert_eq!((out.round_then_add(1e30), out.add_then_round(-1e30)), (255, 0));
        assert_eq!(out.round_then_add(f32::NAN), 1);
    }

    #[test]
    fn by_hand() {
        let (x, y) = (codes(&[2, 3, 4, 5], &[2, 2]), params(2.0, 10));
        let w = codes(&[1, 2, 3, 1], &[2, 2]);
        // Steps 1 2 / 3 4 and 0 1 / 2 0: sums 4 1 / 8 3, in steps of 2 after rounding 2 0 / 4 2.
        assert_eq!(matmul_integer(x, w.as_weight()).unwrap().values, [4, 1, 8, 3]);
        assert_eq!(qlinear_matmul(x, w.as_weight(), y).unwrap().values, [12, 10, 14, 12]);
        let gemm = Gemm { trans_a: true, trans_b: false, alpha: 2.0 };
        let bias = Bias { codes: &[1, -1], dims: &[2] };
        assert_eq!(qgemm_float(gemm, x, w.as_weight(), Some(bias)).unwrap().values, [14.0, 0.0, 18.0, 2.0]);
        assert_eq!(qlinear_add(x, w, y).unwrap().values, [10, 12, 12, 12]); // 0.5, 1.5, 2.5 and 2 from 10 on
        assert_eq!(qlinear_mul(x, w, y).unwrap().values, [10, 11, 13, 10]);
        assert_eq!(qlinear_concat(&[x, w], 1, y).unwrap().values, [10, 11, 10, 10, 12, 12, 11, 10]);
        let chosen = qlinear_where(&[true, false], &[2], x, w, y).unwrap();
        assert_eq!(chosen.values, [10, 10, 12, 10]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let (x, y) = (codes(&[1, 2, 3, 4, 5, 6], &[2, 3]), params(1.0, 0));
        let short = codes(&[1], &[2, 3]);
        let window = Window { strides: &[1], dilations: &[1], pads: &[0, 0] };
        let pool = Pool { kernel: &[2], window, ceil_mode: false, count_include_pad: false };
        let gemm = Gemm { trans_a: false, trans_b: false, alpha: 1.0 };
        assert!(qlinear_matmul(x, x.as_weight(), y).is_err());
        assert!(matmul_integer(short, codes(&[1, 2, 3], &[3]).as_weight()).is_err());
        let column = codes(&[1, 2, 3], &[3, 1]);
        let two_scales = Weight { scales: &[1.0, 2.0], ..column.as_weight() };
        assert!(qlinear_matmul(x, two_scales, y).is_err());
        assert!(qgemm(gemm, x, x.as_weight(), None, y).is_err());
        let bias = Bias { codes: &[1, 2, 3], dims: &[3] };
        assert!(qgemm_float(gemm, x, codes(&[1, 2, 3], &[3, 1]).as_weight(), Some(bias)).is_err());
        assert!(matmul_integer_to_float(x, codes(&[1, 2, 3], &[3, 1]).as_weight(), Some(&[0.0; 2])).is_err());
        assert!(dynamic_quantize_matmul(&[1.0], &[2, 3], x.as_weight(), None).is_err());
        assert!(conv_integer(x, x.as_weight(), window, 0).is_err());
        assert!(qlinear_conv(x, x.as_weight(), None, window, 1, y).is_err());
        assert!(qlinear_average_pool(x, pool, y).is_err());
        assert!(qlinear_global_average_pool(codes(&[1], &[1]), y).is_err());
        assert!(qlinear_add(x, codes(&[1, 2], &[2]), y).is_err());
        assert!(qlinear_mul(short, x, y).is_err());
        assert!(qlinear_softmax(x, 2, 3, y).is_err());
        assert!(qlinear_concat(&[], 0, y).is_err());
        assert!(qlinear_concat(&[x, codes(&[1], &[1, 1])], 1, y).is_err());
        assert!(qlinear_concat(&[x], 2, y).is_err());
        assert!(qlinear_where(&[true], &[2], x, x, y).is_err());
        let wide = QParams { dtype: DType::Int16, ..y };
        assert!(qlinear_sigmoid(Codes { params: wide, ..x }, y).is_err());
        assert!(qlinear_add(x, x, QParams { dtype: DType::Float, ..y }).is_err());
    }

    #[test]
    fn nothing_gives_nothing() {
        let y = params(1.0, 3);
        let window = Window { strides: &[1], dilations: &[1], pads: &[0, 0] };
        let none = |dims| codes(&[], dims);
        assert_eq!(qlinear_matmul(none(&[2, 0]), none(&[0, 1]).as_weight(), y).unwrap().values, [3, 3]);
        assert!(qlinear_matmul(none(&[2, 0]), none(&[0, 0]).as_weight(), y).unwrap().values.is_empty());
        assert!(
            conv_integer(none(&[0, 1, 2]), codes(&[1], &[1, 1, 1]).as_weight(), window, 1).unwrap().values.is_empty()
        );
        let pool = Pool { kernel: &[1], window, ceil_mode: false, count_include_pad: false };
        assert!(qlinear_average_pool(none(&[0, 1, 2]), pool, y).unwrap().values.is_empty());
        assert!(qlinear_global_average_pool(none(&[1, 1, 0]), y).is_err());
        assert!(qlinear_softmax(none(&[2, 0]), 1, 2, y).unwrap().values.is_empty());
        assert!(qlinear_concat(&[none(&[0, 2]), none(&[0, 1])], 1, y).unwrap().values.is_empty());
        assert_eq!(dynamic_quantize_linear(&[]).unwrap().1.scale, 1.0);
    }
}
