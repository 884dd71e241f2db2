//! Models of 16-bit floats for runtimes that do not compute in them: each operator computes in 32 bits, and what it makes is
//! rounded to 16. ONNX Runtime's processors do the same, with Casts of their own.

use crate::{
    analysis::types::{self, Types},
    error::Result,
    ir::{AttrValue, DType, Model, NodeId, NodeSpec, Place, Tensor, Use, ValueId},
    ops,
    runtime::{NUMBER, ROUNDED},
};

/// The model in 32-bit floats, with roundings; `None` where it has no 16-bit ones but as constants that the runtime may have.
pub(super) fn widened(model: &Model) -> Result<Option<Model>> {
    let types = types::infer(model);
    let half = |v: ValueId| model.value(v).dtype().or_else(|| types.dtype(v)).filter(|d| is_half(*d));
    let made = |v: &ValueId| {
        let computed = half(*v).is_some() && model.value(*v).constant().is_none();
        computed || half(*v) == Some(DType::Bfloat16)
    };
    if !model.value_ids().iter().any(made) {
        return Ok(None);
    }
    let mut wide = model.clone();
    for n in model.all_nodes() {
        widen_node(&mut wide, &types, n)?;
    }
    for v in model.value_ids() {
        let value = model.value(v);
        let Some(tensor) = value.initializer().filter(|t| is_half(t.dtype())) else { continue };
        if !value.is_input() {
            wide.value_mut(v).ty = None;
            wide.set_initializer(v, Some(Tensor::from_f32(tensor.dims(), &tensor.to_f32()?)));
        }
    }
    for &v in model.graph(model.main()).inputs() {
        if half(v).is_some() {
            let name = format!("{}_wide", model.value(v).name());
            let cast = wide.insert_value(cast(v, DType::Float).output(name), Place::Start(model.main()))?;
            let maker = wide.producer(cast);
            wide.replace_readers(v, cast, |n, _| Some(n) != maker);
        }
    }
    Ok(Some(wide))
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::Float16 | DType::Bfloat16)
}

fn cast(x: ValueId, to: DType) -> NodeSpec {
    NodeSpec::new("Cast").input(x).attr("to", i64::from(to.to_onnx()))
}

/// Makes a node compute in 32 bits, and rounds its outputs.
fn widen_node(wide: &mut Model, types: &Types, n: NodeId) -> Result<()> {
    let number = i64::from(DType::Float.to_onnx());
    let attribute = ops::type_attribute(&wide.node(n).op_type).map(|(name, _)| name);
    for a in &mut wide.node_mut(n).attributes {
        match &mut a.value {
            AttrValue::Int(i) if Some(a.name.as_str()) == attribute && half_number(*i) => *i = number,
            AttrValue::Tensor(t) if is_half(t.tensor.dtype()) => {
                t.tensor = Tensor::from_f32(t.tensor.dims(), &t.tensor.to_f32()?);
            }
            _ => {}
        }
    }
    for v in wide.node(n).outputs().to_vec().into_iter().flatten() {
        let Some(dtype) = types.dtype(v).filter(|d| is_half(*d)) else { continue };
        let handed_out = wide.value(v).is_graph_output();
        // What only moves numbers has nothing to round.
        let moves = ops::spec(wide, n).is_some_and(|s| matches!(s.class, ops::Class::Movement | ops::Class::Joining));
        if !moves || handed_out {
            round(wide, n, v, dtype)?;
        }
        wide.value_mut(v).ty = None;
    }
    Ok(())
}

/// Puts a rounding behind a value; where the model hands it out, it has its own type there.
fn round(wide: &mut Model, n: NodeId, v: ValueId, dtype: DType) -> Result<()> {
    let name = wide.value(v).name().to_owned();
    let spec = NodeSpec::new(ROUNDED).input(v).attr(NUMBER, i64::from(dtype.to_onnx()));
    let rounded = wide.insert_value(spec.output(format!("{name}_rounded")), Place::After(n))?;
    let by = wide.producer(rounded);
    wide.replace_readers(v, rounded, |reader, _| Some(reader) != by);
    let outputs: Vec<Use> = wide.value(v).uses().iter().copied().filter(|u| matches!(u, Use::Output(..))).collect();
    if outputs.is_empty() {
        return Ok(());
    }
    let typed = dtype == DType::Float16 && wide.value(v).graph() == wide.main();
    let last = match by.filter(|_| typed) {
        Some(by) => wide.insert_value(cast(rounded, dtype).output(format!("{name}_half")), Place::After(by))?,
        None => rounded,
    };
    wide.take_output_name(v, last);
    outputs.into_iter().for_each(|used| wide.redirect(used, last));
    if !typed {
        wide.value_mut(last).ty = None;
    }
    Ok(())
}

fn half_number(i: i64) -> bool {
    i32::try_from(i).ok().and_then(DType::from_onnx).is_some_and(is_half)
}
