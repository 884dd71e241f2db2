//! Which nodes stand between conversions to and from floats of 8 bits, for accelerators that compute in them.
//!
//! Only what such a node reads is converted, as accelerators add products up in more bits and hand sums out in those: a value
//! that other nodes read as well stays what it is for them. Biases stay float.

use std::collections::BTreeSet;

use super::{Activation, Form, NodePlan, Plan, Readers, Scheme, decide, named_values};
use crate::{
    analysis::{
        placement::Wishes,
        types::{self, Types},
    },
    error::Result,
    ir::{DType, Model, NodeId, ValueId},
    ops::{self, Role},
    quant::{QuantTarget, Range},
    target::Target,
};

/// Why all operators but a few stay as they are.
pub const NO_FLOAT8: &str = "not an operator that is computed in floats of 8 bits";

/// What the plan rests on.
pub struct Float8Task<'a> {
    /// The prepared model.
    pub model: &'a Model,
    /// What runs it.
    pub target: &'a Target,
    /// Types and forms.
    pub scheme: &'a Scheme,
    /// Nodes that are to stay as they are.
    pub wishes: &'a Wishes,
}

/// A node between conversions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Float8Node {
    /// The node.
    pub id: NodeId,
    /// The values that it reads converted.
    pub data: Vec<ValueId>,
}

/// The nodes that can be between conversions, in order, and the others with the reason.
pub fn float8_nodes(task: &Float8Task<'_>) -> (Vec<Float8Node>, Vec<(NodeId, String)>) {
    let types = types::infer(task.model);
    let (mut nodes, mut others) = (Vec::new(), Vec::new());
    for id in task.model.all_nodes() {
        match data(task, &types, id) {
            Ok(data) => nodes.push(Float8Node { id, data }),
            Err(Some(reason)) => others.push((id, reason)),
            Err(None) => {}
        }
    }
    (nodes, others)
}

/// What a node would read converted; else why it does not, where it has to do with floats at all.
fn data(task: &Float8Task<'_>, types: &Types, id: NodeId) -> Result<Vec<ValueId>, Option<String>> {
    let model = task.model;
    let node = model.node(id);
    let is_float = |v: &ValueId| types.dtype(*v).is_some_and(DType::is_float);
    if !node.inputs().iter().chain(node.outputs()).flatten().any(is_float) {
        return Err(None);
    }
    let why = |text: &str| Err(Some(text.to_owned()));
    if let Some(rule) = task.wishes.keeps_float(model, id) {
        return why(rule);
    }
    if !task.target.float8.takes(node) {
        return why(NO_FLOAT8);
    }
    if node.graph() != model.main() {
        return why("it stands in a subgraph");
    }
    let wanted = task.wishes.ignore_cost || task.wishes.forces(model, id);
    if let Some(slow) = task.target.float8.slow(model, id).filter(|_| !wanted) {
        return Err(Some(slow));
    }
    let Some(spec) = ops::spec(model, id) else { return why("its operator is not described") };
    let mut data = Vec::new();
    for (i, v) in node.inputs().iter().enumerate() {
        let (Some(v), role) = (*v, spec.role(i)) else { continue };
        if !matches!(role, Role::Data | Role::Weight) {
            continue;
        }
        match types.dtype(v) {
            Some(DType::Float) => {}
            Some(other) => return why(&format!("it computes in {other}, and scales here are of 32 bits")),
            None => return why("the type of what it reads is not known"),
        }
        if model.producer(v).is_some_and(|n| model.node(n).is("DequantizeLinear")) {
            return why("what it reads is quantized already");
        }
        match model.value(v).constant() {
            Some(t) if t.is_empty() => return why("it reads nothing"),
            Some(t) if t.to_f32().is_ok_and(|all| all.iter().any(|x| !x.is_finite())) => {
                return why("its weight holds NaN or infinity");
            }
            Some(_) => {}
            None if role == Role::Weight && !node.is("MatMul") && !node.is("Gemm") => {
                return why("its weight is computed");
            }
            None => data.push(v),
        }
    }
    match data.is_empty() {
        true => why("it reads constants alone"),
        false => Ok(data),
    }
}

/// Makes the plan. `range_of` gives the range of a value.
pub fn decide_float8(
    task: &Float8Task<'_>,
    mut range_of: impl FnMut(ValueId, QuantTarget) -> Result<Range>,
) -> Result<Plan> {
    let Float8Task { model, target, scheme, .. } = *task;
    let cpu = target.other_cpu().map(str::to_owned);
    let mut plan = Plan { target: target.name.clone(), cpu, ..Plan::default() };
    let names = named_values(model);
    let (nodes, mut others) = float8_nodes(task);
    let mut converted = BTreeSet::new();
    let mut insert = |id: NodeId, becomes: Form, reason: Option<String>| {
        let node = model.node(id);
        let out = node.outputs().iter().copied().flatten().next();
        // A node of a subgraph whose output's name stands for something else too.
        let Some(out) = out.filter(|v| names.get(model.value(*v).name()) == Some(v)) else { return false };
        let name = node.name.clone().filter(|n| !n.is_empty());
        let weight = (becomes == Form::Float8).then(|| decide::weight(model, scheme, id)).flatten();
        let entry = NodePlan { weight, reason, ..NodePlan::new(name, &node.op_type, becomes) };
        plan.nodes.insert(model.value(out).name().to_owned(), entry);
        true
    };
    for Float8Node { id, data } in nodes {
        let unnamed = |v: &ValueId| names.get(model.value(*v).name()) != Some(v);
        if data.iter().any(unnamed) {
            others.push((id, "another value of the model has the name of what it reads".to_owned()));
        } else if insert(id, Form::Float8, None) {
            converted.extend(data);
        }
    }
    for (id, reason) in others {
        insert(id, Form::Float, Some(reason));
    }
    for v in converted {
        let types = scheme.activations.get(&v).copied().unwrap_or(scheme.activation);
        let name = model.value(v).name();
        let params = types.params(range_of(v, types)?).map_err(|e| e.value(name))?;
        let a = Activation {
            dtype: params.dtype,
            scale: params.scale,
            zero_point: 0,
            clip: None,
            readers: Readers::Integer,
        };
        plan.activations.insert(name.to_owned(), a);
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::testing::model;

    #[test]
    fn what_gains_nothing_is_left_unless_it_is_asked_for() {
        let m = model("float[1,2] x \n float[2,2] w = {1, 2, 3, 4} \n a = MatMul(x, w) \n return a");
        let target = Target::load("tensorrt").unwrap();
        let nodes = |wishes: &Wishes| {
            float8_nodes(&Float8Task { model: &m, target: &target, scheme: &Scheme::default(), wishes }).0.len()
        };
        assert_eq!(nodes(&Wishes::default()), 0);
        assert_eq!(nodes(&Wishes { ignore_cost: true, ..Wishes::default() }), 1);
        assert_eq!(nodes(&Wishes { force: m.all_nodes().into_iter().collect(), ..Wishes::default() }), 1);
    }

    #[test]
    fn products_alone_and_what_they_read() {
        let m = model(
            "float[1,2] x
             float[2,2] w = {1, 2, 3, 4}
             float[2,2] n = {1, nan, 3, 4}
             a = MatMul(x, w)
             t = Transpose(a)
             r = Relu(t)
             b = MatMul(a, r)
             c = MatMul(a, n)
             return b, c",
        );
        let target = Target::load("onnxruntime-cpu").unwrap();
        let dtype = DType::Float8E4M3FN;
        let types = QuantTarget { dtype, symmetric: true, reduce_range: false };
        let scheme = Scheme { activation: types, weight: types, ..Scheme::default() };
        let wishes = Wishes { ignore_cost: true, ..Wishes::default() };
        let task = Float8Task { model: &m, target: &target, scheme: &scheme, wishes: &wishes };
        let plan = decide_float8(&task, |_, _| Ok(Range::new(-1.0, 224.0))).unwrap();
        let form = |name: &str| (plan.nodes[name].becomes, plan.nodes[name].reason.clone().unwrap_or_default());
        assert_eq!([form("a").0, form("b").0], [Form::Float8; 2]);
        assert_eq!(form("r"), (Form::Float, NO_FLOAT8.to_owned()));
        assert!(form("c").1.contains("NaN"));
        let values: Vec<&str> = plan.activations.keys().map(String::as_str).collect();
        assert_eq!(values, ["a", "r", "x"]);
        let a = &plan.activations["x"];
        assert_eq!((a.dtype, a.scale, a.zero_point, a.readers), (dtype, 0.5, 0, Readers::Integer));
        let weight = plan.nodes["a"].weight.as_ref().unwrap();
        assert_eq!((weight.dtype, weight.axis), (dtype, Some(1)));
        assert_eq!(plan.nodes["b"].weight, None);
        plan.check(&m, &target).unwrap();
        let wrong = |change: &dyn Fn(&mut Plan)| {
            let mut p = plan.clone();
            change(&mut p);
            p.check(&m, &target).unwrap_err().to_string()
        };
        assert!(wrong(&|p| p.activations.get_mut("x").unwrap().zero_point = 3).contains("zero_point is 3"));
        assert!(wrong(&|p| p.activations.retain(|name, _| name != "r")).contains("\"r\" is not"));
        assert!(wrong(&|p| p.nodes.get_mut("a").unwrap().weight = None).contains("weight"));
        assert!(wrong(&|p| p.nodes.get_mut("t").unwrap().becomes = Form::Float8).contains("Transpose"));
        let int8 = |p: &mut Plan| p.activations.get_mut("x").unwrap().dtype = DType::Int8;
        assert!(wrong(&int8).contains("int8"));
    }
}
