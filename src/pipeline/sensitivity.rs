//! What each part of a plan does to the answers.

use super::{Job, even_out::prepared_for, quantize, thin};
use crate::{
    config::{self, Rule},
    diagnostics::Diagnostic,
    error::{Error, Result},
    validate::{
        Reference,
        sensitivity::{self, Sensitivities},
    },
};

/// What was measured, on how many samples, and what was noticed on the way.
#[derive(Debug)]
pub struct Measured {
    /// The figures.
    pub found: Sensitivities,
    /// Samples that they rest on.
    pub samples: usize,
    /// Whether calibration has not seen these samples.
    pub held_out: bool,
    /// What was noticed.
    pub diagnostics: Vec<Diagnostic>,
}

/// Makes the plan of a job and measures its units, at most `most`, on at most `samples` samples. Writes nothing.
pub fn measure_sensitivity(job: &Job<'_>, most: usize, samples: usize) -> Result<Measured> {
    let settings = job.settings.fastest();
    let q = quantize(&Job { settings: &settings, ..job.clone() })?;
    let Some(data) = &q.dataset else {
        let help = "give --calibration with typical inputs";
        return Err(Error::data("sensitivity is measured on samples, and there are none").help(help));
    };
    let unseen = !q.proof_samples.is_empty();
    let mut chosen = if unseen { q.proof_samples.clone() } else { q.samples.clone() };
    thin(&mut chosen, samples);
    job.progress.step("measure");
    let reference = Reference::new(job.runtime, &q.original, data, &chosen, &|_, _| ())?;
    let prepared = prepared_for(&q.original, &q.plan)?;
    let progress = |done, total| job.progress.part(done, total);
    let found = sensitivity::measure(&reference, &prepared, &q.plan, &q.known, &chosen, most, &progress)?;
    Ok(Measured { found, samples: chosen.len(), held_out: q.held_out && unseen, diagnostics: q.diagnostics })
}

impl Measured {
    /// Rules that leave the `count` most harmful units in float, as YAML for a configuration.
    pub fn rules(&self, count: usize) -> Result<String> {
        let nodes: Vec<String> = self.found.units.iter().take(count).flat_map(|u| u.nodes.iter().cloned()).collect();
        let rule = (!nodes.is_empty()).then(|| Rule::keep_all_float(nodes));
        config::rules_yaml(rule.as_slice())
    }
}
