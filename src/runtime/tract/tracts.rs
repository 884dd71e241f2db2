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

/// The name that tract's operator gets; no operator of ONNX has a space.
fn hidden(op: &str) -> String {
    format!("tract's {op}")
}

/// Puts an operator in the place of tract's, which [`parse`] finds again.
pub(super) fn replace(register: &mut OnnxOpRegister, op: &str, parser: Parser) {
    if let Some(tracts) = register.0.insert(op.to_owned(), parser) {
        register.0.entry(hidden(op)).or_insert(tracts);
    }
}

/// Puts [`parse`] in the place of all, since tract's errors about what a node says do not name it.
pub(super) fn name_nodes(register: &mut OnnxOpRegister) {
    let all: Vec<String> = register.0.keys().cloned().collect();
    all.iter().for_each(|op| replace(register, op, parse));
}

/// What tract makes of the node.
pub(super) fn parse(cx: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let parser = cx.framework.op_register.0.get(&hidden(&node.op_type)).with_context(|| failure::label(node))?;
    parser(cx, node).with_context(|| failure::label(node))
}

/// tract's parser in a register that nothing was replaced in.
pub(super) fn of(register: &OnnxOpRegister, op: &str) -> TractResult<Parser> {
    register.0.get(op).copied().with_context(|| format!("no operator {op}"))
}
