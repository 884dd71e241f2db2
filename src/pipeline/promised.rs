//! Whether the runtime makes of the written model what the plan says: a Q/DQ pair around a node that stays float costs time
//! and accuracy and gains nothing, so it is never left unsaid.

use std::collections::BTreeMap;

use crate::{
    diagnostics::{Diagnostic, count},
    ir::{Model, NodeId},
    kernels::{Becomes, NodeKernel, Prediction},
    plan::{Form, Plan, named_values},
};

/// Names that a message lists at most.
const LISTED: usize = 4;

const UNKNOWN: &str = "what stands around it does not fit";

/// A node that shall compute in integers.
pub(super) struct Promise {
    node: NodeId,
    /// How people know it.
    name: String,
    op: String,
    kernel: String,
}

/// The nodes that shall compute in integers by the plan. `model` is the one that the plan speaks of: nodes keep their ids
/// until something else is made of them, and their names do not last as long.
pub(super) fn promises(model: &Model, plan: &Plan) -> Vec<Promise> {
    let names = named_values(model);
    let promise = |(output, entry): (&String, &crate::plan::NodePlan)| {
        let node = names.get(output).and_then(|&v| model.producer(v))?;
        let op = model.node(node).op_type.clone();
        let kernel = entry.kernel.clone().unwrap_or_else(|| op.clone());
        Some(Promise { node, name: model.node_label(node), op, kernel })
    };
    let integer =
        plan.nodes.iter().filter(|(_, n)| matches!(n.becomes, Form::Integer | Form::Dynamic | Form::WeightOnly));
    integer.filter_map(promise).collect()
}

/// The promises that the runtime will not keep, those of one operator for one reason together.
pub(super) fn broken(promises: &[Promise], predicted: &Prediction, target: &str) -> Vec<Diagnostic> {
    let float = predicted.nodes.iter().filter(|n| n.becomes == Becomes::Float);
    let told = |n: &'_ NodeKernel| (n.id, (n.op.clone(), n.reason.clone().unwrap_or_else(|| UNKNOWN.to_owned())));
    let float: BTreeMap<NodeId, (String, String)> = float.map(told).collect();
    let mut found: BTreeMap<(&str, &str, &str), Vec<&str>> = BTreeMap::new();
    for p in promises {
        // A node of another operator by now scales the sums of an integer product that stands in front of it.
        if let Some((_, reason)) = float.get(&p.node).filter(|(op, _)| *op == p.op) {
            found.entry((&p.op, &p.kernel, reason)).or_default().push(&p.name);
        }
    }
    let told = |((op, kernel, reason), names): ((&str, &str, &str), Vec<&str>)| {
        let others: Vec<_> = names.iter().skip(1).take(LISTED).map(|n| format!("{n:?}")).collect();
        let more = if names.len() > LISTED + 1 { ", …" } else { "" };
        let also = match others.is_empty() {
            true => String::new(),
            false => format!(", and {} more: {}{more}", count(names.len() - 1, op), others.join(", ")),
        };
        let text = format!("planned as {kernel}, but {target} will leave this {op} in float: {reason}{also}");
        Diagnostic::warning("plan_not_met", text)
            .on(names[0])
            .help("its conversions cost time and gain nothing; keep it float with --keep-float or a rule")
    };
    found.into_iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ir::text, kernels, target::Target};

    #[test]
    fn what_stays_float_is_named() {
        let target = Target::load("onnxruntime-cpu").unwrap();
        let model = |reader: &str| {
            let text = format!(
                "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1, 4] x) => (float[1, 4] z) <float s = {{0.1}}, uint8 p = {{7}}> {{
                    q = QuantizeLinear(x, s, p) d = DequantizeLinear(q, s, p) [node] y = Sigmoid(d)
                    {reader} }}"
            );
            text::parse(&text).unwrap()
        };
        let mut plan = Plan::default();
        let entry = "{op: Sigmoid, becomes: integer, kernel: QLinearSigmoid}";
        plan.nodes.insert("y".into(), serde_yaml::from_str(entry).unwrap());
        let said = |model: &Model| {
            let found = broken(&promises(model, &plan), &kernels::predict(model, &target), &target.name);
            found.into_iter().map(|d| (d.subject.unwrap_or_default(), d.message)).collect::<Vec<_>>()
        };
        let told = said(&model("z = Abs(y)"));
        assert!(told.len() == 1 && told[0].0 == "node", "{told:?}");
        assert!(
            told[0].1.starts_with("planned as QLinearSigmoid, but onnxruntime-cpu will leave this Sigmoid"),
            "{told:?}"
        );
        assert_eq!(said(&model("r = QuantizeLinear(y, s, p) z = DequantizeLinear(r, s, p)")), []);
    }
}
