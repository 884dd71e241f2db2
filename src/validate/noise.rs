//! What each rounding of a plan adds to the noise of the answers, one by one.
//!
//! The prepared model runs in float, and in each of its trials one value is rounded as the plan rounds it, or one node has the
//! weights that it will have. What lies before that is computed once for all trials. Such noises are small and of many
//! origins, so those of a plan are taken to add up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use super::{classes::class_axis, metrics::Gathered};
use crate::{
    calibrate::{
        Dataset,
        collect::{Progress, for_each_sample},
    },
    error::{Error, Result},
    ir::{Model, NodeId, NodeSpec, Place, Tensor, Use, ValueId},
    passes::{
        self, Context, Stage,
        support::{pairs, replace},
    },
    plan::{Activation, Form, KnownReads, Plan, Readers, named_values},
    quant::pack::pack,
    runtime::{ALTERNATIVE, NUMBER, Runtime, tract::Tract},
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
    let (mut found, mut some, mut bytes) = (Noise::default(), BTreeSet::new(), 0);
    let mut wanted = wanted.iter().peekable();
    while let Some(source) = wanted.next() {
        bytes += constant_bytes(prepared, source);
        some.insert(source.clone());
        if bytes >= MOST_BYTES || wanted.peek().is_none() {
            found.0.extend(measure_some(prepared, plan, known, &some, data, samples, progress)?.0);
            some.clear();
            bytes = 0;
        }
    }
    Ok(found)
}

/// Bytes of rounded constants beside those of the model, about, that are in memory at a time.
const MOST_BYTES: usize = 256 << 20;

fn constant_bytes(model: &Model, source: &Source) -> usize {
    let Some(n) = source.node() else { return 0 };
    (0..model.node(n).inputs().len()).filter_map(|i| model.constant_input(n, i)).map(Tensor::byte_len).sum()
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
    let constants = match wanted.iter().any(|s| s.node().is_some()) {
        true => rounded_constants(prepared, plan, known, wanted, &data.sample(first)?)?,
        false => BTreeMap::new(),
    };
    let (model, sources, chosen) = (prepared.clone(), Vec::new(), BTreeMap::new());
    let mut trials = Trials { prepared, plan, wanted, model, sources, chosen };
    trials.model.set_opset(ALTERNATIVE, 1);
    trials.add_nodes(constants)?;
    trials.add_values()?;
    let Trials { model, sources, .. } = trials;
    if sources.is_empty() {
        return Ok(Noise::default());
    }
    let session = Tract.load(&model, &[])?;
    drop(model);
    let outputs = prepared.graph(prepared.main()).outputs().to_vec();
    let gathered: Vec<Mutex<Vec<Gathered>>> =
        sources.iter().map(|_| Mutex::new(vec![Gathered::default(); outputs.len()])).collect();
    for_each_sample(samples, progress, |sample| {
        let inputs = data.sample(sample)?;
        let answers = session.run(&inputs)?;
        session.run_trials(&inputs, &mut |number, changed| {
            let Some(gathered) = gathered.get(number) else { return Err(Error::bug("a trial of no source")) };
            let mut gathered = gathered.lock().unwrap_or_else(PoisonError::into_inner);
            for (k, (a, b)) in answers.iter().zip(changed).enumerate() {
                let axis = if a.dtype().is_float() { class_axis(prepared, outputs[k], a.rank()) } else { None };
                gathered[k].update(sample, a, b, axis)?;
            }
            Ok(())
        })
    })?;
    let shares = |of: Mutex<Vec<Gathered>>| {
        let of = of.into_inner().unwrap_or_else(PoisonError::into_inner);
        of.into_iter().map(|g| share(&g.metrics(String::new()))).collect()
    };
    Ok(Noise(sources.into_iter().zip(gathered.into_iter().map(shares)).collect()))
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

/// The constant inputs of wanted nodes that the plan changes, as the written model computes with them: by node and number of
/// the input.
fn rounded_constants(
    prepared: &Model,
    plan: &Plan,
    known: &Arc<KnownReads>,
    wanted: &BTreeSet<Source>,
    sample: &[Tensor],
) -> Result<BTreeMap<NodeId, Vec<(usize, Tensor)>>> {
    let mut carried_out = prepared.clone();
    let mut cx = Context { plan: Some(plan.clone()), known: known.clone(), ..Context::default() };
    for stage in [Stage::Adjust, Stage::Insert] {
        passes::run_stage(stage, &mut carried_out, &mut cx)?;
    }
    let mut found: BTreeMap<NodeId, Vec<(usize, Tensor)>> = BTreeMap::new();
    let (mut observed, mut places) = (Vec::new(), Vec::new());
    let alive: BTreeSet<NodeId> = carried_out.nodes(carried_out.main()).into_iter().collect();
    for id in prepared.nodes(prepared.main()) {
        let node = prepared.node(id);
        let asked = wanted.contains(&Source::Node(id)) || wanted.contains(&Source::AtRunTime(id));
        if !asked || !alive.contains(&id) || carried_out.node(id).op_type != node.op_type {
            continue;
        }
        for (i, now) in carried_out.node(id).inputs().iter().enumerate() {
            let before = prepared.constant_input(id, i);
            let Some(now) = *now else { continue };
            match carried_out.value(now).initializer() {
                Some(t) if !before.is_some_and(|b| b.same_content(t)) => {
                    found.entry(id).or_default().push((i, t.clone()))
                }
                None if before.is_some() => {
                    observed.push(now);
                    places.push((id, i));
                }
                _ => {}
            }
        }
    }
    if observed.is_empty() {
        return Ok(found);
    }
    let session = Tract.load(&carried_out, &observed)?;
    session.run_observed(sample, &mut |k, value| {
        let (id, i) = places[k];
        found.entry(id).or_default().push((i, value.to_tensor()?));
        Ok(())
    })?;
    Ok(found)
}

/// The model in which each source has an alternative, and the source of each trial.
struct Trials<'a> {
    prepared: &'a Model,
    plan: &'a Plan,
    wanted: &'a BTreeSet<Source>,
    model: Model,
    sources: Vec<Source>,
    /// What stands in the place of an output once its node has an alternative.
    chosen: BTreeMap<ValueId, ValueId>,
}

impl Trials<'_> {
    /// Beside each node with other constants, one that has them.
    fn add_nodes(&mut self, mut constants: BTreeMap<NodeId, Vec<(usize, Tensor)>>) -> Result<()> {
        for id in self.prepared.nodes(self.prepared.main()) {
            let dynamic = self.form(id) == Some(Form::Dynamic);
            let source = if dynamic { Source::AtRunTime(id) } else { Source::Node(id) };
            let changed = constants.remove(&id).unwrap_or_default();
            if !self.wanted.contains(&source) {
                continue;
            }
            let node = self.prepared.node(id);
            let mut inputs = node.inputs().to_vec();
            let Some(&Some(x)) = inputs.first().filter(|_| dynamic || !changed.is_empty()) else { continue };
            if dynamic {
                inputs[0] = Some(pairs::dynamic_pair(&mut self.model, x, Place::Before(id))?);
            }
            for (i, tensor) in changed {
                inputs.resize(inputs.len().max(i + 1), None);
                inputs[i] = Some(self.model.add_initializer(self.model.main(), "rounded", tensor));
            }
            let mut spec = NodeSpec::new(node.op_type.clone()).inputs(inputs).attrs(node.attributes.clone());
            if let Some(domain) = &node.domain {
                spec = spec.domain(domain.clone());
            }
            for out in node.outputs() {
                spec = match out {
                    Some(_) => spec.output("rounded"),
                    None => spec.output_value(None),
                };
            }
            let twin = self.model.insert(spec, Place::After(id));
            let others = self.model.node(twin).outputs().to_vec();
            for (&out, &other) in node.outputs().iter().flatten().zip(others.iter().flatten()) {
                let chosen = self.add(out, other, Place::After(twin))?;
                self.prepared.value(out).uses().iter().for_each(|&used| self.model.redirect(used, chosen));
                self.chosen.insert(out, chosen);
            }
            self.sources.push(source);
        }
        Ok(())
    }

    /// Behind each quantized value, its Q/DQ pair.
    fn add_values(&mut self) -> Result<()> {
        let names = named_values(self.prepared);
        for (name, activation) in &self.plan.activations {
            let Some(&value) = names.get(name).filter(|v| self.wanted.contains(&Source::Value(**v))) else {
                continue;
            };
            let now = self.chosen.get(&value).copied().unwrap_or(value);
            let pair = self.pair(now, activation)?;
            let place = replace::behind_maker(&self.model, pair, self.model.main());
            let chosen = self.add(now, pair, place)?;
            for &used in self.prepared.value(value).uses() {
                let reads = match (activation.readers, used) {
                    (Readers::All, _) => true,
                    (Readers::Integer, Use::Input(n, _)) => self.form(n) == Some(Form::Integer),
                    (Readers::Integer, Use::Output(..)) => false,
                };
                if reads {
                    self.model.redirect(used, chosen);
                }
            }
            self.sources.push(Source::Value(value));
        }
        Ok(())
    }

    fn pair(&mut self, x: ValueId, activation: &Activation) -> Result<ValueId> {
        let graph = self.model.main();
        let scale = self.model.add_initializer(graph, "scale", Tensor::from_f32(&[], &[activation.scale]));
        let zero = pack(activation.dtype, &[], &[activation.zero_point])?;
        let zero = self.model.add_initializer(graph, "zero_point", zero);
        let spec =
            |op: &str, x: ValueId| NodeSpec::new(op).inputs([Some(x), Some(scale), Some(zero)]).output("rounded");
        let place = replace::behind_maker(&self.model, x, graph);
        let codes = self.model.insert_value(spec("QuantizeLinear", x), place)?;
        let place = replace::behind_maker(&self.model, codes, graph);
        self.model.insert_value(spec("DequantizeLinear", codes), place)
    }

    /// Makes `other` the alternative of `value` in the trial of the next source.
    fn add(&mut self, value: ValueId, other: ValueId, place: Place) -> Result<ValueId> {
        let spec = NodeSpec::new(ALTERNATIVE).domain(ALTERNATIVE).inputs([Some(value), Some(other)]);
        self.model.insert_value(spec.attr(NUMBER, self.sources.len() as i64).output("chosen"), place)
    }

    fn form(&self, node: NodeId) -> Option<Form> {
        let out = self.prepared.node(node).outputs().iter().copied().flatten().next()?;
        self.plan.nodes.get(self.prepared.value(out).name()).map(|n| n.becomes)
    }
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
        plan::{NodePlan, Weight},
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
        let activation = |scale, readers| Activation { dtype: DType::Uint8, scale, zero_point: 128, readers };
        plan.activations.insert("x".into(), activation(0.25, Readers::Integer));
        plan.activations.insert("a".into(), activation(0.1, Readers::All));
        let weight = Weight {
            dtype: DType::Int8,
            axis: None,
            symmetric: true,
            reduce_range: false,
            pair_axes: Vec::new(),
            algorithm: "rtn".into(),
        };
        for (name, op, weight) in [("a", "Sigmoid", None), ("b", "MatMul", Some(weight))] {
            let (name_, kernel, reason) = (None, None, None);
            let node =
                NodePlan { name: name_, op: op.into(), becomes: Form::Integer, kernel, weight, reason, fenced: false };
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
