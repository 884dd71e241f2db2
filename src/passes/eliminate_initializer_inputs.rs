//! Takes weights out of the list of graph inputs.
//!
//! ```text
//! before: graph(x, w) with initializer w      after: graph(x) with initializer w
//! ```
//!
//! Files before IR version 4 list every weight among the inputs, because the format asked for it; nobody means to feed
//! them. From version 4 on such an input is a default that callers may override, but hardly any file means it: old exporters
//! simply went on listing weights. [`Options::eliminate_initializer_inputs`](super::Options::eliminate_initializer_inputs)
//! decides; it is set unless the user says otherwise, and the report says what was done.

use super::Context;
use crate::{
    diagnostics::Diagnostic,
    error::Result,
    ir::{Model, ValueId},
};

/// The first version in which initializers need not be inputs.
const FIRST_PLAIN: i64 = 4;

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let old = model.ir_version < FIRST_PLAIN;
    let graphs = if old { model.graph_ids() } else { vec![model.main()] };
    let inputs = graphs.into_iter().flat_map(|g| model.graph(g).inputs().iter().copied());
    let listed: Vec<ValueId> = inputs.filter(|&v| model.value(v).initializer().is_some()).collect();
    if listed.is_empty() {
        return Ok(0);
    }
    if !old && !cx.options.eliminate_initializer_inputs {
        note_overridable(model, &listed, cx);
        return Ok(0);
    }
    if !old {
        cx.diagnostics.push(Diagnostic::note(
            "initializer_inputs_removed",
            format!(
                "{} weights were listed as inputs as well, as old exporters do; they are constants now",
                listed.len()
            ),
        ));
    }
    for &v in &listed {
        model.remove_input(v);
    }
    // Version 3 forbids what was just made.
    model.ir_version = model.ir_version.max(FIRST_PLAIN);
    Ok(listed.len())
}

fn note_overridable(model: &Model, listed: &[ValueId], cx: &mut Context) {
    let names: Vec<&str> = listed.iter().take(3).map(|&v| model.value(v).name()).collect();
    let more = if listed.len() > names.len() { ", …" } else { "" };
    let note = Diagnostic::warning(
        "overridable_initializers",
        format!(
            "{} weights are also inputs that callers may feed, so they are no constants and stay float: {}{more}",
            listed.len(),
            names.join(", ")
        ),
    )
    .help("if nobody feeds them, set `eliminate_initializer_inputs`");
    // Passes run until nothing changes; once is enough.
    if !cx.diagnostics.contains(&note) {
        cx.diagnostics.push(note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{NodeSpec, Place, Tensor};

    fn model(ir_version: i64) -> Model {
        let mut m = Model::new(ir_version);
        let g = m.main();
        let x = m.declare_value(g, "x");
        let w = m.declare_value(g, "w");
        m.set_initializer(w, Some(Tensor::from_f32(&[1], &[2.0])));
        m.add_input(x);
        m.add_input(w);
        let n = m.insert(NodeSpec::new("Mul").input(x).input(w).output("y"), Place::End(g));
        let y = m.node(n).output(0).unwrap();
        m.add_output(g, y);
        m
    }

    #[test]
    fn old_files_list_their_weights_as_inputs() {
        let mut m = model(3);
        assert_eq!(run(&mut m, &mut Context::default()).unwrap(), 1);
        assert_eq!((m.graph(m.main()).inputs().len(), m.ir_version), (1, 4));
        m.verify().unwrap();
        assert_eq!(run(&mut m, &mut Context::default()).unwrap(), 0);
    }

    #[test]
    fn overridable_inputs_stay_if_asked_for() {
        let mut m = model(7);
        let mut cx = Context::default();
        cx.options.eliminate_initializer_inputs = false;
        assert_eq!(run(&mut m, &mut cx).unwrap() + run(&mut m, &mut cx).unwrap(), 0);
        assert_eq!(cx.diagnostics.len(), 1);
        assert!(cx.diagnostics[0].message.starts_with("1 weights are also inputs"), "{}", cx.diagnostics[0]);
        cx.options.eliminate_initializer_inputs = true;
        assert_eq!(run(&mut m, &mut cx).unwrap(), 1);
        assert_eq!((m.graph(m.main()).inputs().len(), m.ir_version), (1, 7));
        assert!(cx.diagnostics[1].message.starts_with("1 weights were listed as inputs"), "{}", cx.diagnostics[1]);
    }
}
