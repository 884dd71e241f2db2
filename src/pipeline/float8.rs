//! A model with floats of 8 bits, for accelerators that compute in them: no placement, since what these gain is not known here.

use std::{collections::BTreeMap, sync::Arc};

use super::{Clock, Job, Quantized, before, fit, measure::STAGES, planner, start::Start};
use crate::{
    calibrate::{
        collect::{Watch, collect},
        dataset::{Dataset, Split},
        means::{Axis, ChannelMeans},
        observers::Observer,
        table::Table,
    },
    diagnostics::Diagnostic,
    error::{Error, Result},
    ir::{DType, Model, NodeId, ValueId},
    passes,
    plan::{self, Float8Node, Float8Task, KnownReads, Plan, decide_float8, float8_nodes},
    scheme::Resolved,
};

/// Reads, prepares, calibrates, decides and rewrites; writes nothing.
pub(super) fn quantize(job: &Job<'_>, dtype: DType) -> Result<Quantized> {
    let target = &job.settings.target;
    let Start { mut clock, original, mut model, resolved, mut cx, dataset, evaluation, broken } = super::start(job)?;
    let Some(data) = &dataset else {
        return Err(before::no_data(&job.settings.config));
    };
    let evaluated = evaluation.as_ref().map(|d| planner::proof_samples(job, d, &mut cx.diagnostics)).transpose()?;
    let (samples, split): (Vec<usize>, Split) = planner::samples(job, data, &mut cx.diagnostics)?;
    let mut calibrated = Calibrated { job, model: &model, resolved: &resolved, data, samples: &samples };
    let (plan, table, known) = calibrated.plan(&mut clock, &mut cx.diagnostics)?;
    cx.known = known;
    cx.plan = Some(plan);
    clock.step("rewrite");
    for stage in STAGES {
        passes::run_stage(stage, &mut model, &mut cx)?;
    }
    clock.step("");
    let plan = cx.plan.unwrap_or_default();
    cx.diagnostics.extend(before::no_float8(target, dtype).filter(|_| plan.has_float8()));
    let (dataset, proof_samples, held_out) = match evaluation {
        Some(data) => (Some(data), evaluated.unwrap_or_default(), job.evaluation != job.data),
        None => (dataset, split.validation, split.held_out),
    };
    Ok(Quantized {
        original,
        model,
        plan,
        known: cx.known,
        measured: None,
        placement: None,
        auto: None,
        dataset,
        table,
        samples,
        proof_samples,
        held_out,
        diagnostics: cx.diagnostics,
        stages: clock.stages,
        promises: Vec::new(),
        left: Vec::new(),
        broken,
        uneven: 0,
    })
}

/// A prepared model and the samples to look at.
struct Calibrated<'a> {
    job: &'a Job<'a>,
    model: &'a Model,
    resolved: &'a Resolved,
    data: &'a Dataset,
    samples: &'a [usize],
}

impl Calibrated<'_> {
    fn plan(&mut self, clock: &mut Clock<'_>, noticed: &mut Vec<Diagnostic>) -> Result<(Plan, Table, Arc<KnownReads>)> {
        let Self { job, model, resolved, .. } = *self;
        let wishes = &resolved.wishes;
        let task = Float8Task { model, target: &job.settings.target, scheme: &resolved.scheme, wishes };
        let (nodes, _) = float8_nodes(&task);
        let mut table = job.ranges.clone().unwrap_or_default();
        clock.step("calibrate");
        let mut watches = self.watches(&nodes, &table);
        if !watches.is_empty() {
            let progress = |done, total| job.progress.part(done, total);
            watches = collect(job.runtime, model, watches, self.samples, &|i| self.data.sample(i), &progress)?;
        }
        clock.step("decide");
        let mut observed: BTreeMap<ValueId, Observer> = BTreeMap::new();
        for watch in watches {
            let name = model.value(watch.value).name();
            table.input_means.extend(watch.means.and_then(|m| m.means()).map(|m| (name.to_owned(), m)));
            observed.extend(watch.observer.map(|o| (watch.value, o)));
        }
        let mut plan = decide_float8(&task, |v, types| {
            if let Some(range) = resolved.ranges.get(&v) {
                return Ok(*range);
            }
            let name = model.value(v).name();
            if let Some(observer) = observed.get(&v) {
                table.insert(name, observer, types)?;
            }
            table.get(name).ok_or_else(|| Error::bug("a value was not observed").value(name))
        })?;
        for found in observed.iter().flat_map(|(v, o)| o.stats().diagnose(model.value(*v).name())) {
            // Inputs were looked at before, on fewer samples.
            noticed.retain(|d| d.code != found.code || d.subject != found.subject);
            noticed.push(found);
        }
        if resolved.correct_bias {
            plan.input_means.clone_from(&table.input_means);
        }
        if resolved.stores_float_weights() {
            // Where codes of 8 bits have kernels, they are not for nodes that compute in float. Products that stay float have
            // small weights, and few of them: a super-resolution model lost 13 dB by storing those as int8.
            let float8 = &job.settings.target.float8;
            let stays = |n: NodeId| float8.computes || float8.takes(model.node(n));
            let stored = |n| resolved.stored_as(model, n).filter(|d| *d != DType::Int8 || !stays(n));
            plan::store_float_weights(model, &mut plan, &resolved.scheme, stored);
        }
        let mut known = Arc::default();
        if fit::asked(&plan) {
            clock.step("look at layers");
            let (found, said) = fit::know(job, model, &plan, Some((self.data, self.samples)))?;
            known = found;
            noticed.extend(said);
        }
        Ok((plan, table, known))
    }

    /// What must be known of which values, and is not in the table yet.
    fn watches(&self, nodes: &[Float8Node], known: &Table) -> Vec<Watch> {
        let (model, resolved) = (self.model, self.resolved);
        let name = |v: ValueId| model.value(v).name();
        let mut watches: BTreeMap<ValueId, Watch> = BTreeMap::new();
        let watch = |value: ValueId| Watch { value, observer: None, means: None };
        for node in nodes {
            for &v in &node.data {
                if !resolved.ranges.contains_key(&v) && known.get(name(v)).is_none() {
                    watches.entry(v).or_insert_with(|| watch(v)).observer = Some(resolved.choice(v).observer());
                }
            }
            let layer = model.node(node.id);
            let axis = if layer.is("Conv") { Axis::Second } else { Axis::Last };
            let corrected = resolved.correct_bias && model.constant_input(node.id, 1).is_some();
            let read = layer.input(0).filter(|v| corrected && node.data.contains(v));
            if let Some(v) = read.filter(|&v| !known.input_means.contains_key(name(v))) {
                watches.entry(v).or_insert_with(|| watch(v)).means = Some(ChannelMeans::new(axis));
            }
        }
        watches.into_values().collect()
    }
}
