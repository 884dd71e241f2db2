//! Where the damage comes from: regions of integer nodes quantized alone, and alone left in float, on a few samples.

use std::sync::Arc;

use serde::Serialize;

use super::{Comparison, Reference, compare_with};
use crate::{
    calibrate::collect::Progress,
    error::Result,
    ir::{Model, NodeId},
    passes::{self, Context, Stage},
    plan::{KnownReads, Plan, Regions},
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

/// How the model's answers are, measured at its outputs against the original's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Answers {
    /// SQNR of the worst output, dB; `None` without noise.
    pub sqnr: Option<f64>,
    /// The least share of the same top answers, 0 to 1; `None` where no output holds classes.
    pub agreement: Option<f64>,
}

impl Answers {
    fn of(compared: &Comparison) -> Self {
        Self { sqnr: reported(worst_sqnr(compared)), agreement: compared.least_agreement() }
    }

    /// Noise as a share of the signal's power.
    pub fn noise(&self) -> f64 {
        self.sqnr.map_or(0.0, noise)
    }
}

/// How a model answers these samples.
pub fn answers(reference: &Reference<'_>, model: &Model, samples: &[usize]) -> Result<Answers> {
    Ok(Answers::of(&compare_with(reference, model, samples, &|_, _| ())?))
}

/// What one unit does to the model's answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sensitivity {
    /// Labels of its nodes, in order.
    pub nodes: Vec<String>,
    /// Operators of its nodes, in order.
    pub ops: Vec<String>,
    /// With only this unit quantized.
    pub alone: Answers,
    /// With all quantized but this unit.
    pub without: Answers,
}

/// All units of a plan, the most harmful first, and the whole plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sensitivities {
    /// With all quantized.
    pub all: Answers,
    /// By the noise that each makes alone, then in the order of the graph.
    pub units: Vec<Sensitivity>,
}

/// Measures units of a plan one by one: each with nothing else quantized, and with all else quantized. A unit is an
/// integer node with the clamps that it absorbs, or neighbours together where there are more than `most` of them. Weights
/// that are only stored in fewer bits count for the whole plan and for no unit. `prepared` is the model that the plan
/// speaks of; the samples are of the reference's.
pub fn measure(
    reference: &Reference<'_>,
    prepared: &Model,
    plan: &Plan,
    known: &Arc<KnownReads>,
    samples: &[usize],
    most: usize,
    progress: &Progress<'_>,
) -> Result<Sensitivities> {
    let graph = Regions::of(prepared, plan);
    let groups = graph.groups(most);
    let (steps, mut done) = (2 * groups.len() + 1, 0);
    let mut answers = |plan: Plan| {
        let model = quantized(prepared, plan, known)?;
        let compared = compare_with(reference, &model, samples, &|_, _| ())?;
        done += 1;
        progress(done, steps);
        Result::Ok(Answers::of(&compared))
    };
    let of = |nodes: &[NodeId]| Plan { input_means: plan.input_means.clone(), ..graph.only(plan, nodes) };
    let all = answers(plan.clone())?;
    let mut units = Vec::new();
    for (i, group) in groups.iter().enumerate() {
        let others = [&groups[..i], &groups[i + 1..]].concat().concat();
        units.push(Sensitivity {
            nodes: group.iter().map(|&n| prepared.node_label(n)).collect(),
            ops: group.iter().map(|&n| prepared.node(n).op_type.clone()).collect(),
            alone: answers(of(group))?,
            without: answers(Plan { stored_weights: plan.stored_weights.clone(), ..of(&others) })?,
        });
    }
    // The sort is stable: what is equal stays in the order of the graph.
    units.sort_by(|a, b| b.alone.noise().total_cmp(&a.alone.noise()));
    Ok(Sensitivities { all, units })
}

/// SQNR of the worst output, dB: infinite without noise, and its opposite where finite numbers became none.
fn worst_sqnr(compared: &Comparison) -> f64 {
    let noisy = compared.outputs.iter().map(|o| if o.not_finite > 0 { f64::NEG_INFINITY } else { o.least_sqnr() });
    noisy.filter(|s| !s.is_nan()).fold(f64::INFINITY, f64::min)
}

/// As reports have it: nothing without noise, and a number where nothing is left of the answers.
fn reported(sqnr: f64) -> Option<f64> {
    (sqnr < f64::INFINITY).then_some(sqnr.max(-100.0))
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
        let reference = Reference::new(&Tract, &m, &data, &all, &|_, _| ()).unwrap();
        let mut plan = Plan::default();
        for (name, scale) in [("x", 0.1), ("a", 0.004), ("b", 0.004), ("c", 0.25)] {
            let (dtype, zero_point, readers) = (DType::Uint8, if name == "x" { 128 } else { 0 }, Readers::All);
            plan.activations.insert(name.into(), Activation { dtype, scale, zero_point, readers });
        }
        for name in ["a", "b", "c"] {
            let (becomes, op) = (Form::Integer, "Sigmoid".to_owned());
            let (kernel, weight, reason) = (None, None, None);
            plan.nodes.insert(name.into(), NodePlan { name: None, op, becomes, kernel, weight, reason, fenced: false });
        }
        let found = measure(&reference, &m, &plan, &Arc::default(), &all, 10, &|_, _| ()).unwrap();
        assert_eq!(found.units.len(), 3);
        assert_eq!(found.units[0].nodes, ["c"]);
        // Alone it has nearly all of the noise, and without it next to none is left.
        let (worst, whole) = (&found.units[0], found.all);
        assert!(worst.alone.noise() > 0.5 * whole.noise(), "{found:?}");
        assert!(worst.without.noise() < 0.5 * whole.noise(), "{found:?}");
        assert!(found.units[1].alone.noise() >= found.units[2].alone.noise());
        assert_eq!(measure(&reference, &m, &plan, &Arc::default(), &all, 1, &|_, _| ()).unwrap().units.len(), 1);
    }
}
