//! Constants that nothing reads: float weights that a quantizer left beside their codes, scales of pairs that are gone.
//!
//! They make the file larger and slower to load, and nothing else. Constants that are inputs of the graph as well stay: callers
//! may feed them.
//!
//! ```text
//! before: (float[2] x) => (float[2] y) <float[2,2] w = {1, 2, 3, 4}> { y = Relu(x) }
//! after: (float[2] x) => (float[2] y) { y = Relu(x) }
//! ```

use super::{Changes, Context, Finding, Severity};
use crate::{
    error::Result,
    ir::{DType, Model, Tensor, ValueId},
};

pub(super) const WHAT: &str = "constants that nothing reads";
pub(super) const CURE: &str = "remove them";

/// A share of all constants above which it is more than a note.
const MUCH: f64 = 0.01;

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let unused = |v: &ValueId| {
        let value = cx.model.value(*v);
        value.constant().is_some() && value.uses().is_empty() && value.producer().is_none()
    };
    let bytes = |v: ValueId| cx.model.value(v).constant().map_or(0, Tensor::byte_len);
    let all: usize = cx.model.value_ids().into_iter().map(bytes).sum();
    let found: Vec<ValueId> = cx.model.value_ids().into_iter().filter(unused).collect();
    let total: usize = found.iter().map(|&v| bytes(v)).sum();
    let severity = if total as f64 > MUCH * all as f64 && total > 1024 { Severity::Warning } else { Severity::Note };
    let finding = |v: ValueId| {
        let kind = cx
            .model
            .value(v)
            .dtype()
            .map_or("constant", |t| if t == DType::Float { "float constant" } else { "constant" });
        let fact = format!("a {kind} of {} bytes that nothing reads", bytes(v));
        let repair = move |model: &mut Model| {
            let there = model.try_value(v).is_some_and(|value| value.uses().is_empty());
            if there {
                model.remove_value(v);
            }
            Ok(there)
        };
        Finding { bytes: bytes(v) as u64, ..Finding::of(severity, v, fact) }.mend(Changes::Nothing, repair)
    };
    Ok(found.into_iter().map(finding).collect())
}
