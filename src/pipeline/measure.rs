//! `never_slower`: the plan is measured before it is carried out for good.

use super::{Clock, Job, Outcome};
use crate::{
    analysis::stand_ins,
    bench::{self, Inputs, Measured},
    calibrate::{Dataset, InputSpec},
    diagnostics::{Diagnostic, count},
    error::{Error, Result},
    ir::{Model, NodeId},
    passes::{self, Context, Stage},
    plan::{self, Plan},
    runtime::onnxruntime::OnnxRuntime,
    scheme::Resolved,
};

/// The stages that carry a plan out.
const STAGES: [Stage; 4] = [Stage::Adjust, Stage::Insert, Stage::Lower, Stage::Cleanup];

/// Carries out the plan in the context.
pub(super) fn carry_out(model: &mut Model, cx: &mut Context) -> Result<()> {
    STAGES.iter().try_for_each(|&stage| passes::run_stage(stage, model, cx).map(drop))
}

/// Puts back into float what does not gain, if that is asked for.
pub(super) fn measure(
    job: &Job<'_>,
    models: [&Model; 2],
    resolved: &Resolved,
    data: Option<&Dataset>,
    cx: &Context,
    outcome: &mut Outcome,
    clock: &mut Clock<'_>,
) -> Result<(Option<Measured>, Vec<Diagnostic>)> {
    if !job.settings.config.never_slower {
        return Ok((None, Vec::new()));
    }
    if outcome.plan.integer_nodes() == 0 {
        let text = "never_slower has nothing to measure: no node computes in integers";
        return Ok((None, vec![Diagnostic::note("nothing_to_measure", text)]));
    }
    clock.step("measure");
    let [original, prepared] = models;
    let runtime = OnnxRuntime::open(None)?;
    let inputs = match data {
        Some(data) => bench::from_data(data, 1)?,
        None => made_up(original, &runtime)?,
    };
    let compare = |a: &Model, b: &Model| bench::compared_in(&runtime, &inputs.tensors, a, b);
    let carry_out = |plan: Plan| {
        let mut model = prepared.clone();
        let mut cx =
            Context { plan: Some(plan), options: cx.options.clone(), known: cx.known.clone(), ..Context::default() };
        self::carry_out(&mut model, &mut cx)?;
        Ok(model)
    };
    let store_weights = |plan: &mut Plan| {
        if resolved.stores_float_weights() {
            let stored = |n: NodeId| resolved.stored_as(prepared, n);
            plan::store_float_weights(prepared, plan, &resolved.scheme, stored);
        }
    };
    let task = bench::Task {
        runtime: &runtime,
        compare: &compare,
        original,
        prepared,
        feeds: &inputs.tensors,
        carry_out: &carry_out,
        store_weights: &store_weights,
        progress: &|done, total| job.progress.part(done, total),
    };
    let (plan, measured) = bench::put_back(&task, &outcome.plan)?;
    outcome.plan = plan;
    let noticed = noticed(&measured);
    Ok((Some(measured), noticed))
}

/// Inputs where there is no data: of the sizes that placement weighed.
fn made_up(model: &Model, runtime: &OnnxRuntime) -> Result<Inputs> {
    let (filled, _) = stand_ins::filled(model);
    let inputs = bench::made_up(&InputSpec::of_model(&filled)?, &Default::default(), 1)?;
    let runs = runtime.timed(model, 1, &inputs.tensors).and_then(|mut model| model.run());
    runs.map_err(|e| {
        let text =
            format!("never_slower needs a run, and the model fails on inputs that are {}", inputs.words.join(" "));
        Error::data(text).help("give --calibration with a typical sample").source(e)
    })?;
    Ok(inputs)
}

fn noticed(measured: &Measured) -> Vec<Diagnostic> {
    let slower = measured.slower.map(|speed| {
        let text = format!(
            "SLOWER THAN FLOAT: the quantized model ran at {:.2} times the speed of the original, so every node is float \
             again",
            speed.median
        );
        Diagnostic::warning("slower_than_float", text).help("what is written is smaller, but not faster")
    });
    let left = (measured.not_measured > 0).then(|| {
        let (left, all) = (measured.not_measured, count(measured.regions, "region"));
        let text = format!("{left} of {all} were not measured for want of time: they are as the cost model has them");
        Diagnostic::warning("not_measured", text)
    });
    let busy = (measured.widest > bench::BUSY && !measured.put_back.is_empty()).then(|| {
        let text = "the machine was busy while speed was measured: what went back to float may gain all the same";
        Diagnostic::warning("busy_machine", text).help("run it again when nothing else is at work")
    });
    slower.into_iter().chain(left).chain(busy).collect()
}
