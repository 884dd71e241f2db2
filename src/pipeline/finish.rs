//! The last steps: proof, file, report.

use std::{collections::BTreeMap, path::Path};

use super::{Clock, Job, Quantized, already, even_out::prepared_for, prepare, promised, thin};
use crate::{
    analysis::types,
    calibrate::Dataset,
    config::{self, Mode, Rule},
    diagnostics::Diagnostic,
    error::{Error, ErrorKind, Result},
    ir::Model,
    kernels,
    onnx_file::{self, WriteOptions},
    passes::Context,
    report::{self, Accuracy, Calibration, Collapse, Nodes, OutputScore, Proof, Region, Report, Saturation, Size},
    validate::{self, Comparison, Reference, sensitivity},
};

/// Reads, quantizes, proves and writes. The report says whether the gates hold.
pub fn run(job: &Job<'_>) -> Result<Report> {
    finish(job, super::quantize(job)?)
}

/// Checks the quantized model, compares it with the original, and writes it. On an error nothing is written.
pub fn finish(job: &Job<'_>, mut q: Quantized) -> Result<Report> {
    let config = &job.settings.config;
    if job.output.as_os_str().is_empty() {
        return Err(Error::config("there is no file to write the model to").help("give the job an output"));
    }
    let mut clock = Clock::resumed(job.progress, std::mem::take(&mut q.stages));
    clock.step("check");
    validate::check(&q.model)?;
    validate::check_interface(&q.original, &q.model, q.plan.halves.as_ref().filter(|h| h.io).map(|h| h.dtype))?;
    let proof = match &q.dataset {
        Some(_) if config.proof.samples > 0 => {
            clock.step("prove");
            Some(prove(job, &mut q, &config.proof, &mut clock)?)
        }
        _ => None,
    };
    clock.step("write");
    let options = WriteOptions { external_data: config.external_data.then_some(true) };
    onnx_file::write(&q.model, &job.output, options)?;
    clock.step("");
    let target = &job.settings.target;
    let predicted = kernels::predict(&q.model, target);
    q.diagnostics.splice(0..0, promised::broken(&q.promises, &predicted, &target.name));
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: job.model.display().to_string(),
        output: Some(job.output.display().to_string()),
        nodes: Nodes::of(&q.plan, &already::already(&q.left, &predicted)),
        halves: report::Halves::of(&q.plan),
        saturation: Saturation::of(&q.plan),
        measured: q.measured.take(),
        auto: q.auto.take(),
        kernels: Some(predicted.summary()),
        broken_weights: std::mem::take(&mut q.broken),
        for_size: config.mode == Mode::WeightOnly && job.plan.is_none(),
        uneven_concats: q.uneven,
        size: Size { before: size(&job.model, &q.original), after: written(&job.output, &q.model, options) },
        calibration: (job.plan.is_none() && !q.samples.is_empty()).then(|| calibration(&q)),
        proof,
        diagnostics: q.diagnostics,
        stages: clock.stages.iter().map(|&(name, seconds)| report::Stage { name, seconds }).collect(),
        peak_memory: report::peak_memory(),
        ..Report::default()
    };
    report.judge();
    Ok(report)
}

fn calibration(q: &Quantized) -> Calibration {
    let mut methods: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in q.table.ranges.values().filter(|e| !e.method.is_empty()) {
        *methods.entry(&entry.method).or_default() += 1;
    }
    let names: Vec<&str> = methods.keys().copied().collect();
    Calibration { samples: q.samples.len(), values: q.table.ranges.len(), observer: names.join(", ") }
}

fn prove(job: &Job<'_>, q: &mut Quantized, limits: &config::Proof, clock: &mut Clock<'_>) -> Result<Proof> {
    let Some(data) = &q.dataset else { return Ok(Proof::default()) };
    let mut samples = q.proof_samples.clone();
    if job.evaluation.is_none() {
        thin(&mut samples, limits.samples);
    }
    let progress = |done, all| job.progress.part(done, 2 * all);
    let stand_in;
    let reference = match Reference::new(job.runtime, &q.original, data, &samples, &progress) {
        Err(error) if error.kind() == ErrorKind::Runtime => {
            // What calibration ran computes the same. Where that does not run either, the first error says more.
            let Ok(prepared) = prepare(&q.original, &mut Context::default()) else { return Err(error) };
            stand_in = prepared;
            match Reference::new(job.runtime, &stand_in, data, &samples, &progress) {
                Ok(reference) => {
                    q.diagnostics.push(proved_on_prepared(&error));
                    reference
                }
                Err(_) => return Err(error),
            }
        }
        reference => reference?,
    };
    let progress = |done, all| job.progress.part(all + done, 2 * all);
    let compared = validate::compare_with(&reference, &q.model, &samples, &progress)?;
    q.diagnostics.extend(odd_outputs(&compared));
    q.diagnostics.extend(check_labels(&compared, data)?);
    let mut proof = proof_of(&q.original, &compared, limits.floor);
    proof.unseen = if q.held_out { samples.len() } else { 0 };
    proof.check(limits.min_sqnr, limits.min_agreement, limits.max_drop);
    if proof.lost().next().is_some() && proof.broken().next().is_none() {
        clock.step("look for the cause");
        proof.collapse = Some(blame(job, q, &reference, &samples, limits.floor)?);
    }
    Ok(proof)
}

fn proved_on_prepared(error: &Error) -> Diagnostic {
    let text = format!("the proof compares with the model as it was prepared for quantization: {error}");
    Diagnostic::warning("original_does_not_run", text)
        .help("the two compute the same, but here that is taken for granted and not proved")
}

/// The comparison as the report says it.
pub fn proof_of(original: &Model, compared: &Comparison, floor: f64) -> Proof {
    let types = types::infer(original);
    let values = original.graph(original.main()).outputs();
    let score = |(m, &v): (&validate::OutputMetrics, _)| OutputScore {
        name: m.name.clone(),
        // Not a number where only one of both is one; no noise, where there was nothing to compare.
        sqnr: match m.sqnr_db {
            _ if m.not_finite > 0 => Some(f64::NAN),
            s if s.is_nan() || s == f64::INFINITY => None,
            s => Some(s.max(-100.0)),
        },
        part: m.part.clone(),
        worst_sqnr: Some(m.worst_sqnr_db).filter(|s| s.is_finite()),
        worst_sample: m.worst_sample,
        cosine: m.cosine,
        max_error: m.max_error,
        agreement: m.agreement(),
        original_not_finite: m.original_not_finite,
        broken: m.original_not_finite > 0 && (m.not_finite > 0 || m.count == 0),
        graded: types.dtype(v).is_none_or(crate::ir::DType::is_float) && m.count + m.not_finite > 0,
    };
    Proof {
        samples: compared.samples,
        outputs: compared.outputs.iter().zip(values).map(score).collect(),
        accuracy: compared.accuracy.as_ref().filter(|a| a.count > 0).map(|a| Accuracy {
            before: a.original as f64 / a.count as f64,
            after: a.quantized as f64 / a.count as f64,
            samples: a.count as usize,
        }),
        floor,
        ..Proof::default()
    }
}

/// Outputs that could not be compared everywhere.
pub fn odd_outputs(compared: &Comparison) -> Vec<Diagnostic> {
    let odd = compared.outputs.iter().filter(|m| m.other_shapes > 0);
    let odd = odd.map(|m| {
        let text =
            format!("has another shape in {} of {} samples, which are not compared", m.other_shapes, compared.samples);
        Diagnostic::warning("output_shape_differs", text).on(&m.name)
    });
    let broken = compared.outputs.iter().filter(|m| m.original_not_finite > 0);
    let broken = broken.map(|m| {
        let text = format!("{} of the original's own numbers are NaN or infinite", m.original_not_finite);
        let help = "they are compared with nothing; check the model and the data if that is not meant";
        Diagnostic::warning("original_not_finite", text).on(&m.name).help(help)
    });
    odd.chain(broken).collect()
}

/// Labels that give no accuracy: an error where they are wrong themselves, else said.
pub fn check_labels(compared: &Comparison, data: &Dataset) -> Result<Option<Diagnostic>> {
    let Some((output, m)) = &compared.misfit else { return Ok(None) };
    if m.wrong && data.surely_labels() {
        return Err(Error::data(m.text.clone()).value(output).help(m.help));
    }
    let text = format!("accuracy is not measured: {}", m.text);
    Ok(Some(Diagnostic::warning("labels_fit_no_output", text).on(output).help(m.help)))
}

/// Samples that each region is tried on.
const TRIED: usize = 4;

fn blame(job: &Job<'_>, q: &Quantized, reference: &Reference<'_>, samples: &[usize], floor: f64) -> Result<Collapse> {
    let mut few = samples.to_vec();
    thin(&mut few, TRIED);
    let prepared = prepared_for(q)?;
    let progress = |done, total| job.progress.part(done, total);
    let found = sensitivity::blame(reference, &prepared, &q.plan, &q.known, &few, floor, &progress)?;
    let regions: Vec<Region> = found.into_iter().map(|b| Region { nodes: b.nodes, sqnr: b.sqnr }).collect();
    let nodes: Vec<String> = regions.iter().flat_map(|r| r.nodes.iter().cloned()).collect();
    let yaml = if nodes.is_empty() { String::new() } else { config::rules_yaml(&[Rule::keep_all_float(nodes)])? };
    Ok(Collapse { regions, samples: few.len(), yaml })
}

/// Bytes of what was just written.
fn written(path: &Path, model: &Model, options: WriteOptions) -> u64 {
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
    match options.external_data {
        Some(true) => length(path) + length(&onnx_file::data_path(path)),
        _ => size(path, model),
    }
}

/// Bytes on disk: of the file, and of weights that are not in it.
fn size(path: &Path, model: &Model) -> u64 {
    onnx_file::size_on_disk(path, model)
}
