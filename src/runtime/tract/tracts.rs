//! tract's own operators, behind ours of the same name.

use tract_onnx::{
    model::{OnnxOpRegister, ParsingContext},
    pb::NodeProto,
    prelude::*,
    tract_hir::internal::*,
};

use super::failure;

/// What makes an operator of a node.
pub(super) type Parser = fn(&ParsingContext, &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// The names that the parsers behind others get; no operator of ONNX has a space.
fn tracts(op: &str) -> String {
    format!("tract's {op}")
}

fn unnamed(op: &str) -> String {
    format!("unnamed {op}")
}

/// Puts an operator in the place of tract's, which [`parse`] finds again.
pub(super) fn replace(register: &mut OnnxOpRegister, op: &str, parser: Parser) {
    if let Some(before) = register.0.insert(op.to_owned(), parser) {
        register.0.entry(tracts(op)).or_insert(before);
    }
}

/// What tract makes of a node whose operator was replaced.
pub(super) fn parse(cx: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    of(&cx.framework.op_register, &tracts(&node.op_type))?(cx, node)
}

/// Lets errors about what a node says name the node, which neither tract's parsers do nor ours. To be called last.
pub(super) fn name_nodes(register: &mut OnnxOpRegister) {
    let all: Vec<(String, Parser)> = register.0.drain().collect();
    for (op, parser) in all {
        if op.contains(' ') {
            register.0.insert(op, parser);
        } else {
            register.0.insert(unnamed(&op), parser);
            register.0.insert(op, parse_named);
        }
    }
}

fn parse_named(cx: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let parser = of(&cx.framework.op_register, &unnamed(&node.op_type))?;
    parser(cx, node).with_context(|| failure::label(node))
}

/// A parser by its name.
pub(super) fn of(register: &OnnxOpRegister, op: &str) -> TractResult<Parser> {
    register.0.get(op).copied().with_context(|| format!("no operator {op}"))
}
