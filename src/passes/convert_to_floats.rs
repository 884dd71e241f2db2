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
    let halves = model.value_ids().into_iter().filter(|&v| half(model, &types, v).is_some());
    let (borders, halves): (HashSet<ValueId>, HashSet<ValueId>) = halves.partition(|&v| is_border(model, &types, v));
    let makes =
        |&n: &NodeId| makes_halves(model, n) && !model.node(n).outputs().iter().flatten().all(|v| borders.contains(v));
    if halves.is_empty() && !model.all_nodes().iter().any(makes) {
        return Ok(0);
    }
    let ends = if cx.options.float_ends { Ends::default() } else { Ends::of(model, &types) };
    let ids = model.all_nodes();
    let at_border = |n: NodeId| {
        let node = model.node(n);
        node.inputs().iter().chain(node.outputs()).flatten().any(|v| borders.contains(v))
    };
    let casts: Vec<NodeId> = ids.iter().copied().filter(|&n| is_rounding(model, &types, n) && !at_border(n)).collect();
    let foreign: Vec<NodeId> = ids.iter().copied().filter(|&n| is_foreign(model, n)).collect();
    let inner: Vec<NodeId> =
        ids.iter().copied().filter(|&n| !foreign.contains(&n) && !makes_border(model, n, &borders)).collect();
    for n in inner {
        widen_attributes(model, n)?;
    }
    let mut widened = 0;
    for v in model.value_ids().into_iter().filter(|v| !borders.contains(v)) {
        widened += usize::from(widen_constant(model, v)?);
        widen_type(model, v);
    }
    for n in foreign {
        keep_types(model, &types, n, &borders)?;
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

/// A value of 16-bit floats that only stands between an operator of which nothing is known and a Cast: it stays.
fn is_border(model: &Model, types: &Types, v: ValueId) -> bool {
    let value = model.value(v);
    let casts = |n: NodeId| model.node(n).is("Cast") && !makes_halves(model, n);
    let readers: Vec<NodeId> = value.readers().map(|(n, _)| n).collect();
    let Some(maker) = model.producer(v).filter(|_| !value.is_graph_output() && !readers.is_empty()) else {
        return false;
    };
    if is_foreign(model, maker) {
        return readers.iter().all(|&n| casts(n));
    }
    let from = model.node(maker).input(0).filter(|_| model.node(maker).is("Cast"));
    let from_float = from.is_some_and(|x| half(model, types, x).is_none());
    from_float && readers.iter().all(|&n| is_foreign(model, n))
}

fn makes_border(model: &Model, n: NodeId, borders: &HashSet<ValueId>) -> bool {
    model.node(n).outputs().iter().flatten().any(|v| borders.contains(v))
}

fn makes_halves(model: &Model, n: NodeId) -> bool {
    let node = model.node(n);
    ops::type_attribute(&node.op_type).and_then(|(name, _)| node.int(name)).is_some_and(number_is_half)
}

/// A Cast between floats of 16 and 32 bits, or of 16 and 16: only a rounding.
fn is_rounding(model: &Model, types: &Types, n: NodeId) -> bool {
    let node = model.node(n);
    let Some(from) = node.input(0).and_then(|v| model.value(v).dtype().or_else(|| types.dtype(v))) else {
        return false;
    };
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
fn keep_types(model: &mut Model, types: &Types, n: NodeId, borders: &HashSet<ValueId>) -> Result<()> {
    let reads_half = model.node(n).inputs().iter().flatten().any(|&v| half(model, types, v).is_some());
    for (i, v) in model.node(n).inputs().to_vec().into_iter().enumerate() {
        let Some(v) = v.filter(|v| !borders.contains(v)) else { continue };
        let Some(dtype) = types.dtype(v).filter(|t| is_half(*t)) else { continue };
        let cast = cast(model, v, dtype, Place::Before(n))?;
        model.set_input(n, i, Some(cast));
    }
    for v in model.node(n).outputs().to_vec().into_iter().flatten() {
        // What such a node makes of 16-bit floats is likely to be some; if it is not, a Cast to float does no harm.
        let dtype = types.dtype(v).or(model.value(v).dtype());
        let Some(dtype) = dtype.map_or(reads_half.then_some(DType::Float16), |t| is_half(t).then_some(t)) else {
            continue;
        };
        if borders.contains(&v) {
            continue;
        }
        if types.dtype(v).is_none() {
            let made = cast(model, v, DType::Float, Place::After(n))?;
            let by = model.producer(made);
            model.replace_readers(v, made, |reader, _| Some(reader) != by);
            continue;
        }
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
        let inputs = main
            .inputs()
            .iter()
            .filter_map(|&v| half(model, types, v).map(|t| (v, t, model.value(v).initializer().cloned())));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped, check_with};

    fn model(input: &str, output: &str, constants: &str, nodes: &str) -> String {
        let imports = "opset_import: [\"\" : 17, \"my\" : 1]";
        format!("<ir_version: 8, {imports}> g ({input}[2,2] x) => ({output}[2,2] y) <{constants}> {{ {nodes} }}")
    }

    #[test]
    fn casts_and_constants() {
        check(
            run,
            &model(
                "float",
                "float",
                "float16[2,2] w = {1, 0.5, 2, 3}",
                "h = Cast<to = 10>(x) m = MatMul(h, w) i = Cast<to = 16>(m) y = Cast<to = 1>(i)",
            ),
            &model("float", "float", "float[2,2] w = {1, 0.5, 2, 3}", "y = MatMul(x, w)"),
        );
    }

    /// What callers feed and get, unless they ask for another type.
    #[test]
    fn the_ends_of_the_model() {
        let before = model("float16", "float16", "", "n = Neg(x) y = Abs(n)");
        let mut cx = Context::default();
        let mut m = crate::ir::text::parse(&before).unwrap();
        assert!(run(&mut m, &mut cx).unwrap() > 0);
        m.verify().unwrap();
        let ops: Vec<String> = m.all_nodes().into_iter().map(|n| m.node(n).op_type.clone()).collect();
        assert_eq!(ops, ["Cast", "Neg", "Abs", "Cast"]);
        assert_eq!(cx.removed.kept, [("x".to_owned(), DType::Float16), ("y".to_owned(), DType::Float16)]);
        let types: Vec<_> = m.graph(m.main()).inputs().iter().chain(m.graph(m.main()).outputs()).collect();
        assert!(types.iter().all(|&&v| m.value(v).dtype() == Some(DType::Float16)));
        let mut cx = Context::default();
        cx.options.float_ends = true;
        check_with(run, &mut cx, &before, &model("float", "float", "", "n = Neg(x) y = Abs(n)"));
    }

    /// Nothing is known of other domains' operators: they read and make what they did.
    #[test]
    fn unknown_operators() {
        check(
            run,
            &model(
                "float",
                "float",
                "float16[2,2] c",
                "h = Cast<to = 10>(x) n = Neg(h) c = my.Own(n) a = Abs(c) y = Cast<to = 1>(a)",
            ),
            &model(
                "float",
                "float",
                "",
                "n = Neg(x) n_float16 = Cast<to = 10>(n) c = my.Own(n_float16) c_float = Cast<to = 1>(c) y = Abs(c_float)",
            ),
        );
    }

    #[test]
    fn nothing_to_do() {
        check_skipped(run, &model("float", "float", "", "y = Neg(x)"), "");
    }
}
