//! Weights of two layers side by side.

use super::{WeightDifference, facts::weight_index, side::Side};
use crate::{
    error::Result,
    ir::{NodeId, Tensor},
    quant::error::sqnr_db,
};

/// How far the weights of two layers are apart; `None` where they are the same, or there are none.
pub(super) fn difference(a: &Side, x: NodeId, b: &Side, y: NodeId) -> Result<Option<WeightDifference>> {
    let (Some((_, w)), Some((_, v))) = (weight_index(a, x), weight_index(b, y)) else { return Ok(None) };
    let apart = WeightDifference { sqnr: None, max: None };
    let Some((signal, noise, max)) = compare(w, v)? else { return Ok(Some(apart)) };
    let differs = noise > 0.0 || max > 0.0;
    let sqnr = sqnr_db(signal, noise);
    Ok(differs.then(|| WeightDifference { sqnr: sqnr.is_finite().then_some(sqnr), max: Some(max) }))
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
    let square = from.len() == 2 && from[0] == from[1] && direct.1 > direct.0 / 10.0;
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
