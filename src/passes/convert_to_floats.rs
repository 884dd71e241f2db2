//! Brings a model of 16-bit floats back into 32-bit ones: constants, types, attributes. Casts between the two go, and with them
//! the roundings.
//!
//! ```text
//! before: x_float16 = Cast<to = 10>(x); y_float16 = Conv(x_float16, w_float16); y = Cast<to = 1>(y_float16)
//! after:  y = Conv(x, w)
//! ```
//!
//! Inputs and outputs of the model keep their types, with Casts behind and in front of them, unless
//! [`super::Options::float_ends`] is set. Operators of unknown domains keep what they read and make.

use std::collections::HashSet;

use super::{
    Context,
    support::{lazy::releasing, replace::behind_maker},
};
use crate::{
    analysis::types::{self, Types},
    error::Result,
    ir::{AttrValue, DType, Model, NodeId, NodeSpec, Place, Tensor, Type, Use, ValueId, types::TypeKind},
    ops::{self, MICROSOFT},
    quant::coding,
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let types = types::infer(model);
    let halves: HashSet<ValueId> = model.value_ids().into_iter().filter(|&v| half(model, &types, v).is_some()).collect();
    if halves.is_empty() && !model.all_nodes().iter().any(|&n| makes_halves(model, n)) {
        return Ok(0);
    }
    let ends = (!cx.options.float_ends).then(|| Ends::of(model, &types)).unwrap_or_default();
    let ids = model.all_nodes();
    let casts: Vec<NodeId> = ids.iter().copied().filter(|&n| is_rounding(model, &types, n)).collect();
    let foreign: Vec<NodeId> = ids.iter().copied().filter(|&n| is_foreign(model, n)).collect();
    for &n in ids.iter().filter(|n| !foreign.contains(n)) {
        widen_attributes(model, n)?;
    }
    let mut widened = 0;
    for v in model.value_ids() {
        widened += usize::from(widen_constant(model, v)?);
        widen_type(model, v);
    }
    for n in foreign {
        keep_types(model, &types, n)?;
    }
    let mut gone = 0;
    for n in casts {
        gone += usize::from(remove_cast(model, n));
    }
    ends.restore(model)?;
    cx.removed.kept.extend(ends.names(model));
    cx.removed.widened += widened;
    cx.removed.casts += gone;
    Ok(widened + gone + halves.len())
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::Float16 | DType::Bfloat16)
}

fn half(model: &Model, types: &Types, v: ValueId) -> Option<DType> {
    model.value(v).dtype().or_else(|| types.dtype(v)).filter(|t| is_half(*t))
}

fn number_is_half(i: i64) -> bool {
    i32::try_from(i).ok().and_then(DType::from_onnx).is_some_and(is_half)
}

/// Nothing is known of the types that such an operator reads and makes.
fn is_foreign(model: &Model, n: NodeId) -> bool {
    let node = model.node(n);
    !node.in_onnx_domain() && node.domain.as_deref() != Some(MICROSOFT)
}

fn makes_halves(model: &Model, n: NodeId) -> bool {
    let node = model.node(n);
    ops::type_attribute(&node.op_type).and_then(|(name, _)| node.int(name)).is_some_and(number_is_half)
}

/// A Cast between floats of 16 and 32 bits, or of 16 and 16: only a rounding.
fn is_rounding(model: &Model, types: &Types, n: NodeId) -> bool {
    let node = model.node(n);
    let Some(from) = node.input(0).and_then(|v| model.value(v).dtype().or_else(|| types.dtype(v))) else { return false };
    let to = node.int("to").and_then(|i| DType::from_onnx(i32::try_from(i).ok()?));
    let float = |t: DType| t == DType::Float || is_half(t);
    node.is("Cast") && float(from) && to.is_some_and(|to| float(to) && (is_half(from) || is_half(to)))
}

fn remove_cast(model: &mut Model, n: NodeId) -> bool {
    let node = model.node(n);
    let (Some(x), Some(out)) = (node.input(0), node.output(0)) else { return false };
    let handed_out = model.value(out).is_graph_output() && model.value(x).constant().is_some();
    if handed_out || !model.replace_all_uses(out, x) {
        model.replace_readers(out, x, |_, _| true);
        return false;
    }
    model.remove_node(n);
    true
}

fn widen_attributes(model: &mut Model, n: NodeId) -> Result<()> {
    let attribute = ops::type_attribute(&model.node(n).op_type).map(|(name, _)| name);
    let float = i64::from(DType::Float.to_onnx());
    for a in &mut model.node_mut(n).attributes {
        match &mut a.value {
            AttrValue::Int(i) if Some(a.name.as_str()) == attribute && number_is_half(*i) => *i = float,
            AttrValue::Tensor(t) if is_half(t.tensor.dtype()) => t.tensor = wide(&t.tensor)?,
            _ => {}
        }
    }
    Ok(())
}

fn wide(tensor: &Tensor) -> Result<Tensor> {
    let made = coding::later(tensor, &(), DType::Float, tensor.dims().to_vec(), |(), t| t.to_f32())?;
    releasing(made, tensor)
}

fn widen_constant(model: &mut Model, v: ValueId) -> Result<bool> {
    let Some(tensor) = model.value(v).initializer().filter(|t| is_half(t.dtype())).cloned() else { return Ok(false) };
    model.set_initializer(v, Some(wide(&tensor)?));
    Ok(true)
}

fn widen_type(model: &mut Model, v: ValueId) {
    if let Some(TypeKind::Tensor { dtype, .. }) = model.value_mut(v).ty.as_mut().map(|t| &mut t.kind)
        && dtype.is_some_and(is_half)
    {
        *dtype = Some(DType::Float);
    }
}

/// Puts Casts around an operator of which nothing is known, so that it reads and makes what it did.
fn keep_types(model: &mut Model, types: &Types, n: NodeId) -> Result<()> {
    for (i, v) in model.node(n).inputs().to_vec().into_iter().enumerate() {
        let Some(dtype) = v.and_then(|v| types.dtype(v)).filter(|t| is_half(*t)) else { continue };
        let Some(v) = v else { continue };
        let cast = cast(model, v, dtype, Place::Before(n))?;
        model.set_input(n, i, Some(cast));
    }
    for v in model.node(n).outputs().to_vec().into_iter().flatten() {
        let Some(dtype) = types.dtype(v).filter(|t| is_half(*t)) else { continue };
        let shape = model.value(v).shape().cloned();
        model.value_mut(v).ty = Some(Type::tensor(dtype, shape.clone()));
        let made = cast(model, v, DType::Float, Place::After(n))?;
        let by = model.producer(made);
        model.replace_readers(v, made, |reader, _| Some(reader) != by);
        if model.value(v).is_graph_output() {
            let outputs: Vec<Use> =
                model.value(v).uses().iter().copied().filter(|u| matches!(u, Use::Output(..))).collect();
            model.take_output_name(v, made);
            outputs.into_iter().for_each(|used| model.redirect(used, made));
            model.value_mut(made).ty = Some(Type::tensor(DType::Float, shape));
        }
    }
    Ok(())
}

fn cast(model: &mut Model, x: ValueId, to: DType, place: Place) -> Result<ValueId> {
    let name = format!("{}_{to}", model.value(x).name());
    let shape = model.value(x).shape().cloned();
    let spec = NodeSpec::new("Cast").input(x).attr("to", i64::from(to.to_onnx()));
    model.insert_value(spec.typed_output(name, shape.map(|s| Type::tensor(to, Some(s)))), place)
}

/// The model's inputs and outputs of 16-bit floats.
#[derive(Default)]
struct Ends {
    inputs: Vec<(ValueId, DType, Option<Tensor>)>,
    outputs: Vec<(usize, DType)>,
}

impl Ends {
    fn of(model: &Model, types: &Types) -> Self {
        let main = model.graph(model.main());
        let inputs = main.inputs().iter().filter_map(|&v| {
            half(model, types, v).map(|t| (v, t, model.value(v).initializer().cloned()))
        });
        let outputs = main.outputs().iter().enumerate().filter_map(|(i, &v)| Some((i, half(model, types, v)?)));
        Self { inputs: inputs.collect(), outputs: outputs.collect() }
    }

    fn names(&self, model: &Model) -> Vec<(String, DType)> {
        let outputs = model.graph(model.main()).outputs();
        let inputs = self.inputs.iter().map(|&(v, t, _)| (v, t));
        let all = inputs.chain(self.outputs.iter().map(|&(i, t)| (outputs[i], t)));
        all.map(|(v, t)| (model.value(v).name().to_owned(), t)).collect()
    }

    /// Gives them back the types that callers know.
    fn restore(&self, model: &mut Model) -> Result<()> {
        let main = model.main();
        for (v, dtype, initial) in &self.inputs {
            let shape = model.value(*v).shape().cloned();
            let made = cast(model, *v, DType::Float, behind_maker(model, *v, main))?;
            let by = model.producer(made);
            model.replace_readers(*v, made, |reader, _| Some(reader) != by);
            model.value_mut(*v).ty = Some(Type::tensor(*dtype, shape));
            if let Some(initial) = initial {
                model.set_initializer(*v, Some(initial.clone()));
            }
        }
        for &(i, dtype) in &self.outputs {
            let v = model.graph(main).outputs()[i];
            let (shape, place) = (model.value(v).shape().cloned(), behind_maker(model, v, main));
            // The maker's readers stay with the 32-bit number; the name goes to what callers read.
            let made = cast(model, v, dtype, place)?;
            model.take_output_name(v, made);
            model.redirect(Use::Output(main, i), made);
            model.value_mut(made).ty = Some(Type::tensor(dtype, shape.clone()));
            if let Some(ty) = &mut model.value_mut(v).ty
                && let TypeKind::Tensor { dtype, .. } = &mut ty.kind
            {
                *dtype = Some(DType::Float);
            }
        }
        Ok(())
    }
}
