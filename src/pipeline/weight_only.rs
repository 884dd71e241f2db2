//! Mode `weight-only`: every node stays float, and weights become codes that kernels read.

use super::{Clock, Job, Outcome};
use crate::{
    analysis::placement::{Decision, Placement},
    calibrate::{Dataset, dataset::Split},
    error::{Error, Result},
    ir::{Model, NodeId},
    plan::{self, Plan},
    scheme::Resolved,
};

/// Why nodes without such a weight stay as they are.
const NO_WEIGHT: &str = "no kernel reads codes here";

/// The plan of a job.
pub(super) fn plan(
    job: &Job<'_>,
    model: &Model,
    resolved: &Resolved,
    dataset: Option<&Dataset>,
    (samples, split): (Vec<usize>, Split),
    clock: &mut Clock<'_>,
) -> Result<Outcome> {
    clock.step("decide");
    let target = &job.settings.target;
    let float = |id: &NodeId| {
        let kept = resolved.wishes.keeps_float(model, *id);
        (*id, Decision::Float(kept.unwrap_or(NO_WEIGHT).to_owned()))
    };
    let placement = Placement { nodes: model.nodes(model.main()).iter().map(float).collect(), ..Placement::default() };
    let unasked = |_, _| Err(Error::bug("no value is quantized in this mode"));
    let mut plan = plan::decide(model, target, &placement, &resolved.scheme, unasked)?;
    plan::pack_weights(model, &mut plan, |node, t| {
        // What a kernel may read is not packed for loading.
        let read = target.weight_only.iter().any(|row| model.node(node).is(&row.op)) && t.rank() == 2;
        let how = resolved.weight_only(model, node).filter(|_| !read)?;
        how.packed(t.len(), t.dims().first().copied().unwrap_or(1))
    });
    add(model, &mut plan, resolved, job, dataset.is_some());
    if resolved.stores_float_weights() {
        plan::store_float_weights(model, &mut plan, &resolved.scheme, |n| resolved.stored_as(model, n));
    }
    let (proof_samples, held_out) = (split.validation, split.held_out);
    Ok(Outcome { plan, samples, proof_samples, held_out, ..Outcome::default() })
}

/// Gives float nodes the weights in few bits that mode or rules ask for.
pub(super) fn add(model: &Model, plan: &mut Plan, resolved: &Resolved, job: &Job<'_>, data: bool) {
    let wanted = |id: NodeId| resolved.weight_only(model, id).map(|w| w.few_bits(model.node(id).is("Gather"), data));
    plan::weights_in_few_bits(model, plan, &job.settings.target, wanted);
}
