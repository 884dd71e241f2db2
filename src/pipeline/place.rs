//! Placement, and what is done to the model for its sake before: channels that are evened out.

use std::collections::{BTreeMap, BTreeSet};

use super::{Clock, Job, Run, dynamic, prepare, thin, trace_shapes};
use crate::{
    analysis::placement::{self, Placement},
    calibrate::{
        Dataset,
        collect::{self, Feed},
    },
    diagnostics::{Diagnostic, count},
    error::{Error, Result},
    ir::{Model, NodeId, ValueId},
    passes::{self, Context, Stage},
    plan::{self, ChannelFactors, Plan, TakenBy},
    scheme::Resolved,
};

impl Run<'_, '_> {
    /// Decides what computes in integers.
    pub(super) fn place(&mut self, dataset: Option<&Dataset>, samples: &[usize]) -> Result<Placement> {
        let (job, model) = (self.job, self.model);
        let sample = |i: usize| dataset.ok_or_else(|| Error::bug("a sample of no data")).and_then(|d| d.sample(i));
        let shapes = match samples.first() {
            Some(&first) => trace_shapes(job.runtime, model, &sample(first)?).map_err(|e| e.sample(first))?,
            None => {
                let (shapes, note) = dynamic::shapes_without_data(model);
                self.diagnostics.extend(note.filter(|_| job.evaluation.is_none()));
                shapes
            }
        };
        let mut wishes = dynamic::wishes(model, &job.settings.target, self.resolved, dataset.is_some())?;
        let placement = placement::place(model, &job.settings.target, &shapes, &wishes);
        let mut few = samples.to_vec();
        thin(&mut few, dynamic::MEASURED);
        let free = |n| !wishes.ignore_cost && !wishes.forces(model, n);
        let lost = dynamic::fragile_data(
            job.runtime,
            model,
            &job.settings.target,
            &placement,
            &self.resolved.scheme,
            free,
            few.into_iter().map(sample),
        )?;
        if lost.is_empty() {
            return Ok(placement);
        }
        wishes.keep_float.extend(lost);
        Ok(placement::place(model, &job.settings.target, &shapes, &wishes))
    }

    /// Factors for the channels of values, found in this way.
    fn factors(&mut self, data: &Dataset, samples: &[usize], find: Find) -> Result<Factors> {
        let placement = self.place(Some(data), samples)?;
        let (job, model, resolved) = (self.job, self.model, self.resolved);
        let given = |v: ValueId| {
            let name = model.value(v).name();
            job.ranges.as_ref().is_some_and(|t| t.get(name).is_some() || t.input_means.contains_key(name))
        };
        let task = plan::Smoothing {
            runtime: job.runtime,
            model,
            target: &job.settings.target,
            placement: &placement,
            scheme: &resolved.scheme,
            clips: resolved.observer.name != "min_max",
            // Their ranges speak of undivided numbers.
            fixed: &|v| resolved.ranges.contains_key(&v) || given(v),
        };
        let mut few = samples.to_vec();
        thin(&mut few, plan::SMOOTHING_SAMPLES);
        find(&task, &few, &|i| data.sample(i), &|done, total| job.progress.part(done, total))
    }
}

type Factors = BTreeMap<String, ChannelFactors>;
type Find = fn(&plan::Smoothing<'_>, &[usize], &Feed<'_>, &collect::Progress<'_>) -> Result<Factors>;

/// Divides values by the factors of the plan that is given, or by such as are found where that is asked for; the model then
/// computes the same with channels that one scale fits better. Returns the factors.
pub(super) fn even_out<'a>(
    job: &'a Job<'a>,
    model: &mut Model,
    resolved: &mut Resolved,
    data: Option<(&Dataset, &[usize])>,
    mut clock: Clock<'a>,
    cx: &mut Context,
) -> Result<(Factors, Clock<'a>)> {
    let config = &job.settings.config;
    let steps: [(&'static str, bool, Find); 2] =
        [("equalize", config.equalize, plan::equalize), ("smooth", config.smooth, plan::smooth)];
    let mut factors = job.plan.as_ref().map(|p| p.channel_factors.clone()).unwrap_or_default();
    for (name, _, find) in steps.into_iter().filter(|(_, asked, _)| *asked && job.plan.is_none()) {
        let Some((data, samples)) = data else {
            let text = format!("no effect of {name}: it needs data, and there are none");
            cx.diagnostics.push(Diagnostic::warning("settings_without_effect", text).help("give --calibration"));
            continue;
        };
        clock.step(name);
        // The second step sees what the first one does; both are done to the model at once, as a saved plan does it.
        let mut so_far = model.clone();
        divide(&mut so_far, &factors, resolved.clone(), cx)?;
        let mut run = Run { job, model: &so_far, resolved, diagnostics: Vec::new(), clock };
        let found = run.factors(data, samples, find)?;
        clock = run.clock;
        if found.is_empty() {
            cx.diagnostics.push(no_gain(name));
        }
        for (value, more) in found {
            let ChannelFactors { factors: known, .. } = factors
                .entry(value)
                .or_insert_with(|| ChannelFactors { taken_by: more.taken_by, factors: vec![1.0; more.factors.len()] });
            known.iter_mut().zip(more.factors).for_each(|(f, more)| *f *= more);
        }
    }
    if !factors.is_empty() && job.plan.is_none() {
        let muls = factors.values().filter(|f| f.taken_by == TakenBy::Mul).count();
        let by =
            if muls > 0 { format!(", {muls} of them by a Mul in front of what reads them") } else { String::new() };
        let text = format!("the channels of {} are evened out{by}", count(factors.len(), "value"));
        cx.diagnostics.push(Diagnostic::note("evened_out", text));
    }
    *resolved = divide(model, &factors, resolved.clone(), cx)?;
    Ok((factors, clock))
}

/// The model in the form that the nodes and values of a plan speak of.
pub(super) fn prepared_for(original: &Model, plan: &Plan) -> Result<Model> {
    let mut model = prepare(original, &mut Context::default())?;
    let factors = Plan { channel_factors: plan.channel_factors.clone(), ..Plan::default() };
    passes::run_stage(Stage::Scale, &mut model, &mut Context { plan: Some(factors), ..Context::default() })?;
    Ok(model)
}

/// Says that nothing was found to even out.
fn no_gain(step: &str) -> Diagnostic {
    let why = match step {
        "equalize" => "no two layers that follow each other have one scale for their whole weights and gain by it",
        _ => "no value's channels are so uneven that what reads it gains",
    };
    let diagnostic = Diagnostic::note("nothing_evened_out", format!("{step} changes nothing: {why}"));
    if step == "equalize" { diagnostic.help("it is for --per-tensor") } else { diagnostic }
}

/// Divides the values of a model. What comes in stays float.
fn divide(model: &mut Model, factors: &Factors, mut resolved: Resolved, cx: &mut Context) -> Result<Resolved> {
    if factors.is_empty() {
        return Ok(resolved);
    }
    let before: BTreeSet<NodeId> = model.nodes(model.main()).into_iter().collect();
    cx.plan = Some(Plan { channel_factors: factors.clone(), ..Plan::default() });
    passes::run_stage(Stage::Scale, model, cx)?;
    cx.plan = None;
    // In integers it would quantize what it is there to even out.
    let why = "it evens out the channels of what the products behind it quantize";
    let new = model.nodes(model.main()).into_iter().filter(|n| !before.contains(n));
    resolved.wishes.keep_float.extend(new.map(|n| (n, why.to_owned())));
    Ok(resolved)
}
