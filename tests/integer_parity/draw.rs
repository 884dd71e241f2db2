//! Codes, scales and zero points, drawn from a fixed seed, with what is hard made frequent.

use crate::common::random::Random;
use qonvert::{
    ir::{DType, Tensor},
    quant::{
        QParams,
        integer::{Codes, Weight},
        pack, params,
    },
};

/// What scales are like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// Any scale, codes over the full range.
    Random,
    /// Powers of two, so that many results lie half-way between two codes; codes over the full range.
    Powers,
    /// Small sums, and scales a few steps of `f32` around those for which they lie half-way: there the order in which a
    /// kernel multiplies its scales shows.
    Halves,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Random, Self::Powers, Self::Halves];
}

/// A tensor of codes.
#[derive(Debug, Clone)]
pub struct Drawn {
    pub codes: Vec<i32>,
    pub dims: Vec<usize>,
    pub params: QParams,
}

impl Drawn {
    pub fn view(&self) -> Codes<'_> {
        Codes { codes: &self.codes, dims: &self.dims, params: self.params }
    }

    pub fn tensor(&self) -> Tensor {
        pack::pack(self.params.dtype, &self.dims, &self.codes).expect("codes of the type")
    }
}

/// A tensor of codes with parameters for each channel.
#[derive(Debug, Clone)]
pub struct DrawnWeight {
    pub codes: Vec<i32>,
    pub dims: Vec<usize>,
    pub dtype: DType,
    pub scales: Vec<f32>,
    pub zero_points: Vec<i32>,
    /// The dims of scales and zero points where they are many.
    pub channel_dims: Vec<usize>,
}

impl DrawnWeight {
    pub fn view(&self) -> Weight<'_> {
        Weight { codes: &self.codes, dims: &self.dims, scales: &self.scales, zero_points: &self.zero_points }
    }

    pub fn tensor(&self) -> Tensor {
        pack::pack(self.dtype, &self.dims, &self.codes).expect("codes of the type")
    }

    /// Parameters for each column of each matrix, in the form that `QLinearMatMul` takes.
    pub fn by_column(mut self) -> Self {
        if let [batch @ .., _, n] = &self.dims[..]
            && !batch.is_empty()
        {
            self.channel_dims = batch.iter().copied().chain([1, *n]).collect();
        }
        self
    }

    /// As many zero points as scales.
    pub fn with_all_zero_points(mut self) -> Self {
        let n = self.scales.len();
        self.zero_points = (0..n).map(|i| self.zero_points[i % self.zero_points.len()]).collect();
        self
    }
}

/// A source of numbers that is the same in every run.
pub struct Draw(Random);

impl Draw {
    pub fn new(seed: u64) -> Self {
        Self(Random(seed))
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0.below(n)
    }

    pub fn flip(&mut self) -> bool {
        self.below(2) == 1
    }

    /// A number from 0 to 1.
    pub fn uniform(&mut self) -> f32 {
        self.0.uniform()
    }

    pub fn floats(&mut self, count: usize, size: f32) -> Vec<f32> {
        self.0.floats(count, size)
    }

    /// Numbers whose range a kernel finds by itself; half-way points are frequent in all modes but the first.
    pub fn numbers(&mut self, count: usize, mode: Mode) -> Vec<f32> {
        let (size, shift) = (10f32.powf(6.0 * self.uniform() - 3.0), self.uniform());
        let mut one = || match mode {
            Mode::Random => (2.0 * self.uniform() - shift) * size,
            Mode::Powers => self.below(64) as f32 / 8.0 - 3.0,
            Mode::Halves => self.below(511) as f32 / 2.0 - 128.0,
        };
        (0..count).map(|_| one()).collect()
    }

    /// A number of at most two steps of `f32` from `x`.
    pub fn near(&mut self, x: f32) -> f32 {
        f32::from_bits(x.to_bits() + self.below(5) as u32 - 2)
    }

    fn scale(&mut self, mode: Mode) -> f32 {
        let exponent = -9.0 * self.uniform();
        2f32.powf(if mode == Mode::Powers { exponent.round() } else { exponent })
    }

    /// One code; the least and the greatest are frequent.
    fn code(&mut self, dtype: DType) -> i32 {
        let (lo, hi) = params::type_range(dtype).expect("a type of codes");
        match self.below(16) {
            0 => lo,
            1 => hi,
            _ => lo + self.below((hi - lo + 1) as usize) as i32,
        }
    }

    fn codes(&mut self, dtype: DType, count: usize, mode: Mode, zero_point: i32) -> Vec<i32> {
        let (lo, hi) = params::type_range(dtype).expect("a type of codes");
        let all_extreme = self.below(8) == 0;
        let mut one = || match mode {
            Mode::Halves => (zero_point + self.below(9) as i32 - 4).clamp(lo, hi),
            _ if all_extreme => [lo, hi][self.below(2)],
            _ => self.code(dtype),
        };
        (0..count).map(|_| one()).collect()
    }

    pub fn params(&mut self, dtype: DType, mode: Mode) -> QParams {
        QParams { scale: self.scale(mode), zero_point: self.code(dtype), dtype }
    }

    pub fn data(&mut self, dtype: DType, dims: &[usize], mode: Mode) -> Drawn {
        let params = self.params(dtype, mode);
        Drawn { codes: self.codes(dtype, dims.iter().product(), mode, params.zero_point), dims: dims.to_vec(), params }
    }

    /// All codes of a type.
    pub fn every_code(&mut self, dtype: DType) -> Drawn {
        let (lo, hi) = params::type_range(dtype).expect("a type of codes");
        Drawn { codes: (lo..=hi).collect(), dims: vec![256], params: self.params(dtype, Mode::Random) }
    }

    /// A weight with `channels` scales and one or `channels` zero points, in half of the cases those of symmetric
    /// weights.
    pub fn weight(&mut self, dtype: DType, dims: &[usize], channels: usize, mode: Mode) -> DrawnWeight {
        let first = self.scale(mode);
        let scales = (0..channels).map(|i| if i == 0 { first } else { first * self.scale(mode) * 2.0 }).collect();
        let middle = if dtype == DType::Uint8 { 128 } else { 0 };
        let zero_points = match self.below(4) {
            0 | 1 => vec![middle],
            2 => vec![self.code(dtype)],
            _ => (0..channels).map(|_| self.code(dtype)).collect(),
        };
        let codes = self.codes(dtype, dims.iter().product(), mode, zero_points[0]);
        DrawnWeight { codes, dims: dims.to_vec(), dtype, scales, zero_points, channel_dims: vec![channels] }
    }

    pub fn bias(&mut self, count: usize, mode: Mode) -> Vec<i32> {
        let most = if mode == Mode::Halves { 20 } else { 50_000 };
        (0..count).map(|_| self.below(2 * most) as i32 - most as i32).collect()
    }

    /// Parameters for sums of `count` products of `x` and `w`: most sums are inside the range, some beyond.
    pub fn output(&mut self, dtype: DType, x: &Drawn, w: &DrawnWeight, count: usize, mode: Mode) -> QParams {
        let product = x.params.scale * w.scales[0];
        let scale = match mode {
            Mode::Halves => self.near(product * 2.0) / [1.0, 3.0, 5.0][self.below(3)],
            _ => product * 127.0 * (count as f32).sqrt() * 2f32.powf(2.0 * self.uniform() - 1.0),
        };
        let scale = if mode == Mode::Powers { 2f32.powf(scale.log2().round()) } else { scale };
        QParams { scale, zero_point: self.code(dtype), dtype }
    }

    /// Two tensors and an output whose scales stand in the given ratios, or nearly so, in [`Mode::Halves`].
    pub fn related(&mut self, a: Drawn, b: Drawn, dtype: DType, mode: Mode, ratios: &[f32]) -> (Drawn, Drawn, QParams) {
        let y = self.params(dtype, mode);
        let mut again = |x: Drawn| {
            let params = self.params(dtype, mode);
            let ratio = ratios[self.below(ratios.len())];
            let scale = if mode == Mode::Halves { self.near(y.scale * ratio) } else { params.scale };
            Drawn { params: QParams { scale, ..params }, ..x }
        };
        (again(a), again(b), y)
    }
}
