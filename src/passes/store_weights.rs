//! Stores the weights of float nodes in 8 or 16 bits, as the plan says. The runtime computes them back to float once, when it
//! loads the file: ONNX Runtime folds Cast and Mul of constants, but not DequantizeLinear. Tables of Gather are no exception:
//! codes with a DequantizeLinear behind the Gather take less memory and load sooner, but each run takes longer (1 us for 64
//! rows of 384 numbers, of 5), and have one scale for the whole table.
//!
//! ```text
//! before: y = LSTM(x, w, r)
//! after:  w' = Mul(Cast(w_quantized), w_scale); y = LSTM(x, w', r)
//!    or:  w' = Cast(w_half); y = LSTM(x, w', r), where 8 bits would harm too much
//! ```

use super::{Context, support::halved::halved};
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
    if matches!(stored.dtype, DType::Float16 | DType::Bfloat16) {
        let halves = halved(tensor, stored.dtype, None)?;
        let halves = model.add_initializer(graph, &format!("{name}_half"), halves);
        let weight = model.insert_value(to_float(halves, &name), Place::Start(graph))?;
        model.replace_readers(v, weight, |_, _| true);
        return Ok(());
    }
    let (first, last) = stored.axes(dims.len());
    let q = stored.quantize(tensor, known.of(&name))?;
    let scale_dims: Vec<usize> =
        dims.iter().enumerate().map(|(i, &d)| if (first..=last).contains(&i) { d } else { 1 }).collect();
    let values = model.add_initializer(graph, &format!("{name}_quantized"), q.values.reshaped(dims.to_vec())?);
    let scale = model.add_initializer(graph, &format!("{name}_scale"), q.scale.reshaped(scale_dims)?);
    let cast = model.insert(to_float(values, &name), Place::Start(graph));
    let Some(real) = model.node(cast).output(0) else { return Ok(()) };
    let mul = NodeSpec::new("Mul").input(real).input(scale).output(format!("{name}_Mul_Output"));
    let weight = model.insert_value(mul, Place::After(cast))?;
    model.replace_readers(v, weight, |_, _| true);
    Ok(())
}

fn to_float(x: ValueId, name: &str) -> NodeSpec {
    let cast = NodeSpec::new("Cast").input(x).attr("to", i64::from(DType::Float.to_onnx()));
    cast.output(format!("{name}_Cast_Output"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ir::testing::model, plan::Plan, runtime::Runtime, runtime::tract::Tract};

    #[test]
    fn sixteen_bits_keep_the_numbers_nearly() {
        let mut m = model("float[1,2] x \n float[2,2] w = {0.1, 300, -7e-5, 1} \n y = MatMul(x, w) \n return y");
        let mut plan = Plan::default();
        plan.stored_weights.insert(
            "w".into(),
            StoredWeight { dtype: DType::Float16, first_axis: 1, last_axis: 1, algorithm: "rtn".into() },
        );
        let mut cx = Context { plan: Some(plan), ..Context::default() };
        assert_eq!(run(&mut m, &mut cx).unwrap(), 1);
        m.verify().unwrap();
        let stored = m.value_ids().into_iter().filter_map(|v| m.value(v).initializer());
        assert_eq!(stored.filter(|t| t.dtype() == DType::Float16).map(Tensor::byte_len).sum::<usize>(), 8);
        let y = Tract.load(&m, &[]).unwrap().run(&[Tensor::from_f32(&[1, 2], &[1.0, 1.0])]).unwrap();
        for (got, want) in y[0].to_f32().unwrap().into_iter().zip([0.1 - 7e-5, 301.0]) {
            assert!((got / want - 1.0f32).abs() < 1e-3, "{got} for {want}");
        }
        assert!(StoredWeight::fits_half(&Tensor::from_f32(&[1], &[65504.0])));
        assert!(!StoredWeight::fits_half(&Tensor::from_f32(&[1], &[65600.0])));
    }
}
