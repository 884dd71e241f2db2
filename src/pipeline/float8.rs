//! A model with floats of 8 bits, for accelerators that compute in them: no placement, since what these gain is not known here.

use std::{collections::BTreeMap, sync::Arc};

use super::{Clock, Job, Outcome, Quantized, before, fit, observed::Observed, planner, start::Start};
use crate::{
    calibrate::{
        collect::{Watch, collect},
        dataset::{Dataset, Split},
        means::{Axis, ChannelMeans},
        table::Table,
    },
    diagnostics::Diagnostic,
    error::Result,
    ir::{DType, Model, NodeId, ValueId},
    plan::{self, Float8Node, Float8Task, KnownReads, Plan, decide_float8, float8_nodes},
    scheme::Resolved,
};

/// Reads, prepares, calibrates, decides and rewrites; writes nothing.
pub(super) fn quantize(job: &Job<'_>, dtype: DType) -> Result<Quantized> {
    let Start { mut clock, original, model, resolved, mut cx, dataset, evaluation, broken, trained } =
        super::start(job)?;
    let Some(data) = &dataset else {
        return Err(before::no_data(&job.settings.config));
    };
    let evaluated = evaluation.as_ref().map(|d| planner::proof_samples(job, d, &mut cx.diagnostics)).transpose()?;
    let (samples, split): (Vec<usize>, Split) = planner::samples(job, data, &mut cx.diagnostics)?;
    let mut calibrated = Calibrated { job, model: &model, resolved: &resolved, data, samples: &samples };
    let (plan, table, known) = calibrated.plan(&mut clock, &mut cx.diagnostics)?;
    cx.known = known;
    let (proof_samples, held_out) = (split.validation, split.held_out);
    let outcome = Outcome { plan, table, samples, proof_samples, held_out, ..Outcome::default() };
    let end = Start { clock, original, model, resolved, cx, dataset, evaluation, broken, trained };
    let mut done = end.rewritten(job, outcome, evaluated.unwrap_or_default())?;
    let slow = before::no_float8(&job.settings.target, dtype).filter(|_| done.plan.has_float8());
    done.diagnostics.extend(slow);
    Ok(done)
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
        let observed = Observed::of(model, watches, &mut table);
        let mut plan = decide_float8(&task, |v, types| observed.range(model, resolved, &mut table, v, types))?;
        observed.diagnose(model, noticed);
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
