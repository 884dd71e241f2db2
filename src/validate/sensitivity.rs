//! Where the damage comes from: what a plan rounds, quantized alone and alone left in float, on a few samples.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::{
    Comparison, Reference,
    compare::of_each_answer,
    compare_with,
    losses::{Loss, Losses, Rights, reported, shares},
    trials,
};
use crate::{
    calibrate::{Dataset, collect::Progress},
    error::Result,
    ir::{Model, NodeId},
    passes::{self, Context, Stage},
    plan::{KnownReads, Plan, Regions, Units},
    runtime::Runtime,
};

/// A region that causes damage.
#[derive(Debug, Clone, PartialEq)]
pub struct Blame {
    /// Labels of its nodes, in order.
    pub nodes: Vec<String>,
    /// SQNR of the worst output with only this region quantized, dB; `None` without noise.
    pub sqnr: Option<f64>,
}

/// At most about so many regions are tried: large ones are cut, small neighbours are tried together.
const REGIONS: usize = 12;
/// The answer shall be this much above the floor once the regions to blame are float, dB.
const MARGIN: f64 = 5.0;

/// The regions that must go back to float to lift the worst output above the floor, the worst first. Noise of regions is
/// taken to add up. `prepared` is the model that the plan speaks of, `known` what it was rounded by; the samples are of the reference's.
pub fn blame(
    reference: &Reference<'_>,
    prepared: &Model,
    plan: &Plan,
    known: &Arc<KnownReads>,
    samples: &[usize],
    floor: f64,
    progress: &Progress<'_>,
) -> Result<Vec<Blame>> {
    let graph = Regions::of(prepared, plan);
    let groups = graph.groups(REGIONS);
    let mut tried = Vec::new();
    for (i, group) in groups.iter().enumerate() {
        let model = quantized(prepared, graph.only(plan, group), known)?;
        let compared = compare_with(reference, &model, samples, &|_, _| ())?;
        tried.push((worst_sqnr(&compared), i));
        progress(i + 1, groups.len());
    }
    tried.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let allowed = noise(floor + MARGIN);
    let mut blamed = Vec::new();
    for (at, &(sqnr, i)) in tried.iter().enumerate() {
        let left: f64 = tried[at..].iter().map(|t| noise(t.0)).sum();
        if left <= allowed {
            break;
        }
        let nodes = groups[i].iter().map(|&n| prepared.node_label(n)).collect();
        blamed.push(Blame { nodes, sqnr: reported(sqnr) });
    }
    Ok(blamed)
}

/// What one unit does to the model's answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sensitivity {
    /// Labels of its nodes, in order.
    pub nodes: Vec<String>,
    /// Operators of its nodes, in order.
    pub ops: Vec<String>,
    /// What it alone loses at one output, as a share of what all units lose there, each alone: the most of all outputs. See [`shares`].
    pub share: f64,
    /// With only this unit quantized.
    pub alone: Loss,
    /// With all quantized but this unit.
    pub without: Loss,
}

/// What units are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Right answers that are lost, where that is more than chance; then as the next.
    Labels,
    /// Divergence at outputs that hold classes, noise at others.
    Loss,
}

/// All units of a plan, the most harmful first, and the whole plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sensitivities {
    /// What the units are ordered by.
    pub order: Order,
    /// With all quantized.
    pub all: Loss,
    /// By the harm that each does alone, then in the order of the graph.
    pub units: Vec<Sensitivity>,
}

/// What is measured, and on what.
pub struct Task<'a> {
    /// The model as read.
    pub original: &'a Model,
    /// The model that the plan speaks of.
    pub prepared: &'a Model,
    /// The plan.
    pub plan: &'a Plan,
    /// What its weights are rounded by.
    pub known: &'a Arc<KnownReads>,
    /// The data.
    pub data: &'a Dataset,
    /// The samples to measure on.
    pub samples: &'a [usize],
    /// The most units: with more, neighbours are measured together. See [`Units`].
    pub most: usize,
    /// Is told of each step.
    pub progress: &'a Progress<'a>,
}

/// Whether all that the plan rounds lies in the main graph, where [`measure`] can switch it.
pub fn can_be_switched(prepared: &Model, plan: &Plan) -> bool {
    let units = Units::of(prepared, plan, usize::MAX);
    units.nodes.iter().flatten().all(|&n| prepared.node(n).graph() == prepared.main())
}

/// Measures the units of a plan one by one: each with nothing else quantized, and with all else quantized. The prepared model runs
/// in the built-in runtime with roundings in the places where integer kernels round, and what is the same in two trials is
/// computed once.
pub fn measure(task: &Task<'_>) -> Result<Sensitivities> {
    let units = Units::of(task.prepared, task.plan, task.most);
    let [alone, without, all] = trials::losses(task, &units)?;
    Ok(sorted(task, &units, alone, without, all.into_iter().next().unwrap_or_default()))
}

/// The same with a model for each measurement, written as [`quantized`] does and run by any runtime.
pub fn measure_one_by_one(task: &Task<'_>, runtime: &dyn Runtime) -> Result<Sensitivities> {
    let units = Units::of(task.prepared, task.plan, task.most);
    let reference = Reference::new(runtime, task.original, task.data, task.samples, &|_, _| ())?;
    let (steps, mut done) = (2 * units.nodes.len() + 1, 0);
    let mut loss = |plan: Plan| {
        let model = quantized(task.prepared, plan, task.known)?;
        let fresh = || Mutex::new(Losses::default());
        let losses =
            of_each_answer(&reference, &model, task.samples, &|_, _| (), fresh, |losses, sample, answers, labels| {
                losses.lock().unwrap_or_else(PoisonError::into_inner).update(task.original, sample, answers, labels)
            })?;
        done += 1;
        (task.progress)(done, steps);
        Result::Ok(losses.into_inner().unwrap_or_else(PoisonError::into_inner).loss(task.original))
    };
    let all = loss(task.plan.clone())?;
    let (mut alone, mut without) = (Vec::new(), Vec::new());
    for i in 0..units.nodes.len() {
        alone.push(loss(units.only(task.plan, |u| u == i))?);
        without.push(loss(units.only(task.plan, |u| u != i))?);
    }
    Ok(sorted(task, &units, alone, without, all))
}

/// Labels from which on right answers tell units apart, and the share of them that must be lost to be more than chance.
const ENOUGH: u64 = 100;
const MEANT: f64 = 0.02;

fn sorted(task: &Task<'_>, units: &Units, alone: Vec<Loss>, without: Vec<Loss>, all: Loss) -> Sensitivities {
    let label = |n: &NodeId| task.prepared.node_label(*n);
    let op = |n: &NodeId| task.prepared.node(*n).op_type.clone();
    let shares = shares(&alone, &all);
    let each = units.nodes.iter().zip(shares).zip(alone.into_iter().zip(without));
    let each = each.map(|((nodes, share), (alone, without))| Sensitivity {
        nodes: nodes.iter().map(label).collect(),
        ops: nodes.iter().map(op).collect(),
        share,
        alone,
        without,
    });
    let lost = |unit: &Sensitivity| {
        let rights = unit.alone.labels.as_ref().filter(|r| r.count >= ENOUGH);
        rights.filter(|r| r.lost() as f64 >= MEANT * r.count as f64).map_or(0, Rights::lost)
    };
    let mut units: Vec<Sensitivity> = each.collect();
    // The sort is stable: what is equal stays in the order of the graph.
    units.sort_by(|a, b| lost(b).cmp(&lost(a)).then(b.share.total_cmp(&a.share)));
    let order = if units.iter().any(|u| lost(u) > 0) { Order::Labels } else { Order::Loss };
    Sensitivities { order, all, units }
}

/// SQNR of the worst output, dB: infinite without noise, and its opposite where finite numbers became none.
fn worst_sqnr(compared: &Comparison) -> f64 {
    let noisy = compared.outputs.iter().map(|o| if o.not_finite > 0 { f64::NEG_INFINITY } else { o.least_sqnr() });
    noisy.filter(|s| !s.is_nan()).fold(f64::INFINITY, f64::min)
}

/// Noise as a share of the signal's power.
fn noise(sqnr: f64) -> f64 {
    10f64.powf(-sqnr / 10.0)
}

/// The prepared model with a plan carried out.
pub(crate) fn quantized(prepared: &Model, plan: Plan, known: &Arc<KnownReads>) -> Result<Model> {
    let mut model = prepared.clone();
    let mut cx = Context { plan: Some(plan), known: known.clone(), ..Context::default() };
    for stage in [Stage::Adjust, Stage::Insert, Stage::Lower, Stage::Cleanup] {
        passes::run_stage(stage, &mut model, &mut cx)?;
    }
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        calibrate::{Dataset, DatasetOptions, InputSpec},
        ir::{DType, testing::model},
        plan::{Activation, Form, NodePlan, Readers},
        runtime::tract::Tract,
    };

    #[test]
    fn the_node_with_the_coarse_range_is_the_worst() {
        let m =
            model("float[n,3] x \n a = Sigmoid(x) \n b = Sigmoid(a) \n c = Sigmoid(x) \n y = Add(b, c) \n return y");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.npz");
        let x = ndarray::Array2::from_shape_fn((6, 3), |(i, j)| (i as f32 - 2.5) * (j as f32 + 0.7));
        let mut file = ndarray_npy::NpzWriter::new(std::fs::File::create(&path).unwrap());
        file.add_array("x", &x).unwrap();
        file.finish().unwrap();
        let data = Dataset::open(&path, &InputSpec::of_model(&m).unwrap(), &DatasetOptions::default()).unwrap();
        let all: Vec<usize> = (0..6).collect();
        let known = Arc::default();
        let mut plan = Plan::default();
        for (name, scale) in [("x", 0.1), ("a", 0.004), ("b", 0.004), ("c", 0.25)] {
            let (dtype, zero_point, readers) = (DType::Uint8, if name == "x" { 128 } else { 0 }, Readers::All);
            plan.activations.insert(name.into(), Activation { dtype, scale, zero_point, clip: None, readers });
        }
        for name in ["a", "b", "c"] {
            plan.nodes.insert(name.into(), NodePlan::new(None, "Sigmoid", Form::Integer));
        }
        let task = |most| Task {
            original: &m,
            prepared: &m,
            plan: &plan,
            known: &known,
            data: &data,
            samples: &all,
            most,
            progress: &|_, _| (),
        };
        let found = measure(&task(10)).unwrap();
        assert_eq!((found.units.len(), found.order), (3, Order::Loss));
        assert_eq!(found.units[0].nodes, ["c"]);
        // Alone it has nearly all of the noise, and without it next to none is left.
        let (worst, whole) = (&found.units[0], &found.all);
        assert!(worst.alone.noise() > 0.5 * whole.noise() && worst.share > 0.5, "{found:?}");
        assert!(worst.without.noise() < 0.5 * whole.noise(), "{found:?}");
        assert!(found.units[1].share >= found.units[2].share);
        // The models that are written tell the same.
        let written = measure_one_by_one(&task(10), &Tract).unwrap();
        let close = |a: &Loss, b: &Loss| (a.noise() - b.noise()).abs() <= 1e-4 * a.noise();
        assert!(close(&found.all, &written.all));
        for (a, b) in found.units.iter().zip(&written.units) {
            assert!(a.nodes == b.nodes && close(&a.alone, &b.alone) && close(&a.without, &b.without), "{a:?} {b:?}");
        }
        assert_eq!(measure(&task(1)).unwrap().units.len(), 1);
    }
}
