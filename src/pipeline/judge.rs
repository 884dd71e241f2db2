//! How mode `auto` measures a plan: by its answers on samples, and by what the settings ask of them.

use std::sync::Arc;

use super::{
    auto::{ENOUGH, judged_on},
    budget::{Budget, classifies},
    planner::Planner,
};
use crate::{
    calibrate::dataset::{Dataset, Split},
    config::Config,
    error::Result,
    ir::Model,
    plan::{KnownReads, Plan},
    report::{Auto, Kept},
    validate::{Comparison, OutputMetrics, Reference, compare_with, noise, sensitivity},
};

/// A larger loss is not looked at: nobody would accept it.
const MOST_LOSS: f64 = 0.1;

/// How plans are measured.
pub(super) struct Judge<'a> {
    reference: Reference<'a>,
    model: &'a Model,
    config: &'a Config,
    pub(super) budget: Budget,
    samples: Vec<usize>,
    /// The outputs of the first plan, which told how much noise matters.
    first: Vec<OutputMetrics>,
}

/// What judging a plan gives.
#[derive(Debug, Clone, Default)]
pub(super) struct Judged {
    /// The share of the budget that is used up.
    pub(super) used: f64,
    /// What the plan keeps of the answers.
    pub(super) kept: Kept,
    /// The least loss that allows it, where that is more than was asked for.
    pub(super) enough: Option<f64>,
    /// Whether an output of the original holds no finite number, so that nothing can be said of a plan's.
    pub(super) blind: bool,
    /// The setting that allows least.
    limit: &'static str,
}

impl<'a> Judge<'a> {
    /// Judges on samples that calibration has not seen, as far as there are any, and on others where they are few.
    pub(super) fn new(planner: &Planner<'a>, split: &Split, data: &'a Dataset) -> Result<Self> {
        let task = planner.task;
        let kept_back = if task.job.evaluation.is_none() { &split.validation[..] } else { &[] };
        let samples = judged_on(data, classifies(task.model, &planner.shapes), kept_back, &planner.samples);
        let reference = Reference::new(task.job.runtime, task.model, data, &samples, &|_, _| ())?;
        let config = &task.job.settings.config;
        let budget = Budget::of(task.model, &planner.shapes, config);
        Ok(Self { reference, model: task.model, config, budget, samples, first: Vec::new() })
    }

    /// The noise of a plan's answers as a share of the budget: of the output that uses most of it. Whether that is within the
    /// budget is for the labels to say where there are enough.
    pub(super) fn judge(&self, plan: &Plan, known: &Arc<KnownReads>) -> Result<Judged> {
        Ok(self.judged(&self.compared(plan, known)?))
    }

    /// The same, once the answers of this plan have told how much noise matters.
    pub(super) fn judge_first(&mut self, plan: &Plan, known: &Arc<KnownReads>) -> Result<Judged> {
        let compared = self.compared(plan, known)?;
        self.budget.forgive(&compared.outputs);
        self.first.clone_from(&compared.outputs);
        Ok(self.judged(&compared))
    }

    fn compared(&self, plan: &Plan, known: &Arc<KnownReads>) -> Result<Comparison> {
        let model = sensitivity::quantized(self.model, plan.clone(), known)?;
        compare_with(&self.reference, &model, &self.samples, &|_, _| ())
    }

    fn judged(&self, compared: &Comparison) -> Judged {
        let (used, limit) = self.used(&self.budget, compared);
        let shares: Vec<f64> = compared.outputs.iter().map(noise::share).collect();
        let kept = Kept {
            sqnr: self.budget.decibel(self.budget.used(&shares)),
            agreement: self.config.proof.min_agreement.and(compared.least_agreement()),
            right: labelled(compared).map(|(original, quantized)| quantized as f64 / original as f64),
        };
        let enough = (used > 1.0 && limit == "max_loss").then(|| self.enough(compared)).flatten();
        let blind = compared.outputs.iter().any(|o| o.count == 0 && o.original_not_finite > 0);
        Judged { used, kept, enough, blind, limit }
    }

    /// The share of a budget that is used up, and by which setting.
    fn used(&self, budget: &Budget, compared: &Comparison) -> (f64, &'static str) {
        let shares: Vec<f64> = compared.outputs.iter().map(noise::share).collect();
        let changed = budget.changed(compared.least_agreement());
        let (noise, loss) = (budget.used(&shares), self.config.loss_limit());
        let (used, limit) =
            if changed > noise { (changed, "min_agreement") } else { (noise, self.config.noise_limit()) };
        match labelled(compared).map(|(original, quantized)| budget.lost(original, quantized)) {
            Some(lost) if lost <= 1.0 && changed > 1.0 => (used.min(changed), "min_agreement"),
            Some(lost) if lost <= 1.0 => (used.min(1.0), loss),
            Some(lost) if lost > used || limit == "max_loss" => (used.max(lost), loss),
            _ => (used, limit),
        }
    }

    /// The least loss, in two digits, that allows answers as they were measured.
    fn enough(&self, compared: &Comparison) -> Option<f64> {
        let digits = (-5..0).flat_map(|e| (10..100).map(move |m| f64::from(m) * 10f64.powi(e - 1)));
        let losses = digits.filter(|loss| *loss > self.config.allowed_loss() && *loss <= MOST_LOSS * (1.0 + 1e-9));
        let allows = |loss: &f64| {
            let mut budget = self.budget.with_loss(self.config, *loss);
            budget.forgive(&self.first);
            self.used(&budget, compared).0 <= 1.0
        };
        losses.into_iter().find(allows)
    }

    /// The report of the first plan, as long as no other is better.
    pub(super) fn report(&self, first: &Judged) -> Auto {
        first.chosen(Auto {
            samples: self.samples.len(),
            aim: self.budget.aim(),
            aims: self.budget.aims(),
            max_loss: self.budget.max_loss(),
            least_agreement: self.config.proof.min_agreement,
            limit: first.limit,
            before: first.kept.sqnr,
            kept_before: first.kept,
            used_before: first.used,
            enough: first.enough,
            ..Auto::default()
        })
    }
}

impl Judged {
    /// The report, if this is the plan that was chosen.
    pub(super) fn chosen(&self, auto: Auto) -> Auto {
        let Self { used, kept, enough, .. } = *self;
        Auto { after: kept.sqnr, kept_after: kept, used_after: used, enough_after: enough, ..auto }
    }
}

/// Right answers of the original and of the plan, where there are so many labels that these decide.
fn labelled(compared: &Comparison) -> Option<(u64, u64)> {
    let enough = compared.accuracy.as_ref().filter(|a| a.count >= ENOUGH && a.original > 0)?;
    Some((enough.original, enough.quantized))
}
