//! What rounding a weight does to the layer that multiplies by it.

use rayon::prelude::*;

use super::{
    Algorithm,
    blocks::{Layer, Numbers32, Part},
    factor::Factor,
    moments::{Layout, cost, with_shares},
};
use crate::{
    error::{Error, Result},
    ir::Tensor,
    quant::pack,
};

/// Weights of some of a layer's outputs.
pub struct SomeOutputs(Vec<f32>);

impl SomeOutputs {
    /// Of so many at most, spread evenly. Errors: the weight is not of floats, or has another count than the layout asks for.
    pub fn of(weight: &Tensor, layout: Layout, most: usize) -> Result<Self> {
        let numbers = Numbers32::of(weight, layout.outs * layout.depth)?;
        let some = most.min(layout.outs);
        let out = |i: usize| i * layout.outs / some;
        Ok(Self((0..some).flat_map(|i| numbers.rows(layout, out(i)..out(i) + 1)).collect()))
    }

    /// Multiplies each place of the depth by a factor.
    pub fn multiply(&mut self, by: &[f32]) {
        for row in self.0.chunks_exact_mut(by.len().max(1)) {
            row.iter_mut().zip(by).for_each(|(w, f)| *w *= f);
        }
    }
}

impl Layer<'_> {
    /// The weight with the number in each element's place that its code stands for.
    pub fn round_trip(&self, weight: &Tensor, algorithm: &Algorithm) -> Result<Tensor> {
        let (layout, blocks) = (self.layout, self.blocks());
        let rounded = self.rounded(weight, algorithm, !layout.depth_first)?;
        let (codes, scales) = (pack::unpack(&rounded.codes)?, rounded.scales.to_f32()?);
        let zeros = rounded.zeros.as_ref().map(pack::unpack).transpose()?;
        let of_block = |place: usize| {
            let (out, j) = layout.find(place);
            let b = j / self.block;
            if layout.depth_first { b * layout.outs + out } else { out * blocks + b }
        };
        let real = |(place, &code): (usize, &i32)| {
            let b = of_block(place);
            (code - zeros.as_ref().map_or(0, |z| z[b])) as f32 * scales[b]
        };
        let real: Vec<f32> = codes.par_iter().enumerate().map(real).collect();
        Ok(Tensor::from_f32(weight.dims(), &real))
    }

    /// The noise of the layer's output, as a share of its power, where its weight is rounded so: `e'Ge / w'Gw` with the second
    /// moments `G` of what the layer reads, or without where that is not known.
    pub fn noise(&self, some: &SomeOutputs, algorithm: &Algorithm) -> Result<f64> {
        Ok(self.of_both(self.sums(some, algorithm)?))
    }

    /// The same for either half of the data.
    pub fn noise_of_halves(&self, some: &SomeOutputs, algorithm: &Algorithm) -> Result<[f64; 2]> {
        Ok(self.sums(some, algorithm)?.map(|[noise, signal]| ratio(noise, signal)))
    }

    fn sums(&self, some: &SomeOutputs, algorithm: &Algorithm) -> Result<[[f64; 2]; 2]> {
        let round = algorithm.blocks.ok_or_else(|| Error::bug(format!("{} has no blocks", algorithm.name)))?;
        let factors = self.halves().filter(|_| round.solves).and_then(Factor::of_halves);
        self.errors(some, |weights| {
            let found = (round.part)(&Part { layer: self, weights, factors: factors.as_ref() })?;
            let (depth, each) = (self.layout.depth, self.blocks());
            let real = |(i, &code): (usize, &i32)| {
                let b = i / depth * each + i % depth / self.block;
                (code - found.zeros[b]) as f32 * found.scales[b]
            };
            Ok(found.codes.iter().enumerate().map(real).collect())
        })
    }

    /// [`Self::noise`] where the weight is stored as float16.
    pub fn noise_in_half(&self, some: &SomeOutputs) -> Result<f64> {
        let half = |weights: &[f32]| Ok(weights.iter().map(|&w| half::f16::from_f32(w).to_f32()).collect());
        Ok(self.of_both(self.errors(some, half)?))
    }

    /// The share of noise in both halves of the data together.
    fn of_both(&self, [a, b]: [[f64; 2]; 2]) -> f64 {
        let shares = self.halves().map(with_shares);
        let [one, other] = shares.map_or([1.0, 0.0], |s| s.map(|(_, share)| f64::from(share)));
        ratio(one * a[0] + other * b[0], one * a[1] + other * b[1])
    }

    /// Noise and signal, added up over the outputs, on either half of the data; twice the weight's own where nothing is known.
    fn errors(&self, some: &SomeOutputs, real: impl Fn(&[f32]) -> Result<Vec<f32>> + Sync) -> Result<[[f64; 2]; 2]> {
        let of_output = |weights: &[f32]| -> Result<[[f64; 2]; 2]> {
            let errors: Vec<f32> = real(weights)?.iter().zip(weights).map(|(r, w)| w - r).collect();
            let both = [&errors[..], weights];
            let Some(halves) = self.halves() else { return Ok([both.map(squares); 2]) };
            Ok(halves.map(|half| {
                let slopes = half.slopes(&both);
                [0, 1].map(|k| cost(both[k], &slopes[k]).max(0.0))
            }))
        };
        let sums: Vec<[[f64; 2]; 2]> =
            some.0.par_chunks(self.layout.depth.max(1)).map(of_output).collect::<Result<_>>()?;
        Ok([0, 1].map(|half| [0, 1].map(|k| sums.iter().map(|s| s[half][k]).sum())))
    }
}

fn ratio(noise: f64, signal: f64) -> f64 {
    if signal > 0.0 { noise / signal } else { 0.0 }
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::DType,
        weights::{Grid, by_name},
    };

    fn noise(i: usize) -> f32 {
        ((i as f32 + 1.0) * 12.9898).sin()
    }

    #[test]
    fn the_same_by_hand() {
        let (outs, depth) = (6, 40);
        for depth_first in [false, true] {
            let layout = Layout { outs, depth, groups: 1, depth_first };
            let values: Vec<f32> = (0..outs * depth).map(noise).collect();
            let dims = if depth_first { [depth, outs] } else { [outs, depth] };
            let weight = Tensor::from_f32(&dims, &values);
            let mut before = f64::INFINITY;
            for dtype in [DType::Uint2, DType::Uint4, DType::Uint8] {
                let layer = Layer::new(layout, 16, Grid::of(dtype, false).unwrap(), None);
                let rtn = by_name("rtn").unwrap();
                let real = layer.round_trip(&weight, rtn).unwrap();
                assert_eq!(real.dims(), weight.dims());
                let off: f64 =
                    squares(&real.to_f32().unwrap().iter().zip(&values).map(|(a, b)| a - b).collect::<Vec<_>>());
                let all = SomeOutputs::of(&weight, layout, 100).unwrap();
                let share = layer.noise(&all, rtn).unwrap();
                assert!((share - off / squares(&values)).abs() < 1e-9, "{dtype}: {share}");
                // A sixteenth of the noise for each two bits more, about.
                assert!(share > 0.0 && share < before / 4.0, "{dtype}: {share} after {before}");
                before = share;
            }
            let layer = Layer::new(layout, 16, Grid::of(DType::Uint8, false).unwrap(), None);
            let half = layer.noise_in_half(&SomeOutputs::of(&weight, layout, 3).unwrap()).unwrap();
            assert!(half > 0.0 && half < before / 10.0, "{half}");
        }
    }
}
