//! tract's errors in the words of the user: what happened, at which ONNX node, and what to do.

use std::{
    collections::HashMap,
    error::Error as StdError,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use tract_onnx::{pb::NodeProto, prelude::*};

use crate::{
    error::Error,
    ir::{Model, Type},
};

/// What a user can do about a model that the runtime cannot run.
pub(super) const HELP: &str = "the model must run once for calibration and proof: replace the operator in the export, \
    or give ranges that were measured elsewhere (--ranges)";

/// Operators by the names that tract gives their nodes: the node's own, else its first output's.
#[derive(Debug, Default)]
pub(super) struct Operators(HashMap<String, String>);

impl Operators {
    pub(super) fn of(model: &Model) -> Self {
        let label = |n| (model.node_label(n), model.node(n).op_type.clone());
        Self(model.all_nodes().into_iter().map(label).collect())
    }

    /// The ONNX node that a node of tract's was made of; parts of it are called `name.part`.
    fn origin(&self, name: &str) -> Option<(&str, &str)> {
        let ends = name.match_indices('.').map(|(i, _)| i).chain([name.len()]);
        let mut found = ends.filter_map(|end| self.0.get_key_value(&name[..end])).collect::<Vec<_>>();
        found.pop().map(|(name, op)| (name.as_str(), op.as_str()))
    }
}

/// A failure inside tract, or a panic. Kept by the plan cache, hence `Clone`.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    doing: &'static str,
    /// The chain of causes, outermost first.
    messages: Vec<String>,
}

/// Runs a step inside tract; what it fails with, panics included, becomes a [`Failure`].
pub(super) fn guard<T>(doing: &'static str, step: impl FnOnce() -> TractResult<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(Failure { doing, messages: error.chain().map(|e| first_line(&e.to_string())).collect() }),
        Err(panic) => {
            let words = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let words = words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(Failure { doing, messages: vec![format!("panic: {}", first_line(&words))] })
        }
    }
}

/// Long facts about tensors follow in further lines and tails.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(300) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line.to_owned(),
    }
}

/// A node of the file, in the words that tract has once it counts nodes: for errors about what a node says.
pub(super) fn label(node: &NodeProto) -> String {
    let name = if node.name.is_empty() { node.output.iter().find(|o| !o.is_empty()) } else { Some(&node.name) };
    format!("parsing #0 \"{}\" {}", name.map_or("", String::as_str), node.op_type)
}

/// The name out of tract's `#12 "name" Operator`.
fn node_name(message: &str) -> Option<&str> {
    let at = message.find('#')?;
    let rest = message[at + 1..].trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = rest.strip_prefix(" \"")?;
    rest.split_once('"').map(|(name, _)| name)
}

impl Failure {
    /// The error to show.
    pub(super) fn into_error(self, operators: &Operators) -> Error {
        let origin = self.messages.iter().filter_map(|m| node_name(m)).filter_map(|n| operators.origin(n)).next_back();
        let root = self.messages.last().map_or("", String::as_str);
        let mut error = Error::runtime(format!("the built-in runtime failed {}: {root}", self.doing)).help(HELP);
        if let Some((name, op)) = origin {
            error = error.node(name, op);
        }
        let causes =
            self.messages.iter().rev().skip(1).fold(None, |inner: Option<Cause>, text| {
                Some(Cause { text: text.clone(), inner: inner.map(Box::new) })
            });
        match causes {
            Some(cause) => error.source(cause),
            None => error,
        }
    }
}

/// One link of the chain.
#[derive(Debug)]
struct Cause {
    text: String,
    inner: Option<Box<Cause>>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.as_deref().map(|c| c as &(dyn StdError + 'static))
    }
}

/// A declared shape as the user writes it: `1x3x?xseq`.
pub(super) fn shape_text(ty: Option<&Type>) -> String {
    use crate::ir::Dim;
    let Some(shape) = ty.and_then(Type::shape) else { return "of any shape".to_owned() };
    let dim = |d: &Dim| match d {
        Dim::Unknown => "?".to_owned(),
        Dim::Known(n) => n.to_string(),
        Dim::Named(name) => name.clone(),
    };
    format!("[{}]", shape.dims.iter().map(dim).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_onnx_node_behind_tracts() {
        let text = r#"Failed analyse for node #12 "block.0.conv.bias" Add"#;
        assert_eq!(node_name(text), Some("block.0.conv.bias"));
        assert_eq!(node_name("no node here"), None);
        let operators = Operators([("block.0.conv".to_owned(), "Conv".to_owned())].into());
        assert_eq!(operators.origin("block.0.conv.bias"), Some(("block.0.conv", "Conv")));
        assert_eq!(operators.origin("block.0"), None);
    }

    #[test]
    fn a_panic_is_a_failure() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let failed = guard::<()>("testing", || panic!("oh {}", 1)).expect_err("it panics");
        std::panic::set_hook(hook);
        let error = failed.into_error(&Operators::default());
        assert_eq!(error.to_string(), "the built-in runtime failed testing: panic: oh 1");
    }
}
