//! Before placement: biases that move on to the next layer.

use std::collections::BTreeMap;

use super::{Clock, Job, even_out::look, planner::Task};
use crate::{
    calibrate::Dataset,
    diagnostics::{Diagnostic, count},
    error::Result,
    ir::Model,
    passes::{self, Context, Stage, absorb_biases::places},
    plan::{self, ChannelShifts, Plan},
    scheme::Resolved,
};

/// Takes from the channels of values what the plan that is given says, or what is found where that is asked for; the model
/// then computes the same with narrower ranges. Returns what was taken.
pub(super) fn absorb(
    job: &Job<'_>,
    model: &mut Model,
    resolved: &Resolved,
    data: Option<(&Dataset, &[usize])>,
    clock: &mut Clock<'_>,
    cx: &mut Context,
) -> Result<BTreeMap<String, ChannelShifts>> {
    let shifts = match (&job.plan, data) {
        (Some(plan), _) => plan.absorbed_biases.clone(),
        (None, _) if !job.settings.config.absorb_biases => return Ok(BTreeMap::new()),
        (None, None) => {
            let text = "no effect of absorb_biases: it needs data, and there are none";
            cx.diagnostics.push(Diagnostic::warning("settings_without_effect", text).help("give --calibration"));
            return Ok(BTreeMap::new());
        }
        (None, Some((data, samples))) => {
            clock.step("absorb biases");
            let task = Task { job, model, resolved, dataset: Some(data), rival: None };
            let (places, progress) = (places(model), |done, total| job.progress.part(done, total));
            let find = |smoothing: &plan::Smoothing<'_>| {
                plan::absorb(smoothing, &places, samples, &|i| data.sample(i), &progress)
            };
            let shifts = look(task, samples, find)?;
            cx.diagnostics.push(told(places.len(), shifts.len()));
            shifts
        }
    };
    if !shifts.is_empty() {
        cx.plan = Some(Plan { absorbed_biases: shifts.clone(), ..Plan::default() });
        passes::run_stage(Stage::Scale, model, cx)?;
        cx.plan = None;
    }
    Ok(shifts)
}

fn told(places: usize, found: usize) -> Diagnostic {
    let text = match (places, found) {
        (0, _) => {
            "absorb_biases changes nothing: there is no clamp at 0 between two layers of which the second pads nothing"
                .to_owned()
        }
        (_, 0) => format!(
            "absorb_biases changes nothing: of {} between layers, none has a channel that lies above 0 on all calibration \
             samples and makes its range",
            count(places, "clamped value")
        ),
        _ => {
            return Diagnostic::note(
                "biases_absorbed",
                format!(
                    "the ranges of {} are narrower, since biases of their layers moved on to the next ones",
                    count(found, "value")
                ),
            );
        }
    };
    Diagnostic::note("nothing_absorbed", text)
}
