//! Scan: version 9 has no batch axis of its own.

use super::step::Step;
use crate::{
    error::{Error, Result},
    ir::{AttrValue, GraphId, NodeSpec, Place, Type, ValueId},
};

/// 8 → 9: the old form scans each sample of a batch (axis 0) along axis 1. The new one scans along axis 0, so a Scan
/// over the samples holds the Scan along the sequence:
///
/// ```text
/// before: y = Scan<num_scan_inputs = 1, body = B>("", s, x)
/// after:  y = Scan<num_scan_inputs = 2, body = (s1, x1) => { y1 = Scan<num_scan_inputs = 1, body = B>(s1, x1) }>(s, x)
/// ```
pub(super) fn scan_without_batch(step: &mut Step<'_>) -> Result<()> {
    if step.node().input(0).is_some() {
        return Err(Error::unsupported("sequence_lens, sequences of different lengths, have no form in opset 9"));
    }
    let Some(AttrValue::Graph(body)) = step.take("body")? else {
        return Err(Error::malformed("lacks the subgraph \"body\""));
    };
    let scanned = step.take_int("num_scan_inputs")?;
    let scanned = scanned.ok_or_else(|| Error::malformed("lacks attribute \"num_scan_inputs\""))?;
    let directions = step.take_ints("directions")?;
    let inputs: Vec<Option<ValueId>> = step.node().inputs().iter().skip(1).copied().collect();
    let outer = step.model.add_graph();
    let inner_inputs: Vec<_> = inputs.iter().flatten().map(|&v| sample(step, outer, v)).collect();
    let label = step.model.node_label(step.node);
    let mut spec = NodeSpec::new("Scan")
        .name(format!("{label}_sample"))
        .inputs(inner_inputs.into_iter().map(Some))
        .attr("body", body)
        .attr("num_scan_inputs", scanned);
    if let Some(directions) = directions {
        spec = spec.attr("scan_input_directions", directions);
    }
    for i in 0..step.node().outputs().len() {
        let ty = step.node().output(i).and_then(|v| step.types.dtype(v)).map(|d| Type::tensor(d, None));
        spec = spec.typed_output(format!("{label}_sample_{i}"), ty);
    }
    let inner = step.model.insert(spec, Place::End(outer));
    for v in step.model.node(inner).outputs().to_vec().into_iter().flatten() {
        step.model.add_output(outer, v);
    }
    let count = i64::try_from(inputs.len()).unwrap_or(i64::MAX);
    step.model.graph_mut(outer).name = Some(format!("{label}_samples"));
    step.model.graph_mut(outer).parent = Some(step.node);
    step.set("body", outer);
    step.set("num_scan_inputs", count);
    for (i, &v) in inputs.iter().enumerate() {
        step.model.set_input(step.node, i, v);
    }
    step.model.truncate_inputs(step.node, inputs.len());
    Ok(())
}

/// An input of the graph of one sample: `v` without its batch axis.
fn sample(step: &mut Step<'_>, graph: GraphId, v: ValueId) -> ValueId {
    let name = format!("{}_sample", step.model.value(v).name());
    let inner = step.model.add_value(graph, &name);
    step.model.value_mut(inner).ty = Some(Type::tensor(step.dtype(v), None));
    step.model.add_input(inner);
    inner
}
