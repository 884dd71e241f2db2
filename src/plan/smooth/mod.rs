//! Factors for activations whose channels have very different ranges: one scale for all of them leaves the small channels
//! few codes. Divided by factors, the channels come nearer to each other, and the weights that read them farther apart.
//!
//! Guangxuan Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models" (2022):
//! `s = max|x|^a / max|w|^(1-a)` for each channel. The exponent is searched for each value by the error of what reads it, on
//! some rows of the data, and the factors are kept only if other samples gain by them as well: a model that does not need
//! them stays as it is.

mod equalize;
mod layer;
mod seen;

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

pub use equalize::equalize;

use self::{
    layer::{Layer, noise},
    seen::{Seen, Watched, see},
};
use super::{ChannelFactors, Scheme, TakenBy, decide};
use crate::{
    analysis::{
        factors::{Bound, Group, Power, Take, group_of, products_of},
        placement::{Decision, Placement, Readers},
        types::{Types, infer},
    },
    calibrate::collect::{Feed, Progress},
    error::Result,
    ir::{DType, Model, NodeId, ValueId},
    runtime::Runtime,
    target::Target,
};

/// The exponents that are tried. At 1 the weights do not count, at 0 nothing is gained.
const EXPONENTS: [f64; 7] = [0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 1.0];
/// Exponents of the ranges alone, whatever the weights.
const ROOTS: [f64; 2] = [0.33, 0.66];
/// Factors are at most this far from that of the largest channel.
const FARTHEST: f64 = 1024.0;
/// What factors must gain on either half of the samples, dB, where constants take them in: what is less is chance.
const LEAST_FREE: f64 = 0.3;
/// The same where a multiplication is added that runs each time.
const LEAST_PAID: f64 = 1.0;
/// Columns that the products behind a multiplication must have together, so that it takes no time beside them.
const LEAST_COLUMNS: usize = 128;
/// A clamp counts as reached from this share of its bound on: other samples reach farther.
pub(super) const REACHED: f32 = 0.8;
/// Samples that are looked at.
pub const SAMPLES: usize = 32;

/// What the factors are for.
pub struct Smoothing<'a> {
    /// Runs the model.
    pub runtime: &'a dyn Runtime,
    /// The model after the Prepare passes.
    pub model: &'a Model,
    /// What runs it in the end.
    pub target: &'a Target,
    /// What computes in integers.
    pub placement: &'a Placement,
    /// How it is quantized.
    pub scheme: &'a Scheme,
    /// Whether ranges leave out what is far from the rest.
    pub clips: bool,
    /// Values that must stay what they are.
    pub fixed: &'a (dyn Fn(ValueId) -> bool + Sync),
}

/// A value that could be divided.
struct Candidate {
    value: ValueId,
    taken_by: TakenBy,
    group: Group,
    layers: Vec<Layer>,
}

/// Finds factors for the values of a model that gain by them.
pub fn smooth(
    task: &Smoothing<'_>,
    samples: &[usize],
    feed: &Feed<'_>,
    progress: &Progress<'_>,
) -> Result<BTreeMap<String, ChannelFactors>> {
    let model = task.model;
    let candidates = candidates(task);
    // Without samples to confirm on, nothing is sure to gain.
    if candidates.is_empty() || samples.len() < 2 {
        return Ok(BTreeMap::new());
    }
    let mut watched: BTreeMap<ValueId, Watched> = BTreeMap::new();
    let mut layers: Vec<&Layer> = Vec::new();
    for c in &candidates {
        let bounded = c.group.bounds.iter().map(|b| b.value);
        for v in c.layers.iter().map(|l| l.data).chain(bounded) {
            watched.entry(v).or_insert_with(|| Watched { axes: c.group.values[&v].clone(), layers: Vec::new() });
        }
        for layer in &c.layers {
            if let Some(w) = watched.get_mut(&layer.data) {
                w.layers.push(layers.len());
            }
            layers.push(layer);
        }
    }
    let (seen, rows) = see(task, &watched, &layers, samples, feed, progress)?;
    let mut at = 0;
    let mut found = BTreeMap::new();
    for c in &candidates {
        let rows = &rows[at..at + c.layers.len()];
        at += c.layers.len();
        if let Some(factors) = best(task, c, &seen, rows)? {
            found.insert(model.value(c.value).name().to_owned(), ChannelFactors { taken_by: c.taken_by, factors });
        }
    }
    Ok(found)
}

/// What integer layers with constant weights read, each group of values once.
fn candidates(task: &Smoothing<'_>) -> Vec<Candidate> {
    let (model, types) = (task.model, infer(task.model));
    let integer = |d: &Decision| matches!(d, Decision::Integer(_) | Decision::Dynamic(_));
    let placed = task.placement.nodes.iter().filter(|(n, d)| integer(d) && model.node(*n).graph() == model.main());
    let planned: BTreeMap<NodeId, bool> = placed.map(|(n, d)| (*n, matches!(d, Decision::Dynamic(_)))).collect();
    let mut found = Vec::new();
    let mut done: BTreeSet<ValueId> = BTreeSet::new();
    for n in model
        .nodes(model.main())
        .into_iter()
        .filter(|n| planned.contains_key(n) && model.constant_input(*n, 1).is_some())
    {
        let data = model.node(n).input(0).filter(|v| !done.contains(v));
        let Some(v) = data.filter(|&v| model.value(v).initializer().is_none()) else { continue };
        if let Some(c) = candidate(task, &types, &planned, v) {
            done.extend(c.group.values.keys());
            found.push(c);
        }
        done.insert(v);
    }
    found
}

fn candidate(
    task: &Smoothing<'_>,
    types: &Types,
    planned: &BTreeMap<NodeId, bool>,
    value: ValueId,
) -> Option<Candidate> {
    let model = task.model;
    let layer = |take: &Take| {
        let dynamic = *planned.get(&take.node)?;
        let how = match dynamic {
            true => super::dynamic_weight(model, task.target, task.scheme, take.node),
            false => decide::weight(model, task.scheme, take.node),
        };
        Layer::of(model, take.clone(), how?)
    };
    let layers_of = |group: &Group| -> Vec<Layer> {
        group.takes.iter().filter(|t| t.power == Power::Times).filter_map(layer).collect()
    };
    match group_of(model, types, value) {
        Ok(group) => {
            let layers = layers_of(&group);
            let fixed = group.values.keys().any(|&v| (task.fixed)(v));
            // One scale for all of a weight's channels must not be drawn away from those that stay.
            let made_alike = |t: &Take| {
                t.power == Power::Over && t.input == 1 && planned.contains_key(&t.node) && {
                    let how = task.scheme.weights.get(&t.node).map_or(task.scheme.per_channel, |w| w.1);
                    !how
                }
            };
            let free = !fixed && !group.takes.iter().any(made_alike);
            let taken_by = TakenBy::Constants;
            (free && !layers.is_empty()).then_some(Candidate { value, taken_by, group, layers })
        }
        Err(why) => {
            log::debug!("{}: no constants take factors in: {why}", model.value(value).name());
            let takes = products_of(model, types, value);
            let by_product = |q: &crate::analysis::placement::Quantized| q.readers == Readers::All;
            let made = task.placement.values.get(&value).is_some_and(by_product);
            let all = takes.iter().all(|t| planned.contains_key(&t.node));
            if takes.is_empty() || made || !all || (task.fixed)(value) || types.dtype(value) != Some(DType::Float) {
                return None;
            }
            let last = types.rank(value)?.checked_sub(1)?;
            let first = model.constant_input(takes[0].node, 1)?;
            let channels = takes[0].channels(first.dims())?;
            let group = Group { channels, values: [(value, vec![last])].into(), takes, bounds: Vec::new() };
            let layers = layers_of(&group);
            let columns: usize = layers.iter().map(|l| l.outs).sum();
            let enough = layers.len() == group.takes.len() && columns >= LEAST_COLUMNS;
            enough.then_some(Candidate { value, taken_by: TakenBy::Mul, group, layers })
        }
    }
}

/// The factors that leave the least error on the samples with even numbers, if those with odd numbers gain as well.
fn best(
    task: &Smoothing<'_>,
    c: &Candidate,
    seen: &BTreeMap<ValueId, Seen>,
    rows: &[[Vec<f32>; 2]],
) -> Result<Option<Vec<f32>>> {
    let (model, channels) = (task.model, c.group.channels);
    let mut ranges = vec![0f32; channels];
    let mut weights = vec![0f32; channels];
    for layer in &c.layers {
        let Some(seen) = seen.get(&layer.data) else { return Ok(None) };
        let Some(weight) = model.constant_input(layer.take.node, 1) else { return Ok(None) };
        ranges.iter_mut().zip(seen.largest()).for_each(|(r, x)| *r = r.max(x));
        weights.iter_mut().zip(layer.take.largest(weight, channels)?).for_each(|(w, x)| *w = w.max(x));
    }
    let halves = [0, 1];
    let plain: Vec<f32> = vec![1.0; channels];
    let answers: Vec<_> = c.layers.iter().zip(rows).map(|(l, rows)| l.answers(model, rows)).collect::<Result<_>>()?;
    // The sum over layers of noise over signal, for each half of the samples.
    let loss = |factors: &[f32]| -> Result<[f64; 2]> {
        let mut loss = [0.0; 2];
        for ((layer, rows), answers) in c.layers.iter().zip(rows).zip(&answers) {
            let weight = model.constant_input(layer.take.node, 1);
            let taken = weight.map(|w| layer.take.scaled(w, factors)).transpose()?.flatten();
            let Some((seen, taken)) = seen.get(&layer.data).zip(taken) else { return Ok([f64::INFINITY; 2]) };
            let made = layer.rounded(&taken, factors, seen, layer.types(task), task.clips, rows)?;
            for half in halves {
                loss[half] += noise(&answers[half], &made[half]);
            }
        }
        Ok(loss)
    };
    let before = loss(&plain)?;
    let shapes = EXPONENTS.iter().map(|&a| (a, 1.0 - a)).chain(ROOTS.iter().map(|&a| (a, 0.0)));
    let tried: Vec<(f64, Vec<f32>, [f64; 2])> = shapes
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|(a, b)| {
            let factors = factors(&ranges, &weights, (a, b), &c.group.bounds, seen);
            let after = loss(&factors)?;
            Ok((a, factors, after))
        })
        .collect::<Result<_>>()?;
    let least = tried.into_iter().min_by(|a, b| a.2[0].total_cmp(&b.2[0]));
    let gain = |after: [f64; 2], half: usize| 10.0 * (before[half] / after[half].max(f64::MIN_POSITIVE)).log10();
    let needed = if c.taken_by == TakenBy::Mul { LEAST_PAID } else { LEAST_FREE };
    let Some((exponent, factors, after)) = least else { return Ok(None) };
    let gains = halves.map(|half| gain(after, half));
    log::debug!(
        "{}: factors ({:?}) with exponent {exponent} gain {:.2} and {:.2} dB",
        model.value(c.value).name(),
        c.taken_by,
        gains[0],
        gains[1]
    );
    Ok(gains.iter().all(|g| *g >= needed && g.is_finite()).then_some(factors))
}

/// `range^a / weight^b` for each channel, 1 for the channel of the largest range, within what clamps allow.
fn factors(
    ranges: &[f32],
    weights: &[f32],
    (a, b): (f64, f64),
    bounds: &[Bound],
    seen: &BTreeMap<ValueId, Seen>,
) -> Vec<f32> {
    let raw: Vec<Option<f64>> = ranges
        .iter()
        .zip(weights)
        .map(|(&r, &w)| (r > 0.0 && w > 0.0).then(|| f64::from(r).powf(a) / f64::from(w).powf(b)))
        .collect();
    let largest = (0..raw.len()).filter(|&i| raw[i].is_some()).max_by(|&i, &j| ranges[i].total_cmp(&ranges[j]));
    let one = largest.and_then(|i| raw[i]).unwrap_or(1.0);
    let within = |f: f64| (f / one).clamp(1.0 / FARTHEST, FARTHEST) as f32;
    let mut factors: Vec<f32> = raw.into_iter().map(|f| f.map_or(1.0, within)).collect();
    keep_within(&mut factors, bounds, seen);
    factors
}

/// Leaves channels as they are that clamps cut, and the others clear of the clamps.
fn keep_within(factors: &mut [f32], bounds: &[Bound], seen: &BTreeMap<ValueId, Seen>) {
    for bound in bounds {
        let Some(seen) = seen.get(&bound.value).filter(|s| s.lo.len() == factors.len()) else {
            factors.fill(1.0);
            continue;
        };
        for ((f, lo), hi) in factors.iter_mut().zip(&seen.lo).zip(&seen.hi) {
            // How much of its side the channel fills.
            let fills = (hi / bound.hi).max(if bound.lo < 0.0 { lo / bound.lo } else { 0.0 });
            *f = if fills >= REACHED { 1.0 } else { f.max(fills / REACHED) };
        }
    }
}

#[cfg(test)]
mod tests;
