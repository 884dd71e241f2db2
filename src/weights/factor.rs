//! Second moments solved once for all outputs of a layer: what an error at one place is best made up for with at others.

use rayon::prelude::*;

use super::moments::{Half, with_shares};

/// `L^-1` of the Cholesky factor of the moments, with the places in the order of their diagonal: the greatest last.
pub struct Factor {
    /// Places of the depth.
    pub order: Vec<usize>,
    /// Rows of the lower triangle: row `p` has `p + 1` numbers.
    rows: Vec<Vec<f32>>,
}

/// What is added to the diagonal, as a share of its mean: Frantar et al., "GPTQ" (2022), section 3.
const DAMPING: f64 = 0.01;

impl Factor {
    /// Of halves of the data with their shares; `None` where the moments are not those of any data.
    pub fn of(halves: &[(&Half, f32)]) -> Option<Self> {
        let size = halves.first()?.0.gram.diagonal().count();
        let at = |i: usize, j: usize| -> f64 {
            halves.iter().map(|(h, share)| f64::from(h.gram.row(i)[j]) * f64::from(*share)).sum()
        };
        let diagonal: Vec<f64> = (0..size).map(|i| at(i, i)).collect();
        let damping = DAMPING * diagonal.iter().sum::<f64>() / size.max(1) as f64;
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|&a, &b| diagonal[a].total_cmp(&diagonal[b]));
        let mut lower: Vec<Vec<f64>> = (0..size)
            .into_par_iter()
            .map(|p| (0..=p).map(|q| at(order[p], order[q]) + if p == q { damping } else { 0.0 }).collect())
            .collect();
        for j in 0..size {
            let (head, tail) = lower.split_at_mut(j + 1);
            let pivot = &mut head[j];
            let rest = pivot[j] - pivot[..j].iter().map(|x| x * x).sum::<f64>();
            if rest.is_nan() || rest <= 0.0 {
                return None;
            }
            pivot[j] = rest.sqrt();
            let pivot = &head[j];
            let column = |row: &mut Vec<f64>| {
                let sum: f64 = row[..j].iter().zip(&pivot[..j]).map(|(a, b)| a * b).sum();
                row[j] = (row[j] - sum) / pivot[j];
            };
            tail.par_iter_mut().with_min_len(64).for_each(column);
        }
        Some(Self { order, rows: inverse(&lower) })
    }

    /// Of the first half of the data, and of both.
    pub fn of_halves(halves: [&Half; 2]) -> Option<[Self; 2]> {
        Some([Self::of(&[(halves[0], 1.0)])?, Self::of(&with_shares(halves))?])
    }

    /// Row `p` of the inverse, of the places up to `p` in the order.
    pub fn row(&self, p: usize) -> &[f32] {
        &self.rows[p]
    }
}

/// Columns of the inverse that are computed together.
const BAND: usize = 64;

/// The inverse of a lower triangle, band by band of its columns.
fn inverse(lower: &[Vec<f64>]) -> Vec<Vec<f32>> {
    let size = lower.len();
    let band = |from: usize| {
        let to = size.min(from + BAND);
        // Row p of the band has the columns from..to, of which those behind p are 0.
        let mut found: Vec<Vec<f64>> = Vec::with_capacity(size - from);
        for p in from..size {
            let mut row = vec![0f64; to - from];
            if p < to {
                row[p - from] = 1.0;
            }
            for (k, above) in found.iter().enumerate() {
                let factor = lower[p][from + k];
                row.iter_mut().zip(above).for_each(|(r, a)| *r -= factor * a);
            }
            row.iter_mut().for_each(|r| *r /= lower[p][p]);
            found.push(row);
        }
        found
    };
    let bands: Vec<Vec<Vec<f64>>> = (0..size).step_by(BAND).collect::<Vec<_>>().into_par_iter().map(band).collect();
    let row = |p: usize| {
        let parts = bands.iter().enumerate().take(p / BAND + 1);
        let mut row: Vec<f32> = parts.flat_map(|(b, band)| band[p - b * BAND].iter().map(|&x| x as f32)).collect();
        row.truncate(p + 1);
        row
    };
    (0..size).map(row).collect()
}
