//! Factors that even out weights which have one scale for all channels: what makes a channel and what reads it meet half way.
//!
//! Markus Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.1:
//! `s = sqrt(r1 r2) / r2` for each channel, with r1 the largest weight that makes it and r2 the largest that reads it, from
//! layer to layer until nothing changes.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::{
    ChannelFactors, FARTHEST, Smoothing, TakenBy, decide, keep_within,
    layer::{Layer, lost},
    seen::{Seen, Watched, see},
};
use crate::{
    analysis::{
        factors::{Group, Power, Take, data_axis, data_take, group_of},
        placement::Decision,
        types::infer,
    },
    calibrate::collect::{Feed, Progress},
    error::Result,
    ir::{Model, NodeId, Tensor, ValueId},
    plan::{Weight, dynamic_weight},
};

/// Rounds over all layers; some ten are enough.
const ROUNDS: usize = 30;
/// What is no change any more.
const STILL: f64 = 1e-3;
/// What must be left of the loss, so that it is no chance.
const LEAST: f64 = 0.97;

/// Values between layers whose weights have one scale each.
struct Between {
    value: ValueId,
    group: Group,
    made: Vec<Take>,
    read: Vec<Take>,
    factors: Vec<f32>,
}

/// The shares of the way that are tried: what evens weights out may make activations uneven.
const SHARES: [f32; 4] = [1.0, 0.75, 0.5, 0.25];

/// Finds factors for the values between integer layers of which each has one scale for its whole weight, if these layers lose
/// less of what they answer by them, on both halves of the samples.
pub fn equalize(
    task: &Smoothing<'_>,
    samples: &[usize],
    feed: &Feed<'_>,
    progress: &Progress<'_>,
) -> Result<BTreeMap<String, ChannelFactors>> {
    let model = task.model;
    let (mut all, how) = between(task);
    if all.is_empty() || samples.len() < 2 {
        return Ok(BTreeMap::new());
    }
    let of = |(n, how): (NodeId, Weight)| {
        let used = all.iter().any(|b| b.made.iter().chain(&b.read).any(|t| t.node == n));
        Layer::of(model, data_take(model, n).filter(|_| used)?, how)
    };
    let layers: Vec<Layer> = how.into_iter().filter_map(of).collect();
    let mut watched: BTreeMap<ValueId, Watched> = BTreeMap::new();
    for b in &all {
        let bounded = b.group.bounds.iter().map(|c| c.value);
        watched.extend(bounded.map(|v| (v, Watched { axes: b.group.values[&v].clone(), layers: Vec::new() })));
    }
    let types = infer(model);
    for (i, layer) in layers.iter().enumerate() {
        let Some(axis) = data_axis(model, &types, layer.take.node) else { continue };
        watched.entry(layer.data).or_insert_with(|| Watched { axes: vec![axis], layers: Vec::new() }).layers.push(i);
    }
    let (seen, rows) = see(task, &watched, &layers.iter().collect::<Vec<_>>(), samples, feed, progress)?;
    meet_half_way(model, &mut all, &seen)?;
    let loss = |share: f32| -> Result<[f64; 2]> {
        let part: Vec<Vec<f32>> = all.iter().map(|b| b.factors.iter().map(|f| f.powf(share)).collect()).collect();
        let mut loss = [0.0; 2];
        for (layer, rows) in layers.iter().zip(&rows) {
            let Some(seen) = seen.get(&layer.data) else { continue };
            let node = layer.take.node;
            let Some(mut weight) = model.constant_input(node, 1).cloned() else { continue };
            let plain = vec![1.0; seen.lo.len()];
            let (mut divided, mut made) = (&plain, None);
            for (b, part) in all.iter().zip(&part) {
                for take in b.made.iter().chain(&b.read).filter(|t| t.node == node) {
                    let Some(scaled) = take.scaled(&weight, part)? else { return Ok([f64::INFINITY; 2]) };
                    weight = scaled;
                    match take.power {
                        Power::Times => divided = part,
                        Power::Over => made = Some(&part[..]),
                    }
                }
            }
            let answers = layer.answers(model, rows)?;
            let integer = layer.rounded(&weight, divided, seen, layer.types(task), task.clips, rows)?;
            for half in [0, 1] {
                loss[half] += lost(&answers[half], &integer[half], layer.outs, made);
            }
        }
        Ok(loss)
    };
    let before = loss(0.0)?;
    let tried: Vec<(f32, [f64; 2])> = SHARES.par_iter().map(|&s| Ok((s, loss(s)?))).collect::<Result<_>>()?;
    let least = tried.into_iter().min_by(|a, b| a.1[0].total_cmp(&b.1[0]));
    let Some((share, after)) = least else { return Ok(BTreeMap::new()) };
    let (count, gain) = (layers.len() as f64, |half: usize| after[half] < LEAST * before[half]);
    log::debug!(
        "{share} of the way to even weights: {:.4} and {:.4} of the channels are lost, {:.4} and {:.4} before",
        after[0] / count,
        after[1] / count,
        before[0] / count,
        before[1] / count
    );
    if !(gain(0) && gain(1)) {
        return Ok(BTreeMap::new());
    }
    let useful = all.into_iter().filter(|b| b.factors.iter().any(|f| *f != 1.0));
    let named = |b: Between| {
        let factors = b.factors.iter().map(|f| f.powf(share)).collect();
        (model.value(b.value).name().to_owned(), ChannelFactors { taken_by: TakenBy::Constants, factors })
    };
    Ok(useful.map(named).collect())
}

/// Moves the factors of all values, each in turn, until nothing changes.
fn meet_half_way(model: &Model, all: &mut [Between], seen: &BTreeMap<ValueId, Seen>) -> Result<()> {
    let mut weights: BTreeMap<NodeId, Tensor> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let mut moved = 0f64;
        for b in &mut *all {
            let largest = |takes: &[Take]| largest(model, &weights, takes, b.group.channels);
            let (made, read) = (largest(&b.made)?, largest(&b.read)?);
            let half_way = |((&f, r1), r2): ((&f32, f32), f32)| match r1 > 0.0 && r2 > 0.0 {
                true => (f64::from(f) * (f64::from(r1) / f64::from(r2)).sqrt()).clamp(1.0 / FARTHEST, FARTHEST) as f32,
                false => f,
            };
            let mut now: Vec<f32> = b.factors.iter().zip(made).zip(read).map(half_way).collect();
            keep_within(&mut now, &b.group.bounds, seen);
            let step: Vec<f32> = now.iter().zip(&b.factors).map(|(now, before)| now / before).collect();
            moved = step.iter().fold(moved, |most, s| most.max(f64::from(*s).ln().abs()));
            for take in b.made.iter().chain(&b.read) {
                let Some(weight) = weight(model, &weights, take.node) else { continue };
                if let Some(scaled) = take.scaled(weight, &step)? {
                    weights.insert(take.node, scaled);
                }
            }
            b.factors = now;
        }
        if moved < STILL {
            break;
        }
    }
    Ok(())
}

/// Groups of values of which integer layers with one scale each stand on both sides, and all such layers.
fn between(task: &Smoothing<'_>) -> (Vec<Between>, BTreeMap<NodeId, Weight>) {
    let (model, types) = (task.model, infer(task.model));
    let alike = |(n, d): &(NodeId, Decision)| {
        let how = match d {
            Decision::Integer(_) => decide::weight(model, task.scheme, *n),
            Decision::Dynamic(_) => dynamic_weight(model, task.target, task.scheme, *n),
            Decision::Absorbed(_) | Decision::Float(_) => None,
        };
        let how = how.filter(|w| w.axis.is_none() && model.node(*n).graph() == model.main());
        how.map(|how| (*n, how))
    };
    let alike: BTreeMap<NodeId, Weight> = task.placement.nodes.iter().filter_map(alike).collect();
    let (mut found, mut done) = (Vec::new(), BTreeSet::new());
    for n in model.nodes(model.main()).into_iter().filter(|n| alike.contains_key(n)) {
        let Some(value) = model.node(n).input(0).filter(|v| !done.contains(v)) else { continue };
        let Ok(group) = group_of(model, &types, value) else { continue };
        done.extend(group.values.keys().copied());
        let side = |power: Power| -> Vec<Take> {
            let those = group.takes.iter().filter(|t| t.power == power && t.input == 1 && alike.contains_key(&t.node));
            those.cloned().collect()
        };
        let (made, read) = (side(Power::Over), side(Power::Times));
        let fixed = group.values.keys().any(|&v| (task.fixed)(v));
        if !fixed && !made.is_empty() && !read.is_empty() {
            let factors = vec![1.0; group.channels];
            found.push(Between { value, group, made, read, factors });
        }
    }
    (found, alike)
}

fn weight<'a>(model: &'a Model, changed: &'a BTreeMap<NodeId, Tensor>, node: NodeId) -> Option<&'a Tensor> {
    changed.get(&node).or_else(|| model.constant_input(node, 1))
}

fn largest(model: &Model, changed: &BTreeMap<NodeId, Tensor>, takes: &[Take], channels: usize) -> Result<Vec<f32>> {
    let mut largest = vec![0f32; channels];
    for take in takes {
        let Some(weight) = weight(model, changed, take.node) else { continue };
        largest.iter_mut().zip(take.largest(weight, channels)?).for_each(|(most, x)| *most = most.max(x));
    }
    Ok(largest)
}
