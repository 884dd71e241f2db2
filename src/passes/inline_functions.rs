//! Puts the bodies of model-local functions where they are called, and removes the functions.
//!
//! ```text
//! before: y = f.scale <k = 2.0> (x)                          after: y/c = Constant <value_float = 2.0> ()
//!         scale <k> (a) => (b) {                                    y = Mul (x, y/c)
//!             c = Constant <value_float : float = @k> ()
//!             b = Mul (a, c) }
//! ```
//!
//! References to attributes become the caller's values, the function's defaults, or go. Names get the call's in front.
//! A body whose operator sets differ from the model's is an error: the same operator would mean something else.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Context;
use crate::{
    error::{Error, Result},
    ir::{Function, Model, Node, NodeId, NodeSpec, Place, copy::Copy},
};

/// More nodes than this come from functions that call each other in masses, not from an exporter.
const MOST_NODES: usize = 1_000_000;

/// Domain, name and overload.
type Key = (String, String, String);

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    if model.functions.is_empty() {
        return Ok(0);
    }
    let functions = by_key(model)?;
    let sizes = expanded_sizes(model, &functions)?;
    let mut work = model.nodes_below(model.main());
    work.reverse();
    let (mut calls, mut nodes) = (0, work.len());
    bound(
        work.iter()
            .fold(0, |n: usize, &w| n.saturating_add(functions.get(&key_of(model.node(w))).map_or(1, |f| sizes[f]))),
    )?;
    while let Some(call) = work.pop() {
        // Calls inside an attribute of a call went with it; their copies are in the list.
        let Some(node) = model.try_node(call) else { continue };
        let Some(&f) = functions.get(&key_of(node)) else { continue };
        let at = (model.node_label(call), node.op_type.clone());
        let function = model.functions[f].clone();
        let made = match_opsets(model, &function, &functions).and_then(|()| inline(model, call, &function));
        let made = made.map_err(|e| match e.at().node {
            Some(_) => e,
            None => e.node(at.0, at.1),
        })?;
        calls += 1;
        nodes += made.len();
        bound(nodes)?;
        work.extend(made.into_iter().rev());
    }
    let removed = std::mem::take(&mut model.functions);
    for f in &removed {
        model.remove_graph(f.graph);
    }
    forget_domains(model, &removed);
    Ok(calls + removed.len())
}

fn domain(name: Option<&str>) -> &str {
    name.filter(|d| *d != "ai.onnx").unwrap_or_default()
}

fn key(of: Option<&str>, name: &str, overload: Option<&str>) -> Key {
    (domain(of).to_owned(), name.to_owned(), overload.unwrap_or_default().to_owned())
}

fn key_of(node: &Node) -> Key {
    key(node.domain.as_deref(), &node.op_type, node.overload.as_deref())
}

fn by_key(model: &Model) -> Result<BTreeMap<Key, usize>> {
    let mut found = BTreeMap::new();
    for (i, f) in model.functions.iter().enumerate() {
        let key = key(f.domain.as_deref(), f.name.as_deref().unwrap_or_default(), f.overload.as_deref());
        if found.insert(key, i).is_some() {
            return Err(Error::malformed(format!("two functions have the name {}", label(f))));
        }
    }
    Ok(found)
}

fn label(f: &Function) -> String {
    let name = f.name.as_deref().unwrap_or_default();
    match domain(f.domain.as_deref()) {
        "" => format!("{name:?}"),
        domain => format!("{:?}", format!("{domain}.{name}")),
    }
}

fn bound(nodes: usize) -> Result<()> {
    if nodes > MOST_NODES {
        return Err(Error::unsupported(format!("functions that call functions make more than {MOST_NODES} nodes")));
    }
    Ok(())
}

/// How many nodes a call of each function becomes, calls in its body included. Recursion is an error.
fn expanded_sizes(model: &Model, functions: &BTreeMap<Key, usize>) -> Result<BTreeMap<usize, usize>> {
    let callees = |f: &Function| -> Vec<Option<usize>> {
        model.nodes_below(f.graph).into_iter().map(|n| functions.get(&key_of(model.node(n))).copied()).collect()
    };
    let mut left: BTreeMap<usize, Vec<Option<usize>>> =
        model.functions.iter().enumerate().map(|(i, f)| (i, callees(f))).collect();
    let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
    loop {
        let known = |c: &Vec<Option<usize>>| {
            c.iter().try_fold(0usize, |n, c| Some(n.saturating_add(c.map_or(Some(1), |c| sizes.get(&c).copied())?)))
        };
        let ready: Vec<(usize, usize)> = left.iter().filter_map(|(&i, c)| Some((i, known(c)?))).collect();
        if ready.is_empty() {
            break;
        }
        left.retain(|i, _| !ready.iter().any(|(r, _)| r == i));
        sizes.extend(ready);
    }
    // Each that is left calls another that is left: following them leads into a circle.
    let Some((&start, _)) = left.iter().next() else { return Ok(sizes) };
    let mut path = vec![start];
    loop {
        let last = path[path.len() - 1];
        let Some(next) = left[&last].iter().flatten().copied().find(|c| left.contains_key(c)) else { return Ok(sizes) };
        if let Some(at) = path.iter().position(|&i| i == next) {
            let names: Vec<_> = path[at..].iter().map(|&i| label(&model.functions[i])).collect();
            let e = format!("function {} calls itself (the circle: {})", names[0], names.join(", "));
            return Err(Error::malformed(e));
        }
        path.push(next);
    }
}

/// The operators of a body must mean the same where it is put; operator sets that the model lacks are imported.
fn match_opsets(model: &mut Model, f: &Function, functions: &BTreeMap<Key, usize>) -> Result<()> {
    let nodes = model.nodes_below(f.graph);
    let own = nodes.iter().map(|&n| model.node(n)).filter(|n| !functions.contains_key(&key_of(n)));
    let used: BTreeSet<String> = own.map(|n| domain(n.domain.as_deref()).to_owned()).collect();
    for d in used {
        let imports = f.opset_imports.iter().find(|(i, _)| domain(i.as_deref()) == d);
        let Some(&(_, want)) = imports else { continue };
        match model.opset(&d) {
            None => model.set_opset(&d, want),
            Some(have) if have == want => {}
            Some(have) => {
                let shown = if d.is_empty() { "ai.onnx" } else { &d };
                return Err(Error::unsupported(format!(
                    "calls function {}, which is written in opset {want} of {shown}; the model is of opset {have}",
                    label(f)
                ))
                .help("export the model with one opset, or without functions"));
            }
        }
    }
    Ok(())
}

/// Puts the body in the place of one call; returns the new nodes.
fn inline(model: &mut Model, call: NodeId, f: &Function) -> Result<Vec<NodeId>> {
    let node = model.node(call).clone();
    let (formal_in, formal_out) = (model.graph(f.graph).inputs().to_vec(), model.graph(f.graph).outputs().to_vec());
    for (what, given, takes) in
        [("inputs", node.inputs().len(), formal_in.len()), ("outputs", node.outputs().len(), formal_out.len())]
    {
        if given > takes {
            return Err(Error::malformed(format!("has {given} {what}, function {} has {takes}", label(f))));
        }
    }
    let values = formal_in.iter().enumerate().map(|(i, &v)| (v, node.input(i))).collect();
    let attributes: HashMap<_, _> =
        f.attribute_defaults.iter().chain(&node.attributes).map(|a| (a.name.clone(), a.value.clone())).collect();
    let prefix = format!("{}/", model.node_label(call));
    let mut copy = Copy { values, attributes, prefix };
    let wanted = model.take_outputs(call);
    let mut passed_on = Vec::new();
    for (&formal, to) in formal_out.iter().zip(wanted).filter_map(|(f, to)| Some((f, to?))) {
        // The body's own node makes the caller's value, unless it is handed out twice or is an input of the function.
        if model.producer(formal).is_some() && !copy.values.contains_key(&formal) {
            copy.values.insert(formal, Some(to));
        } else {
            passed_on.push((formal, to));
        }
    }
    let mut made = model.copy_nodes(f.graph, Place::Before(call), &mut copy)?;
    for (formal, to) in passed_on {
        let Some(from) = copy.values.get(&formal).copied().flatten() else {
            let name = model.value(formal).name().to_owned();
            return Err(
                Error::malformed(format!("function {} hands out an input that is left out", label(f))).value(name)
            );
        };
        let name = format!("{}{}", copy.prefix, model.value(formal).name());
        let spec = NodeSpec::new("Identity").name(name).input(from).output_value(Some(to));
        made.push(model.insert(spec, Place::Before(call)));
    }
    model.remove_node(call);
    Ok(made)
}

/// Takes away the imports of domains that only the functions were of.
fn forget_domains(model: &mut Model, removed: &[Function]) {
    let used: BTreeSet<String> =
        model.all_nodes().into_iter().map(|n| domain(model.node(n).domain.as_deref()).to_owned()).collect();
    let of_functions: BTreeSet<&str> = removed.iter().map(|f| domain(f.domain.as_deref())).collect();
    model.opset_imports.retain(|(d, _)| {
        let d = domain(d.as_deref());
        d.is_empty() || used.contains(d) || !of_functions.contains(d)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ir::text, passes::testing::check};

    const HEAD: &str = "<ir_version: 8, opset_import: [\"\" : 18, \"f\" : 1]> ";
    const PLAIN: &str = "<ir_version: 8, opset_import: [\"\" : 18]> ";

    fn check_body(before: &str, functions: &str, after: &str) {
        check(run, &format!("{HEAD}{before}{functions}"), &format!("{PLAIN}{after}"));
    }

    fn refused(text: &str) -> String {
        run(&mut text::parse(text).unwrap(), &mut Context::default()).unwrap_err().to_string()
    }

    #[test]
    fn attributes_come_from_the_call_or_the_default_or_go() {
        check_body(
            "(float[2] x) => (y, z) { y = f.foo<alpha = 2.0>(x) [call] z = f.foo<beta = 7>(x) }",
            "<domain: \"f\", opset_import: [\"\" : 18]> foo <alpha, beta: int = 3> (a) => (b) {
                c = Elu<alpha: float = @alpha>(a) b = Foo<n: int = @beta>(c) }",
            "(float[2] x) => (y, z) {
                \"y/c\" = Elu<alpha = 2.0>(x) y = Foo<n = 3>(\"y/c\")
                \"call/c\" = Elu(x) z = Foo<n = 7>(\"call/c\") }",
        );
    }

    #[test]
    fn functions_in_functions_and_in_subgraphs() {
        check_body(
            "(bool p, x) => (y) { y = If<then_branch = t () => (a) { a = f.outer(x) }, else_branch = e () => (b) { b = Neg(x) }>(p) }",
            "<domain: \"f\", opset_import: [\"\" : 18, \"f\" : 1]> outer (a) => (c) { b = f.inner(a) c = f.inner(b) }
             <domain: \"f\", opset_import: [\"\" : 18]> inner (a) => (b) {
                b = Loop<body = l (i, c) => (c, d) { d = Mul(a, i) }>(a) }",
            "(bool p, x) => (y) { y = If<then_branch = t () => (a) {
                \"a/b\" = Loop<body = l (\"a/b/i\", \"a/b/c\") => (\"a/b/c\", \"a/b/d\") { \"a/b/d\" = Mul(x, \"a/b/i\") }>(x)
                a = Loop<body = l (\"a/i\", \"a/c\") => (\"a/c\", \"a/d\") { \"a/d\" = Mul(\"a/b\", \"a/i\") }>(\"a/b\")
              }, else_branch = e () => (b) { b = Neg(x) }>(p) }",
        );
    }

    #[test]
    fn inputs_left_out_and_handed_on() {
        check_body(
            "(x) => (y, z, w) { y, z, w = f.foo(x) }",
            "<domain: \"f\", opset_import: [\"\" : 18]> foo (a, low) => (b, b, a) { b = Clip(a, low) }",
            "(x) => (y, z, w) { y = Clip(x) z = Identity(y) w = Identity(x) }",
        );
    }

    #[test]
    fn a_graph_that_the_caller_gives_is_copied_for_each_reader() {
        check_body(
            "(x, p) => (y) { y = f.foo<g = t () => (a) { a = Neg(x) }>(p) }",
            "<domain: \"f\", opset_import: [\"\" : 18]> foo <g> (p) => (b) { c = If<then_branch: graph = @g>(p) b = If<then_branch: graph = @g>(c) }",
            "(x, p) => (y) {
                \"y/c\" = If<then_branch = t () => (\"y/a\") { \"y/a\" = Neg(x) }>(p)
                y = If<then_branch = t () => (\"y/a_1\") { \"y/a_1\" = Neg(x) }>(\"y/c\") }",
        );
    }

    #[test]
    fn recursion_other_opsets_and_wrong_counts_are_errors() {
        let with = |call: &str, f: &str| refused(&format!("{HEAD}(x) => (y) {{ {call} }} <domain: \"f\", {f}"));
        let e = with(
            "y = f.a(x)",
            "opset_import: [\"f\" : 1]> a (p) => (q) { q = f.b(p) } <domain: \"f\"> b (p) => (q) { q = f.a(p) }",
        );
        assert!(e.contains("\"f.a\" calls itself") && e.contains("\"f.b\""), "{e}");
        let e = with("y = f.a(x)", "opset_import: [\"\" : 17]> a (p) => (q) { q = Neg(p) }");
        assert!(e.contains("17") && e.contains("18") && e.contains("node \"y\""), "{e}");
        let e = with("y = f.a(x, x)", "opset_import: [\"\" : 18]> a (p) => (q) { q = Neg(p) }");
        assert!(e.contains("2 inputs") && e.contains("has 1"), "{e}");
        let e = with("y = f.a()", "opset_import: [\"\" : 18]> a (p) => (p) {}");
        assert!(e.contains("left out"), "{e}");
    }

    #[test]
    fn a_bomb_of_calls_ends() {
        let mut text = format!("{HEAD}(x) => (y) {{ y = f.f40(x) }} <domain: \"f\"> f0 (a) => (b) {{ b = Neg(a) }}");
        for i in 1..=40 {
            let before = i - 1;
            text += &format!(" <domain: \"f\"> f{i} (a) => (c) {{ b = f.f{before}(a) c = f.f{before}(b) }}");
        }
        assert!(refused(&text).contains("more than"));
    }
}
