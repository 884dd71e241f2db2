//! Factors for what layers with weights in few bits read: channels that carry large numbers get finer weights.
//!
//! Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (2023): a weight's input channels
//! are multiplied by factors `s`, what the layer reads is divided by them, and the constants in front take the division in, so
//! that nothing is computed that was not. The paper's `s = mean|x|^a`, with the exponent searched by the error of the layer's
//! output, is tried with the root of the mean square in the place of `mean|x|`, and, as SmoothQuant does, over `max|w|^(1-a)`. The
//! error is that of all layers that read the value, by their second moments. Exponents are chosen on half of the data, and
//! kept if the other half gains as well.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::{ChannelFactors, FewBits, KnownReads, TakenBy, few_bits};
use crate::{
    analysis::{
        factors::{Group, Power, Take, group_of},
        types::infer,
    },
    error::Result,
    ir::{Model, NodeId, Tensor, ValueId},
    weights::{self, Algorithm, Layer as Rounded, Layout, Reads, SomeOutputs},
};

/// Exponents of what is read. At 0 nothing changes.
const EXPONENTS: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
/// Factors are at most this far from the mean.
const FARTHEST: f64 = 256.0;
/// What either half of the data must gain, dB: what is less is chance.
const LEAST: f64 = 0.1;
/// Outputs of each layer that are looked at.
const OUTPUTS: usize = 64;

/// What the factors are for.
pub struct AwqTask<'a> {
    /// The model after the Prepare passes.
    pub model: &'a Model,
    /// The nodes that get weights in few bits.
    pub few: &'a BTreeMap<NodeId, FewBits>,
    /// What they read.
    pub known: &'a KnownReads,
}

/// A layer that reads a divided value.
struct Layer<'a> {
    take: Take,
    weight: &'a Tensor,
    layout: Layout,
    how: &'a FewBits,
    reads: &'a Reads,
    /// The channel of each place of the depth.
    channels: Vec<usize>,
}

/// The noise of each layer on either half of the data.
type Losses = Vec<[f64; 2]>;

/// Factors for the values that gain by them, by name.
pub fn awq(task: &AwqTask<'_>) -> Result<BTreeMap<String, ChannelFactors>> {
    let (model, types) = (task.model, infer(task.model));
    let mut done: BTreeSet<ValueId> = BTreeSet::new();
    let mut groups: Vec<(ValueId, Group)> = Vec::new();
    for &n in task.few.keys().filter(|&&n| model.node(n).graph() == model.main() && !model.node(n).is("Gather")) {
        let Some(v) = model.node(n).input(0).filter(|v| !done.contains(v)) else { continue };
        done.insert(v);
        match group_of(model, &types, v) {
            Ok(group) => {
                done.extend(group.values.keys());
                groups.push((v, group));
            }
            Err(why) => log::debug!("awq: {}: {why}", model.value(v).name()),
        }
    }
    let found: Vec<Option<(String, ChannelFactors)>> = groups
        .par_iter()
        .map(|(v, group)| {
            let factors = best(task, group)?;
            let by = |factors| ChannelFactors { taken_by: TakenBy::Constants, factors };
            Ok(factors.map(|f| (model.value(*v).name().to_owned(), by(f))))
        })
        .collect::<Result<_>>()?;
    Ok(found.into_iter().flatten().collect())
}

fn layers<'a>(task: &AwqTask<'a>, group: &Group) -> Vec<Layer<'a>> {
    let layer = |take: &Take| {
        let how = task.few.get(&take.node).filter(|_| take.power == Power::Times && take.input == 1)?;
        let value = task.model.value(task.model.node(take.node).input(1)?);
        let (layout, weight) = (few_bits::layout(task.model, take.node)?, value.constant()?);
        let reads = task.known.of(value.name()).reads().filter(|r| r.layout == layout)?;
        let channel = take.channel_of(weight.dims());
        let channels = (0..layout.depth).map(|j| channel(layout.place(0, j))).collect();
        Some(Layer { take: take.clone(), weight, layout, how, reads, channels })
    };
    group.takes.iter().filter_map(layer).collect()
}

/// The factors of a group; `None` where there is nothing to gain.
fn best(task: &AwqTask<'_>, group: &Group) -> Result<Option<Vec<f32>>> {
    let layers = layers(task, group);
    let table = |t: &Take| task.few.contains_key(&t.node) && task.model.node(t.node).is("Gather");
    // A table's rows are rounded in blocks, too: factors would make them uneven. Clamps would have to stay clear of bounds.
    if layers.is_empty() || !group.bounds.is_empty() || group.takes.iter().any(table) {
        return Ok(None);
    }
    let mse = weights::by_name(weights::MSE)?;
    let (mut read, mut weights) = (vec![0f64; group.channels], vec![0f64; group.channels]);
    for layer in &layers {
        let rows = Rounded::new(layer.layout, layer.how.block_size, layer.how.grid()?, Some(layer.reads)).importance();
        for (&c, x) in layer.channels.iter().zip(rows) {
            read[c] = read[c].max(f64::from(x).max(0.0).sqrt());
        }
        let largest = layer.take.largest(layer.weight, group.channels)?;
        weights.iter_mut().zip(largest).for_each(|(w, x)| *w = w.max(f64::from(x)));
    }
    let losses = |factors: &[f32]| layers.iter().map(|l| l.noise(factors, mse)).collect::<Result<Losses>>();
    let before = losses(&vec![1.0; group.channels])?;
    let shapes = EXPONENTS.iter().flat_map(|&a| [(a, 0.0), (a, 1.0 - a)]);
    let tried: Vec<(Vec<f32>, Losses)> = shapes
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|shape| {
            let factors = factors(&read, &weights, shape);
            let after = losses(&factors)?;
            Ok((factors, after))
        })
        .collect::<Result<_>>()?;
    // Layers that read the same value share its factors: none may lose what another one gains.
    let harmless = |after: &[[f64; 2]]| before.iter().zip(after).all(|(b, a)| a[0] <= b[0] && a[1] <= b[1]);
    let sum = |losses: &[[f64; 2]], half: usize| losses.iter().map(|l| l[half]).sum::<f64>();
    let best = tried.into_iter().filter(|t| harmless(&t.1)).min_by(|a, b| sum(&a.1, 0).total_cmp(&sum(&b.1, 0)));
    let Some((factors, after)) = best else { return Ok(None) };
    let gains = [0, 1].map(|half| 10.0 * (sum(&before, half) / sum(&after, half).max(f64::MIN_POSITIVE)).log10());
    log::debug!("awq: factors gain {:.2} and {:.2} dB in {} layers", gains[0], gains[1], layers.len());
    Ok(gains.iter().all(|g| *g >= LEAST && g.is_finite()).then_some(factors))
}

impl Layer<'_> {
    /// The noise of the layer's output on either half of the data, with factors taken in.
    fn noise(&self, factors: &[f32], algorithm: &Algorithm) -> Result<[f64; 2]> {
        let by: Vec<f32> = self.channels.iter().map(|&c| factors[c]).collect();
        let reads = self.reads.divided(&by);
        let mut some = SomeOutputs::of(self.weight, self.layout, OUTPUTS)?;
        some.multiply(&by);
        let layer = Rounded::new(self.layout, self.how.block_size, self.how.grid()?, Some(&reads));
        layer.noise_of_halves(&some, algorithm)
    }
}

/// `read^a / weight^b` for each channel, with a geometric mean of 1.
fn factors(read: &[f64], weights: &[f64], (a, b): (f64, f64)) -> Vec<f32> {
    let raw: Vec<Option<f64>> =
        read.iter().zip(weights).map(|(&x, &w)| (x > 0.0 && w > 0.0).then(|| a * x.ln() - b * w.ln())).collect();
    let known: Vec<f64> = raw.iter().flatten().copied().collect();
    let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
    let within = |f: f64| (f - mean).clamp(-FARTHEST.ln(), FARTHEST.ln()).exp() as f32;
    raw.into_iter().map(|f| f.map_or(1.0, within)).collect()
}
