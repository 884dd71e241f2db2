//! What each rounding of a plan adds to the noise of the answers, one by one.
//!
//! The prepared model runs in float, and in each of its trials one value is rounded as the plan rounds it, or one node has the
//! weights that it will have. What lies before that is computed once for all trials. Such noises are small and of many
//! origins, so those of a plan are taken to add up.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    classes::class_axis,
    metrics::Gathered,
    rounded::{Carried, Twin},
    switches::{Switches, When},
};
use crate::{
    calibrate::{
        Dataset,
        collect::{Progress, for_each_sample},
    },
    error::{Error, Result},
    ir::{Model, NodeId, Tensor, Use, ValueId},
    plan::{Form, KnownReads, Plan, Readers, form, named_values},
    runtime::{Runtime, Trials, tract::Tract},
};

/// What is rounded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A value with a Q/DQ pair.
    Value(ValueId),
    /// The constants of a node.
    Node(NodeId),
    /// The constants of a node and its data, which its kernel quantizes at run time.
    AtRunTime(NodeId),
}

impl Source {
    /// The node whose constants are rounded.
    pub fn node(&self) -> Option<NodeId> {
        match *self {
            Self::Value(_) => None,
            Self::Node(n) | Self::AtRunTime(n) => Some(n),
        }
    }
}

/// What each source does to each output: noise as a share of the output's power.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Noise(pub BTreeMap<Source, Vec<f64>>);

impl Noise {
    /// The noise of some sources together at the output that has the most of it.
    pub fn worst<'a>(&self, sources: impl IntoIterator<Item = &'a Source>) -> f64 {
        let mut sums: Vec<f64> = Vec::new();
        for shares in sources.into_iter().filter_map(|s| self.0.get(s)) {
            sums.resize(sums.len().max(shares.len()), 0.0);
            sums.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
        }
        sums.into_iter().fold(0.0, f64::max)
    }
}

/// Measures every source of the plan that lies in the main graph, on some samples. `prepared` is the model that the plan
/// speaks of, `known` what its weights are rounded by. Only what is wanted is measured. Runs in the built-in runtime, the only one that tries alternatives.
pub fn measure(
    prepared: &Model,
    plan: &Plan,
    known: &Arc<KnownReads>,
    wanted: &BTreeSet<Source>,
    data: &Dataset,
    samples: &[usize],
    progress: &Progress<'_>,
) -> Result<Noise> {
    let mut found = Noise::default();
    let wanted: Vec<&Source> = wanted.iter().collect();
    for batch in batches(wanted.iter().map(|s| s.node().map_or(0, |n| constant_bytes(prepared, n)))) {
        let some = wanted[batch].iter().copied().cloned().collect();
        found.0.extend(measure_some(prepared, plan, known, &some, data, samples, progress)?.0);
    }
    Ok(found)
}

/// Bytes of rounded constants beside those of the model, about, that are in memory at a time.
const MOST_BYTES: usize = 256 << 20;

/// Runs of what is tried, each of as many bytes of constants as may be in memory together.
pub fn batches(bytes: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let (mut found, mut start, mut end, mut sum) = (Vec::new(), 0, 0, 0usize);
    for bytes in bytes {
        (end, sum) = (end + 1, sum.saturating_add(bytes));
        if sum >= MOST_BYTES {
            found.push(start..end);
            (start, sum) = (end, 0);
        }
    }
    if start < end {
        found.push(start..end);
    }
    found
}

/// Bytes of the constants that a node reads.
pub(super) fn constant_bytes(model: &Model, node: NodeId) -> usize {
    (0..model.node(node).inputs().len()).filter_map(|i| model.constant_input(node, i)).map(Tensor::byte_len).sum()
}

fn measure_some(
    prepared: &Model,
    plan: &Plan,
    known: &Arc<KnownReads>,
    wanted: &BTreeSet<Source>,
    data: &Dataset,
    samples: &[usize],
    progress: &Progress<'_>,
) -> Result<Noise> {
    let Some(&first) = samples.first() else {
        return Err(Error::data("noise is measured on samples, and there are none"));
    };
    let (model, sources) = switchable(prepared, plan, known, wanted, &data.sample(first)?)?;
    if sources.is_empty() {
        return Ok(Noise::default());
    }
    let sets = (0..sources.len()).map(|number| vec![number]).collect();
    let shares = of_trials(prepared, model, sets, data, samples, progress)?;
    Ok(Noise(sources.into_iter().zip(shares).collect()))
}

/// Another constant at an input of a node.
pub type Instead = (NodeId, usize, Tensor);

/// The noise at each output, as a share of its power, for each trial: with these constants in their places, and all else as the
/// prepared model has it. Nodes are in the main graph.
pub fn measure_instead(
    prepared: &Model,
    trials: Vec<Vec<Instead>>,
    data: &Dataset,
    samples: &[usize],
    progress: &Progress<'_>,
) -> Result<Vec<Vec<f64>>> {
    let (mut switches, mut sets, mut number) = (Switches::new(prepared), Vec::new(), 0);
    for trial in trials {
        let mut set = Vec::new();
        for (node, input, constant) in trial {
            let twin = Twin { constants: vec![(input, constant)], ..Twin::default() };
            switches.node(node, twin, When::Chosen(number))?;
            set.push(number);
            number += 1;
        }
        sets.push(set);
    }
    of_trials(prepared, switches.finish()?, sets, data, samples, progress)
}

/// The shares of noise at the outputs in each of these trials. `prepared` is the model without them.
pub(super) fn of_trials(
    prepared: &Model,
    model: Model,
    sets: Vec<Vec<usize>>,
    data: &Dataset,
    samples: &[usize],
    progress: &Progress<'_>,
) -> Result<Vec<Vec<f64>>> {
    let session = Tract.load(&model, &[])?;
    drop(model);
    let outputs = prepared.graph(prepared.main()).outputs().to_vec();
    let gathered: Vec<Mutex<Vec<Gathered>>> =
        sets.iter().map(|_| Mutex::new(vec![Gathered::default(); outputs.len()])).collect();
    let trials = Trials { base: BTreeSet::new(), sets };
    for_each_sample(samples, progress, |sample| {
        let inputs = data.sample(sample)?;
        let answers = session.run_trials(&inputs, &Trials::default(), &mut |_, _| Ok(()))?;
        let judge = &mut |number: usize, changed: &[Tensor]| {
            let Some(gathered) = gathered.get(number) else { return Err(Error::bug("a trial of no source")) };
            let mut gathered = gathered.lock().unwrap_or_else(PoisonError::into_inner);
            for (k, (a, b)) in answers.iter().zip(changed).enumerate() {
                let axis = if a.dtype().is_float() { class_axis(prepared, outputs[k], a.rank()) } else { None };
                gathered[k].update(sample, a, b, axis)?;
            }
            Ok(())
        };
        session.run_trials(&inputs, &trials, judge).map(drop)
    })?;
    let shares = |of: Mutex<Vec<Gathered>>| {
        let of = of.into_inner().unwrap_or_else(PoisonError::into_inner);
        of.into_iter().map(|g| share(&g.metrics(String::new()))).collect()
    };
    Ok(gathered.into_iter().map(shares).collect())
}

/// The noise of an output as a share of its power: all of it where numbers became none. Where it holds classes, samples with
/// small answers count as much as others: it is these that change.
pub fn share(metrics: &super::OutputMetrics) -> f64 {
    // Where it mixes what is small and what is large, the part that has most of it counts.
    let part = metrics.part.as_ref().map_or(0.0, |p| power(p.sqnr_db));
    part.max(whole(metrics))
}

fn power(sqnr: f64) -> f64 {
    10f64.powf(-sqnr.max(-100.0) / 10.0)
}

fn whole(metrics: &super::OutputMetrics) -> f64 {
    match metrics.sqnr_db {
        _ if metrics.not_finite > 0 || metrics.other_shapes > 0 => 1e10,
        sqnr if sqnr.is_nan() => 0.0,
        _ if metrics.class_axis.is_some() => metrics.mean_noise,
        // Integers: other ones in a percent of all weigh as much as a noise of 30 dB.
        _ if metrics.answers > 0 => 10.0 * (1.0 - metrics.agreement().unwrap_or(1.0)).powi(2),
        sqnr => power(sqnr),
    }
}

/// The model in which the rounding of each source can be chosen, by its number in the list of them.
fn switchable(
    prepared: &Model,
    plan: &Plan,
    known: &Arc<KnownReads>,
    wanted: &BTreeSet<Source>,
    sample: &[Tensor],
) -> Result<(Model, Vec<Source>)> {
    let nodes: BTreeSet<NodeId> = wanted.iter().filter_map(Source::node).collect();
    let mut constants = match nodes.is_empty() {
        true => BTreeMap::new(),
        false => Carried::out(prepared, plan, known)?.constants(prepared, &nodes, sample)?,
    };
    let (mut switches, mut sources) = (Switches::new(prepared), Vec::new());
    for id in prepared.nodes(prepared.main()).into_iter().filter(|n| nodes.contains(n)) {
        let dynamic = form(prepared, plan, id) == Some(Form::Dynamic);
        let source = if dynamic { Source::AtRunTime(id) } else { Source::Node(id) };
        let constants = constants.remove(&id).unwrap_or_default();
        let changes = prepared.node(id).input(0).is_some() && (dynamic || !constants.is_empty());
        if changes && wanted.contains(&source) {
            switches.node(id, Twin { constants, dynamic, kernel: None }, When::Chosen(sources.len()))?;
            sources.push(source);
        }
    }
    let names = named_values(prepared);
    for (name, activation) in &plan.activations {
        let Some(&value) = names.get(name).filter(|v| wanted.contains(&Source::Value(**v))) else { continue };
        let reads = |used: &Use| match (activation.readers, *used) {
            (Readers::All, _) => true,
            (Readers::Integer, Use::Input(n, _)) => form(prepared, plan, n) == Some(Form::Integer),
            (Readers::Integer, Use::Output(..)) => false,
        };
        let uses = prepared.value(value).uses().iter().copied().filter(reads).collect();
        switches.value(value, activation, &[(When::Chosen(sources.len()), uses)])?;
        sources.push(Source::Value(value));
    }
    Ok((switches.finish()?, sources))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        calibrate::{DatasetOptions, InputSpec},
        ir::{
            DType,
            testing::{find, model},
        },
        plan::{Activation, NodePlan, Weight},
    };

    #[test]
    fn each_rounding_alone_makes_the_noise_that_it_makes() {
        let m = model(
            "float[n,2] x \n float[2,2] w = {10, 0.04, 0, 10} \n a = Sigmoid(x) \n b = MatMul(a, w) \n c = Neg(x) \n \
             return b, c",
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        let x = [[0.3f32, -1.0], [2.0, 0.7], [-0.2, 0.1]];
        ndarray_npy::write_npy(&path, &ndarray::arr2(&x)).unwrap();
        let data = Dataset::open(&path, &InputSpec::of_model(&m).unwrap(), &DatasetOptions::default()).unwrap();
        let mut plan = Plan::default();
        let activation =
            |scale, readers| Activation { dtype: DType::Uint8, scale, zero_point: 128, clip: None, readers };
        plan.activations.insert("x".into(), activation(0.25, Readers::Integer));
        plan.activations.insert("a".into(), activation(0.1, Readers::All));
        let weight = Weight {
            dtype: DType::Int8,
            axis: None,
            symmetric: true,
            reduce_range: false,
            pair_axes: Vec::new(),
            learned: false,
            algorithm: "rtn".into(),
        };
        for (name, op, weight) in [("a", "Sigmoid", None), ("b", "MatMul", Some(weight))] {
            let node = NodePlan { weight, ..NodePlan::new(None, op, Form::Integer) };
            plan.nodes.insert(name.into(), node);
        }
        let [vx, va, vb] = ["x", "a", "b"].map(|name| find(&m, name));
        let matmul = m.producer(vb).unwrap();
        let sources = [Source::Value(vx), Source::Value(va), Source::Node(matmul)];
        let all = sources.clone().into_iter().collect();
        let found = measure(&m, &plan, &Arc::default(), &all, &data, &[0, 1, 2], &|_, _| ()).unwrap();
        // The same by hand.
        let rounded = |v: f32, scale: f32| (v / scale).round_ties_even() * scale;
        let sigmoid = |v: f32| 1.0 / (1.0 + (-v).exp());
        let answer = |a: [f32; 2], w: [f32; 4]| [a[0] * w[0] + a[1] * w[2], a[0] * w[1] + a[1] * w[3]];
        let (w, q) = ([10.0, 0.04, 0.0, 10.0], [10.0, 10.0 / 127.0, 0.0, 10.0]);
        let mut noise = [0f32; 3];
        for row in x {
            let a = row.map(sigmoid);
            let want = answer(a, w);
            let signal: f32 = want.iter().map(|v| v * v).sum();
            let from_x = answer(row.map(|v| sigmoid(rounded(v, 0.25))), w);
            for (noise, got) in noise.iter_mut().zip([from_x, answer(a.map(|v| rounded(v, 0.1)), w), answer(a, q)]) {
                *noise += got.iter().zip(want).map(|(g, w)| (g - w) * (g - w)).sum::<f32>() / signal / 3.0;
            }
        }
        for (source, noise) in sources.iter().zip(noise) {
            let (got, want) = (found.0[source][0], f64::from(noise));
            assert!(want > 0.0 && (got / want - 1.0).abs() < 1e-2, "{source:?}: {got} for {want}");
        }
        // Only the integer node reads the rounded x.
        assert_eq!(found.0[&sources[0]][1], 0.0);
        assert!((found.worst(&sources) - sources.iter().map(|s| found.0[s][0]).sum::<f64>()).abs() < 1e-12);
    }
}
