//! What can be known before the work: files that must not be written over, wishes that cannot be met or have no effect.

use std::collections::BTreeMap;

use super::Job;
use crate::{
    calibrate::{Table, dataset},
    config::{Config, Mode, Numbers, Precision, suggest},
    diagnostics::{Diagnostic, count},
    error::{Error, Result},
    files::{self, Files},
    ir::{DType, Model},
    onnx_file,
    passes::convert_opset,
    runtime::onnxruntime::OnnxRuntime,
    target::Target,
    validate::Reference,
};

/// Refuses what would fail or destroy something after the work.
pub(super) fn check(job: &Job<'_>) -> Result<Files> {
    let mut all = Files::default();
    all.read("MODEL", &job.model);
    for (called, data) in [("--calibration", &job.data), ("--evaluation", &job.evaluation)] {
        for path in data.iter().flat_map(|d| dataset::files_of(d)) {
            all.read(called, path);
        }
    }
    if !job.output.as_os_str().is_empty() {
        all.write("--output", &job.output);
        all.write("the weights of --output", onnx_file::data_path(&job.output));
    }
    all.extend(&job.files);
    all.check()?;
    if job.settings.config.never_slower {
        OnnxRuntime::open(None).map_err(|e| {
            let wrapped = Error::new(e.kind(), "never_slower measures in ONNX Runtime, which cannot be used");
            e.help_text().map(str::to_owned).into_iter().fold(wrapped, Error::help).source(e)
        })?;
    }
    let proof = &job.settings.config.proof;
    let gates = [
        ("--min-sqnr", proof.min_sqnr.is_some()),
        ("--min-agreement", proof.min_agreement.is_some()),
        ("--max-drop", proof.max_drop.is_some()),
    ];
    match gates.iter().find(|(_, set)| *set) {
        Some((gate, _)) if job.data.is_none() && job.evaluation.is_none() => {
            let text = format!("{gate} cannot be checked: there is no data to compare both models on");
            Err(Error::config(text).help(format!("give --calibration or --evaluation with data, or leave {gate} out")))
        }
        _ => Ok(all),
    }
}

/// Refuses to write over the weights of a model that has been read.
pub(super) fn check_weights(files: &Files) -> Result<()> {
    match files.written().find(|(_, path)| path.exists() && onnx_file::is_mapped(path)) {
        Some((called, path)) => Err(files::over(called, "the weights of MODEL").file(path)),
        None => Ok(()),
    }
}

/// What is odd about the model that was given.
pub(super) fn look_at(original: &Model, trained: bool) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let opset = original.opset("").unwrap_or(1);
    let newest = convert_opset::NEWEST;
    if opset > newest {
        let text = format!(
            "the model has opset {opset}, the newest known here is {newest}: operators that changed since may be \
             taken for what they were"
        );
        let help = format!("look at the comparison with the original, or export the model with opset {newest}");
        found.push(Diagnostic::warning("opset_not_known", text).help(help));
    }
    let mut quantized: BTreeMap<&str, usize> = BTreeMap::new();
    let nodes = original.all_nodes();
    for op in nodes.iter().map(|&n| original.node(n).op_type.as_str()).filter(|op| is_quantized(op)) {
        *quantized.entry(op).or_default() += 1;
    }
    if !quantized.is_empty() && !trained {
        let total: usize = quantized.values().sum();
        let each: Vec<_> = quantized.iter().map(|(op, n)| format!("{n} {op}")).collect();
        let text = format!("the input model is quantized already: {} ({})", count(total, "such node"), each.join(", "));
        found.push(
            Diagnostic::warning("already_quantized", text)
                .help("give the float model that it was made from; ranges cannot be chosen well a second time"),
        );
    }
    found
}

fn is_quantized(op: &str) -> bool {
    op.starts_with("QLinear")
        || matches!(
            op,
            "QuantizeLinear" | "MatMulInteger" | "ConvInteger" | "DynamicQuantizeLinear" | "DynamicQuantizeLSTM"
        )
}

/// Refuses ranges of values that no form of the model has.
pub(super) fn check_ranges(table: &Table, forms: [&Model; 2]) -> Result<()> {
    let names = || forms.into_iter().flat_map(|m| m.value_ids().into_iter().map(move |v| m.value(v).name()));
    let known: std::collections::BTreeSet<&str> = names().collect();
    let mut given = table.ranges.keys().chain(table.input_means.keys());
    match given.find(|name| !known.contains(name.as_str())) {
        Some(name) => Err(Error::config("--ranges gives a range for it, but the model has no such value")
            .value(name)
            .help(suggest::help(name, "values", known.iter().copied()))),
        None => Ok(()),
    }
}

/// Leaves out samples to which the original answers nothing that anything could be compared with, and refuses where that is all.
pub(super) fn answered(reference: &Reference<'_>, samples: &mut Vec<usize>) -> Result<Option<Diagnostic>> {
    let hollow = reference.hollow(samples)?;
    let Some((&first, output)) = hollow.first_key_value() else { return Ok(None) };
    if hollow.len() == samples.len() {
        let text = format!("the original's answers to all {} samples are NaN or infinite", samples.len());
        let help = "look for NaN in the data and in the weights: nothing can be compared with such answers";
        return Err(Error::data(text).value(output).sample(first).help(help));
    }
    let text = format!(
        "{} of {} samples are left out: the original answers nothing but NaN or infinity to them, first number {first}",
        hollow.len(),
        samples.len()
    );
    samples.retain(|s| !hollow.contains_key(s));
    Ok(Some(Diagnostic::warning("samples_left_out", text).on(output).help("look at how the data were made")))
}

/// Nothing can be calibrated.
pub(super) fn no_data(config: &Config) -> Error {
    let help = "give --calibration with an .npz file, a folder of .npy files, or a folder of pictures";
    if config.precision.float8().is_some() {
        let text =
            format!("precision {} needs calibration data: scales follow from their ranges", config.precision.name());
        return Error::config(text).help(help);
    }
    match config.mode {
        Mode::Auto | Mode::Static => Error::config("static quantization needs calibration data")
            .help(format!("{help}; or --mode dynamic, which needs none")),
        Mode::Dynamic | Mode::WeightOnly | Mode::Qat => {
            Error::config("a rule has precision: int8, which needs calibration data").help(help)
        }
    }
}

/// What is left to do without data.
pub(super) fn without_data(compared: bool) -> Diagnostic {
    let text = "there are no data to calibrate on: matrix products and recurrent layers are quantized at run time, and the \
                weights of all else are stored in 8 bits";
    let blind = if compared { "" } else { "; the answers are not compared with the original's" };
    Diagnostic::note("without_data", format!("{text}{blind}"))
        .help("give --calibration with typical inputs: then convolutions compute in integers, too, and what that costs is measured")
}

/// What is left to do without data, for 16-bit floats.
pub(super) fn half_without_data(config: &Config, dtype: DType, looks: bool) -> Diagnostic {
    let judged = if looks {
        format!("what overflows in {dtype} is judged by constants and operators alone")
    } else {
        format!("what {dtype} does to weights is judged by their numbers alone")
    };
    let budgets = [("max_loss", config.max_loss.is_some()), ("time_budget", config.time_budget.is_some())];
    let idle: Vec<&str> = budgets.iter().filter(|(_, set)| *set).map(|(key, _)| *key).collect();
    let idle = if idle.is_empty() { String::new() } else { format!(", and {} has no effect", idle.join(" and ")) };
    let text = format!("there are no data: {judged}; what it costs the answers was NOT judged{idle}");
    Diagnostic::note("without_data", text)
        .help("give --calibration with typical inputs: then values decide, and the answers are held to max_loss")
}

/// Settings that have no effect on 16-bit floats, or only on them.
pub(super) fn idle_beside_halves(config: &Config) -> Option<Diagnostic> {
    let default = Config::default();
    let half = config.precision.half().is_some();
    let keys = [
        ("mode", half && config.mode != default.mode),
        ("activation", half && config.activation != default.activation),
        ("weight", half && config.weight != default.weight),
        ("format", half && config.format != default.format),
        ("everywhere", half && config.everywhere),
        ("never_slower", half && config.never_slower),
        ("equalize", half && config.equalize),
        ("smooth", half && config.smooth),
        ("absorb_biases", half && config.absorb_biases),
        ("split_concats", half && config.split_concats),
        ("fit_ranges", half && config.fit_ranges),
        ("io_types", !half && config.io_types != default.io_types),
    ];
    let idle: Vec<&str> = keys.iter().filter(|(_, set)| *set).map(|(key, _)| *key).collect();
    (!idle.is_empty()).then(|| {
        let text = format!("no effect of {} with precision: {}", idle.join(", "), config.precision.name());
        Diagnostic::warning("settings_without_effect", text).help("leave it out, or choose another precision")
    })
}

/// Settings that have no effect on floats of 8 bits.
pub(super) fn idle_beside_float8(config: &Config) -> Option<Diagnostic> {
    let idle = config.precision.float8().map(|_| config.idle_beside_float8()).unwrap_or_default();
    (!idle.is_empty()).then(|| {
        let text = format!("no effect of {} with precision: {}", idle.join(", "), config.precision.name());
        Diagnostic::warning("settings_without_effect", text).help("leave it out, or choose another precision")
    })
}

/// Where a file with floats of 8 bits is slow, or wrong.
pub(super) fn no_float8(target: &Target, dtype: DType) -> Option<Diagnostic> {
    let name = &target.name;
    if target.float8.computes {
        let text = format!(
            "the file is for {name}; ONNX Runtime's CPU provider would be slow, and leaves out (release 1.32) a Relu in front of a \
             QuantizeLinear whose zero point is a float of 8 bits: its answers say nothing about this file"
        );
        let note = Diagnostic::note("float8_elsewhere", text).help("to look at answers there, leave --target out");
        return target.float8.zero_points.then_some(note);
    }
    // Their scales are so small that biases overflow which the runtime makes integers with the product of two of them.
    let biases = match dtype {
        DType::Float8E5M2 | DType::Float8E5M2FNUZ => {
            ", and answers wrongly unless session.disable_quant_qdq is 1, because it rounds biases to integers that overflow"
        }
        _ => "",
    };
    let text = format!(
        "{name} has no kernels that compute in {dtype}: it converts the data there and back at every run and computes in 32 bits, \
         so there the file is slower than the original{biases}. It is for accelerators with floats of 8 bits"
    );
    let precision = Numbers::ALL.iter().find(|n| n.float8() == Some(dtype)).map_or("fp8", |n| n.name());
    let help = format!("to be fast on {name}, leave out --precision {precision}; for TensorRT, --target tensorrt");
    Some(Diagnostic::warning("no_float8_kernels", text).help(help))
}

/// How fast 16-bit floats are in the target.
pub(super) fn half_speed(target: &Target, dtype: DType) -> Option<Diagnostic> {
    let text = target.half(dtype).speed?;
    Some(Diagnostic::note("half_speed", format!("{dtype} in {}: {text}", target.name)))
}

/// Settings that differ from the default.
fn changed(config: &Config) -> Vec<&'static str> {
    let default = Config::default();
    let keys = [
        ("target", config.target != default.target),
        ("cpu", config.cpu != default.cpu),
        ("precision", config.precision != default.precision),
        ("io_types", config.io_types != default.io_types),
        ("mode", config.mode != default.mode),
        ("max_loss", config.max_loss != default.max_loss),
        ("time_budget", config.time_budget != default.time_budget),
        ("activation", config.activation != default.activation),
        ("weight", config.weight != default.weight),
        ("weight_only", config.weight_only != default.weight_only),
        ("everywhere", config.everywhere != default.everywhere),
        ("bias_correction", config.bias_correction != default.bias_correction),
        ("equalize", config.equalize != default.equalize),
        ("smooth", config.smooth != default.smooth),
        ("absorb_biases", config.absorb_biases != default.absorb_biases),
        ("split_concats", config.split_concats != default.split_concats),
        ("fit_ranges", config.fit_ranges != default.fit_ranges),
        ("calibration.samples", config.calibration.samples != default.calibration.samples),
        ("rules", !config.rules.is_empty()),
    ];
    keys.iter().filter(|(_, set)| *set).map(|(key, _)| *key).collect()
}

/// Settings that a plan leaves without effect.
pub(super) fn beside_a_plan(config: &Config) -> Option<Diagnostic> {
    let idle = changed(config);
    (!idle.is_empty()).then(|| {
        let text = format!("no effect of {}: the plan already says what is quantized and how", idle.join(", "));
        Diagnostic::warning("settings_without_effect", text).help("edit the plan, or leave it out to make a new one")
    })
}

/// Settings of data in integers where all data stay float, and of weights in few bits where nothing asks for those.
pub(super) fn idle_precision(config: &Config) -> Option<Diagnostic> {
    const INTEGER: &[&str] = &[
        "cpu",
        "weight",
        "everywhere",
        "bias_correction",
        "equalize",
        "smooth",
        "absorb_biases",
        "split_concats",
        "fit_ranges",
    ];
    let by_rule = config.rules.iter().any(|r| r.precision == Some(Precision::WeightOnly));
    let (idle, why): (&[&str], _) = match config.mode {
        Mode::WeightOnly => (INTEGER, "in mode weight-only all data stay float"),
        _ if by_rule => return None,
        _ => (&["weight_only"], "neither the mode nor a rule is weight-only"),
    };
    let idle: Vec<&str> = changed(config).into_iter().filter(|key| idle.contains(key)).collect();
    (!idle.is_empty()).then(|| {
        let text = format!("no effect of {}: {why}", idle.join(", "));
        Diagnostic::warning("settings_without_effect", text)
    })
}

/// Budgets that nothing is held to.
pub(super) fn idle_budgets(config: &Config) -> Option<Diagnostic> {
    let default = Config::default();
    let loss = (config.max_loss != default.max_loss).then_some("max_loss");
    let time = (config.time_budget != default.time_budget).then_some("time_budget");
    let idle: Vec<&str> = loss.into_iter().chain(time).filter(|_| config.mode != Mode::Auto).collect();
    (!idle.is_empty()).then(|| {
        let mode = match config.mode {
            Mode::WeightOnly => "weight-only",
            Mode::Dynamic => "dynamic",
            _ => "static",
        };
        let idle = idle.join(" and ");
        let text = format!("no effect of {idle}: mode {mode} looks at no answers before it writes the file");
        Diagnostic::warning("settings_without_effect", text)
            .help("leave out mode, and give data; or set a gate, --min-sqnr")
    })
}

/// Settings of calibration where there is none.
pub(super) fn idle_calibration(job: &Job<'_>) -> Option<Diagnostic> {
    let set = job.settings.config.calibration.samples != Config::default().calibration.samples;
    (set && job.data.is_none() && job.plan.is_none()).then(|| {
        let text = "no effect of calibration.samples: there are no calibration data";
        Diagnostic::warning("settings_without_effect", text).help("give --calibration, or leave --samples out")
    })
}

/// Data that nothing is proved on.
pub(super) fn idle_evaluation(job: &Job<'_>) -> Option<Diagnostic> {
    (job.evaluation.is_some() && job.settings.config.proof.samples == 0).then(|| {
        let text = "no effect of --evaluation: proof.samples is 0, so nothing is compared";
        Diagnostic::warning("settings_without_effect", text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    #[test]
    fn odd_models() {
        let look = |opset: i64, body: &str| {
            let head = format!("<ir_version: 8, opset_import: [\"\" : {opset}]> g (float[4] x) => (float[4] y)");
            let model = text::parse(&format!("{head} {{ {body} }}")).unwrap();
            look_at(&model, false).iter().map(|d| d.code).collect::<Vec<_>>()
        };
        assert_eq!(look(17, "y = Relu (x)"), [""; 0]);
        assert_eq!(look(convert_opset::NEWEST + 1, "y = Relu (x)"), ["opset_not_known"]);
        assert_eq!(
            look(17, "q, s, z = DynamicQuantizeLinear (x) y = DequantizeLinear (q, s, z)"),
            ["already_quantized"]
        );
    }
}
