//! Which nodes an import of ai.onnx speaks of: those of the main graph and its subgraphs, and those of each function.

use std::collections::{HashMap, HashSet};

use super::OLDEST;
use crate::{
    error::{Error, Result},
    ir::{GraphId, Model},
};

/// The version of the file format that ONNX was released with beside a version of ai.onnx (ONNX, `docs/Versioning.md`).
pub(super) fn ir_version_of(opset: i64) -> i64 {
    match opset {
        ..=8 => 3,
        9 => 4,
        10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        25..=27 => 13,
        28.. => 14,
    }
}

/// The nodes that one import of ai.onnx speaks of.
pub(super) struct Scope {
    /// The main graph or the body of a function.
    pub(super) root: GraphId,
    /// Index of the function.
    pub(super) function: Option<usize>,
    /// Version of ai.onnx.
    pub(super) version: i64,
}

/// The scopes that use ai.onnx, with their versions.
pub(super) fn scopes(model: &Model) -> Result<Vec<Scope>> {
    let functions = model.functions.iter().enumerate().map(|(i, f)| {
        let import = f.opset_imports.iter().find(|(d, _)| is_onnx(d.as_deref()));
        (f.graph, Some(i), import.map(|&(_, v)| v))
    });
    let all = std::iter::once((model.main(), None, model.opset(""))).chain(functions);
    let roots = roots(model);
    let mut used = HashSet::new();
    for n in model.all_nodes() {
        if model.node(n).in_onnx_domain() {
            used.insert(roots.get(&model.node(n).graph()).copied());
        }
    }
    let mut scopes = Vec::new();
    for (root, function, version) in all {
        match version {
            Some(version) => scopes.push(Scope { root, function, version }),
            None if used.contains(&Some(root)) => {
                let of = function.map_or_else(|| "the model".to_owned(), |f| function_name(model, f));
                return Err(Error::malformed(format!("{of} uses operators of ai.onnx but imports no version of it"))
                    .help("add the opset_import that the file was exported with"));
            }
            // Nothing to upgrade; the Q/DQ pairs to come still need an import.
            None if function.is_none() => scopes.push(Scope { root, function, version: OLDEST }),
            None => {}
        }
    }
    Ok(scopes)
}

/// For each graph the main graph or function body that it belongs to.
pub(super) fn roots(model: &Model) -> HashMap<GraphId, GraphId> {
    let climb = |g: GraphId| {
        let mut root = g;
        while let Some(n) = model.graph(root).parent {
            root = model.node(n).graph();
        }
        (g, root)
    };
    model.graph_ids().into_iter().map(climb).collect()
}

pub(super) fn is_onnx(domain: Option<&str>) -> bool {
    matches!(domain, None | Some("" | "ai.onnx"))
}

pub(super) fn function_name(model: &Model, index: usize) -> String {
    let f = &model.functions[index];
    format!("function {}.{}", f.domain.as_deref().unwrap_or(""), f.name.as_deref().unwrap_or(""))
}

pub(super) fn set_version(model: &mut Model, scope: &Scope, version: i64) {
    match scope.function {
        None => model.set_opset("", version),
        Some(f) => {
            for (_, v) in model.functions[f].opset_imports.iter_mut().filter(|(d, _)| is_onnx(d.as_deref())) {
                *v = version;
            }
        }
    }
}
