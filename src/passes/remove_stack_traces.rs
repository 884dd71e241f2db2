//! Removes the stack traces that PyTorch's exporter notes at every node: for each operator the lines and paths of the
//! Python files that made it, on the machine that exported it. In a quantized model of a few megabytes they are a good
//! part of the file, and say nothing of it. All other metadata stays.
//!
//! ```text
//! before: metadata_props of a node: {pkg.torch.onnx.stack_trace: File "/home/…", pkg.torch.onnx.name_scopes: …}
//! after:  {pkg.torch.onnx.name_scopes: …}
//! ```

use super::Context;
use crate::{diagnostics::Diagnostic, error::Result, ir::Model};

const KEY: &str = "pkg.torch.onnx.stack_trace";

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    if cx.options.keep_stack_traces {
        return Ok(0);
    }
    let (mut removed, mut bytes) = (0, 0);
    for id in model.all_nodes() {
        if model.node(id).metadata_props.iter().all(|(key, _)| key != KEY) {
            continue;
        }
        model.node_mut(id).metadata_props.retain(|(key, value)| {
            let trace = key == KEY;
            bytes += if trace { key.len() + value.len() } else { 0 };
            !trace
        });
        removed += 1;
    }
    if removed > 0 {
        let text = format!("the exporter's stack traces at {removed} nodes are left out ({} kB)", bytes.div_ceil(1000));
        cx.diagnostics.push(
            Diagnostic::note("stack_traces_removed", text).help("--keep-stack-traces keeps them; other metadata stays"),
        );
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::testing::model;

    #[test]
    fn only_traces_go() {
        let with_trace = || {
            let mut m = model("float[2] x \n y = Relu(x) \n return y");
            let node = m.nodes(m.main())[0];
            let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
            m.node_mut(node).metadata_props = vec![pair(KEY, "File \"a.py\""), pair("namespace", "a/b")];
            (m, node)
        };
        let (mut m, node) = with_trace();
        let mut cx = Context::default();
        assert_eq!(run(&mut m, &mut cx).unwrap(), 1);
        assert_eq!(m.node(node).metadata_props, [("namespace".to_owned(), "a/b".to_owned())]);
        assert_eq!((cx.diagnostics.len(), run(&mut m, &mut cx).unwrap()), (1, 0));
        let (mut m, node) = with_trace();
        let mut cx = Context::default();
        cx.options.keep_stack_traces = true;
        assert_eq!((run(&mut m, &mut cx).unwrap(), m.node(node).metadata_props.len()), (0, 2));
    }
}
