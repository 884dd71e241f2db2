//! Looks at a model that is quantized already, and mends it: read, look, mend, check, write, report.

use std::{collections::BTreeMap, path::PathBuf};

use super::anew;
use crate::{
    error::{Error, Result},
    files::Files,
    ir::{Model, NodeId, Tensor},
    kernels::{self, Summary},
    lint::{self, Context, Fixed, Form, LINTS, Lint, Names, Withheld},
    onnx_file::{self, ReadOptions, WriteOptions},
    ops,
    passes::{self, Stage},
    report::lint::{Figures, LintReport, Told},
    target::Target,
    validate,
};

/// What to look at, and what to do about it.
pub struct LintJob<'a> {
    /// The model to read.
    pub model: PathBuf,
    /// The repaired file to write; without one, nothing is mended.
    pub output: Option<PathBuf>,
    /// What runs the model.
    pub target: &'a Target,
    /// The rules to go by.
    pub rules: Vec<&'static Lint>,
    /// Weights go into a file of their own.
    pub external_data: bool,
    /// How to read.
    pub read: ReadOptions,
    /// Further files that the caller reads or writes.
    pub files: Files,
}

impl<'a> LintJob<'a> {
    /// Looks at a model by all rules, and mends nothing.
    pub fn new(model: impl Into<PathBuf>, target: &'a Target) -> Self {
        Self {
            model: model.into(),
            output: None,
            target,
            rules: LINTS.iter().collect(),
            external_data: false,
            read: ReadOptions::default(),
            files: Files::default(),
        }
    }
}

/// The form of a file, and the model as rules see it: integer operators raised to Q/DQ pairs around float ones.
fn seen(original: &Model) -> Result<(Form, Model)> {
    let mut model = original.clone();
    // Scales may be the outputs of Constant nodes.
    passes::lift_constants::run(&mut model, &mut passes::Context::default())?;
    if !original.all_nodes().into_iter().any(|n| ops::raised_by(original.node(n)).is_some()) {
        return Ok((Form::Qdq, model));
    }
    let mut cx = passes::Context::default();
    passes::raise_qoperators::run(&mut model, &mut cx)?;
    passes::remove_dead::run(&mut model, &mut cx)?;
    Ok((Form::Qoperator, model))
}

/// Brings a mended model back into the form of its file.
fn lowered(mut model: Model, form: Form, target: &Target) -> Result<Model> {
    if form == Form::Qoperator {
        let mut cx = passes::Context::default();
        cx.options.qoperator = Some(target.integer_ops());
        passes::fuse_into_qoperators::run(&mut model, &mut cx)?;
        passes::remove_dead::run(&mut model, &mut cx)?;
    }
    passes::run_stage(Stage::Cleanup, &mut model, &mut kept())?;
    Ok(model)
}

/// Cleaning up without a change of what was not found.
fn kept() -> passes::Context {
    let mut cx = passes::Context::default();
    cx.options.keep_masks = true;
    cx.options.keep_stack_traces = true;
    cx
}

/// A model mended: it, what was done, and what was tried in vain. A model that nothing is mended in comes back as it was.
pub fn lint_model(
    original: &Model,
    target: &Target,
    rules: &[&'static Lint],
) -> Result<(Model, Vec<Fixed>, Vec<Withheld>)> {
    let (form, mut model) = seen(original)?;
    let sound = validate::check(original).and_then(|()| validate::check(&model));
    let (fixed, withheld) = lint::repair(&mut model, target, form, &Names::of(original), rules)?;
    if fixed.is_empty() {
        return Ok((original.clone(), fixed, withheld));
    }
    let model = lowered(model, form, target)?;
    model.verify()?;
    // What was wrong before may be wrong still, where no rule has a cure.
    if let (Err(error), Ok(())) = (validate::check(&model), sound) {
        return Err(Error::bug("the mended model is not sound").source(error));
    }
    validate::check_interface(original, &model, None)?;
    Ok((model, fixed, withheld))
}

/// A file in numbers: of integer operators as they stand there, of Q/DQ pairs as what they become.
fn figures(file: &Model, cx: &Context<'_>, summary: &Summary) -> Figures {
    let bytes = |v| file.value(v).initializer().map_or(0, Tensor::byte_len) as u64;
    let count = |counts: &BTreeMap<String, usize>| counts.values().sum::<usize>();
    Figures {
        microseconds: (cx.form == Form::Qdq).then_some(cx.times.total / 1e3),
        integer: count(&summary.integer) + count(&summary.moves),
        conversions: count(&summary.conversions),
        bytes: file.value_ids().into_iter().map(bytes).sum(),
    }
}

fn summary(file: &Model, target: &Target) -> Summary {
    kernels::predict(file, target).summary()
}

/// Reads, looks, mends where an output is named, and writes. On an error nothing is written.
pub fn lint(job: &LintJob<'_>) -> Result<LintReport> {
    let output = job.output.as_deref().map(|path| ("OUTPUT", path));
    let files = anew::files(&job.model, None, output, &job.files)?;
    if job.target.kernels.is_empty() {
        let text = format!(
            "target {:?} has no table of kernels, so nothing can be said of what it makes of a model",
            job.target.name
        );
        return Err(Error::config(text).help("leave --target out, or name one with kernels"));
    }
    let original = anew::read(&job.model, job.read, &files)?;
    let at = |e: Error| e.file(&job.model);
    let (form, model) = seen(&original).map_err(at)?;
    let cx = Context::of(&model, job.target, form);
    let (names, loaded) = (Names::of(&original), summary(&original, job.target));
    let mut report = LintReport {
        version: env!("CARGO_PKG_VERSION"),
        model: job.model.display().to_string(),
        output: job.output.as_ref().map(|p| p.display().to_string()),
        target: job.target.name.clone(),
        cpu: job.target.other_cpu().map(str::to_owned),
        form,
        quantized: lint::is_quantized(&original),
        findings: Vec::new(),
        fixed: Vec::new(),
        withheld: Vec::new(),
        before: figures(&original, &cx, &loaded),
        after: None,
        kernels: loaded.line(),
        notes: notes(&original),
    };
    let mended = match &job.output {
        None => None,
        Some(output) => {
            let (mended, fixed, withheld) = lint_model(&original, job.target, &job.rules).map_err(at)?;
            (report.fixed, report.withheld) = (fixed, withheld);
            let options = WriteOptions { external_data: job.external_data.then_some(true) };
            onnx_file::write(&mended, output, options)?;
            Some(mended)
        }
    };
    let seen_again = mended.as_ref().map(seen).transpose()?;
    let again = seen_again.as_ref().map(|(form, model)| (model, Context::of(model, job.target, *form)));
    let (now, cx) = again.as_ref().map_or((&model, &cx), |(model, cx)| (*model, cx));
    if let Some(mended) = &mended {
        let loaded = summary(mended, job.target);
        report.after = Some(figures(mended, cx, &loaded));
        report.kernels = loaded.line();
    }
    let names = mended.as_ref().map_or(names, Names::of);
    let found = lint::look(cx, &job.rules);
    report.findings = found.iter().map(|(lint, f)| Told::of(lint, f, names.spot(now, f))).collect();
    if !report.quantized {
        report.kernels = None;
    }
    Ok(report)
}

/// What limits what can be said of a file.
fn notes(model: &Model) -> Vec<String> {
    let mut notes = Vec::new();
    let known = |n: NodeId| {
        let node = model.node(n);
        node.in_onnx_domain() || node.domain.as_deref() == Some(ops::MICROSOFT)
    };
    let mut foreign: Vec<String> = model
        .all_nodes()
        .into_iter()
        .filter(|&n| !known(n))
        .map(|n| format!("{}.{}", model.node(n).domain.as_deref().unwrap_or_default(), model.node(n).op_type))
        .collect();
    foreign.sort();
    foreign.dedup();
    if let Some(first) = foreign.first() {
        let others = if foreign.len() > 1 { format!(" and {} more", foreign.len() - 1) } else { String::new() };
        notes.push(format!("operators of other domains stay as they are: {first}{others}"));
    }
    notes
}
