//! Compares a prediction with the graph that the runtime made.

use std::collections::{BTreeMap, HashMap};

use super::{Becomes, Prediction, summary::is_conversion};
use crate::{
    ir::{Model, NodeId},
    target::Target,
};

/// The differences, in words; empty if the prediction is right.
///
/// Integer kernels and left-over conversions are counted, and integer kernels and movements of codes are found again by the
/// names of their outputs, as far as the runtime keeps these.
pub fn differences(prediction: &Prediction, optimized: &Model, target: &Target) -> Vec<String> {
    let mut out = Vec::new();
    let summary = prediction.summary();
    let mut expected: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, count) in summary.integer.iter().chain(&summary.conversions) {
        *expected.entry(name).or_default() += count;
    }
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    let nodes = optimized.nodes_below(optimized.main());
    for &n in &nodes {
        let node = optimized.node(n);
        if target.is_integer(node) || is_conversion(&node.op_type) {
            *found.entry(&node.op_type).or_default() += 1;
        }
    }
    let names: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).copied().collect();
    for name in names {
        let (e, f) = (expected.get(name).copied().unwrap_or(0), found.get(name).copied().unwrap_or(0));
        if e != f {
            out.push(format!("{name}: expected {e}, the runtime has {f}"));
        }
    }
    out.extend(by_name(prediction, optimized, target, &nodes));
    out
}

/// Nodes that are found again by the name of their output, but are something else.
fn by_name(prediction: &Prediction, optimized: &Model, target: &Target, nodes: &[NodeId]) -> Vec<String> {
    let mut makers: HashMap<&str, NodeId> = HashMap::new();
    for &n in nodes {
        for &v in optimized.node(n).outputs().iter().flatten() {
            makers.insert(optimized.value(v).name(), n);
        }
    }
    let mut out = Vec::new();
    for node in &prediction.nodes {
        let Some(living) = prediction.loaded.try_node(node.id) else { continue };
        let Some(v) = living.output(0) else { continue };
        let Some(&maker) = makers.get(prediction.loaded.value(v).name()) else { continue };
        let (maker, made) = (optimized.node(maker), optimized.node(maker).output(0));
        let integer = target.is_integer(maker);
        let wrong = match node.becomes {
            // A kernel may be followed by a change of layout that takes its name.
            Becomes::Integer => {
                let layout = maker.op_type == "Transpose" || maker.op_type.starts_with("Reorder");
                node.kernel.as_ref() != Some(&maker.op_type) && !layout
            }
            Becomes::Float => integer,
            Becomes::Moves => {
                let float = made.and_then(|v| optimized.value(v).dtype()).is_some_and(|t| t.is_float());
                float && prediction.types.is_codes(&prediction.loaded, v)
            }
            _ => false,
        };
        if wrong {
            let said = node.kernel.as_deref().unwrap_or("float");
            out.push(format!("{} {:?}: expected {said}, the runtime has {}", node.op, node.name, maker.op_type));
        }
    }
    out
}
