//! Where the damage comes from: each region of integer nodes quantized alone, on a few samples.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Reference, compare_with};
use crate::{
    calibrate::collect::Progress,
    error::Result,
    ir::{Model, NodeId},
    passes::{self, Context, Stage},
    plan::{Form, Plan, named_values},
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
    let groups = graph.groups();
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

/// The integer nodes of a plan and the quantized values that connect them.
struct Regions {
    /// In the graph's order: a node, its name in the plan, and the quantized values at it.
    nodes: Vec<(NodeId, String, BTreeSet<String>)>,
    /// For absorbed nodes: the name in the plan, and the integer node that absorbs it.
    absorbed: BTreeMap<String, NodeId>,
}

impl Regions {
    fn of(model: &Model, plan: &Plan) -> Self {
        let mut all = Self { nodes: Vec::new(), absorbed: BTreeMap::new() };
        // Where a value comes from once clamps are gone.
        let mut host: HashMap<String, NodeId> = HashMap::new();
        let named = named_values(model);
        for id in model.nodes_below(model.main()) {
            let name = |v| model.value(v).name().to_owned();
            let node = model.node(id);
            let Some(key) = node.outputs().iter().copied().flatten().next().map(name) else { continue };
            match plan.nodes.get(&key).map(|n| n.becomes) {
                // A node of a subgraph that bears a name of the main graph.
                _ if node.outputs().iter().flatten().next() != named.get(&key) => {}
                // It needs no quantized value, so it is a region by itself.
                Some(Form::Dynamic) => all.nodes.push((id, key, BTreeSet::new())),
                Some(Form::Integer) => {
                    let at = node.inputs().iter().chain(node.outputs()).copied().flatten().map(name);
                    let at = at.filter(|v| plan.activations.contains_key(v)).collect();
                    host.insert(key.clone(), id);
                    all.nodes.push((id, key, at));
                }
                Some(Form::Absorbed) => {
                    let from = node.input(0).map(name).and_then(|v| host.get(&v).copied());
                    let Some(owner) = from else { continue };
                    host.insert(key.clone(), owner);
                    if let Some((_, _, at)) = all.nodes.iter_mut().find(|n| n.0 == owner) {
                        at.extend(plan.activations.contains_key(&key).then(|| key.clone()));
                    }
                    all.absorbed.insert(key, owner);
                }
                _ => {}
            }
        }
        all
    }

    /// The nodes in groups: connected ones together, not more than a share in one.
    fn groups(&self) -> Vec<Vec<NodeId>> {
        let mut region: Vec<usize> = (0..self.nodes.len()).collect();
        let mut first: HashMap<&str, usize> = HashMap::new();
        for (i, (_, _, values)) in self.nodes.iter().enumerate() {
            for v in values {
                let j = *first.entry(v).or_insert(i);
                let (a, b) = (root(&mut region, i), root(&mut region, j));
                region[a.max(b)] = a.min(b);
            }
        }
        let mut order: Vec<(usize, usize)> = (0..self.nodes.len()).map(|i| (root(&mut region, i), i)).collect();
        order.sort_unstable();
        let share = self.nodes.len().div_ceil(REGIONS).max(1);
        order.chunks(share).map(|c| c.iter().map(|&(_, i)| self.nodes[i].0).collect()).collect()
    }

    /// The plan with only these nodes in integers.
    fn only(&self, plan: &Plan, group: &[NodeId]) -> Plan {
        let kept: Vec<_> = self.nodes.iter().filter(|n| group.contains(&n.0)).collect();
        let values: BTreeSet<&String> = kept.iter().flat_map(|n| &n.2).collect();
        let names: BTreeSet<&String> = kept
            .iter()
            .map(|n| &n.1)
            .chain(self.absorbed.iter().filter(|(_, owner)| group.contains(owner)).map(|(name, _)| name))
            .collect();
        let mut out = Plan { target: plan.target.clone(), nodes: plan.nodes.clone(), ..Plan::default() };
        for (name, node) in &mut out.nodes {
            if !names.contains(name) && node.becomes != Form::Float {
                node.becomes = Form::Float;
                (node.kernel, node.weight) = (None, None);
            }
        }
        let activations = plan.activations.iter().filter(|(v, _)| values.contains(v));
        out.activations = activations.map(|(v, a)| (v.clone(), a.clone())).collect();
        out
    }
}

fn root(parents: &mut [usize], mut i: usize) -> usize {
    while parents[i] != i {
        parents[i] = parents[parents[i]];
        i = parents[i];
    }
    i
}
