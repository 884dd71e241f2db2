//! Chooses the scale of each channel for the least error of the layer's output: somewhat smaller scales cut the largest
//! weights off and make all others finer.
//!
//! The error is `e'Ge` with the second moments `G` of what the layer reads; see [`super::adaround`], which moves codes under
//! fixed scales. By the plain error of the weights the search would nearly always end where it began: 8 bits are fine
//! enough that cutting the largest weight off costs more than it gains.
//!
//! Scales are chosen on half of the data, and kept only if they are better on the other half, too.

use rayon::prelude::*;

use super::{
    WeightTask,
    rows::{Row, Rows},
    rtn,
};
use crate::{
    error::Result,
    quant::{QParams, QuantizedWeight, arith::Quantizer, granularity::quantize_with, pack},
};

/// It looks at what the layer reads.
pub const READS: bool = true;

/// Shares of the first scale that are tried: these, and then two rounds of neighbours of the best.
const TRIED: [f32; 7] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4];
/// How far the neighbours are, by round.
const FINER: [f32; 2] = [0.05, 0.025];

/// See the file's documentation. Without data it rounds to nearest.
pub fn round(task: &WeightTask<'_>) -> Result<QuantizedWeight> {
    let start = rtn::round(task)?;
    let Some(rows) = Rows::of(task)? else { return Ok(start) };
    let codes = pack::unpack(&start.values)?;
    let (channels, inner) = task.granularity.layout(task.weight.dims())?;
    let channel = |place: usize| place / inner % channels;
    // The outputs of each channel; there is nothing to choose where outputs have scales in common along their depth.
    let mut outs = vec![Vec::new(); channels];
    let views: Vec<Row> = (0..rows.count()).map(|out| rows.row(out, &start, &codes, &channel)).collect();
    let layout_place = |out: usize, j: usize| task.reads.map_or(0, |r| r.layout.place(out, j));
    for view in &views {
        let own = channel(layout_place(view.out, 0));
        if (1..view.weights.len()).any(|j| channel(layout_place(view.out, j)) != own) {
            return Ok(start);
        }
        outs[own].push(view.out);
    }
    let search = |(c, outs): (usize, &Vec<usize>)| -> Result<QParams> {
        let least = task.least.get(c).copied().unwrap_or(0.0);
        let views: Vec<&Row> = outs.iter().map(|&o| &views[o]).collect();
        let channel = Channel { rows: &rows, views, first: start.params[c], least, limits: task.target.codes()? };
        Ok(channel.best())
    };
    let params = outs.par_iter().enumerate().map(search).collect::<Result<Vec<_>>>()?;
    let finer = params.iter().zip(&start.params).filter(|(new, old)| new.scale != old.scale).count();
    log::debug!("mse: {finer} of {channels} channels have finer scales");
    quantize_with(&task.weight.to_f32()?, task.weight.dims(), task.granularity, task.target, params)
}

/// The outputs that share a scale.
struct Channel<'a> {
    rows: &'a Rows<'a>,
    views: Vec<&'a Row>,
    first: QParams,
    least: f32,
    limits: (i32, i32),
}

impl Channel<'_> {
    /// The scale that is best.
    fn best(&self) -> QParams {
        let mut tried: Vec<(f64, f32)> = self.costs(0, &TRIED);
        for distance in FINER {
            let best = least(&tried);
            let near = [best - distance, best + distance].map(|share| share.min(1.0));
            tried.extend(self.costs(0, &near));
        }
        let best = least(&tried);
        match self.costs(1, &[1.0, best])[..] {
            [(was, _), (is, _)] if is < was => QParams { scale: self.first.scale * best, ..self.first },
            _ => self.first,
        }
    }

    /// What these shares of the first scale cost on one half of the data; infinitely much where they may not be.
    fn costs(&self, half: usize, shares: &[f32]) -> Vec<(f64, f32)> {
        let of_row = |row: &&Row| {
            let errors: Vec<Option<Vec<f32>>> = shares.iter().map(|&share| self.errors(row, share)).collect();
            let known: Vec<(&[f32], &[f32])> = errors.iter().flatten().map(|e| (&row.weights[..], &e[..])).collect();
            let half = self.rows.half(half, row.out);
            let mut slopes = half.slopes(&known).into_iter();
            let cost = |e: &Option<Vec<f32>>| match (e, e.as_ref().and_then(|_| slopes.next())) {
                (Some(e), Some(slope)) => half.cost(&row.weights, e, &slope),
                _ => f64::INFINITY,
            };
            errors.iter().map(cost).collect::<Vec<f64>>()
        };
        let of_rows: Vec<Vec<f64>> = self.views.par_iter().map(of_row).collect();
        let total = |(i, &share): (usize, &f32)| (of_rows.iter().map(|costs| costs[i]).sum(), share);
        shares.iter().enumerate().map(total).collect()
    }

    /// What the nearest codes under a scale are off; `None` if that may not be.
    fn errors(&self, row: &Row, share: f32) -> Option<Vec<f32>> {
        let params = QParams { scale: self.first.scale * share, ..self.first };
        if share < 1.0 && (params.scale < self.least || !params.scale.is_normal()) {
            return None;
        }
        let q = Quantizer::within(params, self.limits);
        let codes: Vec<i32> = row.weights.iter().map(|&w| q.code(w)).collect();
        let errors = row.weights.iter().zip(&codes).map(|(w, &c)| w - q.real(c)).collect();
        let row = Row { codes, ..row.clone() };
        (!(0..row.codes.len()).any(|j| row.saturates(j, row.codes[j]))).then_some(errors)
    }
}

/// The share that costs least; the first of several.
fn least(tried: &[(f64, f32)]) -> f32 {
    tried.iter().fold((f64::INFINITY, 1.0), |best, &t| if t.0 < best.0 { t } else { best }).1
}
