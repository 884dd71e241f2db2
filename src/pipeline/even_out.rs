//! Before placement: channels of values that are evened out.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Clock, Job, Quantized,
    confirm::confirmed,
    planner::{Planner, Task},
    prepare, thin,
};
use crate::{
    calibrate::{
        Dataset,
        collect::{self, Feed},
    },
    diagnostics::{Diagnostic, count},
    error::Result,
    ir::{Model, NodeId, ValueId},
    passes::{self, Context, Stage},
    plan::{self, ChannelFactors, Plan, TakenBy},
    scheme::Resolved,
};

/// What is found where integers are to compute, before anything is calibrated.
pub(super) fn look<T>(
    task: Task<'_>,
    samples: &[usize],
    find: impl FnOnce(&plan::Smoothing<'_>) -> Result<T>,
) -> Result<T> {
    // What is noticed here is noticed again when the plan is made.
    let planner = Planner::new(task, samples.to_vec(), Vec::new())?;
    let placement = planner.place(&planner.wishes()?);
    let Task { job, model, resolved, .. } = task;
    let given = |v: ValueId| {
        let name = model.value(v).name();
        job.ranges.as_ref().is_some_and(|t| t.get(name).is_some() || t.input_means.contains_key(name))
    };
    find(&plan::Smoothing {
        runtime: job.runtime,
        model,
        target: &job.settings.target,
        placement: &placement,
        scheme: &resolved.scheme,
        clips: resolved.observer.name != "min_max",
        // Their ranges speak of undivided numbers.
        fixed: &|v| resolved.ranges.contains_key(&v) || given(v),
    })
}

/// Factors for the channels of values, found in this way.
fn factors(
    task: Task<'_>,
    data: &Dataset,
    samples: &[usize],
    find: Find,
    clock: &mut Clock<'_>,
) -> Result<(usize, Factors)> {
    let mut few = samples.to_vec();
    thin(&mut few, plan::SMOOTHING_SAMPLES);
    let progress = |done, total| task.job.progress.part(done, total);
    let found = look(task, samples, |smoothing| find(smoothing, &few, &|i| data.sample(i), &progress))?;
    let count = found.len();
    match count {
        0 => Ok((0, found)),
        _ => Ok((count, confirmed(task, samples, &few, found, clock)?)),
    }
}

pub(super) type Factors = BTreeMap<String, ChannelFactors>;
type Find = fn(&plan::Smoothing<'_>, &[usize], &Feed<'_>, &collect::Progress<'_>) -> Result<Factors>;

/// Divides values by the factors of the plan that is given, or by such as are found where that is asked for; the model then
/// computes the same with channels that one scale fits better. Returns the factors.
pub(super) fn even_out(
    job: &Job<'_>,
    model: &mut Model,
    resolved: &mut Resolved,
    data: Option<(&Dataset, &[usize])>,
    clock: &mut Clock<'_>,
    cx: &mut Context,
) -> Result<Factors> {
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
        let task = Task { job, model: &so_far, resolved, dataset: Some(data), rival: None };
        let (count, found) = self::factors(task, data, samples, find, clock)?;
        if found.is_empty() {
            cx.diagnostics.push(no_gain(name, count));
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
    Ok(factors)
}

/// The model in the form that the nodes and values of a plan speak of.
pub(super) fn prepared_for(q: &Quantized) -> Result<Model> {
    let mut cx = Context::default();
    cx.options.import_quantizers = q.trained;
    let mut model = prepare(&q.original, &mut cx)?;
    passes::run_stage(
        Stage::Scale,
        &mut model,
        &mut Context { plan: Some(q.plan.of_channels()), ..Context::default() },
    )?;
    Ok(model)
}

/// Says that nothing was found to even out.
fn no_gain(step: &str, found: usize) -> Diagnostic {
    let why = match step {
        _ if found > 0 => "single layers gain by it, and the answers of the whole model do not",
        "equalize" => "no two layers that follow each other have one scale for their whole weights and gain by it",
        _ => "no value's channels are so uneven that what reads it gains",
    };
    let diagnostic = Diagnostic::note("nothing_evened_out", format!("{step} changes nothing: {why}"));
    if step == "equalize" && found == 0 { diagnostic.help("it is for --per-tensor") } else { diagnostic }
}

/// Divides the values of a model. What comes in stays float.
pub(super) fn divide(
    model: &mut Model,
    factors: &Factors,
    mut resolved: Resolved,
    cx: &mut Context,
) -> Result<Resolved> {
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
