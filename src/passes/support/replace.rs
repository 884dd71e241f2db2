//! Replacing what nodes make, and where new nodes stand.

use crate::ir::{GraphId, Model, NodeId, NodeSpec, Place, Tensor, ValueId};

/// Whether an initializer can stand for a node's output: not where a graph hands it out (runtimes differ on outputs that
/// are initializers), not in functions' bodies (which have none).
pub fn replaceable_by_constant(model: &Model, v: ValueId) -> bool {
    let value = model.value(v);
    let in_function = || model.functions.iter().any(|f| f.graph == value.graph());
    value.producer().is_some() && !value.is_graph_output() && !value.uses().is_empty() && !in_function()
}

/// Makes all readers of a node's output read a constant, which takes over its name where it can. The node goes when
/// nothing reads its outputs any more.
pub fn replace_by_constant(model: &mut Model, v: ValueId, t: Tensor) {
    let name = model.value(v).name().to_owned();
    // In the main graph equal results of several branches can be shared.
    let constant = model.add_initializer(model.main(), &name, t);
    model.replace_readers(v, constant, |_, _| true);
    if model.value(v).graph() == model.main() {
        let spare = model.fresh_name(&format!("{name}_folded"));
        model.rename(v, &spare);
        model.rename(constant, &name);
    }
    let Some(n) = model.producer(v) else { return };
    if model.node(n).outputs().iter().flatten().all(|&o| model.value(o).uses().is_empty()) {
        model.remove_node(n);
    }
}

/// Takes a node out whose first output equals `x`: its readers read `x`. Returns whether anything changed; where a graph
/// hands the output out and `x` cannot take its name, the node stays for that.
pub fn bypass(model: &mut Model, n: NodeId, x: ValueId) -> bool {
    let Some(out) = model.node(n).output(0) else { return false };
    let others = model.node(n).outputs().iter().skip(1).flatten().any(|&o| !model.value(o).uses().is_empty());
    if others {
        return false;
    }
    let read = model.value(out).readers().next().is_some();
    let gone = model.replace_all_uses(out, x);
    if gone {
        model.remove_node(n);
    }
    read || gone
}

/// Inserts a node in front of one that is to be removed, under its name.
pub fn insert_instead(model: &mut Model, old: NodeId, mut spec: NodeSpec) -> NodeId {
    if let Some(name) = model.node_mut(old).name.take() {
        spec = spec.name(name);
    }
    model.insert_named(spec, Place::Before(old))
}

/// Puts a product in the place of a node with one output, and a sum with a bias behind it where there is one.
pub fn product_instead(model: &mut Model, old: NodeId, product: NodeSpec, bias: Option<ValueId>) {
    let out = model.take_outputs(old).first().copied().flatten();
    match (bias, out) {
        (Some(bias), Some(out)) => {
            let product = product.output(format!("{}_without_bias", model.value(out).name()));
            let product = insert_instead(model, old, product);
            let sum = NodeSpec::new("Add").inputs([model.node(product).output(0), Some(bias)]);
            model.insert(sum.output_value(Some(out)), Place::Before(old));
        }
        (_, out) => {
            insert_instead(model, old, product.output_value(out));
        }
    }
    model.remove_node(old);
}

/// The place behind what makes a value, in front of all that may read it: the graph's start where it is made elsewhere.
pub fn behind_maker(model: &Model, v: ValueId, graph: GraphId) -> Place {
    match model.producer(v).filter(|&n| model.node(n).graph() == graph) {
        Some(maker) => Place::After(maker),
        None => Place::Start(graph),
    }
}
