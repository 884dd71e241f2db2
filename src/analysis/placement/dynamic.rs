//! Which nodes compute in integers with data that they quantize at run time: in the main graph and in the bodies of
//! `If`, `Loop` and `Scan`, since neither ranges nor neighbours matter to them. Each node is decided by itself.

use std::collections::HashMap;

use super::{Decision, Shapes, Wishes};
use crate::{
    analysis::types::{self, Types},
    ir::{DType, Model, NodeId, ValueId},
    ops::{self, Class, OpSpec, Role},
    target::{DynamicKernel, Layer, Target},
};

/// What becomes of one node whose operator has such a kernel.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) id: NodeId,
    /// [`Decision::Dynamic`] or [`Decision::Float`].
    pub(super) decision: Decision,
    /// Time of one run in float and as decided, by the cost model.
    pub(super) times: (f64, f64),
}

/// Every node whose operator has a row, in order; products only where they are to be quantized at run time. Nodes in
/// `integer` have a better kernel already.
pub(super) fn choose(
    model: &Model,
    target: &Target,
    shapes: &Shapes,
    wishes: &Wishes,
    integer: impl Fn(NodeId) -> bool,
) -> Vec<Choice> {
    let recurrent = |n: NodeId| ops::spec(model, n).is_some_and(|s| s.class == Class::Recurrent);
    let asked = |&n: &NodeId| {
        let row = target.dynamic_kernel(model, n).is_some() && !integer(n);
        row && (recurrent(n) || wishes.at_run_time(model, n))
    };
    let nodes: Vec<NodeId> = model.nodes_below(model.main()).into_iter().filter(asked).collect();
    if nodes.is_empty() {
        return Vec::new();
    }
    let known = Known::of(model, shapes);
    let (layers, products): (Vec<NodeId>, Vec<NodeId>) = nodes.into_iter().partition(|&n| recurrent(n));
    let mut choices: Vec<_> = layers.into_iter().map(|id| choice(model, target, &known, wishes, id)).collect();
    choices.extend(super::products::choose(model, target, &known, wishes, &products));
    choices
}

/// What is known of values.
pub(super) struct Known<'a> {
    shapes: &'a Shapes,
    types: Types,
    /// How many values bear a name.
    names: HashMap<String, usize>,
}

impl<'a> Known<'a> {
    pub(super) fn of(model: &Model, shapes: &'a Shapes) -> Self {
        Self { shapes, types: types::infer(model), names: names(model) }
    }

    pub(super) fn is_float(&self, v: ValueId) -> bool {
        self.shapes.is_float(v) || self.types.dtype(v) == Some(DType::Float)
    }

    /// The dims that are known: of the sample, or from the graph alone; values inside bodies are in no sample.
    pub(super) fn dim(&self, v: ValueId, axis: usize) -> Option<usize> {
        let sampled = self.shapes.dims(v).and_then(|d| d.get(axis).copied());
        sampled.or_else(|| match self.types.shape(v)?.get(axis)? {
            types::SymDim::Known(n) => Some(*n),
            _ => None,
        })
    }

    /// The number of dims.
    pub(super) fn rank(&self, v: ValueId) -> Option<usize> {
        self.shapes.dims(v).map(<[_]>::len).or_else(|| self.types.rank(v))
    }
}

fn names(model: &Model) -> HashMap<String, usize> {
    let mut names = HashMap::new();
    for v in model.value_ids() {
        *names.entry(model.value(v).name().to_owned()).or_default() += 1;
    }
    names
}

fn choice(model: &Model, target: &Target, known: &Known<'_>, wishes: &Wishes, id: NodeId) -> Choice {
    match kernel(model, target, known, wishes, id) {
        Ok((kernel, (float, dynamic))) => {
            let price = wishes.prices.at_run_time.get(&id).copied().unwrap_or(0.0);
            if dynamic + price < float || wishes.ignore_cost || wishes.forces(model, id) {
                Choice { id, decision: Decision::Dynamic(kernel), times: (float, dynamic) }
            } else {
                let reason = format!("quantizing at run time ({kernel}) would cost more than it gains");
                Choice { id, decision: Decision::Float(reason), times: (float, float) }
            }
        }
        Err(reason) => Choice { id, decision: Decision::Float(reason), times: (0.0, 0.0) },
    }
}

/// The kernel that the layer could become, with its times in float and as that kernel; else why there is none.
fn kernel(
    model: &Model,
    target: &Target,
    known: &Known<'_>,
    wishes: &Wishes,
    id: NodeId,
) -> Result<(String, (f64, f64)), String> {
    let row = row(model, target, known, wishes, id)?;
    let layer = layer(model, known, id).ok_or("its weights do not fit its attributes or its data")?;
    Ok((row.kernel.clone(), target.costs.recurrent.layer(layer)))
}

/// Time of one run of a recurrent layer in float, by the cost model; `None` for all else.
pub(super) fn float_time(model: &Model, target: &Target, shapes: &Shapes, id: NodeId) -> Option<f64> {
    let recurrent = ops::spec(model, id).is_some_and(|s| s.class == Class::Recurrent);
    let known = recurrent.then(|| Known { shapes, types: types::infer(model), names: HashMap::new() })?;
    layer(model, &known, id).map(|l| target.costs.recurrent.layer(l).0)
}

/// The node's row of the target, if nothing speaks against it but costs.
pub(super) fn row<'t>(
    model: &Model,
    target: &'t Target,
    known: &Known<'_>,
    wishes: &Wishes,
    id: NodeId,
) -> Result<&'t DynamicKernel, String> {
    if let Some(rule) = wishes.keeps_float(model, id) {
        return Err(rule.to_owned());
    }
    let row = target.dynamic_kernel(model, id).unwrap_or_else(|| Err("no integer kernel".to_owned()))?;
    if wishes.wide {
        return Err(format!("{} quantizes its data to 8 bits, more are asked for", row.kernel));
    }
    let spec = ops::spec(model, id).ok_or("no integer kernel")?;
    inputs(model, known, spec, id)?;
    let node = model.node(id);
    let out = node.outputs().iter().copied().flatten().next();
    let in_body = node.graph() != model.main();
    if in_body && out.is_some_and(|v| known.names.get(model.value(v).name()).is_some_and(|&n| n > 1)) {
        return Err("the plan cannot name it: another graph of the model has a value of its output's name".to_owned());
    }
    Ok(row)
}

/// Weights must be constants, and all of it float.
fn inputs(model: &Model, known: &Known<'_>, spec: &OpSpec, id: NodeId) -> Result<(), String> {
    for (i, input) in model.node(id).inputs().iter().enumerate() {
        let Some(v) = *input else { continue };
        match (spec.role(i), model.value(v).constant()) {
            (Role::Weight, Some(t)) if t.dtype() == DType::Float => {}
            (Role::Weight, Some(t)) => return Err(format!("its weight is {t:?}, which has no integer kernel")),
            (Role::Weight, None) if spec.class == Class::Product => {
                return Err(super::not_constant(model, v).to_owned());
            }
            (Role::Weight, None) if super::is_dequantized(model, v) => return Err(super::QUANTIZED.to_owned()),
            (Role::Weight, None) => return Err("its weights are not constant".to_owned()),
            (Role::Data, _) if !known.is_float(v) => return Err("it does not compute in float".to_owned()),
            _ => {}
        }
    }
    Ok(())
}

/// The shape of a recurrent layer, if its parts fit together. Unknown numbers of steps and rows count as one: so short a
/// layer gains least.
fn layer(model: &Model, known: &Known<'_>, id: NodeId) -> Option<Layer> {
    let node = model.node(id);
    let (w, r) = (model.constant_input(id, 1)?, model.constant_input(id, 2)?);
    let (&[directions, rows, inputs], &[_, _, hidden]) = (w.dims(), r.dims()) else { return None };
    let said = node.int("hidden_size").is_none_or(|h| usize::try_from(h) == Ok(hidden));
    let both = node.string("direction") == Some("bidirectional");
    let gates = rows.checked_div(hidden)?;
    let fits = said
        && directions == if both { 2 } else { 1 }
        && r.dims() == [directions, rows, hidden]
        && gates * hidden == rows
        && inputs > 0
        && (!node.is("LSTM") || gates == 4);
    let x = node.input(0)?;
    let given = known.dim(x, 2).is_none_or(|n| n == inputs);
    let dim = |axis| known.dim(x, axis).unwrap_or(1).max(1);
    (fits && given).then(|| Layer { steps: dim(0), batch: dim(1), inputs, hidden, gates, directions })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Tensor, text};

    /// An LSTM of the main graph and one in a branch, both with 64 hidden units, over 50 steps of unknown batch.
    fn model(attributes: &str) -> Model {
        let mut model = text::parse(&format!(
            "<ir_version: 8, opset_import: [\"\" : 14]>
            g (bool c, float[50, n, 32] x, float other) => (y, z) <float w = {{0}}, float r = {{0}}> {{
                y = LSTM <hidden_size = 64 {attributes}> (x, w, r)
                z = If (c) <then_branch = t () => (a) {{ a = LSTM <hidden_size = 64> (x, w, r) }},
                            else_branch = e () => (b) {{ b = GRU <hidden_size = 64> (x, w, r) }}>
            }}"
        ))
        .unwrap();
        for (name, dims) in [("w", [1, 256, 32]), ("r", [1, 256, 64])] {
            let v = model.find_value(model.main(), name).unwrap();
            model.set_initializer(v, Some(Tensor::from_f32(&dims, &vec![0.1; dims.iter().product()])));
        }
        model
    }

    fn placed(model: &Model, wishes: &Wishes) -> Vec<(String, Decision)> {
        let target = Target::load("onnxruntime-cpu").unwrap();
        let placement = super::super::place(model, &target, &Shapes::default(), wishes);
        let forced = wishes.ignore_cost || !wishes.force.is_empty();
        assert!(placement.placed_time <= placement.float_time || forced);
        placement.nodes.into_iter().map(|(n, d)| (model.node_label(n), d)).collect()
    }

    fn of(model: &Model, wishes: &Wishes, label: &str) -> Result<String, String> {
        match placed(model, wishes).into_iter().find(|(l, _)| l == label).unwrap().1 {
            Decision::Dynamic(kernel) => Ok(kernel),
            Decision::Float(reason) => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    fn node(model: &Model, label: &str) -> NodeId {
        model.all_nodes().into_iter().find(|&n| model.node_label(n) == label).unwrap()
    }

    #[test]
    fn layers_of_subgraphs_too() {
        let (model, wishes) = (model(""), Wishes::default());
        let kernel = Ok("DynamicQuantizeLSTM".to_owned());
        assert_eq!([of(&model, &wishes, "y"), of(&model, &wishes, "a")], [kernel.clone(), kernel]);
        let labels: Vec<_> = placed(&model, &wishes).into_iter().map(|(l, _)| l).collect();
        assert_eq!(labels, ["y", "z", "a"]);
    }

    /// It may not run, so it cannot vanish into what is in front of the body.
    #[test]
    fn a_clamp_in_a_body_is_not_absorbed() {
        let text = "<ir_version: 8, opset_import: [\"\" : 17]> g (bool c, float[1, 1, 4, 4] x) => (z)
            <float[1, 1, 1, 1] w = {0.5}> {
                y = Conv(x, w)
                z = If (c) <then_branch = t () => (a) { a = Relu(y) }, else_branch = e () => (b) { b = Neg(x) }>
            }";
        let model = crate::ir::text::parse(text).unwrap();
        let floats = ["x", "y", "z"].map(|name| model.find_value(model.main(), name).unwrap());
        let shapes = Shapes(floats.iter().map(|&v| (v, (DType::Float, vec![1, 1, 4, 4]))).collect());
        let wishes = Wishes { ignore_cost: true, ..Wishes::default() };
        let target = Target::load("onnxruntime-cpu").unwrap();
        let placed = super::super::place(&model, &target, &shapes, &wishes);
        // It is chosen for the number of nodes, and takes the time of the conversions all the same.
        assert!(placed.gain > 0.0 && placed.placed_time > placed.float_time, "{placed:?}");
        let found = placed.nodes;
        assert_eq!(found[0].1, Decision::Integer("QLinearConv".to_owned()));
        assert!(found[1..].iter().all(|(_, d)| matches!(d, Decision::Float(_))), "{found:?}");
    }

    #[test]
    fn what_the_user_keeps_float_stays_with_all_that_is_in_it() {
        let model = model("");
        let mut wishes = Wishes::default();
        wishes.keep_float.insert(node(&model, "z"), "a rule".to_owned());
        assert_eq!(of(&model, &wishes, "a"), Err("a rule".to_owned()));
        assert!(of(&model, &wishes, "y").is_ok());
        wishes.wide = true;
        assert!(of(&model, &wishes, "y").unwrap_err().contains("more are asked for"));
    }

    #[test]
    fn short_layers_do_not_pay_unless_they_must() {
        let mut model = model("");
        let x = model.find_value(model.main(), "x").unwrap();
        model.value_mut(x).ty = Some(crate::ir::Type::tensor(DType::Float, None));
        let mut wishes = Wishes::default();
        assert!(of(&model, &wishes, "y").unwrap_err().contains("would cost more than it gains"));
        wishes.force.insert(node(&model, "z"));
        assert!(of(&model, &wishes, "a").is_ok() && of(&model, &wishes, "y").is_err());
        wishes.ignore_cost = true;
        assert!(of(&model, &wishes, "y").is_ok());
    }

    #[test]
    fn reasons() {
        let wishes = Wishes::default();
        let reason = |model: &Model, label: &str| of(model, &wishes, label).unwrap_err();
        assert_eq!(reason(&model(", layout = 1"), "y"), "no integer kernel with this layout");
        assert!(reason(&model(", direction = \"bidirectional\""), "y").contains("do not fit"));
        let mut other = model("");
        let (y, x) = (node(&other, "y"), other.find_value(other.main(), "x").unwrap());
        other.set_input(y, 1, Some(x));
        assert_eq!(reason(&other, "y"), "its weights are not constant");
        let mut clash = model("");
        let a = clash.node(node(&clash, "a")).output(0).unwrap();
        clash.rename(a, "y");
        let found = placed(&clash, &wishes);
        let last = found.last().unwrap();
        assert!(matches!(&last.1, Decision::Float(r) if r.contains("cannot name it")), "{last:?}");
        assert!(matches!(found[0].1, Decision::Dynamic(_)));
        let mut gru = model("");
        gru.node_mut(y).op_type = "GRU".to_owned();
        assert!(reason(&gru, "y").starts_with("no integer kernel, neither"));
    }
}
