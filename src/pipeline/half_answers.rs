//! 16-bit floats judged by the model's answers, as mode `auto` judges integers: where they lose more than they may, each rounding
//! is measured alone, and those that cost most go back to 32 bits until the rest fits.

use std::sync::Arc;

use super::{
    Clock,
    auto::not_measured,
    judge::{Judge, Judged},
    planner::{Planner, Task},
    thin,
};
use crate::{
    calibrate::dataset::Split,
    diagnostics::Diagnostic,
    error::{ErrorKind, Result},
    plan::{Answers, FREE, ForAnswers, Form, HalfNoise, HalfTask, KnownReads, Plan, decide_halves},
    report::Auto,
    validate::half_noise,
};

/// Samples that single roundings are measured on, at least and at most, and the trials that are aimed at for all together.
const FEW: (usize, usize) = (2, 8);
const TRIALS: usize = 512;
/// Plans that are tried at most.
const ROUNDS: usize = 8;
/// What the next plan is held to, as a share of what it may lose.
const AIM: f64 = 0.8;
/// A plan that leaves more than this share is looked at once more: less may be enough.
const USED: f64 = 0.4;

/// A plan whose answers lose no more than they may, or the one that loses least, and how it was found.
pub(super) fn choose(
    task: Task<'_>,
    half: &HalfTask<'_>,
    (samples, split): (&[usize], &Split),
    first: Plan,
    clock: &mut Clock<'_>,
    noticed: &mut Vec<Diagnostic>,
) -> Result<(Plan, Option<Auto>)> {
    let Some(data) = task.dataset.filter(|_| rounds(&first)) else { return Ok((first, None)) };
    clock.step("judge");
    let planner = Planner::new(task, samples.to_vec(), Vec::new())?;
    let mut judge = Judge::new(&planner, split, data)?;
    let known: Arc<KnownReads> = Arc::default();
    let judged = judge.judge_first(&first, &known)?;
    if judged.blind {
        return Ok((first, None));
    }
    let mut report = judge.report(&judged);
    let none = HalfNoise::new();
    let answers = Answers::of(half, &first, &none)?;
    if judged.used <= FREE || judged.used <= 1.0 && !answers.has_free() {
        return Ok((first, Some(report)));
    }
    clock.step("measure");
    let sources = answers.sources();
    let mut few = samples.to_vec();
    thin(&mut few, (TRIALS / sources.len().max(1)).clamp(FEW.0, FEW.1));
    let progress = |done, total| task.job.progress.part(done, total);
    let noise = match half_noise::measure(task.model, &answers, half.dtype, &sources, data, &few, &progress) {
        Err(error) if error.kind() == ErrorKind::Runtime => {
            noticed.push(not_measured(&error));
            return Ok((first, Some(report)));
        }
        noise => noise?,
    };
    let noise: HalfNoise = noise.into_iter().map(|(s, shares)| (s, judge.budget.scaled(&shares))).collect();
    let search = Search { half, judge: &judge, first: &first, noise: &noise, used: judged.used, known };
    let (plan, judged) = search.within_budget(judged, clock)?;
    report = judged.chosen(report);
    report.enough = [report.enough, judged.enough].into_iter().flatten().min_by(f64::total_cmp);
    report.floated = gone(&first, &plan);
    report.out_of_time = clock.is_over();
    Ok((plan, Some(report)))
}

/// Whether a plan rounds anything.
fn rounds(plan: &Plan) -> bool {
    !plan.stored_weights.is_empty() || plan.nodes.values().any(|n| n.becomes == Form::Half)
}

/// Nodes that compute in 16 bits in the first plan, and in 32 in the other.
fn gone(first: &Plan, plan: &Plan) -> usize {
    let half = |plan: &Plan, name: &str| plan.nodes.get(name).is_some_and(|n| n.becomes == Form::Half);
    first.nodes.keys().filter(|name| half(first, name) && !half(plan, name)).count()
}

struct Search<'s, 'a> {
    half: &'s HalfTask<'s>,
    judge: &'s Judge<'a>,
    first: &'s Plan,
    noise: &'s HalfNoise,
    /// What the first plan uses of what may be lost.
    used: f64,
    known: Arc<KnownReads>,
}

impl Search<'_, '_> {
    /// Plans with less and less in 16 bits, until one fits.
    fn within_budget(&self, judged: Judged, clock: &mut Clock<'_>) -> Result<(Plan, Judged)> {
        let whole = Answers::of(self.half, self.first, self.noise)?.total();
        let predicted = whole.into_iter().fold(0.0, f64::max);
        // What predictions are held to: noises that cancel or amplify each other show in the first plan.
        let mut allowed = (AIM * predicted / self.used).clamp(0.05, 2.0);
        let (mut fits, mut fails) = (None::<f64>, None::<f64>);
        let mut best = (self.first.clone(), judged);
        for _ in 0..ROUNDS {
            if clock.is_over() {
                break;
            }
            clock.step("decide");
            let for_answers = Answers::of(self.half, self.first, self.noise)?.hold_to(allowed);
            let (plan, judged) = self.judged(&for_answers, clock)?;
            let (used, was) = (judged.used, best.1.used);
            log::info!(
                "16 bits: predictions held to {allowed:.2e} of what may be lost: {used:.2e} measured, {} nodes in 32 bits",
                for_answers.nodes.len()
            );
            let done = used <= 1.0 && (used >= USED || !for_answers.costs());
            match used <= 1.0 {
                true => fits = Some(allowed),
                false => fails = Some(allowed),
            }
            let better = match (was <= 1.0, used <= 1.0) {
                (true, true) => {
                    let (now, before) = (in_16_bits(&plan), in_16_bits(&best.0));
                    now > before || now == before && used < was
                }
                (false, false) => used < was,
                (inside, _) => !inside,
            };
            if better {
                best = (plan, judged);
            }
            allowed = match (fits, fails) {
                _ if done => break,
                (Some(low), Some(high)) if high < 1.5 * low => break,
                (Some(low), Some(high)) => (low * high).sqrt(),
                _ => allowed * (AIM / used.max(1e-9)).clamp(0.05, 2.0),
            };
        }
        Ok(best)
    }

    fn judged(&self, for_answers: &ForAnswers, clock: &mut Clock<'_>) -> Result<(Plan, Judged)> {
        let plan = decide_halves(&HalfTask { for_answers, ..*self.half })?;
        clock.step("judge");
        let judged = self.judge.judge(&plan, &self.known)?;
        Ok((plan, judged))
    }
}

/// Nodes that compute in 16 bits, and weights that are stored in them.
fn in_16_bits(plan: &Plan) -> [usize; 2] {
    [plan.nodes.values().filter(|n| n.becomes == Form::Half).count(), plan.stored_weights.len()]
}
