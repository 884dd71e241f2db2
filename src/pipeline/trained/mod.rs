//! Models that were trained with quantizers: their scales and codes are kept, and brought to integer kernels.
//!
//! The quantizers are taken out of the model and noted (`passes::fold_learned_weights`, `passes::lift_quantizers`); placement then
//! is that of any model, and where it quantizes a value that training rounds, or one that only moves or clamps such a value, the
//! plan has the grid of training instead of a range from calibration. So pairs move past what only moves data, stand once for
//! several readers, and are missing where no kernel computes with codes. Nothing is judged by answers: what is written
//! computes what training simulated.

mod grids;
pub(super) mod halves;
mod idle;
mod signs;
mod tell;

use std::{collections::BTreeMap, sync::Arc};

use self::grids::Grids;
use super::{
    Clock, Job, Outcome,
    planner::{self, Task},
};
use crate::{
    analysis::{placement::Wishes, types},
    calibrate::{Dataset, dataset::Split},
    config::{Config, Mode},
    diagnostics::Diagnostic,
    error::{Error, Result},
    ir::{DType, Model, NodeId, ValueId},
    ops::{self, Class, Role},
    passes::{
        self, Context, convert_opset, inline_functions, raise_qonnx, raise_spelled_quantizers,
        support::{quantizer::FakeQuantizer, spelled::Found},
    },
    plan::{Activation, Form, KnownReads, Learned, Plan, Readers, saturating_codes_of_training},
    quant::{Grid, QParams, Range},
    scheme::Resolved,
    target::Target,
};

/// Quantizers of this many codes or fewer stay where no kernel computes with the codes, too: what they do to the numbers is more than
/// rounding.
const FEW: i64 = 64;

/// Why a product stays float that training did not quantize.
const LEFT_FLOAT: &str = "the model's own quantizers leave it out: there is none at its data or its weight (a rule with precision: int8 takes it in)";

/// Why a product stays float whose data training rounds to numbers that no codes stand for.
fn between(offset: f64) -> String {
    let steps = raise_spelled_quantizers::steps(offset);
    format!("the quantizer of its data has an offset of {steps} steps, and {}", raise_spelled_quantizers::WHY_FLOAT)
}

/// Whether the job brings quantizers of training to integers, if the model has any.
pub(super) fn may(config: &Config) -> bool {
    let integers = config.precision.half().is_none() && config.precision.float8().is_none();
    integers && matches!(config.mode, Mode::Auto | Mode::Static | Mode::Qat)
}

/// Whether data of a model go through quantizers.
pub(super) fn is_trained(original: &Model, target: &Target) -> Result<bool> {
    let may = |id: NodeId| {
        let node = original.node(id);
        let op = node.op_type.as_str();
        matches!(op, "QuantizeLinear" | "Round") || op.starts_with("QLinear") || raise_qonnx::is_quantizer(node)
    };
    if !original.all_nodes().into_iter().any(may) {
        return Ok(false);
    }
    let (mut model, mut cx) = (original.clone(), Context::default());
    if let Some((wide, _)) = halves::widened(&model, target)? {
        model = wide;
    }
    inline_functions::run(&mut model, &mut cx)?;
    passes::raise(&mut model, &mut cx)?;
    convert_opset::run(&mut model, &mut cx)?;
    passes::raise_training(&mut model, &mut cx)?;
    let types = types::infer(&model);
    let constant = |v: ValueId| model.value(v).constant().is_some();
    let nodes = model.nodes(model.main());
    let found: Vec<_> = nodes.iter().filter_map(|&id| FakeQuantizer::ending_with(&model, &types, id)).collect();
    let stored =
        nodes.iter().any(|&id| model.node(id).is("DequantizeLinear") && model.node(id).input(0).is_some_and(constant));
    let weights = stored || found.iter().any(|q| constant(q.input));
    // Rounding of nothing but answers is no training: so images are made.
    let counts = |q: &FakeQuantizer| weights || model.value(q.output).readers().next().is_some();
    Ok(found.iter().any(|q| !constant(q.input) && counts(q)))
}

/// Mode `qat` for a model without quantizers, or with none that integer kernels can compute with.
pub(super) fn none(noticed: &[Diagnostic]) -> Error {
    let codes = [raise_spelled_quantizers::OFFSET, halves::STAY];
    if let Some(why) = noticed.iter().find(|d| codes.contains(&d.code)) {
        let said = Diagnostic { help: None, ..why.clone() };
        let text = format!("mode qat takes the scales of a model's training, and its quantizers give none: {said}");
        return Error::config(text).help(why.help.as_deref().unwrap_or("leave --mode out"));
    }
    Error::config(
        "mode qat takes the scales of a model's training, and there is no quantizer in front of any data of it",
    )
    .help("leave --mode out to have ranges found by calibration; or export the model with its fake-quantization in it")
}

/// `tune` for a model with quantizers.
pub(super) fn nothing_to_tune() -> Error {
    Error::config(
        "the model comes with quantizers of its data: their scales and precisions are decided, and tune would search for others",
    )
    .help("`qonvert quantize` carries them to integer kernels; to have others, tune the float model (`qonvert dequantize` makes one)")
}

/// Makes the plan.
pub(super) fn plan(
    job: &Job<'_>,
    model: &mut Model,
    resolved: &mut Resolved,
    dataset: Option<&Dataset>,
    (samples, split): (Vec<usize>, Split),
    clock: &mut Clock<'_>,
    cx: &mut Context,
) -> Result<Outcome> {
    let learned = Arc::new(std::mem::take(&mut cx.learned));
    cx.diagnostics.extend(tell::idle(&job.settings.config));
    let mut grids = Grids::of(model, &learned, dataset.is_some(), &mut cx.diagnostics);
    cx.diagnostics.extend(grids.give_way(model, resolved, job.ranges.as_ref()));
    signs::keep(model, &learned, &mut grids)?;
    let model = &*model;
    wish(model, &grids, &learned, &mut resolved.wishes)?;
    resolved.scheme.grids = grids.all;
    resolved.scheme.learned = Arc::clone(&learned);
    let settings = job.settings.with_mode(Mode::Static);
    let job = Job { settings: &settings, ..job.clone() };
    let task = Task { job: &job, model, resolved, dataset, rival: None };
    let mut outcome = planner::make(task, samples, split, &mut cx.diagnostics, clock)?;
    // Where quantizers of training saturate is no finding of calibration.
    let learned_at = |name: &str| resolved.scheme.grids.keys().any(|&v| model.value(v).name() == name);
    cx.diagnostics.retain(|d| d.code != "saturating" || !d.subject.as_deref().is_some_and(learned_at));
    absorb_clamps(model, &resolved.scheme.grids, &mut outcome.plan);
    if let Some(data) = dataset {
        idle::drop_clamps(&job, model, &resolved.scheme.grids, (data, &outcome.samples), &mut outcome.plan)?;
    }
    let kept = keep_few(model, &learned, &resolved.scheme.grids, job.settings.target.activation, &mut outcome.plan);
    let clamps = own_clamps(model, &resolved.scheme.grids, &outcome.plan).len();
    cx.diagnostics.extend(tell::tell(model, &learned, resolved, &outcome.plan, kept));
    cx.diagnostics.extend(tell::clamps(clamps, dataset.is_some()));
    if let Some(cpu) = job.settings.target.other_cpu() {
        let nodes = saturating_codes_of_training(model, &job.settings.target, &outcome.plan, &learned)?;
        cx.diagnostics.extend(tell::saturating(&nodes, cpu));
    }
    outcome.known = Some(Arc::new(KnownReads::of_training(learned)));
    Ok(outcome)
}

/// What is known of codes for a plan that was made before.
pub(super) fn known(cx: &mut Context) -> Arc<KnownReads> {
    Arc::new(KnownReads::of_training(Arc::new(std::mem::take(&mut cx.learned))))
}

/// Products that training quantized shall be integers, others stay float, unless a rule says otherwise.
fn wish(model: &Model, grids: &Grids, learned: &Learned, wishes: &mut Wishes) -> Result<()> {
    for id in model.nodes(model.main()) {
        let Some(spec) = ops::spec(model, id).filter(|s| s.class == Class::Product) else { continue };
        if wishes.names(id) || wishes.keep_float.contains_key(&id) {
            continue;
        }
        let node = model.node(id);
        // A weight may be in the place of data, and data in that of the weight.
        let operands = || (0..node.inputs().len()).filter(|&i| matches!(spec.role(i), Role::Data | Role::Weight));
        let mut makers = operands().filter_map(|i| node.input(i)).filter_map(|v| model.producer(v));
        if let Some(Found::Offset(steps)) = makers.find_map(|n| Found::ending_with(model, n)) {
            wishes.keep_float.insert(id, between(steps));
            continue;
        }
        let rounded = operands().filter_map(|i| node.input(i)).any(|v| grids.all.contains_key(&v));
        match rounded || learned.weight_of(model, id)?.is_some() {
            true => drop(wishes.force.insert(id)),
            false => drop(wishes.keep_float.insert(id, LEFT_FLOAT.to_owned())),
        }
    }
    Ok(())
}

/// A float clamp that stands in for the saturation of a quantizer.
struct OwnClamp {
    from: ValueId,
    out: ValueId,
    range: Range,
}

/// Those that may go: nothing else reads what they clamp.
fn own_clamps(model: &Model, grids: &BTreeMap<ValueId, Grid>, plan: &Plan) -> Vec<OwnClamp> {
    let of = |id: NodeId| {
        let (from, out) = (model.node(id).input(0)?, model.node(id).output(0)?);
        let (range, bounds) = (grids.get(&out)?.range(), ops::clamp_bounds(model, id)?);
        let float = plan.nodes.get(model.value(out).name()).is_some_and(|e| e.becomes == Form::Float);
        let alone = model.value(from).readers().count() == 1 && !model.value(out).is_graph_output();
        (float && alone && (range.lo, range.hi) == bounds).then_some(OwnClamp { from, out, range })
    };
    model.nodes(model.main()).into_iter().filter_map(of).collect()
}

/// Takes the clamp that makes a value out, for this reason.
fn take_out(model: &Model, plan: &mut Plan, out: ValueId, reason: &str) {
    if let Some(entry) = plan.nodes.get_mut(model.value(out).name()) {
        entry.becomes = Form::Absorbed;
        entry.reason = Some(reason.to_owned());
    }
}

/// Takes out clamps in front of quantizers that saturate at the same numbers, where no node has absorbed them.
fn absorb_clamps(model: &Model, grids: &BTreeMap<ValueId, Grid>, plan: &mut Plan) {
    for OwnClamp { from, out, .. } in own_clamps(model, grids, plan) {
        let pair = |v: ValueId| plan.activations.get(model.value(v).name());
        let quantized = pair(out).is_some_and(|a| a.readers == Readers::All || all_integer(model, plan, out));
        if quantized && pair(from).is_none() {
            take_out(model, plan, out, "the quantizer behind it cuts off the same");
        }
    }
}

/// Whether nothing but integer nodes reads a value.
fn all_integer(model: &Model, plan: &Plan, v: ValueId) -> bool {
    let integer = |n: NodeId| {
        let out = model.node(n).output(0).map(|v| model.value(v).name());
        out.and_then(|o| plan.nodes.get(o)).is_some_and(|e| e.becomes == Form::Integer)
    };
    model.value(v).readers().count() == model.value(v).uses().len() && model.value(v).readers().all(|(n, _)| integer(n))
}

/// Puts quantizers of few codes back that no kernel has the place of. Returns how many.
fn keep_few(
    model: &Model,
    learned: &Learned,
    grids: &BTreeMap<ValueId, Grid>,
    activation: DType,
    plan: &mut Plan,
) -> usize {
    let mut kept = 0;
    for &v in learned.values.keys() {
        let few = grids.get(&v).is_some_and(|g| g.codes() <= FEW);
        // Float nodes that read the same value read it rounded, too.
        if let Some(pair) = plan.activations.get_mut(model.value(v).name()).filter(|_| few) {
            pair.readers = Readers::All;
        }
        let Some(&grid) = grids.get(&v).filter(|g| g.codes() <= FEW && !stands_in(model, plan, v)) else { continue };
        let grid = grid.in_codes_of(activation);
        let QParams { scale, zero_point, dtype } = grid.params;
        let pair = Activation { dtype, scale, zero_point, clip: grid.clip(), readers: Readers::All };
        plan.activations.insert(model.value(v).name().to_owned(), pair);
        kept += 1;
    }
    kept
}

/// Whether the plan quantizes a value, or what clamps make of it that are absorbed.
fn stands_in(model: &Model, plan: &Plan, v: ValueId) -> bool {
    let mut next = Some(v);
    while let Some(v) = next {
        if plan.activations.contains_key(model.value(v).name()) {
            return true;
        }
        next = model.sole_reader(v).and_then(|(n, _)| model.node(n).output(0)).filter(|&out| {
            let entry = plan.nodes.get(model.value(out).name());
            entry.is_some_and(|e| e.becomes == Form::Absorbed)
        });
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    fn trained(target: &str, body: &str) -> bool {
        let head = "<ir_version: 9, opset_import: [\"\" : 19]> g ";
        let model = text::parse(&format!("{head}{body}")).unwrap();
        is_trained(&model, &Target::load(target).unwrap()).unwrap()
    }

    #[test]
    fn quantizers_of_halves_count_where_the_runtime_widens_them() {
        let body = "(float16[2,3] x) => (float16[2,4] y) <float16[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float16 s = {0.5}, uint8 z = {128}> {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w) }";
        assert!(trained("onnxruntime-cpu", body) && !trained("tensorrt", body));
        let model = text::parse(&format!("<ir_version: 9, opset_import: [\"\" : 19]> g {body}")).unwrap();
        let (cpu, other) = (Target::load("onnxruntime-cpu").unwrap(), Target::load("tensorrt").unwrap());
        assert!(halves::stay(&model, &cpu).is_none());
        let said = halves::stay(&model, &other).unwrap();
        assert!(said.message.contains("target tensorrt"), "{said}");
        assert!(none(&[said]).to_string().contains("16-bit floats"));
        let (wide, said) = halves::widened(&model, &cpu).unwrap().unwrap();
        assert!(said.message.starts_with("1 quantizer of 16-bit floats"), "{said}");
        let scales = wide.value_ids().into_iter().filter_map(|v| wide.value(v).initializer());
        assert!(scales.into_iter().all(|t| t.dtype() != DType::Float16));
    }

    #[test]
    fn rounding_of_answers_alone_is_no_training() {
        let image = "a = MatMul(x, w) b = Clip(a, lo, hi) c = Mul(b, n) d = Round(c) y = Div(d, n)";
        let with = |steps: &str| {
            format!(
                "(float[2,2] x) => (float[2,2] y) <float[2,2] w = {{1,2,3,4}}, float lo = {{0}}, float hi = {{1}}, float n = {{255}}> {{ {steps} }}"
            )
        };
        assert!(!trained("onnxruntime-cpu", &with(image)));
        let inside = image.replace("y = Div(d, n)", "e = Div(d, n) y = MatMul(e, w)");
        assert!(trained("onnxruntime-cpu", &with(&inside)));
    }

    #[test]
    fn offsets_between_codes_are_the_reason_of_mode_qat() {
        let said = Diagnostic::warning(raise_spelled_quantizers::OFFSET, "an offset").on("Mul_1").help("train");
        let error = none(&[said]).to_string();
        assert!(error.contains("\"Mul_1\": an offset"), "{error}");
        assert!(none(&[]).to_string().contains("no quantizer in front"));
    }
}
