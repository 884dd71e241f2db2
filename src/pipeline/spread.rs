//! Mode `weight-only` with a target of bits or of size: which layer gets how many bits.
//!
//! What each choice of a layer does to the answers is measured on calibration samples, one layer at a time, all others in float
//! (`validate::noise`); between blocks of other sizes, and float16, by what they do to the layer's output beside that. Without
//! data, or where that cannot be tried, the layer's output alone decides, as if what it reads were white noise and all layers
//! mattered alike: `|w - q|^2 / |w|^2`. The choices are then spread over the layers ([`plan::spread`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Clock, Job, fit, measure::carry_out, thin, weight_only};
use crate::{
    calibrate::Dataset,
    config::{RuleWeightOnly, WeightOnly},
    diagnostics::{Diagnostic, count},
    error::{Error, ErrorKind, Result},
    ir::{DType, GraphId, Model, NodeId, Tensor, ValueId},
    onnx_file::{self, WriteOptions},
    passes::{self, Context},
    plan::{self, BLOCK_SIZES, Cost, FewBits, KnownReads, StoredWeight},
    scheme::Resolved,
    validate::noise::{self, Instead},
    weights::{self, Grid, Layer, Layout, SomeOutputs},
};

/// Bits of codes; beside them there are 16-bit floats.
const BITS: [usize; 3] = [2, 4, 8];
/// Those that are tried in the model: with more, noise only gets less, in step with the layer's own.
const TRIED: [usize; 2] = [2, 4];
/// Sizes of blocks that are tried, in those that are asked for.
const BLOCKS: [usize; 3] = [1, 2, 4];
/// Outputs of each layer that its noise is estimated by.
const OUTPUTS: usize = 32;
/// Samples that the answers are compared on.
const SAMPLES: usize = 8;
/// How often the size is computed anew, at most: what names and types take differs a little from choice to choice.
const ROUNDS: usize = 12;
/// It is near enough when less than this part of it is left.
const CLOSE: u64 = 500;

/// What each node gets: codes, or none where 16 bits suit it.
pub(super) type Chosen = BTreeMap<NodeId, Option<FewBits>>;

/// What came of it.
pub(super) struct Spread {
    /// By node; others are as the settings say.
    pub(super) chosen: Chosen,
    /// What layers read, where that was looked at.
    pub(super) known: Option<Arc<KnownReads>>,
}

/// The model and what is asked for.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) job: &'a Job<'a>,
    /// As read.
    pub(super) original: &'a Model,
    /// As prepared.
    pub(super) model: &'a Model,
    pub(super) resolved: &'a Resolved,
    /// With the samples that may be looked at.
    pub(super) data: Option<(&'a Dataset, &'a [usize])>,
}

/// A weight with all nodes that use it in the same way.
struct Unit {
    nodes: Vec<NodeId>,
    weight: ValueId,
    layout: Layout,
    elements: usize,
    choices: Vec<Choice>,
}

struct Choice {
    how: Option<FewBits>,
    bytes: u64,
    /// The noise of the layer's output as a share of its power.
    alone: f64,
    /// What the answers suffer.
    harm: f64,
}

/// Finds what each layer gets. `None` where no target is set.
pub(super) fn spread(task: Task<'_>, clock: &mut Clock<'_>, cx: &mut Context) -> Result<Option<Spread>> {
    let asked = &task.job.settings.config.weight_only;
    if !asked.is_spread() {
        return Ok(None);
    }
    clock.step("spread bits");
    let mut units = units(task)?;
    if units.is_empty() {
        return Err(nothing(task));
    }
    let known = look(task, &units, cx)?;
    weigh_alone(task, &mut units, known.as_deref())?;
    let judged = weigh(task, &mut units, known.as_deref(), cx)?;
    let costs: Vec<Vec<Cost>> =
        units.iter().map(|u| u.choices.iter().map(|c| Cost { bytes: c.bytes, harm: c.harm }).collect()).collect();
    let elements: usize = units.iter().map(|u| u.elements).sum();
    let (picked, size) = match (asked.target_bits, asked.target_size) {
        (Some(bits), _) => (by_bits(&costs, bits, elements)?, None),
        (None, Some(size)) => {
            let before = onnx_file::size_on_disk(&task.job.model, task.original);
            let target = size.bytes(before);
            let (picked, size) = by_size(task, &units, &costs, target, cx)?;
            (picked, Some((size, target)))
        }
        (None, None) => return Err(Error::bug("nothing is asked for")),
    };
    let bytes: u64 = costs.iter().zip(&picked).map(|(c, &p)| c[p].bytes).sum();
    for (unit, &p) in units.iter().zip(&picked) {
        let (name, choice) = (task.model.value(unit.weight).name(), &unit.choices[p]);
        let how = choice.how.as_ref().map_or("float16".to_owned(), |h| format!("{} in {}", h.dtype, h.block_size));
        log::debug!("{name}: {how}, noise {:.2e} alone, {:.2e} in the answers", choice.alone, choice.harm);
    }
    cx.diagnostics.push(said(asked, &units, &picked, 8.0 * bytes as f64 / elements as f64, size, &judged));
    Ok(Some(Spread { chosen: chosen(&units, &picked), known }))
}

/// Why there is nothing to spread bits over.
fn nothing(task: Task<'_>) -> Error {
    let Task { job, model, resolved, .. } = task;
    let name = if job.settings.config.weight_only.target_bits.is_some() { "target_bits" } else { "target_size" };
    let has_kernel = |&id: &NodeId| {
        let how = resolved.weight_only(model, id).map(|w| w.few_bits(model.node(id).is("Gather"), false));
        how.is_some_and(|how| matches!(plan::check_few_bits(model, &job.settings.target, id, &how), Some(Ok(_))))
    };
    let others =
        "weights that no kernel reads as codes (of convolutions, for example) are stored as weight_only.others says";
    let (text, help) = match model.nodes_below(model.main()).iter().any(has_kernel) {
        true => ("rules say how many bits all weights have", "leave bits out of some of the rules, or leave out"),
        false => ("no node that may have few bits has a weight whose codes a kernel reads", "leave out"),
    };
    Error::config(format!("there is nothing to spread bits over: {text}")).help(format!("{help} {name}; {others}"))
}

fn chosen(units: &[Unit], picked: &[usize]) -> Chosen {
    let of = |(u, &p): (&Unit, &usize)| u.nodes.iter().map(|&n| (n, u.choices[p].how.clone())).collect::<Vec<_>>();
    units.iter().zip(picked).flat_map(of).collect()
}

/// The weights that bits are spread over, with what they may be stored in.
fn units(task: Task<'_>) -> Result<Vec<Unit>> {
    let Task { job, model, resolved, data, .. } = task;
    let mut found: BTreeMap<(ValueId, GraphId, bool, Layout), Unit> = BTreeMap::new();
    for id in model.nodes_below(model.main()) {
        let Some(settings) = resolved.weight_only(model, id).filter(|w| w.is_spread()) else { continue };
        let weight = plan::weight_of(model, id).zip(plan::few_bits_layout(model, id));
        let Some((weight, layout)) = weight else { continue };
        let Some(tensor) = model.value(weight).constant() else { continue };
        let gather = model.node(id).is("Gather");
        let key = (weight, model.node(id).graph(), gather, layout);
        if let Some(unit) = found.get_mut(&key) {
            unit.nodes.push(id);
            continue;
        }
        let mut hows: Vec<FewBits> = Vec::new();
        for how in asked(settings, gather, data.is_some()) {
            let can = plan::check_few_bits(model, &job.settings.target, id, &how);
            if let Some(Ok((_, how))) = can
                && !hows.contains(&how)
            {
                hows.push(how);
            }
        }
        if !hows.is_empty() {
            let choices = choices(layout, tensor, hows);
            let unit = Unit { nodes: vec![id], weight, layout, elements: tensor.len(), choices };
            found.insert(key, unit);
        }
    }
    Ok(found.into_values().collect())
}

/// All bits with all blocks.
fn asked(settings: &WeightOnly, gather: bool, data: bool) -> Vec<FewBits> {
    let sizes = BLOCKS.map(|times| settings.block_size * times).into_iter().filter(|size| BLOCK_SIZES.contains(size));
    let rule = |(size, bits)| RuleWeightOnly { bits: Some(bits), block_size: Some(size), ..RuleWeightOnly::default() };
    let each = sizes.flat_map(|size| BITS.map(|bits| (size, bits)));
    each.map(|each| settings.with(&rule(each)).few_bits(gather, data)).collect()
}

fn choices(layout: Layout, tensor: &Tensor, hows: Vec<FewBits>) -> Vec<Choice> {
    let coded = |how: FewBits| {
        let (bits, blocks) = (how.dtype.bits(), layout.depth.div_ceil(how.block_size));
        // Each output's codes are whole blocks, its zero points whole bytes.
        let zeros = if how.symmetric { 0 } else { (blocks * bits).div_ceil(8) };
        let bytes = layout.outs * (blocks * how.block_size * bits / 8 + blocks * size_of::<f32>() + zeros);
        Choice { how: Some(how), bytes: bytes as u64, alone: 0.0, harm: 0.0 }
    };
    let each = if StoredWeight::fits_half(tensor) { 2 } else { 4 };
    let half = Choice { how: None, bytes: (each * tensor.len()) as u64, alone: 0.0, harm: 0.0 };
    hows.into_iter().map(coded).chain([half]).collect()
}

/// What layers read, where there are data.
fn look(task: Task<'_>, units: &[Unit], cx: &mut Context) -> Result<Option<Arc<KnownReads>>> {
    let Task { job, model, resolved, data, .. } = task;
    let all: Chosen = units.iter().flat_map(|u| u.nodes.iter().map(|&n| (n, u.choices[0].how.clone()))).collect();
    let plan = weight_only::planned(job, model, resolved, &all, data.is_some())?;
    if data.is_none() || !fit::asked(&plan) {
        return Ok(None);
    }
    let (known, noticed) = fit::know(job, model, &plan, data)?;
    cx.diagnostics.extend(noticed);
    Ok(Some(known))
}

/// The noise of each layer's own output.
fn weigh_alone(task: Task<'_>, units: &mut [Unit], known: Option<&KnownReads>) -> Result<()> {
    let mse = weights::by_name(weights::MSE)?;
    for unit in units {
        let value = task.model.value(unit.weight);
        let Some(tensor) = value.constant() else { continue };
        let some = SomeOutputs::of(tensor, unit.layout, OUTPUTS)?;
        onnx_file::give_back(tensor);
        let reads = known.and_then(|k| k.of(value.name()).reads());
        for choice in &mut unit.choices {
            choice.alone = match &choice.how {
                Some(how) => Layer::new(unit.layout, how.block_size, how.grid()?, reads).noise(&some, mse),
                None => Layer::new(unit.layout, 1, Grid::of(DType::Int8, true)?, reads).noise_in_half(&some),
            }
            .map_err(|e| e.value(value.name()))?;
        }
    }
    Ok(())
}

/// What the answers suffer by each choice. Returns what that rests on, in words.
fn weigh(task: Task<'_>, units: &mut [Unit], known: Option<&KnownReads>, cx: &mut Context) -> Result<String> {
    let measured = match task.data.filter(|(_, samples)| !samples.is_empty()) {
        None => None,
        Some((data, samples)) => {
            let mut few = samples.to_vec();
            thin(&mut few, SAMPLES);
            match measured(task, units, known, data, &few) {
                Ok(found) => Some((found, few.len())),
                Err(error) if error.kind() == ErrorKind::Runtime => {
                    let text = format!(
                        "bits are spread by what each layer's own output loses: its part in the answers cannot be \
                                        tried, {error}"
                    );
                    cx.diagnostics.push(Diagnostic::warning("bits_not_judged_by_answers", text));
                    None
                }
                Err(error) => return Err(error),
            }
        }
    };
    let Some((measured, samples)) = measured else {
        units.iter_mut().flat_map(|u| &mut u.choices).for_each(|c| c.harm = c.alone);
        return Ok("by the noise of each layer's own output".to_owned());
    };
    // What a unit of noise in one layer does to the answers, in the layers that were tried.
    let mut each: Vec<f64> = units
        .iter()
        .zip(&measured)
        .filter_map(|(u, found)| Some(found.as_ref()?.get(&4)? / u.first(4)?.alone))
        .filter(|share| share.is_finite())
        .collect();
    each.sort_by(f64::total_cmp);
    let usual = each.get(each.len() / 2).copied().unwrap_or(1.0);
    for (unit, found) in units.iter_mut().zip(&measured) {
        let share = |bits: usize| {
            let harm = found.as_ref().and_then(|f| f.get(&bits));
            let alone = unit.first(bits).map_or(0.0, |c| c.alone);
            harm.map(|harm| if alone > 0.0 { harm / alone } else { 0.0 })
        };
        let tried = TRIED.map(share);
        let of = |choice: &Choice| {
            let bits = choice.how.as_ref().map_or(16, |h| h.dtype.bits());
            let nearest = TRIED.iter().rposition(|&b| b <= bits).unwrap_or(0);
            tried[nearest].or(tried[TRIED.len() - 1]).unwrap_or(usual)
        };
        let harms: Vec<f64> = unit.choices.iter().map(|c| c.alone * of(c)).collect();
        unit.choices.iter_mut().zip(harms).for_each(|(c, harm)| c.harm = harm);
    }
    Ok(format!("by what each layer alone does to the answers on {}", count(samples, "sample")))
}

impl Unit {
    /// The choice of so many bits that is measured.
    fn first(&self, bits: usize) -> Option<&Choice> {
        self.choices.iter().find(|c| c.how.as_ref().is_some_and(|h| h.dtype.bits() == bits))
    }
}

/// By bits, what each unit does to the answers; `None` for those that cannot be tried.
type Measured = Vec<Option<BTreeMap<usize, f64>>>;

fn measured(
    task: Task<'_>,
    units: &[Unit],
    known: Option<&KnownReads>,
    data: &Dataset,
    samples: &[usize],
) -> Result<Measured> {
    let model = task.model;
    let mse = weights::by_name(weights::MSE)?;
    let can = |u: &Unit| u.nodes.iter().all(|&n| model.node(n).graph() == model.main());
    let mut found: Measured = units.iter().map(|u| can(u).then(BTreeMap::new)).collect();
    let counts = last_outputs(model);
    let bytes = |u: &Unit| u.elements * size_of::<f32>();
    for (k, bits) in TRIED.into_iter().enumerate() {
        let tried: Vec<usize> =
            (0..units.len()).filter(|&u| can(&units[u]) && units[u].first(bits).is_some()).collect();
        for batch in noise::batches(tried.iter().map(|&u| bytes(&units[u]))) {
            let mut trials = Vec::new();
            for &u in &tried[batch.clone()] {
                let (unit, value) = (&units[u], model.value(units[u].weight));
                let Some((how, tensor)) = unit.first(bits).and_then(|c| c.how.as_ref()).zip(value.constant()) else {
                    continue;
                };
                let reads = known.and_then(|k| k.of(value.name()).reads());
                let layer = Layer::new(unit.layout, how.block_size, how.grid()?, reads);
                let rounded = layer.round_trip(tensor, mse).map_err(|e| e.value(value.name()))?;
                let instead = |&n: &NodeId| -> Instead { (n, plan::weight_input(model, n), rounded.clone()) };
                trials.push(unit.nodes.iter().map(instead).collect());
            }
            let (all, before) = (TRIED.len() * tried.len(), k * tried.len() + batch.start);
            let progress = |done: usize, of: usize| {
                task.job.progress.part((before * of + done * batch.len()) / of.max(1), all);
            };
            let shares = noise::measure_instead(model, trials, data, samples, &progress)?;
            for (&u, shares) in tried[batch].iter().zip(shares) {
                let harm = shares.iter().zip(&counts).filter(|(_, last)| **last).map(|(s, _)| s).sum::<f64>();
                if let Some(found) = &mut found[u] {
                    found.insert(bits, harm);
                }
            }
        }
    }
    Ok(found)
}

/// Which outputs no other output is computed from: keys and values that a language model hands on count by what its answer makes
/// of them.
fn last_outputs(model: &Model) -> Vec<bool> {
    let outputs = model.graph(model.main()).outputs();
    let nodes = model.nodes(model.main());
    let feeds_another = |&from: &ValueId| {
        let mut reached: BTreeSet<ValueId> = [from].into();
        for &n in &nodes {
            let below = model.node(n).subgraphs().flat_map(|g| model.nodes_below(g)).chain([n]);
            let reads = below.flat_map(|n| model.node(n).inputs()).flatten().any(|v| reached.contains(v));
            if reads {
                reached.extend(model.node(n).outputs().iter().flatten());
            }
        }
        outputs.iter().any(|o| *o != from && reached.contains(o))
    };
    outputs.iter().map(|o| !feeds_another(o)).collect()
}

/// The choices that keep to so many bits of a weight on average.
fn by_bits(costs: &[Vec<Cost>], bits: f64, elements: usize) -> Result<Vec<usize>> {
    plan::spread(costs, (bits * elements as f64 / 8.0) as u64).ok_or_else(|| {
        let least = 8.0 * smallest(costs) as f64 / elements as f64;
        let least = (100.0 * least).ceil() / 100.0;
        Error::config(format!(
            "weight_only.target_bits is {bits}, but with 2 bits in all layers a weight has {least} on average: scales and zero \
             points are counted"
        ))
        .help(format!("ask for {least} or more, set a larger block_size (four times that is tried, too), or leave zero points \
                       out (--no-zero-points)"))
    })
}

fn smallest(costs: &[Vec<Cost>]) -> u64 {
    costs.iter().filter_map(|c| c.iter().map(|c| c.bytes).min()).sum()
}

/// The choices with which the written model has no more bytes than that, and how many it has.
fn by_size(
    task: Task<'_>,
    units: &[Unit],
    costs: &[Vec<Cost>],
    target: u64,
    cx: &Context,
) -> Result<(Vec<usize>, u64)> {
    let Task { job, model, resolved, data, .. } = task;
    let options = WriteOptions { external_data: job.settings.config.external_data.then_some(true) };
    let size = |picked: &[usize]| -> Result<u64> {
        let plan = weight_only::planned(job, model, resolved, &chosen(units, picked), data.is_some())?;
        let mut model = model.clone();
        let options_of_passes = passes::Options { stream_weights: Some(0), ..cx.options.clone() };
        let mut cx = Context { plan: Some(plan), options: options_of_passes, ..Context::default() };
        carry_out(&mut model, &mut cx)?;
        onnx_file::written_len(&model, options)
    };
    let bytes = |picked: &[usize]| costs.iter().zip(picked).map(|(c, &p)| c[p].bytes).sum::<u64>();
    let least = plan::spread(costs, smallest(costs)).ok_or_else(|| Error::bug("a layer has no choice"))?;
    let floor = size(&least)?;
    let rest = floor.saturating_sub(bytes(&least));
    // What names and types take differs from choice to choice: a budget that fits, and one that does not.
    let (mut fits, mut exceeds) = (smallest(costs), u64::MAX);
    let mut best = (floor <= target).then_some((least, floor));
    let mut budget = target.saturating_sub(rest).max(fits);
    for _ in 0..ROUNDS {
        let Some(picked) = plan::spread(costs, budget) else { break };
        let now = size(&picked)?;
        let next = match now <= target {
            true => {
                if best.as_ref().is_none_or(|b| b.1 <= now) {
                    best = Some((picked, now));
                }
                fits = fits.max(budget);
                if (target - now) * CLOSE <= target {
                    break;
                }
                budget.saturating_add(target - now)
            }
            false => {
                exceeds = exceeds.min(budget);
                // Any budget down to what these choices take gives the same ones.
                bytes(&picked).saturating_sub(now - target)
            }
        };
        budget = if next > fits && next < exceeds { next } else { fits + (exceeds.saturating_sub(fits)) / 2 };
        if budget <= fits || budget >= exceeds {
            break;
        }
    }
    if let Some(best) = best {
        return Ok(best);
    }
    let text = format!(
        "weight_only.target_size is {target} bytes, but with 2 bits in all layers the model has {floor}: {} of them are not \
         these layers' weights",
        rest
    );
    let help = format!(
        "ask for {} or more; a larger block_size and --no-zero-points make the weights smaller, --everywhere stores those that \
         no kernel reads in 4 bits",
        in_units(floor)
    );
    Err(Error::config(text).help(help))
}

/// A size that holds so many bytes, as the setting has it.
fn in_units(bytes: u64) -> String {
    match bytes {
        0..10_000 => bytes.to_string(),
        10_000..10_000_000 => format!("{}kB", bytes.div_ceil(1000)),
        _ => format!("{:.1}MB", (bytes as f64 / 1e5).ceil() / 10.0),
    }
}

fn said(
    asked: &WeightOnly,
    units: &[Unit],
    picked: &[usize],
    bits: f64,
    size: Option<(u64, u64)>,
    judged: &str,
) -> Diagnostic {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for (unit, &p) in units.iter().zip(picked) {
        *counts.entry(unit.choices[p].how.as_ref().map_or(16, |h| h.dtype.bits())).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(bits, n)| format!("{n} in {bits}")).collect();
    let asked = match (asked.target_bits, size) {
        (_, Some((size, target))) => format!("the model has {size} bytes, {target} are asked for"),
        (Some(target), None) => format!("{target} are asked for"),
        (None, None) => String::new(),
    };
    let text = format!(
        "bits of {} are spread {judged}: {}; {bits:.2} bits of a weight on average, scales and zero points counted ({asked})",
        count(units.len(), "weight"),
        counts.join(", ")
    );
    Diagnostic::note("bits_spread", text)
}
