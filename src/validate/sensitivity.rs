//! Where the damage comes from: each region of integer nodes quantized alone, on a few samples.

use super::{Reference, compare_with};
use crate::{
    calibrate::collect::Progress,
    error::Result,
    ir::Model,
    passes::{self, Context, Stage},
    plan::{Plan, Regions},
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
/// taken to add up. `prepared` is the model that the plan speaks of; the samples are of the reference's.
pub fn blame(
    reference: &Reference<'_>,
    prepared: &Model,
    plan: &Plan,
    samples: &[usize],
    floor: f64,
    progress: &Progress<'_>,
) -> Result<Vec<Blame>> {
    let graph = Regions::of(prepared, plan);
    let groups = graph.groups(REGIONS);
    let mut tried = Vec::new();
    for (i, group) in groups.iter().enumerate() {
        let model = quantized(prepared, graph.only(plan, group))?;
        let compared = compare_with(reference, &model, samples, &|_, _| ())?;
        let noisy = compared.outputs.iter().map(|o| if o.not_finite > 0 { f64::NEG_INFINITY } else { o.sqnr_db });
        let worst = noisy.filter(|s| !s.is_nan()).fold(f64::INFINITY, f64::min);
        tried.push((worst, i));
        progress(i + 1, groups.len());
    }
    tried.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let noise = |sqnr: f64| 10f64.powf(-sqnr / 10.0);
    let allowed = noise(floor + MARGIN);
    let mut blamed = Vec::new();
    for (at, &(sqnr, i)) in tried.iter().enumerate() {
        let left: f64 = tried[at..].iter().map(|t| noise(t.0)).sum();
        if left <= allowed {
            break;
        }
        let nodes = groups[i].iter().map(|&n| prepared.node_label(n)).collect();
        blamed.push(Blame { nodes, sqnr: (sqnr < f64::INFINITY).then_some(sqnr.max(-100.0)) });
    }
    Ok(blamed)
}

/// The prepared model with a plan carried out.
fn quantized(prepared: &Model, plan: Plan) -> Result<Model> {
    let mut model = prepared.clone();
    let mut cx = Context { plan: Some(plan), ..Context::default() };
    for stage in [Stage::Adjust, Stage::Insert, Stage::Lower, Stage::Cleanup] {
        passes::run_stage(stage, &mut model, &mut cx)?;
    }
    Ok(model)
}
