//! Reads sizes off the graph's inputs instead of off values in its middle.
//!
//! ```text
//! before: r = Conv(x, w); s = Shape(r); b = Gather(s, 0)      after: r = Conv(x, w); s = Shape(x); b = Gather(s, 0)
//! ```
//!
//! A value whose only other reader asks for its shape can then be fused into its reader, and need not be kept as float.

use std::collections::HashMap;

use super::Context;
use crate::{
    analysis::types::{self, SymDim, SymInt, Types},
    error::Result,
    ir::{AttrValue, DType, Model, NodeId, NodeSpec, Place, Tensor, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let types = types::infer(model);
    let sources = sources(model, &types);
    let mut shapes: HashMap<ValueId, ValueId> = HashMap::new();
    let mut lifted = 0;
    for n in model.nodes(model.main()) {
        let Some((x, axis, out)) = from_input(model, &types, &sources, n) else { continue };
        // At the start: everything else may read it.
        let start = Place::Start(model.main());
        let shape = *shapes.entry(x).or_insert_with(|| {
            let name = format!("{}_shape", model.value(x).name());
            let shape = model.insert(NodeSpec::new("Shape").input(x).output(name), start);
            model.node(shape).output(0).expect("the node was made with an output")
        });
        let dims: &[usize] = if types.rank(out) == Some(0) { &[] } else { &[1] };
        let name = model.value(out).name().to_owned();
        let index =
            model.add_initializer(model.main(), &format!("{name}_axis"), Tensor::from_i64(dims, &[axis as i64]));
        let maker = model.producer(shape).expect("Shape makes it");
        let gather = NodeSpec::new("Gather").input(shape).input(index).output(name).attr("axis", AttrValue::Int(0));
        let gather = model.insert(gather, Place::After(maker));
        if let Some(size) = model.node(gather).output(0) {
            model.replace_readers(out, size, |_, _| true);
            lifted += 1;
        }
    }
    Ok(lifted)
}

/// Where each symbol can be read: the first input, and its axis, that has it.
fn sources(model: &Model, types: &Types) -> HashMap<SymDim, (ValueId, usize)> {
    let mut sources = HashMap::new();
    for &x in model.graph(model.main()).inputs() {
        for (axis, &dim) in types.shape(x).unwrap_or_default().iter().enumerate() {
            if matches!(dim, SymDim::Symbol(_)) {
                sources.entry(dim).or_insert((x, axis));
            }
        }
    }
    sources
}

/// A single size that a node makes and an input has too, if it is not read off an input already.
fn from_input(
    model: &Model,
    types: &Types,
    sources: &HashMap<SymDim, (ValueId, usize)>,
    n: NodeId,
) -> Option<(ValueId, usize, ValueId)> {
    let node = model.node(n);
    let out = node.output(0)?;
    let one =
        types.dtype(out) == Some(DType::Int64) && types.rank(out)? <= 1 && model.value(out).readers().next().is_some();
    let &[size @ SymInt::Symbol(_)] = types.ints(out)? else { return None };
    let &(x, axis) = sources.get(&size.dim())?;
    (one && asks_inner(model, n)).then_some((x, axis, out))
}

/// Whether a node picks from the shape of a value that some node of the graph makes.
fn asks_inner(model: &Model, n: NodeId) -> bool {
    let picks = ["Gather", "Slice", "Squeeze", "GatherND", "Split"].iter().any(|op| model.node(n).is(op));
    let asks =
        |n: NodeId| model.node(n).is("Shape") && model.node(n).input(0).is_some_and(|v| model.producer(v).is_some());
    let above = model.node(n).input(0).and_then(|v| model.producer(v));
    asks(n) || picks && above.is_some_and(asks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped};

    #[test]
    fn the_batch_is_read_off_the_input() {
        check(
            run,
            "(float[3,b] x) => (y, z) <int64[1] first = {0}, int64[1] second = {1}, int64[1] width = {7}> {
                t = Transpose(x)
                r = Relu(t)
                s = Shape(r)
                b = Slice(s, first, second)
                to = Concat <axis = 0> (b, width)
                z = ConstantOfShape(to)
                y = Neg(r)
             }",
            "(float[3,b] x) => (y, z) <int64[1] b_axis = {1}, int64[1] width = {7}> {
                x_shape = Shape(x)
                b_1 = Gather <axis = 0> (x_shape, b_axis)
                t = Transpose(x)
                r = Relu(t)
                to = Concat <axis = 0> (b_1, width)
                z = ConstantOfShape(to)
                y = Neg(r)
             }",
        );
    }

    #[test]
    fn sizes_of_inputs_stay() {
        check_skipped(run, "(float[b,3] x) => (y) <int64 i = {0}> { s = Shape(x) b = Gather(s, i) y = Neg(b) }", "");
    }
}
