//! Gives three-dimensional MaxPools over a single plane their two-dimensional form, which has a fast integer kernel.
//!
//! ```text
//! before: a = Unsqueeze(x, 1); b = MaxPool<kernel_shape = [1, 3, 3], strides = [2, 1, 1]>(a); y = Squeeze(b, 1)
//! after:  c = Slice(x, axis 1, step 2); y = MaxPool<kernel_shape = [3, 3], strides = [1, 1]>(c)
//! ```
//!
//! `MaxPool3d` over (channels, height, width) is exported so. With a depth of one it takes every n-th channel.

use super::Context;
use crate::{
    error::Result,
    ir::{Model, NodeId, NodeSpec, Place, Tensor, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    // From opset 13 on, axes are inputs.
    if model.opset("").is_none_or(|v| v < 13) {
        return Ok(0);
    }
    let mut changes = 0;
    for node in model.all_nodes() {
        // An earlier pool may have taken this node with it.
        if let Some(found) = model.try_node(node).and_then(|_| find(model, node)) {
            rewrite(model, &found);
            changes += 1;
        }
    }
    Ok(changes)
}

struct Found {
    pool: NodeId,
    squeeze: NodeId,
    x: ValueId,
    y: ValueId,
    step: i64,
}

fn find(model: &Model, pool: NodeId) -> Option<Found> {
    let node = model.node(pool);
    let (kernel, strides) = (node.ints("kernel_shape")?, node.ints("strides").unwrap_or(&[1, 1, 1]));
    let flat = node.is("MaxPool") && kernel.len() == 3 && kernel[0] == 1 && strides.len() == 3 && strides[0] >= 1;
    let pads = node.ints("pads").unwrap_or(&[0; 6]);
    let plain = node.outputs().len() == 1 && pads.len() == 6 && pads[0] == 0 && pads[3] == 0;
    if !flat || !plain || node.int("storage_order").unwrap_or(0) != 0 {
        return None;
    }
    let on_axis_1 = |n: NodeId, op: &str| {
        model.node(n).is(op) && model.constant_input(n, 1).is_some_and(|t| t.scalar_i64() == Some(1))
    };
    let unsqueeze = model.producer(node.input(0)?)?;
    let out = node.output(0)?;
    let (squeeze, _) = model.value(out).readers().next()?;
    if !on_axis_1(unsqueeze, "Unsqueeze") || !on_axis_1(squeeze, "Squeeze") || model.value(out).uses().len() != 1 {
        return None;
    }
    let same_graph = model.node(squeeze).graph() == node.graph();
    let (x, y) = (model.node(unsqueeze).input(0)?, model.node(squeeze).output(0)?);
    same_graph.then_some(Found { pool, squeeze, x, y, step: strides[0] })
}

fn rewrite(model: &mut Model, f: &Found) {
    let graph = model.node(f.pool).graph();
    let name = model.value(f.y).name().to_owned();
    let mut x = f.x;
    if f.step != 1 {
        let mut constant = |what: &str, n: i64| {
            model.add_initializer(graph, &format!("{name}_channels_{what}"), Tensor::from_i64(&[1], &[n]))
        };
        let bounds = [constant("start", 0), constant("end", i64::MAX), constant("axis", 1), constant("step", f.step)];
        let slice = NodeSpec::new("Slice").name(format!("{name}_channels")).input(x).inputs(bounds.map(Some));
        let slice = model.insert(slice.output(format!("{name}_channels_Output")), Place::Before(f.pool));
        x = model.node(slice).output(0).unwrap_or(x);
    }
    model.set_input(f.pool, 0, Some(x));
    let node = model.node_mut(f.pool);
    for a in &mut node.attributes {
        if let crate::ir::AttrValue::Ints(v) = &mut a.value {
            match (a.name.as_str(), v.len()) {
                ("kernel_shape" | "strides" | "dilations", 3) => drop(v.remove(0)),
                ("pads", 6) => *v = vec![v[1], v[2], v[4], v[5]],
                _ => {}
            }
        }
    }
    let pooled = model.node(f.pool).output(0).expect("checked when it was found");
    // What was declared of the pool's output had one more dim.
    model.value_mut(pooled).ty = None;
    if model.replace_all_uses(f.y, pooled) {
        model.remove_node(f.squeeze);
    }
}
