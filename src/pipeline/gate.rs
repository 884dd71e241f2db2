//! Whether a cure brings the answers of the whole model nearer to the original's, on samples that it was not chosen on.

use std::sync::Arc;

use super::{budget::Budget, planner::Planner, thin};
use crate::{
    error::{Error, Result},
    ir::Model,
    plan::{KnownReads, Plan},
    validate::{Reference, compare_with, noise, sensitivity},
};

/// Samples that a plan is judged on at most.
const JUDGED: usize = 24;

/// Judges plans on two halves of some samples, each for itself: what gains on both is no chance.
pub(super) struct Gate<'a> {
    reference: Reference<'a>,
    pub(super) budget: Budget,
    halves: [Vec<usize>; 2],
}

impl<'a> Gate<'a> {
    /// With the answers of the planner's model to some of these samples; `None` where they are too few.
    pub(super) fn new(planner: &Planner<'a>, mut samples: Vec<usize>) -> Result<Option<Self>> {
        let task = planner.task;
        if samples.len() < 2 {
            return Ok(None);
        }
        thin(&mut samples, JUDGED);
        let data = task.dataset.ok_or_else(|| Error::bug("plans are judged on samples of no data"))?;
        let reference = Reference::new(task.job.runtime, task.model, data, &samples, &|_, _| ())?;
        let budget = Budget::of(task.model, &planner.shapes, &task.job.settings.config);
        let half = |first: usize| samples.iter().copied().skip(first).step_by(2).collect();
        Ok(Some(Self { reference, budget, halves: [half(0), half(1)] }))
    }

    /// The noise of a plan's answers on each half, as a share of what the output that has most of it may have. `prepared` is
    /// the model that the plan speaks of, and `known` what its weights are rounded by.
    pub(super) fn noise(&self, prepared: &Model, plan: &Plan, known: &Arc<KnownReads>) -> Result<[f64; 2]> {
        let model = sensitivity::quantized(prepared, plan.clone(), known)?;
        let mut noises = [0.0; 2];
        for (noise, half) in noises.iter_mut().zip(&self.halves) {
            let compared = compare_with(&self.reference, &model, half, &|_, _| ())?;
            let shares: Vec<f64> = compared.outputs.iter().map(noise::share).collect();
            *noise = self.budget.used(&shares);
        }
        Ok(noises)
    }
}

/// Whether no more than this share of the noise is left on either half.
pub(super) fn gains(before: [f64; 2], after: [f64; 2], left: f64) -> bool {
    before.iter().zip(after).all(|(before, after)| after < left * before)
}
