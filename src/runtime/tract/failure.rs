//! tract's errors in the words of the user: what happened, at which ONNX node, and what to do.

use std::{collections::HashMap, error::Error as StdError, fmt};

use tract_onnx::{pb::NodeProto, prelude::*};

use crate::{error::Error, ir::Model, runtime::guard::catch};

/// What a user can do about a model that the runtime cannot run.
pub(super) const HELP: &str = "the model must run once for calibration and proof: replace the operator in the export, \
    or give ranges that were measured elsewhere (--ranges)";

/// What a user can do about a model that the runtime can run, but not on these data.
const DATA_HELP: &str = "the model runs, but not on this sample: look whether its inputs are what the model expects \
    (indices within their tables, lengths that fit)";

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

/// More memory is asked for than there can be.
const TOO_LARGE: &str = "a size is too large";

/// What tract does when it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Reads the model.
    Read,
    /// Makes a plan for it.
    Prepare,
    /// Runs a plan: whatever depends on shapes and types alone has been found to be right before.
    Run,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "reading the model",
            Self::Prepare => "to prepare the model",
            Self::Run => "to run the model",
        })
    }
}

/// A failure inside tract, or a panic. Kept by the plan cache, hence `Clone`.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    doing: Doing,
    /// The chain of causes, outermost first.
    messages: Vec<String>,
    /// The node of tract's that was at work, where the messages need not tell.
    node: Option<String>,
}

/// Runs a step inside tract; what it fails with, panics included, becomes a [`Failure`].
pub(super) fn guard<T>(doing: Doing, step: impl FnOnce() -> TractResult<T>) -> Result<T, Failure> {
    let messages = match catch(step) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => error.chain().map(|e| first_line(&e.to_string())).collect(),
        Err(panic) => {
            let text = first_line(&panic);
            match in_plain_words(&text) {
                Some(plain) => vec![text, plain.to_owned()],
                None => vec![format!("panic: {text}")],
            }
        }
    };
    Err(Failure { doing, messages, node: None })
}

/// What the panics of slices, arithmetic and allocation mean to somebody who has not written the code.
fn in_plain_words(panic: &str) -> Option<&'static str> {
    let says = |words: &[&str]| words.iter().any(|w| panic.contains(w));
    if says(&["out of bounds", "out of range", "slice index starts at"]) {
        Some("an index or a length is out of range")
    } else if says(&["divide by zero", "divisor of zero", "step != 0", "Division by zero"]) {
        Some("a step, a stride or a divisor is 0")
    } else if says(&["capacity overflow", "with overflow", "allocat", "LayoutError", "ArrayTooLarge"]) {
        Some(TOO_LARGE)
    } else {
        None
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
    /// What else may go wrong with reading.
    pub(super) fn reading(error: &Error) -> Self {
        Self { doing: Doing::Read, messages: vec![error.to_string()], node: None }
    }

    /// Adds the name of tract's node that was at work.
    pub(super) fn at(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// The error to show.
    pub(super) fn into_error(self, operators: &Operators) -> Error {
        let origin = self.messages.iter().filter_map(|m| node_name(m)).filter_map(|n| operators.origin(n)).next_back();
        let origin = origin.or_else(|| operators.origin(self.node.as_deref()?));
        let root = self.messages.last().map_or("", String::as_str);
        let help = if self.doing == Doing::Run && root != TOO_LARGE { DATA_HELP } else { HELP };
        let mut error = Error::runtime(format!("the built-in runtime failed {}: {root}", self.doing)).help(help);
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
        let fail = |text: &'static str| guard::<()>(Doing::Run, || panic!("{text}")).expect_err("it panics");
        let error = fail("oh").into_error(&Operators::default());
        assert_eq!(error.to_string(), "the built-in runtime failed to run the model: panic: oh");
        let operators = Operators([("g".to_owned(), "Gather".to_owned())].into());
        let error = fail("range start index 9 out of range for slice of length 4").at("g.x").into_error(&operators);
        assert_eq!(
            error.to_string(),
            r#"node "g" (Gather): the built-in runtime failed to run the model: an index or a length is out of range"#
        );
        assert_eq!(error.help_text(), Some(DATA_HELP));
    }
}
