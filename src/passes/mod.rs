//! Changes to the graph, one file each, in nine stages. Passes carry out; only the plan decides.
//!
//! Each file has `run(&mut Model, &mut Context) -> Result<usize>`, which returns how many changes it made, and shows
//! in its documentation what it makes of what.

#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;

use crate::{
    diagnostics::Diagnostic,
    error::Result,
    ir::{Model, NodeId},
    ops,
    plan::{KnownReads, Learned, Plan},
    target::IntegerOps,
};

/// When a pass runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// First of all: integer operators become float ones between Q/DQ pairs.
    Raise,
    /// Before placement: the float graph in its simplest form.
    Prepare,
    /// After that, where the model was trained with quantizers: these out of the way.
    Import,
    /// Before placement, with what the plan says of channels alone: values divided by a factor for each channel, biases that
    /// move on to the next layer.
    Scale,
    /// After calibration: changes of weights and biases that keep the model's function or bring the quantized one nearer.
    Adjust,
    /// Q/DQ pairs, and kernels that quantize at run time, as the plan says.
    Insert,
    /// Q/DQ pairs and operators fused into integer operators.
    Lower,
    /// What the other stages leave behind.
    Cleanup,
    /// Instead of all but the first: back to 32-bit floats, where that is asked for.
    Float,
}

/// What passes share.
#[derive(Debug, Default)]
pub struct Context {
    /// What was noticed; passes add to it.
    pub diagnostics: Vec<Diagnostic>,
    /// Options of the passes.
    pub options: Options,
    /// What to do to each value and node; the Insert stage carries it out.
    pub plan: Option<Plan>,
    /// What is known of what layers read, for weights that the plan rounds by it; without it they get the nearest codes.
    pub known: Arc<KnownReads>,
    /// What training has chosen, where quantizers are imported.
    pub learned: Learned,
    /// Bytes by which constant folding has made the model larger so far.
    pub folded_bytes: usize,
    /// What the Float stage took away.
    pub removed: remove_quantization::Removed,
}

/// Options of the passes.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folding may add at most this many bytes of constants to the model (a large `ConstantOfShape` stays a node).
    pub fold_growth_limit: usize,
    /// Weights of more bytes than this are not changed: what is changed is in memory, and no window of the file any more.
    pub largest_folded: usize,
    /// Weights that are also graph inputs become constants, also in files (IR version 4 and above) where callers may
    /// feed other values.
    pub eliminate_initializer_inputs: bool,
    /// Stack traces of the exporter stay at their nodes.
    pub keep_stack_traces: bool,
    /// Write integer operators instead of Q/DQ pairs around float ones, as far as the runtime has these.
    pub qoperator: Option<IntegerOps>,
    /// Float constants of two different numbers stay float, and are not stored as bool.
    pub keep_masks: bool,
    /// Recurrent layers whose state is quantized at each step become float ones, which computes something else.
    pub float_state: bool,
    /// Nothing is fused into operators of other domains that is not there already, whatever the runtime makes of the Q/DQ form.
    pub onnx_only: bool,
    /// Operators that the runtime looks through for a QuantizeLinear: with one of them behind it, a product whose weight has few
    /// bits stays float unless it is written as the kernel's own operator.
    pub seen_through: Vec<String>,
    /// Operators are upgraded to this version at least, for what is to be inserted; see [`convert_opset`].
    pub least_opset: i64,
    /// Floats of 8 bits have no zero points: QuantizeLinear is told the type by an attribute.
    pub no_float8_zeros: bool,
    /// Which clamps come back where quantizers go.
    pub clamps: remove_quantization::Clamps,
    /// Inputs and outputs of the model in codes or 16-bit floats become 32-bit floats, where the rest of it does.
    pub float_ends: bool,
    /// Where nothing runs the model, weights in few bits can be rounded when they are written: if they have more bytes than this,
    /// all together.
    pub stream_weights: Option<usize>,
    /// Quantizers that the model was trained with are taken out of it, to be put in again as the plan says.
    pub import_quantizers: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fold_growth_limit: 1 << 20,
            largest_folded: usize::MAX,
            eliminate_initializer_inputs: true,
            keep_stack_traces: false,
            keep_masks: false,
            float_state: false,
            onnx_only: false,
            seen_through: Vec::new(),
            stream_weights: None,
            import_quantizers: false,
            least_opset: convert_opset::NEEDED,
            no_float8_zeros: false,
            qoperator: None,
            clamps: remove_quantization::Clamps::Keep,
            float_ends: false,
        }
    }
}

/// A pass.
pub struct Pass {
    /// The file's name.
    pub name: &'static str,
    /// When it runs.
    pub stage: Stage,
    /// Carries it out; returns the number of changes.
    pub run: fn(&mut Model, &mut Context) -> Result<usize>,
}

pub mod support;

macro_rules! passes {
    ($($stage:ident: $($name:ident),* ;)*) => {
        $($(pub mod $name;)*)*

        /// Every pass in the order in which they run.
        pub const PASSES: &[Pass] = &[
            $($(Pass { name: stringify!($name), stage: Stage::$stage, run: $name::run },)*)*
        ];
    };
}

// Order carries meaning: a pass sees what those above it left.
passes! {
    Raise: raise_qoperators, raise_dynamic_products, raise_dynamic_lstm, raise_matmul_nbits, raise_gather_blocks;
    Prepare: inline_functions, remove_empty_inputs, eliminate_initializer_inputs, remove_dead, lift_constants, convert_opset,
        eliminate_identity, raise_qonnx, raise_spelled_quantizers, eliminate_dropout, fold_shapes, inline_constant_if, fold_shape_targets, convert_resize_sizes,
        lift_dims_to_inputs, eliminate_noop, deduplicate_nodes, fuse_reshapes, fuse_reshapes_around_transpose, fuse_transposes, fold_constants,
        fold_learned_weights, flush_denormals, convert_flat_pools, eliminate_transpose_pairs,
        fold_gemm_scales, fold_transpose_into_weights, fuse_hard_sigmoid, fuse_hard_swish, fuse_gelu, fuse_leaky_relu,
        fuse_clips, fuse_pad_into_conv, fold_affine, fold_batch_normalization, fuse_matmul_add_into_gemm,
        share_initializers;
    Import: drop_broken_quantizers, lift_quantizers;
    Scale: scale_channels, absorb_biases;
    Adjust: correct_bias;
    Insert: insert_quantization, insert_dynamic_quantization, quantize_lstm, pack_weights, store_weights,
        quantize_weights, convert_to_halves;
    Lower: fuse_dynamic_products, fuse_into_dynamic_lstm, fuse_into_qoperators, fuse_into_matmul_nbits,
        fuse_into_gather_blocks;
    Cleanup: store_masks, remove_stack_traces, sort_nodes;
    Float: remove_few_bits, remove_quantization, convert_to_floats;
}

/// Runs the passes of a stage once, in order, and clears away what they leave unread. Returns the number of changes.
pub fn run_stage(stage: Stage, model: &mut Model, cx: &mut Context) -> Result<usize> {
    let mut changes = 0;
    for pass in PASSES.iter().filter(|p| p.stage == stage) {
        let n = (pass.run)(model, cx)?;
        log::debug!("{}: {n} changes", pass.name);
        if cfg!(any(debug_assertions, test)) {
            model.verify()?;
        }
        changes += n;
    }
    Ok(changes + remove_dead::run(model, cx)?)
}

/// Brings a model that is quantized in any form into Q/DQ form. Scales and zero points stay what they are.
pub fn raise(model: &mut Model, cx: &mut Context) -> Result<usize> {
    // Scales may be the outputs of Constant nodes.
    let lifted = lift_constants::run(model, cx)? + raise_qonnx::with_its_constants(model, cx)?;
    let raised = run_stage(Stage::Raise, model, cx)?;
    if raised > 0 {
        support::pairs::forget_import(model, ops::MICROSOFT);
    }
    Ok(lifted + raised)
}

/// Brings quantizers of training into Q/DQ form: spelled out in plain operators, of QONNX, with scales behind Identity or computed
/// from the weight. Models in which every scale stands there as a number stay as they are.
pub fn raise_training(model: &mut Model, cx: &mut Context) -> Result<usize> {
    /// What one round folds may let the next one see more.
    const ROUNDS: usize = 3;
    let mut changes = lift_constants::run(model, cx)?;
    for _ in 0..ROUNDS {
        if !model.all_nodes().into_iter().any(|n| has_hidden_quantizer(model, n)) {
            break;
        }
        let mut now = eliminate_identity::run(model, cx)?;
        // Before constants are computed, of which weights are: rounded numbers alone are no pairs.
        now += raise_spelled_quantizers::run(model, cx)? + fold_constants::run(model, cx)?;
        now += raise_qonnx::run(model, cx)? + raise_spelled_quantizers::run(model, cx)?;
        changes += now;
        if now == 0 {
            break;
        }
    }
    Ok(changes)
}

/// Whether a node is a quantizer of which not all is plain, or may be a part of one.
fn has_hidden_quantizer(model: &Model, id: NodeId) -> bool {
    let node = model.node(id);
    let conversion = matches!(node.op_type.as_str(), "QuantizeLinear" | "DequantizeLinear");
    let computed = |i: usize| node.input(i).is_some_and(|v| model.value(v).constant().is_none());
    let clips_codes = || node.is("Clip") && model.constant_input(id, 0).is_some_and(|t| t.dtype().is_integer());
    (conversion && (computed(1) || computed(2))) || clips_codes() || node.is("Round") || raise_qonnx::is_quantizer(node)
}

/// Newer than any operator set that a Q/DQ form asks for.
const ANY_FORM: i64 = 25;

/// Brings all into the form of float operators between Q/DQ pairs that is not float already but for its weights. As [`raise`],
/// but the form is only in between: no operator set is in its way, so the model may not be valid in it.
pub fn raise_in_between(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let mut raised = lift_constants::run(model, cx)? + raise_qoperators::run(model, cx)?;
    let imports = model.opset_imports.clone();
    if model.opset("").unwrap_or(1) < ANY_FORM {
        model.set_opset("", ANY_FORM);
    }
    cx.options.float_state = true;
    raised += raise_dynamic_products::run(model, cx)? + raise_dynamic_lstm::run(model, cx)?;
    model.opset_imports = imports;
    // That speaks of the Q/DQ form as of something that stays.
    let layers = |d: &Diagnostic| d.code == "state_not_quantized";
    if cx.diagnostics.iter().any(layers) {
        cx.diagnostics.retain(|d| !layers(d));
        let text = "DynamicQuantizeLSTM became LSTM: its state is no longer quantized at each step";
        cx.diagnostics.push(Diagnostic::note("state_not_quantized", text));
    }
    Ok(raised)
}

/// Runs the passes of a stage until none changes anything (at most 10 rounds: passes that undo each other are a bug).
pub fn run_stage_to_end(stage: Stage, model: &mut Model, cx: &mut Context) -> Result<usize> {
    let mut changes = 0;
    for _ in 0..10 {
        match run_stage(stage, model, cx)? {
            0 => break,
            n => changes += n,
        }
    }
    Ok(changes)
}
