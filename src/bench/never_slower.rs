//! The promise kept by measurement: what does not gain on this machine goes back to float.
//!
//! A region is a set of integer nodes that quantized values connect. Each is measured in turns with the same model in which
//! that region alone is float, the costliest first. It stays if it is faster beyond the noise: if the interval of the
//! ratio ([`super::ratio`]) lies above 1, over two times of loading both. Rounds end early when it does not hold 1. What cannot be told apart
//! region by region may be in sum, so all regions that are left open are measured once more together. At last the
//! whole model runs against the original, and if it is slower, everything goes back.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{
    stats::{Interval, ratio},
    turns::{Limits, in_turns},
};
use crate::{
    error::Result,
    ir::{Model, NodeId, ValueId},
    plan::{Form, Plan, Regions},
    runtime::{
        Runtime,
        onnxruntime::{Feeds, OnnxRuntime},
    },
};

/// Regions that are measured by themselves; the others, which cost least, are measured together.
const MOST_REGIONS: usize = 12;

/// Rounds of each comparison, for each of the two times that both are loaded.
const LIMITS: Limits = Limits { rounds: 15, turn: Duration::from_millis(40), budget: Duration::from_secs(20) };

/// No comparison of a region begins after this time; the regions that are left stay as the plan has them.
const BUDGET: Duration = Duration::from_secs(120);

/// From here on an interval says that the machine was busy with other work: on a quiet one they are a few percent wide.
pub const BUSY: f64 = 1.5;

/// With fewer rounds than this the interval is no 95 % certain.
const EARLIEST: usize = 6;

/// What is measured, and how its candidates are made.
pub struct Task<'a> {
    /// Runs the prepared model once, which shows how large its values are.
    pub runtime: &'a dyn Runtime,
    /// How many times as fast as the first model the second is: see [`compared_in`].
    pub compare: &'a dyn Fn(&Model, &Model) -> Result<Interval>,
    /// The model as it was read.
    pub original: &'a Model,
    /// The model that the plan speaks of.
    pub prepared: &'a Model,
    /// Inputs for both.
    pub feeds: &'a Feeds,
    /// Makes the model of a plan.
    pub carry_out: &'a dyn Fn(Plan) -> Result<Model>,
    /// Adds the weights of float nodes to what a plan stores in 8 bits, if that is wanted.
    pub store_weights: &'a dyn Fn(&mut Plan),
    /// Told of each comparison.
    pub progress: &'a dyn Fn(usize, usize),
}

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Regions of integer nodes that the plan had.
    pub regions: usize,
    /// Those that were not measured for want of time.
    pub not_measured: usize,
    /// Those that went back to float, in the order that they were measured.
    pub put_back: Vec<PutBack>,
    /// How many times as fast as the original the result is.
    pub whole: Interval,
    /// Whether all went back to float because what was left was slower than the original; then this is its speed.
    pub slower: Option<Interval>,
    /// The widest interval of all, its upper end by its lower: above [`BUSY`] the machine had other work.
    pub widest: f64,
    /// Seconds that it took.
    pub seconds: f64,
}

/// A region that went back.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PutBack {
    /// Labels of its nodes.
    pub nodes: Vec<String>,
    /// How many times as fast as in float the model was with it in integers.
    pub speed: Interval,
}

/// Measures and returns the plan with what does not gain in float.
pub fn put_back(task: &Task<'_>, plan: &Plan) -> Result<(Plan, Measured)> {
    let began = Instant::now();
    // Weights in few bits are there for their size.
    let mut computing = plan.clone();
    computing.nodes.retain(|_, n| n.becomes != Form::WeightOnly);
    let regions = Regions::of(task.prepared, &computing);
    let (groups, count) = by_cost(task, &regions)?;
    let mut measured = Measured { regions: count, ..Measured::default() };
    let mut kept = plan.clone();
    let mut open: Vec<NodeId> = Vec::new();
    let steps = groups.len() + 1;
    let candidate = |plan: &Plan| (task.carry_out)(plan.clone());
    let mut current = candidate(&kept)?;
    for (i, group) in groups.iter().enumerate() {
        (task.progress)(i, steps);
        if began.elapsed() > BUDGET {
            measured.not_measured = groups[i..].iter().map(Vec::len).sum();
            break;
        }
        let nodes = group.concat();
        let without = candidate(&regions.without(task.prepared, &kept, &nodes, ""))?;
        let speed = (task.compare)(&without, &current)?;
        note(&mut measured, speed);
        log::info!("measured: {} nodes are {} times as fast as in float", nodes.len(), words(speed));
        if speed.high < 1.0 {
            kept = regions.without(task.prepared, &kept, &nodes, &reason(speed));
            measured.put_back.push(PutBack { nodes: labels(task, &nodes), speed });
            current = without;
        } else if speed.low <= 1.0 {
            open.extend(nodes);
        }
    }
    if !open.is_empty() {
        let without = candidate(&regions.without(task.prepared, &kept, &open, ""))?;
        let speed = (task.compare)(&without, &current)?;
        note(&mut measured, speed);
        if speed.low <= 1.0 {
            kept = regions.without(task.prepared, &kept, &open, &reason(speed));
            measured.put_back.push(PutBack { nodes: labels(task, &open), speed });
        }
    }
    drop(current);
    (task.progress)(groups.len(), steps);
    if !measured.put_back.is_empty() {
        (task.store_weights)(&mut kept);
    }
    measured.whole = (task.compare)(task.original, &candidate(&kept)?)?;
    let whole = measured.whole;
    note(&mut measured, whole);
    if measured.whole.high < 1.0 && kept.integer_nodes() > 0 {
        measured.slower = Some(measured.whole);
        let all: Vec<NodeId> = groups.concat().concat();
        kept = regions.without(task.prepared, &kept, &all, &reason(measured.whole));
        (task.store_weights)(&mut kept);
        measured.whole = (task.compare)(task.original, &candidate(&kept)?)?;
    }
    measured.seconds = began.elapsed().as_secs_f64();
    Ok((kept, measured))
}

/// Takes note of how certain a ratio is.
fn note(measured: &mut Measured, speed: Interval) {
    measured.widest = measured.widest.max(speed.high / speed.low);
}

fn reason(speed: Interval) -> String {
    format!("measured: {} times as fast in integers as in float", words(speed))
}

fn words(speed: Interval) -> String {
    format!("{:.2} ({:.2} to {:.2})", speed.median, speed.low, speed.high)
}

fn labels(task: &Task<'_>, nodes: &[NodeId]) -> Vec<String> {
    nodes.iter().map(|&n| task.prepared.node_label(n)).collect()
}

/// How many times as fast as the first the second is, in turns. Both are loaded twice, in either order: where their weights
/// happen to lie can make one copy of a model faster than another for as long as it is loaded.
pub fn compared_in(runtime: &OnnxRuntime, feeds: &Feeds, first: &Model, second: &Model) -> Result<Interval> {
    pooled(runtime, feeds, [first, second], LIMITS, true)
}

/// As [`compared_in`], but for the ratio itself: it does not end when it is clear which of the two is faster. The limits are
/// those of each of the two times that both are loaded.
pub fn speed_in(
    runtime: &OnnxRuntime,
    feeds: &Feeds,
    first: &Model,
    second: &Model,
    limits: Limits,
) -> Result<Interval> {
    pooled(runtime, feeds, [first, second], limits, false)
}

fn pooled(
    runtime: &OnnxRuntime,
    feeds: &Feeds,
    [first, second]: [&Model; 2],
    limits: Limits,
    until_clear: bool,
) -> Result<Interval> {
    let mut seen = [Vec::new(), Vec::new()];
    for swapped in [false, true] {
        let (mut a, mut b) = (runtime.timed(first, 1, feeds)?, runtime.timed(second, 1, feeds)?);
        let (mut a, mut b) = (|| a.run(), || b.run());
        let pooled = |new: &[Vec<f64>]| {
            let [mut x, mut y] = seen.clone();
            x.extend(&new[usize::from(swapped)]);
            y.extend(&new[usize::from(!swapped)]);
            [x, y]
        };
        let enough = |new: &[Vec<f64>]| {
            let [x, y] = pooled(new);
            let r = ratio(&x, &y);
            until_clear && new[0].len() >= EARLIEST && (r.low > 1.0 || r.high < 1.0)
        };
        let new = if swapped {
            in_turns(&mut [&mut b, &mut a], limits, &enough, &|_, _| ())?
        } else {
            in_turns(&mut [&mut a, &mut b], limits, &enough, &|_, _| ())?
        };
        seen = pooled(&new);
    }
    Ok(ratio(&seen[0], &seen[1]))
}

/// The regions in groups that are measured together, the costliest first, and how many regions there are.
fn by_cost(task: &Task<'_>, regions: &Regions) -> Result<(Vec<Vec<Vec<NodeId>>>, usize)> {
    let model = task.prepared;
    let connected = regions.connected();
    let output = |n: NodeId| model.node(n).outputs().iter().copied().flatten().next();
    let watched: Vec<(NodeId, ValueId)> = connected
        .iter()
        .flatten()
        .filter(|&&n| model.node(n).graph() == model.main())
        .filter_map(|&n| Some((n, output(n)?)))
        .collect();
    let values: Vec<ValueId> = watched.iter().map(|(_, v)| *v).collect();
    let session = task.runtime.load(model, &values)?;
    let mut products = std::collections::HashMap::new();
    let given = |v: ValueId| task.feeds.iter().find(|(name, _)| name == model.value(v).name()).map(|(_, t)| t.clone());
    let inputs: Vec<_> = model.required_inputs().into_iter().filter_map(given).collect();
    session.run_observed(&inputs, &mut |i, value| {
        products.insert(watched[i].0, cost(model, watched[i].0, value.dims()));
        Ok(())
    })?;
    drop(session);
    let total = |region: &Vec<NodeId>| region.iter().map(|n| products.get(n).copied().unwrap_or(0.0)).sum::<f64>();
    let mut costly: Vec<(f64, Vec<NodeId>)> = connected.into_iter().map(|r| (total(&r), r)).collect();
    costly.sort_by(|a, b| b.0.total_cmp(&a.0)); // stable: then in the graph's order
    let mut sorted: Vec<Vec<NodeId>> = costly.into_iter().map(|(_, r)| r).collect();
    let count = sorted.len();
    let rest = if count > MOST_REGIONS { sorted.split_off(MOST_REGIONS - 1) } else { Vec::new() };
    let mut groups: Vec<Vec<Vec<NodeId>>> = sorted.into_iter().map(|r| vec![r]).collect();
    if !rest.is_empty() {
        groups.push(rest);
    }
    Ok((groups, count))
}

/// Multiplications of a node that makes an output of this shape, roughly.
fn cost(model: &Model, node: NodeId, output: &[usize]) -> f64 {
    let outputs = output.iter().product::<usize>() as f64;
    let Some(weight) = model.constant_input(node, 1).filter(|w| w.rank() > 1) else { return outputs };
    let channels = if model.node(node).is("Conv") { weight.dims()[0] } else { output.last().copied().unwrap_or(1) };
    outputs * (weight.len() / channels.max(1)).max(1) as f64
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::{
        ir::{DType, Tensor, text},
        plan::{Activation, NodePlan, Readers},
        runtime::tract::Tract,
    };

    /// Two regions, `a` and `c`, with a float node between them.
    fn planned() -> (Model, Plan) {
        let model = text::parse(
            "<ir_version: 9, opset_import: [\"\" : 17]> g (float[4] x) => (float[4] c) { a = Neg (x) b = Tanh (a) c = Neg (b) }",
        );
        let mut plan = Plan::default();
        for (name, becomes) in [("a", Form::Integer), ("b", Form::Float), ("c", Form::Integer)] {
            let op = if name == "b" { "Tanh" } else { "Neg" };
            plan.nodes.insert(name.into(), NodePlan::new(None, op, becomes));
        }
        for v in ["x", "a", "b", "c"] {
            let a = Activation { dtype: DType::Uint8, scale: 1.0, zero_point: 0, clip: None, readers: Readers::All };
            plan.activations.insert(v.into(), a);
        }
        (model.unwrap(), plan)
    }

    /// What is measured where a model takes the time that `seconds` says of its integer nodes, as `ac`; the original's is 1.
    fn measured(seconds: &dyn Fn(&str) -> f64) -> (Plan, Measured, usize) {
        let (model, plan) = planned();
        let made = RefCell::new(Vec::new());
        let stored = RefCell::new(0);
        // A candidate is told from others by its number.
        let carry_out = |plan: Plan| {
            let mut candidate = model.clone();
            let integer = plan.nodes.iter().filter(|(_, n)| n.becomes == Form::Integer).map(|(name, _)| name.as_str());
            made.borrow_mut().push(integer.collect::<String>());
            candidate.info.producer_name = Some(format!("{}", made.borrow().len() - 1));
            Ok(candidate)
        };
        let time = |m: &Model| match m.info.producer_name.as_deref().map(str::parse::<usize>) {
            Some(Ok(i)) => seconds(&made.borrow()[i]),
            _ => 1.0,
        };
        let compare = |a: &Model, b: &Model| {
            let median = time(a) / time(b);
            Ok(Interval { median, low: median - 0.01, high: median + 0.01 })
        };
        let task = Task {
            runtime: &Tract,
            compare: &compare,
            original: &model,
            prepared: &model,
            feeds: &[("x".to_owned(), Tensor::from_f32(&[4], &[1.0; 4]))],
            carry_out: &carry_out,
            store_weights: &|_| *stored.borrow_mut() += 1,
            progress: &|_, _| (),
        };
        let (plan, measured) = put_back(&task, &plan).unwrap();
        let stored = *stored.borrow();
        (plan, measured, stored)
    }

    fn integer(plan: &Plan) -> String {
        plan.nodes.iter().filter(|(_, n)| n.becomes == Form::Integer).map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn what_gains_stays() {
        let (plan, measured, _) = measured(&|integer| 1.0 - 0.2 * integer.len() as f64);
        assert_eq!((integer(&plan).as_str(), plan.activations.len()), ("ac", 4));
        assert_eq!((measured.regions, measured.put_back.len(), measured.slower), (2, 0, None));
        assert!((measured.whole.median - 1.0 / 0.6).abs() < 1e-9);
    }

    #[test]
    fn one_region_goes_back() {
        let (plan, measured, stored) = measured(&|integer| match integer {
            "ac" => 0.9,
            "a" => 0.5,
            _ => 2.0,
        });
        assert_eq!((integer(&plan).as_str(), stored), ("a", 1));
        assert_eq!(plan.activations.keys().collect::<Vec<_>>(), ["a", "x"]);
        assert_eq!(measured.put_back[0].nodes, ["c"]);
        assert!(plan.nodes["c"].reason.as_ref().unwrap().starts_with("measured: 0.56 (0.55 to 0.57) times as fast"));
        assert_eq!((measured.slower, measured.whole.median), (None, 2.0));
    }

    #[test]
    fn what_gains_by_region_but_is_slower_as_a_whole_goes_back() {
        // Each region gains over its absence, but any conversion at all costs more than both gain.
        let (plan, measured, stored) = measured(&|integer| match integer {
            "ac" => 1.5,
            "" => 1.0,
            _ => 3.0,
        });
        assert_eq!((integer(&plan).as_str(), plan.activations.len(), stored), ("", 0, 1));
        let slower = measured.slower.unwrap();
        assert!((slower.median - 1.0 / 1.5).abs() < 1e-9);
        assert_eq!((measured.whole.median, measured.put_back.len()), (1.0, 0));
        for name in ["a", "c"] {
            let reason = plan.nodes[name].reason.as_deref();
            assert_eq!(reason, Some("measured: 0.67 (0.66 to 0.68) times as fast in integers as in float"), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_told_apart_goes_back_together() {
        let (plan, measured, _) = measured(&|_| 1.0);
        assert_eq!(integer(&plan), "");
        assert_eq!((measured.put_back.len(), measured.put_back[0].nodes.len(), measured.slower), (1, 2, None));
    }
}
