//! Weights that are stored in 16 bits and computed with in 32: those of nodes that keep 32 bits, or all of them where the runtime
//! has no operators of the type.

use std::collections::BTreeMap;

use super::{HalfTask, Work, constants};
use crate::{
    error::Result,
    ir::{DType, Model, NodeId, Tensor, ValueId},
    ops,
    plan::{Plan, StoredWeight, named_values},
};

/// Weights of fewer numbers are not worth a Cast of their own, nor biases the error.
const SMALLEST: usize = 32;
/// The first opset with Casts from and to bfloat16.
const CASTS_BFLOAT16: i64 = 13;

/// What the answers ask for, beside what the numbers themselves do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ForAnswers {
    /// Nodes that keep 32 bits.
    pub nodes: BTreeMap<NodeId, String>,
    /// Weights that are stored in another type, or not at all.
    pub weights: BTreeMap<ValueId, (Option<DType>, String)>,
}

impl ForAnswers {
    /// Whether anything of it takes room or time.
    pub fn costs(&self) -> bool {
        !self.nodes.is_empty() || self.weights.values().any(|(dtype, _)| dtype.is_none())
    }
}

/// Whether a constant is a weight that 16 bits may be worth.
pub(super) fn is_weight(model: &Model, v: ValueId) -> bool {
    let value = model.value(v);
    let large = |t: &Tensor| t.dtype() == DType::Float && t.len() >= SMALLEST && t.rank() > 1;
    value.constant().is_some_and(large) && !value.is_graph_output() && value.readers().next().is_some()
}

/// Whether files of the model can have Casts of the type.
pub(super) fn has_casts(model: &Model, dtype: DType) -> bool {
    dtype != DType::Bfloat16 || model.opset("").unwrap_or(1) >= CASTS_BFLOAT16
}

/// Adds a weight to the plan if it can be of the type; tells why it cannot.
pub(super) fn store(task: &HalfTask<'_>, plan: &mut Plan, v: ValueId) -> Result<Option<String>> {
    let (model, instead) = (task.model, task.for_answers.weights.get(&v));
    let Some(t) = model.value(v).constant() else { return Ok(None) };
    let Some(dtype) = instead.map_or(Some(task.dtype), |(dtype, _)| *dtype) else {
        return Ok(instead.map(|(_, why)| why.clone()));
    };
    if !has_casts(model, dtype) {
        let opset = model.opset("").unwrap_or(1);
        return Ok(Some(format!(
            "has no Cast from {dtype} in the model's opset: {opset}, the first is {CASTS_BFLOAT16}"
        )));
    }
    // Nothing that overflows, or that is lost, is stored so: scales near 0 are of no use.
    if let Some(why) = constants::reason(t, dtype)? {
        return Ok(Some(why));
    }
    plan.stored_weights.insert(model.value(v).name().to_owned(), StoredWeight::half(dtype));
    Ok(None)
}

/// Adds the weights that only nodes of 32 bits read.
pub(super) fn beside(work: &Work<'_>, plan: &mut Plan) -> Result<()> {
    let (model, names) = (work.model(), named_values(work.model()));
    if !work.task.store {
        return Ok(());
    }
    for v in model.value_ids().into_iter().filter(|&v| is_weight(model, v)) {
        let rank = model.value(v).constant().map_or(0, Tensor::rank);
        let stays = |(n, i): (NodeId, usize)| {
            let float = work.float.contains_key(&n) && !work.exact.contains(&n);
            float && ops::weight_axes(model, n, i, rank).is_some() && work.task.wishes.keeps_float(model, n).is_none()
        };
        let named = names.get(model.value(v).name()) == Some(&v);
        if named && !work.limited.contains_key(&v) && model.value(v).readers().all(stays) {
            store(work.task, plan, v)?;
        }
    }
    Ok(())
}
