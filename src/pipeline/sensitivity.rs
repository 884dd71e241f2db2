//! What each part of a plan does to the answers.

use super::{Job, Quantized, before, even_out::prepared_for, finish::check_labels, quantize, thin, tune::exact};
use crate::{
    config::{self, Rule},
    diagnostics::Diagnostic,
    error::{Error, ErrorKind, Result},
    runtime::{Runtime, tract::Tract},
    validate::{
        Reference, compare_with,
        sensitivity::{self, Sensitivities, Task},
    },
};

/// What to measure, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    /// The most units: with more, neighbours are measured together.
    pub most_units: usize,
    /// The most samples.
    pub samples: usize,
    /// With a model for each measurement, also where trials in one model would do.
    pub one_by_one: bool,
}

/// What was measured, on how many samples, and what was noticed on the way.
#[derive(Debug)]
pub struct Measured {
    /// The figures.
    pub found: Sensitivities,
    /// Samples that they rest on.
    pub samples: usize,
    /// How many of these calibration has not seen.
    pub unseen: usize,
    /// What was noticed.
    pub diagnostics: Vec<Diagnostic>,
}

/// Makes the plan of a job and measures its units. Writes nothing.
pub fn measure_sensitivity(job: &Job<'_>, how: Measure) -> Result<Measured> {
    let settings = job.settings.fastest();
    let q = quantize(&Job { settings: &settings, ..job.clone() })?;
    let Some(data) = &q.dataset else {
        let help = "give --calibration with typical inputs";
        return Err(Error::data("sensitivity is measured on samples, and there are none").help(help));
    };
    let (mut chosen, mut unseen) = samples(job, &q, how.samples);
    job.progress.step("measure");
    let prepared = prepared_for(&q)?;
    let reference = Reference::new(job.runtime, &prepared, data, &chosen, &|_, _| ())?;
    let left_out = before::answered(&reference, &mut chosen)?;
    if data.has_labels() {
        check_labels(&compare_with(&reference, &prepared, &chosen, &|_, _| ())?, data)?;
    }
    drop(reference);
    unseen = unseen.min(chosen.len());
    let progress = |done, total| job.progress.part(done, total);
    let task = Task {
        original: &q.original,
        prepared: &prepared,
        plan: &q.plan,
        known: &q.known,
        data,
        samples: &chosen,
        most: how.most_units,
        progress: &progress,
    };
    let mut diagnostics = q.diagnostics;
    diagnostics.extend(left_out);
    let mut one_by_one = |why: String| {
        let found = sensitivity::measure_one_by_one(&task, job.runtime)?;
        let models = 2 * found.units.len() + 1;
        let text = format!("{models} models were made and run in {}, which takes its time: {why}", job.runtime.name());
        diagnostics.push(Diagnostic::note("one_by_one", text));
        Result::Ok(found)
    };
    let found = if how.one_by_one {
        one_by_one("that was asked for".to_owned())?
    } else if job.runtime.name() != Tract.name() {
        one_by_one("only the built-in runtime switches roundings while a model runs".to_owned())?
    } else if !sensitivity::can_be_switched(&prepared, &q.plan) {
        one_by_one("roundings in subgraphs cannot be switched while a model runs".to_owned())?
    } else {
        match sensitivity::measure(&task) {
            Err(e) if e.kind() == ErrorKind::Runtime => {
                one_by_one(format!("roundings cannot be switched while it runs ({e})"))?
            }
            found => found?,
        }
    };
    Ok(Measured { found, samples: chosen.len(), unseen, diagnostics })
}

/// At most so many samples, those first that calibration has not seen, and how many of these there are among them.
fn samples(job: &Job<'_>, q: &Quantized, most: usize) -> (Vec<usize>, usize) {
    let mut chosen = q.proof_samples.clone();
    thin(&mut chosen, most);
    let unseen = if q.held_out { chosen.len() } else { 0 };
    if job.evaluation.is_some() {
        return (chosen, unseen);
    }
    let mut others: Vec<usize> = q.samples.iter().copied().filter(|s| !chosen.contains(s)).collect();
    thin(&mut others, most - chosen.len());
    chosen.extend(others);
    chosen.sort_unstable();
    (chosen, unseen)
}

impl Measured {
    /// Rules that leave the `count` most harmful units in float, as YAML for a configuration.
    pub fn rules(&self, count: usize) -> Result<String> {
        let nodes: Vec<String> =
            self.found.units.iter().take(count).flat_map(|u| u.nodes.iter().map(|n| exact(n))).collect();
        let rule = (!nodes.is_empty()).then(|| Rule::keep_all_float(nodes));
        config::rules_yaml(rule.as_slice())
    }
}
