//! Weights of two layers side by side.

use super::{
    Scaled, WeightDifference,
    facts::{cone, weight_index},
    side::Side,
};
use crate::{
    error::Result,
    ir::{NodeId, Tensor, ValueId},
    quant::error::sqnr_db,
};

/// Below this, channels may have been scaled, dB.
const TRIED: f64 = 35.0;
/// What is left but for that must be so much better, and so good in all, dB.
const BETTER: f64 = 6.0;
const SCALED: f64 = 15.0;

/// Sums in another order leave so much, dB.
const MOST: f64 = 150.0;

/// How far the weights of two layers are apart; `None` where they are the same, or there are none.
pub(super) fn difference(a: &Side, x: NodeId, b: &Side, y: NodeId) -> Result<Option<WeightDifference>> {
    let (Some((_, w)), Some((_, v))) = (weight_index(a, x), weight_index(b, y)) else { return Ok(None) };
    if same_codes(a, x, b, y) {
        return Ok(None);
    }
    let apart = WeightDifference { sqnr: None, max: None, scaled: Scaled::No };
    let Some((signal, noise, max)) = compare(w, v)? else { return Ok(Some(apart)) };
    if noise == 0.0 && max == 0.0 {
        return Ok(None);
    }
    let sqnr = sqnr_db(signal, noise);
    let scaled = if sqnr < TRIED { but_for_scales(w, v)? } else { None };
    let scaled = scaled.filter(|(left, _)| *left > SCALED && *left > sqnr + BETTER);
    let (sqnr, scaled) = scaled.unwrap_or((sqnr, Scaled::No));
    Ok(Some(WeightDifference { sqnr: sqnr.is_finite().then_some(sqnr), max: Some(max), scaled }))
}

/// Below this, two biases or other small constants differ by more than rounding, dB.
const ROUNDED: f64 = 30.0;

/// Constants of two layers other than their weights that differ, as biases, statistics, and indices: name, before, after.
pub(super) fn others(a: &Side, x: NodeId, b: &Side, y: NodeId) -> Result<Vec<(String, String, String)>> {
    let weights = [weight_index(a, x), weight_index(b, y)].map(|found| found.map(|(i, _)| i));
    let (m, n) = (a.float.node(x), b.float.node(y));
    let mut found = Vec::new();
    for i in (0..m.inputs().len().max(n.inputs().len())).filter(|&i| weights != [Some(i); 2]) {
        let (v, w) = (a.float.constant_input(x, i), b.float.constant_input(y, i));
        let given = (m.input(i).is_some(), n.input(i).is_some());
        let differs = match (v, w) {
            (Some(v), Some(w)) => differ(v, w)?,
            // What is computed in one of them is another matter.
            _ => (v.is_some() || w.is_some()) && given.0 != given.1,
        };
        if differs {
            found.push((format!("input {i}"), in_words(v)?, in_words(w)?));
        }
    }
    Ok(found)
}

fn differ(v: &Tensor, w: &Tensor) -> Result<bool> {
    if !(v.dtype().is_float() && w.dtype().is_float()) {
        return Ok(v.dtype() != w.dtype() || !v.same_content(w) && v.dims() == w.dims());
    }
    if v.len() != w.len() {
        return Ok(true);
    }
    let (x, y) = (v.to_f32()?, w.to_f32()?);
    let (mut signal, mut noise) = (0.0, 0.0);
    for (x, y) in x.iter().zip(&y) {
        signal += f64::from(*x).powi(2);
        noise += f64::from(x - y).powi(2);
    }
    Ok(noise > 0.0 && sqnr_db(signal, noise) < ROUNDED)
}

/// The first numbers of a constant.
fn in_words(t: Option<&Tensor>) -> Result<String> {
    const TOLD: usize = 3;
    let Some(t) = t else { return Ok("not given".to_owned()) };
    let numbers: Vec<String> = match t.dtype() {
        d if d.is_float() => t.to_f32()?.iter().take(TOLD).map(|x| super::facts::short(*x)).collect(),
        d if d.is_integer() => t.to_i64()?.iter().take(TOLD).map(ToString::to_string).collect(),
        d => return Ok(format!("{} of {d}", t.len())),
    };
    let more = if t.len() > TOLD { ", …" } else { "" };
    Ok(format!("[{}{more}]", numbers.join(", ")))
}

/// Whether two layers read the same constants through the same nodes: then nothing need be computed of them.
fn same_codes(a: &Side, x: NodeId, b: &Side, y: NodeId) -> bool {
    let (Some(m), Some(n)) = (a.raised_node(x), b.raised_node(y)) else { return false };
    let alike = |m: NodeId, n: NodeId| {
        let (m, n) = (a.raised.node(m), b.raised.node(n));
        let numbers = ["axis", "block_size", "bits", "K", "N", "quantize_axis", "gather_axis", "to", "transB"];
        m.op_type == n.op_type && m.domain == n.domain && numbers.iter().all(|name| m.int(name) == n.int(name))
    };
    let (read, other) = (a.raised.node(m).inputs(), b.raised.node(n).inputs());
    let same = |(v, w): (&Option<ValueId>, &Option<ValueId>)| {
        let (Some(v), Some(w)) = (*v, *w) else { return v.is_none() && w.is_none() };
        match (cone(&a.raised, v), cone(&b.raised, w)) {
            (Some((found, makers)), Some((others, hosts))) => {
                let tensors = |(&v, &w): (&ValueId, &ValueId)| {
                    let (v, w) = (a.raised.value(v).constant(), b.raised.value(w).constant());
                    v.zip(w).is_some_and(|(v, w)| v.same_content(w))
                };
                found.len() == others.len()
                    && makers.len() == hosts.len()
                    && makers.iter().zip(&hosts).all(|(&m, &n)| alike(m, n))
                    && found.iter().zip(&others).all(tensors)
            }
            (None, None) => true,
            _ => false,
        }
    };
    alike(m, n) && read.len() == other.len() && read.iter().zip(other).all(same)
}

/// Signal to noise that is left where the first may be multiplied by a number, or each of its channels by one of its own, dB: what
/// folds a scale or a batch normalization does that.
fn but_for_scales(a: &Tensor, b: &Tensor) -> Result<Option<(f64, Scaled)>> {
    if a.dims() != b.dims() {
        return Ok(None);
    }
    let (x, y) = (a.to_f32()?, b.to_f32()?);
    let (xx, xy, yy) = x.iter().zip(&y).fold((0.0, 0.0, 0.0), |s, (&x, &y)| {
        let (x, y) = (f64::from(x), f64::from(y));
        (s.0 + x * x, s.1 + x * y, s.2 + y * y)
    });
    let whole = sqnr_db(yy, if xx > 0.0 { (yy - xy * xy / xx).max(0.0) } else { yy }).min(MOST);
    let mut best = (whole > SCALED).then_some((whole, Scaled::By((xy / xx) as f32)));
    for axis in (0..a.rank().min(2)).filter(|_| a.rank() > 1) {
        let channels = a.dims()[axis];
        let inner: usize = a.dims()[axis + 1..].iter().product();
        if channels < 2 || x.len() / channels < 4 {
            continue;
        }
        let mut sums = vec![(0.0, 0.0, 0.0); channels];
        for (i, (&x, &y)) in x.iter().zip(&y).enumerate() {
            let (x, y, sum) = (f64::from(x), f64::from(y), &mut sums[i / inner % channels]);
            *sum = (sum.0 + x * x, sum.1 + x * y, sum.2 + y * y);
        }
        let left = |&(xx, xy, yy): &(f64, f64, f64)| if xx > 0.0 { (yy - xy * xy / xx).max(0.0) } else { yy };
        let (signal, noise) = (sums.iter().map(|s| s.2).sum::<f64>(), sums.iter().map(left).sum::<f64>());
        let sqnr = sqnr_db(signal, noise).min(MOST);
        // A number for each channel must say more than one for all.
        if best.is_none_or(|(least, _)| sqnr > least + BETTER) {
            best = Some((sqnr, Scaled::Channels));
        }
    }
    Ok(best)
}

/// Energy of the first, energy of the difference, greatest difference; `None` where they have other shapes. Matrices that are
/// the transposes of each other have the same.
pub(super) fn compare(a: &Tensor, b: &Tensor) -> Result<Option<(f64, f64, f64)>> {
    if a.same_content(b) {
        return Ok(Some((1.0, 0.0, 0.0)));
    }
    let matrix = |t: &Tensor| -> Vec<usize> { t.dims().iter().copied().filter(|&d| d != 1).collect() };
    let (from, to) = (matrix(a), matrix(b));
    let reversed: Vec<usize> = to.iter().rev().copied().collect();
    let turned = from.len() == 2 && from != to && from == reversed;
    if from != to && !turned {
        return Ok(None);
    }
    let (x, y) = (a.to_f32()?, b.to_f32()?);
    let direct = sums(&x, &y, |i| i);
    // A square matrix does not tell whether it was turned.
    let square = from.len() == 2 && from[0] == from[1] && direct.1 > direct.0 / 1000.0;
    if !(turned || square) {
        return Ok(Some(direct));
    }
    let columns = from[1];
    let other = sums(&x, &y, |i| i % columns * from[0] + i / columns);
    Ok(Some(if turned || other.1 < direct.1 { other } else { direct }))
}

fn sums(x: &[f32], y: &[f32], at: impl Fn(usize) -> usize) -> (f64, f64, f64) {
    let mut sums = (0.0, 0.0, 0.0f64);
    for (i, &x) in x.iter().enumerate() {
        let d = f64::from(x) - f64::from(y[at(i)]);
        sums = (sums.0 + f64::from(x) * f64::from(x), sums.1 + d * d, sums.2.max(d.abs()));
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dims: &[usize], of: impl Fn(usize) -> f32) -> Tensor {
        Tensor::from_f32(dims, &(0..dims.iter().product()).map(of).collect::<Vec<_>>())
    }

    #[test]
    fn turned_matrices_are_the_same() {
        let a = tensor(&[2, 3], |i| i as f32);
        let b = tensor(&[3, 2], |i| (i % 2 * 3 + i / 2) as f32);
        assert_eq!(compare(&a, &b).unwrap().unwrap().1, 0.0);
        let square = tensor(&[2, 2], |i| [1.0, 2.0, 3.0, 4.0][i]);
        let turned = tensor(&[2, 2], |i| [1.0, 3.0, 2.0, 4.0][i]);
        assert_eq!(compare(&square, &turned).unwrap().unwrap().1, 0.0);
        assert_eq!(compare(&a, &square).unwrap(), None);
    }

    #[test]
    fn scales_of_channels_are_seen() {
        let a = tensor(&[4, 3, 3, 3], |i| ((i * 7919) % 31) as f32 - 15.0);
        let b = tensor(&[4, 3, 3, 3], |i| (((i * 7919) % 31) as f32 - 15.0) * [0.1, 9.0, -2.0, 30.0][i / 27]);
        assert!(but_for_scales(&a, &b).unwrap().unwrap().0 > 100.0);
        let other = tensor(&[4, 3, 3, 3], |i| ((i * 104_729) % 37) as f32 - 18.0);
        assert!(but_for_scales(&a, &other).unwrap().unwrap().0 < 10.0);
        let half = tensor(&[108], |i| (((i * 7919) % 31) as f32 - 15.0) * 0.5);
        let whole = tensor(&[108], |i| ((i * 7919) % 31) as f32 - 15.0);
        assert_eq!(but_for_scales(&whole, &half).unwrap().unwrap().1, Scaled::By(0.5));
    }
}
