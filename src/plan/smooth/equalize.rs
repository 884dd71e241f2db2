//! Factors that even out weights which have one scale for all channels: what makes a channel and what reads it meet half way.
//!
//! Markus Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.1:
//! `s = sqrt(r1 r2) / r2` for each channel, with r1 the largest weight that makes it and r2 the largest that reads it, from
//! layer to layer until nothing changes.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ChannelFactors, FARTHEST, Smoothing, TakenBy, decide, keep_within,
    seen::{Watched, see},
};
use crate::{
    analysis::{
        factors::{Group, Power, Take, group_of},
        placement::Decision,
        types::infer,
    },
    calibrate::collect::{Feed, Progress},
    error::Result,
    ir::{Model, NodeId, Tensor, ValueId},
};

/// Rounds over all layers; some ten are enough.
const ROUNDS: usize = 30;
/// What is no change any more.
const STILL: f64 = 1e-3;

/// Values between layers whose weights have one scale each.
struct Between {
    value: ValueId,
    group: Group,
    made: Vec<Take>,
    read: Vec<Take>,
    factors: Vec<f32>,
}

/// Finds factors for all values between integer layers of which each has one scale for its whole weight.
pub fn equalize(
    task: &Smoothing<'_>,
    samples: &[usize],
    feed: &Feed<'_>,
    progress: &Progress<'_>,
) -> Result<BTreeMap<String, ChannelFactors>> {
    let model = task.model;
    let mut all = between(task);
    let bounded = |b: &Between| b.group.bounds.iter().map(|c| (c.value, b.group.values[&c.value].clone())).collect();
    let clamps: BTreeMap<ValueId, Vec<usize>> = all.iter().flat_map::<Vec<_>, _>(bounded).collect();
    let watched = clamps.into_iter().map(|(v, axes)| (v, Watched { axes, layers: Vec::new() })).collect();
    let seen = match all.iter().any(|b| !b.group.bounds.is_empty()) {
        true => see(task, &watched, &[], samples, feed, progress)?.0,
        false => BTreeMap::new(),
    };
    let mut weights: BTreeMap<NodeId, Tensor> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let mut moved = 0f64;
        for b in &mut all {
            let largest = |takes: &[Take]| largest(model, &weights, takes, b.group.channels);
            let (made, read) = (largest(&b.made)?, largest(&b.read)?);
            let half_way = |((&f, r1), r2): ((&f32, f32), f32)| match r1 > 0.0 && r2 > 0.0 {
                true => (f64::from(f) * (f64::from(r1) / f64::from(r2)).sqrt()).clamp(1.0 / FARTHEST, FARTHEST) as f32,
                false => f,
            };
            let mut now: Vec<f32> = b.factors.iter().zip(made).zip(read).map(half_way).collect();
            keep_within(&mut now, &b.group.bounds, &seen);
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
    let useful = all.into_iter().filter(|b| b.factors.iter().any(|f| *f != 1.0));
    let named = |b: Between| {
        let factors = ChannelFactors { taken_by: TakenBy::Constants, factors: b.factors };
        (model.value(b.value).name().to_owned(), factors)
    };
    Ok(useful.map(named).collect())
}

/// Groups of values of which integer layers with one scale each stand on both sides.
fn between(task: &Smoothing<'_>) -> Vec<Between> {
    let (model, types) = (task.model, infer(task.model));
    let alike = |(n, d): &(NodeId, Decision)| {
        let how = match d {
            Decision::Integer(_) => decide::weight(model, task.scheme, *n),
            Decision::Dynamic(_) => super::super::dynamic_weight(model, task.target, task.scheme, *n),
            Decision::Absorbed(_) | Decision::Float(_) => None,
        };
        (model.node(*n).graph() == model.main() && how.is_some_and(|w| w.axis.is_none())).then_some(*n)
    };
    let alike: BTreeSet<NodeId> = task.placement.nodes.iter().filter_map(alike).collect();
    let (mut found, mut done) = (Vec::new(), BTreeSet::new());
    for n in model.nodes(model.main()).into_iter().filter(|n| alike.contains(n)) {
        let Some(value) = model.node(n).input(0).filter(|v| !done.contains(v)) else { continue };
        let Ok(group) = group_of(model, &types, value) else { continue };
        done.extend(group.values.keys().copied());
        let side = |power: Power| -> Vec<Take> {
            let those = group.takes.iter().filter(|t| t.power == power && t.input == 1 && alike.contains(&t.node));
            those.cloned().collect()
        };
        let (made, read) = (side(Power::Over), side(Power::Times));
        let fixed = group.values.keys().any(|&v| (task.fixed)(v));
        if !fixed && !made.is_empty() && !read.is_empty() {
            let factors = vec![1.0; group.channels];
            found.push(Between { value, group, made, read, factors });
        }
    }
    found
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
