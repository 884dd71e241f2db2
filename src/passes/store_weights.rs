//! Stores the weights of float nodes in 8 bits, as the plan says. The runtime computes them back to float once, when it
//! loads the file: ONNX Runtime folds Cast and Mul of constants, but not DequantizeLinear. Tables of Gather are no exception:
//! codes with a DequantizeLinear behind the Gather take less memory and load sooner, but each run takes longer (1 us for 64
//! rows of 384 numbers, of 5), and have one scale for the whole table.
//!
//! ```text
//! before: y = LSTM(x, w, r)
//! after:  w' = Mul(Cast(w_quantized), w_scale); y = LSTM(x, w', r)
//! ```

use super::Context;
use crate::{
    error::Result,
    ir::{DType, Model, NodeSpec, Place, Tensor, ValueId},
    plan::{KnownReads, StoredWeight},
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let Some(plan) = cx.plan.take() else { return Ok(0) };
    let mut changes = 0;
    for v in model.value_ids() {
        let value = model.value(v);
        let (Some(stored), Some(t)) = (plan.stored_weights.get(value.name()), value.constant()) else { continue };
        if t.dtype() != DType::Float || value.uses().is_empty() || value.is_graph_output() {
            continue;
        }
        let (name, tensor) = (value.name().to_owned(), t.clone());
        store(model, v, &tensor, stored, &cx.known).map_err(|e| e.value(name))?;
        changes += 1;
    }
    cx.plan = Some(plan);
    Ok(changes)
}

fn store(model: &mut Model, v: ValueId, tensor: &Tensor, stored: &StoredWeight, known: &KnownReads) -> Result<()> {
    let (graph, name, dims) = (model.value(v).graph(), model.value(v).name().to_owned(), tensor.dims());
    let (first, last) = stored.axes(dims.len());
    let q = stored.quantize(tensor, known.of(&name))?;
    let scale_dims: Vec<usize> =
        dims.iter().enumerate().map(|(i, &d)| if (first..=last).contains(&i) { d } else { 1 }).collect();
    let values = model.add_initializer(graph, &format!("{name}_quantized"), q.values.reshaped(dims.to_vec())?);
    let scale = model.add_initializer(graph, &format!("{name}_scale"), q.scale.reshaped(scale_dims)?);
    let cast = NodeSpec::new("Cast").input(values).attr("to", i64::from(DType::Float.to_onnx()));
    let cast = model.insert(cast.output(format!("{name}_Cast_Output")), Place::Start(graph));
    let Some(real) = model.node(cast).output(0) else { return Ok(()) };
    let mul = NodeSpec::new("Mul").input(real).input(scale).output(format!("{name}_Mul_Output"));
    let mul = model.insert(mul, Place::After(cast));
    if let Some(weight) = model.node(mul).output(0) {
        model.replace_readers(v, weight, |_, _| true);
    }
    Ok(())
}
