//! Puts the branch of an If whose condition is a constant in its place.
//!
//! ```text
//! before: y = If(true) { then: t = Relu(x); return t  else: e = Neg(x); return e }      after: y = Relu(x)
//! ```

use std::collections::HashMap;

use super::{Context, support::replace::bypass};
use crate::{
    error::Result,
    ir::{AttrValue, GraphId, Model, NodeId, NodeSpec, Place, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut inlined = 0;
    for n in model.all_nodes() {
        // An outer If may have gone with this one in its other branch.
        if model.try_node(n).is_none() {
            continue;
        }
        let Some(branch) = taken(model, n) else { continue };
        let results = unpack(model, branch, n);
        let outputs = model.node(n).outputs().to_vec();
        let mut copies = Vec::new();
        for (out, result) in outputs.into_iter().zip(results) {
            let Some(out) = out else { continue };
            let spec = NodeSpec::new("Identity").input(result).output(model.value(out).name().to_owned());
            let copy = model.insert(spec, Place::Before(n));
            if let Some(v) = model.node(copy).output(0) {
                model.replace_all_uses(out, v);
            }
            copies.push((copy, result));
        }
        model.remove_node(n);
        // Only now no branch hands the results out: they can take the names of the graph's outputs.
        for (copy, result) in copies {
            bypass(model, copy, result);
        }
        inlined += 1;
    }
    Ok(inlined)
}

/// The branch that an If always takes, if it can be unpacked.
fn taken(model: &Model, n: NodeId) -> Option<GraphId> {
    let node = model.node(n);
    if !node.is("If") {
        return None;
    }
    let name = if model.constant_input(n, 0)?.scalar_i64()? != 0 { "then_branch" } else { "else_branch" };
    let Some(AttrValue::Graph(branch)) = node.attr(name) else { return None };
    let g = model.graph(*branch);
    let sparse = g.initializers().iter().any(|&v| model.value(v).sparse.is_some());
    // Functions have no initializers.
    let in_function = model.functions.iter().any(|f| f.graph == node.graph());
    let fits = g.outputs().len() == node.outputs().len() && g.inputs().is_empty();
    (fits && !sparse && (!in_function || g.initializers().is_empty())).then_some(*branch)
}

/// Moves all that is in a graph in front of a node. Returns what stands for each output of the graph.
fn unpack(model: &mut Model, branch: GraphId, before: NodeId) -> Vec<ValueId> {
    let target = model.node(before).graph();
    let mut moved: HashMap<ValueId, ValueId> = HashMap::new();
    for v in model.graph(branch).initializers().to_vec() {
        let (name, tensor) = (model.value(v).name().to_owned(), model.value(v).initializer().cloned());
        if let Some(tensor) = tensor {
            let new = model.add_initializer(target, &name, tensor);
            moved.insert(v, new);
        }
    }
    let results = model.graph(branch).outputs().to_vec();
    for n in model.nodes(branch) {
        let attributes = std::mem::take(&mut model.node_mut(n).attributes);
        let node = model.node(n).clone();
        let mut spec = NodeSpec::new(node.op_type.clone()).inputs(node.inputs().to_vec()).attrs(attributes);
        spec = node.name.iter().fold(spec, |s, name| s.name(name.clone()));
        spec = node.domain.iter().fold(spec, |s, domain| s.domain(domain.clone()));
        for &v in node.outputs() {
            spec = match v {
                Some(v) => spec.typed_output(model.value(v).name().to_owned(), model.value(v).ty.clone()),
                None => spec.output_value(None),
            };
        }
        let new = model.insert(spec, Place::Before(before));
        let words = model.node_mut(new);
        words.overload = node.overload.clone();
        words.doc_string = node.doc_string.clone();
        words.metadata_props = node.metadata_props.clone();
        words.device_configurations = node.device_configurations.clone();
        let made = model.node(new).outputs().to_vec();
        moved.extend(node.outputs().iter().zip(made).filter_map(|(&old, new)| Some((old?, new?))));
    }
    // In the file's order: which use comes first decides nothing, but the same input must give the same model.
    let mut pairs: Vec<(ValueId, ValueId)> = moved.iter().map(|(&a, &b)| (a, b)).collect();
    pairs.sort_unstable();
    for (old, new) in pairs {
        for used in model.value(old).uses().to_vec() {
            model.redirect(used, new);
        }
    }
    results.into_iter().map(|v| moved.get(&v).copied().unwrap_or(v)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped};

    #[test]
    fn the_branch_takes_the_place() {
        check(
            run,
            "(float[2] x) => (y, z) <bool c = {1}> {
                a = Neg(x)
                y, z = If (c) <
                    then_branch = yes () => (t, x) <float[2] w = {1, 2}> { r = Add(a, w) t = Relu(r) },
                    else_branch = no () => (e, a) { e = Exp(x) }>
             }",
            "(float[2] x) => (y, z) <float[2] w_1 = {1, 2}> { a = Neg(x) r_1 = Add(a, w_1) y = Relu(r_1) z = Identity(x) }",
        );
    }

    #[test]
    fn nested_ones_come_along() {
        check(
            run,
            "(float[2] x, bool d) => (y) <bool c = {0}> {
                y = If (c) <
                    then_branch = yes () => (t) { t = Relu(x) },
                    else_branch = no () => (e) {
                        k = Abs(x)
                        e = If (d) <
                            then_branch = inner () => (p) { p = Exp(k) },
                            else_branch = other () => (q) { q = Log(k) }>
                    }>
             }",
            "(float[2] x, bool d) => (y) {
                k_1 = Abs(x)
                y = If (d) <
                    then_branch = inner () => (p) { p = Exp(k_1) },
                    else_branch = other () => (q) { q = Log(k_1) }>
             }",
        );
    }

    #[test]
    fn a_condition_that_is_computed_stays() {
        check_skipped(
            run,
            "(float[2] x, bool d) => (y) {
                y = If (d) <then_branch = a () => (p) { p = Exp(x) }, else_branch = b () => (q) { q = Log(x) }>
             }",
            "",
        );
    }
}
