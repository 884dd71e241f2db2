//! ONNX Runtime's errors in the words of the user: what happened, at which node, and what to do.

use crate::{
    error::{Error, Result},
    runtime::guard::catch,
};

/// What a user can do about a model that it refuses.
const MODEL_HELP: &str = "ONNX Runtime does not take this model: look whether its release is new enough for the model's opset and \
    operators, and whether the model is sound";

/// What a user can do about a run that fails.
const RUN_HELP: &str = "the model loads, but does not run on this sample: look whether its inputs are what the model expects \
    (indices within their tables, lengths that fit)";

/// What ONNX Runtime does when it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Loads a model.
    Load,
    /// Runs it.
    Run,
}

/// Runs a step inside ONNX Runtime; what it fails with, panics of its binding included, becomes an error.
pub(super) fn guard<T>(doing: Doing, step: impl FnOnce() -> Result<T, ort::Error>) -> Result<T> {
    let message = match catch(step) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => error.message().to_owned(),
        Err(panic) => format!("panic: {panic}"),
    };
    Err(error(doing, &message))
}

fn error(doing: Doing, message: &str) -> Error {
    let (what, help) = match doing {
        Doing::Load => ("refused the model", MODEL_HELP),
        Doing::Run => ("failed to run the model", RUN_HELP),
    };
    let error = Error::runtime(format!("ONNX Runtime {what}: {}", plain(message))).help(help);
    match node(message) {
        Some((name, op)) => error.node(name, op),
        None => error,
    }
}

/// The fact in a message, without the source files, functions and addresses of the runtime.
fn plain(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    // "…Status Message: /path/file.cc:42 onnxruntime::Function(…) condition was false. What is meant"
    let mut text = line.rsplit("Status Message: ").next().unwrap_or(line).trim();
    if let Some((place, rest)) = text.split_once(' ')
        && place.contains(".cc:") | place.contains(".h:")
    {
        text = rest.trim();
    }
    if let Some((_, meant)) = text.rsplit_once(" was false. ")
        && !meant.trim().is_empty()
    {
        text = meant.trim();
    }
    match text.char_indices().nth(300) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

/// Name and operator of the node that a message speaks of.
fn node(message: &str) -> Option<(String, String)> {
    let between = |start: &str, end: &str| {
        let rest = &message[message.find(start)? + start.len()..];
        Some(rest[..rest.find(end)?].to_owned())
    };
    let found = |name: Option<String>, op: Option<String>| Some((name?, op?)).filter(|(n, _)| !n.is_empty());
    // "Non-zero status code returned while running Reshape node. Name:'r' Status Message: …"
    found(between("Name:'", "'"), between("while running ", " node."))
        // "Node (r) Op (Reshape) [ShapeInferenceError] …"
        .or_else(|| found(between("Node (", ")"), between("Op (", ")")))
        .or_else(|| found(between("Node:", " "), between("Op (", ")")))
        // "Could not find an implementation for Conv(11) node with name 'c'"
        .or_else(|| found(between("node with name '", "'"), between("implementation for ", "(")))
        // "In Node, ("y", Frobnicate, "", -1) : …"
        .or_else(|| found(between("In Node, (\"", "\","), between("\", ", ",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_and_the_fact_are_taken_out_of_the_message() {
        let run = "Non-zero status code returned while running Gather node. Name:'g' Status Message: \
                   /src/gather.cc:9 onnxruntime::Prepare(int) idx >= 0 was false. indices element out of data bounds";
        assert_eq!(
            error(Doing::Run, run).to_string(),
            r#"node "g" (Gather): ONNX Runtime failed to run the model: indices element out of data bounds"#
        );
        let load = "Could not find an implementation for Conv(11) node with name 'c'";
        assert_eq!(error(Doing::Load, load).at().op.as_deref(), Some("Conv"));
        let load = r#"This is an invalid model. In Node, ("y", Frobnicate, "", -1) : ("x": tensor(float),) -> ("y",)"#;
        assert_eq!(error(Doing::Load, load).at().op.as_deref(), Some("Frobnicate"));
        assert_eq!(error(Doing::Load, "").at().op, None);
    }

    #[test]
    fn a_panic_is_an_error() {
        let failed = guard::<()>(Doing::Load, || panic!("oh")).unwrap_err();
        assert_eq!(failed.to_string(), "ONNX Runtime refused the model: panic: oh");
    }
}
