//! Integer operators that a runtime can be handed as such (QOperator format).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Target;
use crate::ir::DType;

/// What a runtime has of operators that read and make codes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntegerOps {
    /// Types of codes that operators which only move elements take and hand out.
    pub moved: Vec<DType>,
    /// The first operator set in which those have codes, where it is not the first of all; from the target's kernels.
    #[serde(skip)]
    moved_since: BTreeMap<String, i64>,
    /// All others.
    pub operators: Vec<IntegerOp>,
}

/// One row: an integer operator and the types that it has.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntegerOp {
    /// `op_type` of the integer operator.
    pub op: String,
    /// Combinations of types: of the codes that it reads, in the order of the float operator's inputs, then of those that
    /// it makes (`float` where it makes numbers). Operators with any number of inputs list one for all.
    pub types: Vec<Vec<DType>>,
}

impl IntegerOps {
    /// Whether an operator that only moves elements takes codes of this type in a model of this operator set.
    pub fn moves(&self, op: &str, dtype: DType, opset: i64) -> bool {
        self.moved.contains(&dtype) && self.moved_since.get(op).is_none_or(|&since| opset >= since)
    }

    /// Whether there is the operator with these types.
    pub fn has(&self, op: &str, types: &[DType]) -> bool {
        self.operators.iter().any(|row| row.op == op && row.types.iter().any(|t| t == types))
    }
}

impl Target {
    /// The integer operators that files for this runtime may hold.
    pub fn integer_ops(&self) -> IntegerOps {
        let moved = self.kernels.iter().filter(|k| k.same_scale && k.min_opset > 0);
        let moved_since = moved.map(|k| (k.op.clone(), k.min_opset)).collect();
        IntegerOps { moved_since, ..self.qoperator.clone() }
    }
}
