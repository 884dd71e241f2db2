//! Forms of operators that tract would run, and would get wrong without a word: errors that name the node.
//!
//! A wrong number here is a wrong range or a wrong proof. What real exports have is corrected ([`super::corrected`]); these
//! are rare. Found by comparing both runtimes on small models (tract 0.23, ONNX Runtime 1.32).

use tract_onnx::{
    model::{OnnxOpRegister, ParsingContext, optional_inputs},
    pb::NodeProto,
    prelude::*,
    tract_hir::internal::*,
};

use super::tracts;

/// Puts the checks in front of the operators that are registered so far.
pub(super) fn register(register: &mut OnnxOpRegister) {
    tracts::replace(register, "Attention", |cx, node| checked(cx, node, attention(node)?));
    tracts::replace(register, "DFT", |cx, node| checked(cx, node, dft(cx, node)));
    tracts::replace(register, "Einsum", |cx, node| checked(cx, node, einsum(node)?));
    tracts::replace(register, "GridSample", |cx, node| checked(cx, node, grid_sample(node)?));
}

fn checked(
    cx: &ParsingContext,
    node: &NodeProto,
    wrong: Option<&str>,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    match wrong {
        Some(form) => bail!("{form} is not supported"),
        None => tracts::parse(cx, node),
    }
}

/// ONNX Runtime shifts the triangle by the length of the past, tract does not.
fn attention(node: &NodeProto) -> TractResult<Option<&'static str>> {
    let causal = node.get_attr_opt::<i64>("is_causal")?.unwrap_or(0) != 0;
    let past = optional_inputs(node).nth(4).flatten().is_some();
    Ok((causal && past).then_some("is_causal with past keys"))
}

/// The default of the axis became -2 when it became an input; tract takes 1.
fn dft(cx: &ParsingContext, node: &NodeProto) -> Option<&'static str> {
    let axis = optional_inputs(node).nth(2).flatten().is_some();
    (cx.onnx_operator_set_version >= 20 && !axis).then_some("a DFT without an axis")
}

/// tract takes an empty output for one that is not given, and mixes axes up where an ellipsis is not in front.
fn einsum(node: &NodeProto) -> TractResult<Option<&'static str>> {
    let equation: String = node.get_attr("equation")?;
    let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    if equation.ends_with("->") {
        return Ok(Some("an equation without output axes"));
    }
    let mut terms = equation.split(',').flat_map(|t| t.split("->"));
    Ok(terms.any(|t| t.find("...").is_some_and(|at| at > 0)).then_some("an equation with axes before an ellipsis"))
}

/// tract clamps the position, ONNX Runtime each of the sixteen neighbours.
fn grid_sample(node: &NodeProto) -> TractResult<Option<&'static str>> {
    let cubic = ["cubic", "bicubic"].contains(&node.get_attr_opt::<&str>("mode")?.unwrap_or("linear"));
    let border = node.get_attr_opt::<&str>("padding_mode")?.unwrap_or("zeros") == "border";
    Ok((cubic && border).then_some("mode = cubic with padding_mode = border"))
}
