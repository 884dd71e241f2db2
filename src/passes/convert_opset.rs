//! Upgrades the operators of ai.onnx to a newer version of the operator set.
//!
//! ```text
//! before: <opset_import: ["" : 9]>    y = Clip<min = 0.0, max = 6.0>(x)
//! after:  <opset_import: ["" : 13]>   y = Clip(x, y_min, y_max)
//! ```
//!
//! [`CONVERSIONS`] lists each operator under each version that changed its form or meaning, with the function that
//! brings a node from the version before to that one; a node goes through its versions one by one. Every other change
//! of the specification between versions 7 and 28 widens types or adds an attribute whose default is the old meaning:
//! `tests/data/onnx_unchanged.tsv` lists those with the reason, and a test holds both lists against ONNX's own.
//!
//! As a pass it upgrades models below version 13, which is the first that can quantize per channel, and no further: the
//! runtime of the deployment may be as old as the model, and kernels and fusions of runtimes are tied to versions.

mod batch_normalization;
mod clip;
mod control_flow;
mod dropout;
mod experimental;
mod fourier;
mod input_axes;
mod normalization;
mod padding;
mod resize;
mod sampling;
mod scope;
mod slice;
mod softmax;
mod step;
mod top_k;

use std::collections::{HashMap, HashSet};

use self::{
    scope::{Scope, function_name, ir_version_of, is_onnx, roots, scopes, set_version},
    step::{Convert, Step},
};
use super::{Context, eliminate_initializer_inputs};
use crate::{
    analysis::types,
    diagnostics::{Diagnostic, count},
    error::{Error, Result},
    ir::Model,
};

/// The oldest version that can be upgraded.
pub const OLDEST: i64 = 7;
/// The newest version known here.
pub const NEWEST: i64 = 28;
/// What quantization needs: `axis` of QuantizeLinear and DequantizeLinear came with version 13.
pub const NEEDED: i64 = 13;
/// What floats of 8 bits need: QuantizeLinear and DequantizeLinear take them from version 19 on.
pub const FLOAT8: i64 = 19;
/// What types of codes need that an attribute of QuantizeLinear tells: it came with version 21.
pub const TYPE_ATTRIBUTE: i64 = 21;

/// Operators that changed: the version that brought the change, and how a node gets there from the version before.
const CONVERSIONS: &[(i64, &str, Convert)] = &[
    (9, "BatchNormalization", batch_normalization::drop_spatial),
    (9, "MeanVarianceNormalization", normalization::mean_variance_axes),
    (9, "Scan", control_flow::scan_without_batch),
    (9, "Upsample", resize::scales_to_input),
    (10, "Affine", experimental::affine),
    (10, "ATen", experimental::gone),
    (10, "ConstantFill", experimental::gone),
    (10, "Crop", experimental::crop),
    (10, "Dropout", dropout::bool_mask),
    (10, "DynamicSlice", experimental::dynamic_slice),
    (10, "GRUUnit", experimental::gone),
    (10, "GivenTensorFill", experimental::gone),
    (10, "ImageScaler", experimental::image_scaler),
    (10, "ParametricSoftplus", experimental::parametric_softplus),
    (10, "Scale", experimental::scale),
    (10, "ScaledTanh", experimental::scaled_tanh),
    (10, "Slice", slice::to_inputs),
    (10, "TopK", top_k::to_input),
    (10, "Upsample", resize::upsample_to_resize),
    (11, "Clip", clip::to_inputs),
    (11, "Pad", padding::to_inputs),
    (11, "Resize", resize::name_coordinates),
    (11, "Scatter", sampling::scatter_to_scatter_elements),
    (12, "Dropout", dropout::drop_ratio),
    (13, "Hardmax", softmax::one_axis),
    (13, "LogSoftmax", softmax::one_axis),
    (13, "ReduceSum", input_axes::optional),
    (13, "Resize", resize::optional_inputs),
    (13, "Softmax", softmax::one_axis),
    (13, "Split", input_axes::split_sizes),
    (13, "Squeeze", input_axes::optional),
    (13, "Unsqueeze", input_axes::required),
    (14, "BatchNormalization", batch_normalization::drop_training_outputs),
    (16, "RoiAlign", sampling::roi_align_coordinates),
    (18, "ReduceL1", input_axes::optional),
    (18, "ReduceL2", input_axes::optional),
    (18, "ReduceLogSum", input_axes::optional),
    (18, "ReduceLogSumExp", input_axes::optional),
    (18, "ReduceMax", input_axes::optional),
    (18, "ReduceMean", input_axes::optional),
    (18, "ReduceMin", input_axes::optional),
    (18, "ReduceProd", input_axes::optional),
    (18, "ReduceSumSquare", input_axes::optional),
    (18, "Split", input_axes::split_count),
    (20, "DFT", fourier::axis_to_input),
    (20, "GridSample", sampling::grid_sample_modes),
    (21, "GroupNormalization", normalization::group_parameters_per_channel),
];

/// See the module's documentation: to what the options ask for, which is [`NEEDED`] at least, or to the model's own version
/// where only a function is older.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let oldest = scopes(model)?.iter().map(|s| s.version).min().unwrap_or(NEEDED);
    let needed = cx.options.least_opset;
    if oldest >= needed {
        return Ok(0);
    }
    let target = model.opset("").unwrap_or(needed).max(needed);
    convert_to(model, target, cx)
}

/// Upgrades the main graph, its subgraphs and the functions to version `target` of ai.onnx, and the version of the file
/// format to what ONNX asks for with it. What is at `target` or above stays. Returns the number of changes.
///
/// Errors name the node that cannot be upgraded, and why.
pub fn convert_to(model: &mut Model, target: i64, cx: &mut Context) -> Result<usize> {
    if target > NEWEST {
        return Err(Error::unsupported(format!("opset {target} is not known, the newest is {NEWEST}"))
            .help("choose an older opset, or use a newer qonvert"));
    }
    let scopes: Vec<Scope> = scopes(model)?.into_iter().filter(|s| s.version < target).collect();
    let mut changes = 0;
    if !scopes.is_empty() && model.ir_version < 4 {
        // Otherwise the weights of such a file would be inputs that callers may override.
        changes += eliminate_initializer_inputs::run(model, cx)?;
    }
    for scope in scopes {
        let nodes = convert_scope(model, &scope, target, cx)?;
        set_version(model, &scope, target);
        changes += nodes + 1;
        let of = scope.function.map_or_else(|| "the model".to_owned(), |f| function_name(model, f));
        let form = match nodes {
            0 => String::new(),
            n => format!(", {} changed form", count(n, "node")),
        };
        let text = format!("converted from opset {} to {target}{form}", scope.version);
        cx.diagnostics.push(Diagnostic::note("opset_converted", text).on(of));
    }
    if changes > 0 {
        model.ir_version = model.ir_version.max(ir_version_of(target));
    }
    Ok(changes)
}

fn convert_scope(model: &mut Model, scope: &Scope, target: i64, cx: &mut Context) -> Result<usize> {
    if scope.version < OLDEST {
        return refuse_too_old(model, scope);
    }
    let types = types::infer(model);
    // A function of the model may bear the name of an operator; its calls are no operators.
    let own: HashSet<String> =
        model.functions.iter().filter(|f| is_onnx(f.domain.as_deref())).filter_map(|f| f.name.clone()).collect();
    let mut changes = 0;
    for version in scope.version + 1..=target {
        let now: HashMap<&str, Convert> =
            CONVERSIONS.iter().filter(|c| c.0 == version).map(|&(_, op, convert)| (op, convert)).collect();
        if now.is_empty() {
            continue;
        }
        let roots = roots(model);
        for n in model.all_nodes() {
            let Some(node) = model.try_node(n) else { continue };
            let here = node.in_onnx_domain() && roots.get(&node.graph()) == Some(&scope.root);
            let Some(convert) = now.get(node.op_type.as_str()).filter(|_| here && !own.contains(&node.op_type)) else {
                continue;
            };
            let (label, op) = (model.node_label(n), node.op_type.clone());
            let at = |e: Error| {
                e.node(&label, &op).help(format!(
                    "export the model with opset {version} or newer, or exclude what needs a newer opset than {}",
                    scope.version
                ))
            };
            let mut step = Step::new(model, n, &types, scope.function.is_some(), &mut cx.diagnostics);
            convert(&mut step).map_err(at)?;
            changes += 1;
        }
    }
    Ok(changes)
}

/// Below [`OLDEST`] even addition was another operator. A graph without operators has no such trouble.
fn refuse_too_old(model: &Model, scope: &Scope) -> Result<usize> {
    let Some(&first) = model.nodes(scope.root).iter().find(|&&n| model.node(n).in_onnx_domain()) else { return Ok(0) };
    let message = format!("opset {} is too old, the oldest that can be upgraded is {OLDEST}", scope.version);
    Err(Error::unsupported(message)
        .node(model.node_label(first), &model.node(first).op_type)
        .help("export the model with a newer opset, or upgrade it with onnx.version_converter first"))
}

/// Every operator that has a conversion, with the versions that brought a change.
pub fn converted() -> impl Iterator<Item = (&'static str, i64)> {
    CONVERSIONS.iter().map(|&(version, op, _)| (op, version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn rows(table: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
        table.lines().filter(|l| !l.starts_with('#')).map(|l| l.split('\t').collect())
    }

    #[test]
    fn every_change_of_onnx_is_either_converted_or_known_to_be_none() {
        let mut kinds: BTreeMap<(&str, i64), Vec<&str>> = BTreeMap::new();
        for (op, version) in converted() {
            kinds.entry((op, version)).or_default().push("converted");
        }
        for row in rows(include_str!("../../tests/data/onnx_unchanged.tsv")) {
            kinds.entry((row[0], row[1].parse().unwrap())).or_default().push("unchanged");
        }
        let mut ops = HashSet::new();
        for row in rows(include_str!("../../tests/data/onnx_operators.tsv")) {
            ops.insert(row[0]);
            let versions: Vec<i64> = row[1].split(' ').map(|v| v.trim_end_matches('d').parse().unwrap()).collect();
            assert!(versions.iter().all(|&v| v <= NEWEST), "{row:?}");
            for &v in versions.iter().skip(1).filter(|&&v| v > OLDEST) {
                assert_eq!(kinds.remove(&(row[0], v)).map_or(0, |k| k.len()), 1, "{} of version {v}", row[0]);
            }
        }
        for ((op, version), _) in kinds {
            // MeanVarianceNormalization was an experiment of the same name before.
            let experiment = !ops.contains(op) && version == 10 || (op, version) == ("MeanVarianceNormalization", 9);
            assert!(experiment, "ONNX has no {op} of version {version}");
        }
    }

    #[test]
    fn conversions_stand_in_order() {
        assert!(CONVERSIONS.is_sorted_by(|a, b| a.0 <= b.0));
    }
}
