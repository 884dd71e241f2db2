//! Sums that x86 processors without VNNI compute with 16 bits: their instruction `vpmaddubsw` multiplies unsigned by signed
//! codes and adds the products of two neighbours, and a sum beyond 16 bits becomes the nearest one within.
//!
//! 255 · 127 twice is 64770, and 32767 is what comes out: nearly half of the sum is lost. Whether that can happen depends
//! on the weights alone, since activations may be anything: [`pair_sums`] says how far two weights can get, and
//! [`without_saturation`] rounds weights so that no pair gets too far, each channel with as fine a scale as that allows.
//!
//! The definition is the Intel Software Developer's Manual's (PMADDUBSW). Which kernels use the instruction, and which
//! elements are neighbours, are facts of a runtime and not known here.

use super::{
    granularity::{Granularity, QuantizedWeight, channel_ranges, quantize_with},
    pack,
    params::{QParams, QuantTarget, Range},
};
use crate::{
    error::{Error, Result},
    ir::DType,
};

/// The codes of an activation of type uint8, and of one of type int8 that the runtime shifts by 128.
pub const ANY_CODE: (i32, i32) = (0, 255);

const WORD: (i32, i32) = (i16::MIN as i32, i16::MAX as i32);

/// Two neighbours' products, added with 16 bits.
pub fn add_pair(a: [u8; 2], w: [i8; 2]) -> i16 {
    let sum = i32::from(a[0]) * i32::from(w[0]) + i32::from(a[1]) * i32::from(w[1]);
    sum.clamp(WORD.0, WORD.1) as i16
}

/// The product of two vectors of codes as the instruction's users compute it: pairs with 16 bits, their sum with 32.
pub fn dot(a: &[u8], w: &[i8]) -> i32 {
    let pair = |a: &[u8], w: &[i8]| match (a, w) {
        (&[a0, a1], &[w0, w1]) => add_pair([a0, a1], [w0, w1]),
        (&[a0], &[w0]) => add_pair([a0, 0], [w0, 0]),
        _ => 0,
    };
    a.chunks(2).zip(w.chunks(2)).fold(0i32, |sum, (a, w)| sum.wrapping_add(pair(a, w).into()))
}

/// The least and the greatest sum that two weights can give with activations from `lo` to `hi`.
pub fn pair_sums(w: [i32; 2], (lo, hi): (i32, i32)) -> (i32, i32) {
    let least = |w: i32| (w * lo).min(w * hi);
    let most = |w: i32| (w * lo).max(w * hi);
    (least(w[0]) + least(w[1]), most(w[0]) + most(w[1]))
}

/// Whether two weights can give a sum that 16 bits do not hold.
pub fn can_saturate(w: [i32; 2], activation: (i32, i32)) -> bool {
    let (least, most) = pair_sums(w, activation);
    least < WORD.0 || most > WORD.1
}

/// Which elements of a weight are neighbours.
#[derive(Debug, Clone)]
pub struct Pairs {
    /// Where the elements of one product stand, from its first.
    depth: Vec<usize>,
    /// Where the products' first elements stand.
    products: Vec<usize>,
}

impl Pairs {
    /// The neighbours of a weight of this shape, row-major, whose products add along `axes`: the elements in the order of
    /// these axes, the last one fastest, are added two by two. An odd last one is alone.
    pub fn along(dims: &[usize], axes: &[usize]) -> Result<Self> {
        let other: Vec<usize> = (0..dims.len()).filter(|a| !axes.contains(a)).collect();
        if axes.is_empty() || other.len() + axes.len() != dims.len() {
            return Err(Error::config(format!("no pairs along axes {axes:?} of a weight of shape {dims:?}"))
                .help("name each axis that the products add along, once"));
        }
        if dims.contains(&0) {
            return Ok(Self { depth: Vec::new(), products: Vec::new() });
        }
        Ok(Self { depth: places(dims, axes), products: places(dims, &other) })
    }

    /// Where the pairs stand.
    fn each(&self) -> impl Iterator<Item = [usize; 2]> {
        let pairs = self.depth.chunks_exact(2);
        pairs.flat_map(|p| self.products.iter().map(move |first| [first + p[0], first + p[1]]))
    }

    /// For each of so many elements its neighbour; `None` for those that are alone.
    pub fn partners(&self, elements: usize) -> Vec<Option<usize>> {
        let mut partners = vec![None; elements];
        for [i, j] in self.each().filter(|pair| pair.iter().all(|&at| at < elements)) {
            (partners[i], partners[j]) = (Some(j), Some(i));
        }
        partners
    }

    /// For each channel, whether a pair of it can saturate.
    pub fn saturating(&self, weight: &QuantizedWeight) -> Result<Vec<bool>> {
        self.saturating_with(weight, ANY_CODE)
    }

    /// As [`Self::saturating`], with data of codes between these only.
    pub fn saturating_with(&self, weight: &QuantizedWeight, data: (i32, i32)) -> Result<Vec<bool>> {
        let (channels, inner) = Granularity::from_axis(weight.axis).layout(weight.values.dims())?;
        let codes = pack::unpack(&weight.values)?;
        let code = |i: usize| codes.get(i).copied().unwrap_or(0);
        let mut found = vec![false; channels];
        for [i, j] in self.each() {
            if can_saturate([code(i), code(j)], data) {
                // Both are of one channel, but where the axis of the scales is one that the products add along.
                found[i / inner % channels] = true;
                found[j / inner % channels] = true;
            }
        }
        Ok(found)
    }
}

/// Where the elements stand that these axes count through, row-major, the last axis fastest.
fn places(dims: &[usize], axes: &[usize]) -> Vec<usize> {
    axes.iter().fold(vec![0], |places, &axis| {
        let stride: usize = dims[axis + 1..].iter().product();
        places.iter().flat_map(|at| (0..dims[axis]).map(move |i| at + i * stride)).collect()
    })
}

/// How fine the search for a channel's width is: from the least, which cannot saturate, to all codes.
const STEPS: u32 = 512;

/// Rounds a weight again where pairs of it can saturate: channels that have such a pair are spread over fewer codes, as
/// many as can be, and the others stay as they are. Only weights of type int8 are multiplied by the instruction.
pub fn without_saturation(
    values: &[f32],
    target: QuantTarget,
    rounded: QuantizedWeight,
    pairs: &Pairs,
) -> Result<QuantizedWeight> {
    let over = pairs.saturating(&rounded)?;
    if target.dtype != DType::Int8 || !over.contains(&true) {
        return Ok(rounded);
    }
    let (dims, granularity) = (rounded.values.dims().to_vec(), Granularity::from_axis(rounded.axis));
    let ranges = channel_ranges(values, &dims, granularity)?;
    let with = |steps: &dyn Fn(usize) -> u32| {
        let params = rounded.params.iter().enumerate();
        let params = params.map(|(i, p)| if over[i] { narrow(ranges[i], target.symmetric, steps(i)) } else { *p });
        quantize_with(values, &dims, granularity, target, params.collect())
    };
    // For each channel a width that does, and one that does not. Rounding makes neighbouring widths differ now and then, so
    // this may miss the very widest; what it finds is tried.
    let mut bounds = vec![(0, STEPS); over.len()];
    for _ in 0..STEPS.ilog2() {
        let tried = with(&|i| u32::midpoint(bounds[i].0, bounds[i].1))?;
        for (bound, saturates) in bounds.iter_mut().zip(pairs.saturating(&tried)?) {
            let middle = u32::midpoint(bound.0, bound.1);
            *(if saturates { &mut bound.1 } else { &mut bound.0 }) = middle;
        }
    }
    let narrowed = with(&|i| bounds[i].0)?;
    match pairs.saturating(&narrowed)?.contains(&true) {
        true => Err(Error::bug("a weight of codes up to 64 saturates")),
        false => Ok(narrowed),
    }
}

/// The parameters that spread a range over int8 codes up to about 64 (0 steps) or up to all.
fn narrow(range: Range, symmetric: bool, steps: u32) -> QParams {
    let share = f64::from(steps) / f64::from(STEPS);
    let range = if symmetric { range.mirrored() } else { range.with_zero() };
    // Rounding the zero point may move the codes of an end by a half.
    let width = if symmetric { 64.0 + 63.0 * share } else { 63.5 + 64.0 * share };
    let (lo, hi) = (f64::from(range.lo), f64::from(range.hi));
    let scale = (hi - lo) / (2.0 * width);
    let zero_point = if symmetric { 0.0 } else { -width - lo / scale };
    QParams { scale: scale as f32, zero_point: zero_point.round_ties_even() as i32, dtype: DType::Int8 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ir::Tensor, quant::quantize_weight};

    /// The product without saturation.
    fn exact(a: &[u8], w: &[i8]) -> i32 {
        a.iter().zip(w).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum()
    }

    #[test]
    fn the_definition() {
        assert_eq!(add_pair([255, 255], [127, 127]), 32767);
        assert_eq!(add_pair([255, 255], [-128, -128]), -32768);
        assert_eq!(add_pair([255, 255], [127, -128]), -255);
        assert_eq!(add_pair([255, 255], [64, 64]), 32640);
        assert_eq!(dot(&[255, 255, 255], &[127, 127, 127]), 32767 + 255 * 127);
        assert_eq!(dot(&[], &[]), 0);
        assert!(!can_saturate([64, 64], ANY_CODE) && !can_saturate([-64, -64], ANY_CODE));
        assert!(can_saturate([64, 65], ANY_CODE) && can_saturate([-64, -65], ANY_CODE));
        assert!(!can_saturate([127, 1], ANY_CODE) && !can_saturate([-128, 127], ANY_CODE));
        assert!(!can_saturate([127, 127], (0, 127)) && can_saturate([127, 127], (0, 255)));
    }

    #[test]
    fn neighbours() {
        let pairs = |dims: &[usize], axes: &[usize]| {
            let mut p: Vec<_> = Pairs::along(dims, axes).unwrap().each().collect();
            p.sort_unstable();
            p
        };
        assert_eq!(pairs(&[3, 2], &[0]), [[0, 2], [1, 3]]);
        assert_eq!(pairs(&[2, 3], &[1]), [[0, 1], [3, 4]]);
        // One output, three channels, two taps: in the order of the depth 0 2 4 1 3 5.
        assert_eq!(pairs(&[1, 3, 1, 2], &[2, 3, 1]), [[0, 2], [3, 5], [4, 1]]);
        assert_eq!(pairs(&[2, 1], &[1]), [[0; 2]; 0]);
        assert_eq!(pairs(&[0, 1 << 60], &[1]), [[0; 2]; 0]);
        for axes in [&[2][..], &[0, 0], &[]] {
            assert!(Pairs::along(&[2, 2], axes).is_err(), "{axes:?}");
        }
    }

    /// The activations that drive a product of these weights the furthest up, and down.
    fn worst(w: &[i8]) -> [Vec<u8>; 2] {
        [1, -1].map(|sign| w.iter().map(|&w| if i32::from(w) * sign > 0 { 255 } else { 0 }).collect())
    }

    /// The columns of a `[depth, outputs]` weight.
    fn columns(q: &QuantizedWeight) -> Vec<Vec<i8>> {
        let (codes, outputs) = (pack::unpack(&q.values).unwrap(), q.values.dims()[1]);
        (0..outputs).map(|n| codes.iter().skip(n).step_by(outputs).map(|&c| c as i8).collect()).collect()
    }

    #[test]
    fn only_what_saturates_is_narrowed() {
        // Columns: neighbours of one sign, neighbours of two signs, an outlier beside nothing, neighbours at an odd place.
        #[rustfmt::skip]
        let w = [
            1.0,  1.0, 0.0, 0.0,
            1.0, -1.0, 1.0, 1.0,
            0.0,  0.0, 0.0, 1.0,
            0.1,  0.1, 0.1, 0.0,
        ];
        let t = Tensor::from_f32(&[4, 4], &w);
        let pairs = Pairs::along(&[4, 4], &[0]).unwrap();
        let plain = quantize_weight(&t, DType::Int8, Some(1), true, false).unwrap();
        assert_eq!(pairs.saturating(&plain).unwrap(), [true, false, false, false]);
        let q = without_saturation(&w, QuantTarget::WEIGHT, plain.clone(), &pairs).unwrap();
        assert_eq!(q.scales()[1..], plain.scales()[1..]);
        assert_eq!(columns(&q)[0], [64, 64, 0, 6]);
        let q =
            without_saturation(&w, QuantTarget { dtype: DType::Uint8, ..QuantTarget::WEIGHT }, plain.clone(), &pairs);
        assert!(q.unwrap().values.same_content(&plain.values));
    }

    proptest! {
        #[test]
        fn pair_sums_are_tight(w: [i8; 2], ends: [u8; 2], at in prop::collection::vec(0f64..=1.0, 2)) {
            let (lo, hi) = (i32::from(ends[0].min(ends[1])), i32::from(ends[0].max(ends[1])));
            let codes = w.map(i32::from);
            let (least, most) = pair_sums(codes, (lo, hi));
            let sum = |a: [i32; 2]| a[0] * codes[0] + a[1] * codes[1];
            let corners = [[lo, lo], [lo, hi], [hi, lo], [hi, hi]];
            prop_assert_eq!(corners.iter().map(|&a| sum(a)).min(), Some(least));
            prop_assert_eq!(corners.iter().map(|&a| sum(a)).max(), Some(most));
            let inside = [0, 1].map(|i| lo + (at[i] * f64::from(hi - lo)) as i32);
            prop_assert!((least..=most).contains(&sum(inside)));
            // It says so exactly where some activations make the instruction's sum another than the true one.
            let differs = corners.iter().any(|&a| i32::from(add_pair(a.map(|a| a as u8), w)) != sum(a));
            prop_assert_eq!(can_saturate(codes, (lo, hi)), differs);
        }

        #[test]
        fn narrowed_weights_are_exact(
            w in prop::collection::vec(-1f32..1.0, 7 * 3), lean in -1f32..1.0, a in prop::collection::vec(any::<u8>(), 7),
            symmetric: bool, per_channel: bool,
        ) {
            let w: Vec<f32> = w.iter().map(|w| w + lean).collect();
            let (t, pairs) = (Tensor::from_f32(&[7, 3], &w), Pairs::along(&[7, 3], &[0]).unwrap());
            let target = QuantTarget { symmetric, ..QuantTarget::WEIGHT };
            let plain = quantize_weight(&t, DType::Int8, per_channel.then_some(1), symmetric, false).unwrap();
            for column in columns(&plain) {
                let differs = worst(&column).iter().any(|a| dot(a, &column) != exact(a, &column));
                let codes: Vec<i32> = column.iter().map(|&c| c.into()).collect();
                prop_assert_eq!(differs, codes.chunks_exact(2).any(|p| can_saturate([p[0], p[1]], ANY_CODE)));
            }
            let q = without_saturation(&w, target, plain.clone(), &pairs).unwrap();
            for column in columns(&q) {
                for a in worst(&column).iter().chain([&a, &vec![255; 7]]) {
                    prop_assert_eq!(dot(a, &column), exact(a, &column));
                }
            }
            // Never coarser than 7 bits would be, and the real numbers are as near as the scale says.
            let reduced = quantize_weight(&t, DType::Int8, per_channel.then_some(1), symmetric, true).unwrap();
            for ((new, old), least) in q.scales().iter().zip(plain.scales()).zip(reduced.scales()) {
                prop_assert!(*new >= old && *new <= least * 1.01, "{old} {new} {least}");
            }
            for (i, (real, w)) in q.dequantized().unwrap().iter().zip(&w).enumerate() {
                let scale = q.params[i % q.params.len()].scale;
                prop_assert!((real - w).abs() <= scale * 1.01, "{real} {w} {scale}");
            }
        }
    }
}
