//! What a runtime does with 16-bit floats.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Target;
use crate::ir::{DType, Model, NodeId};

/// How a type is to be written for a runtime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HalfForm {
    /// Values are of that type.
    #[default]
    Computed,
    /// Weights alone are, behind Casts that the runtime folds when it loads the file; it computes in 32-bit floats.
    Stored,
}

/// What a runtime does with one of the types.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HalfFacts {
    /// How it is written.
    pub form: HalfForm,
    /// What adds more numbers than this into one (products, means, poolings) keeps 32-bit floats; `null` where the runtime adds in
    /// those itself, as ONNX Runtime does on CPU.
    pub longest_sum: Option<usize>,
    /// Operators that it has in 32-bit floats alone, with the reason.
    pub refused: BTreeMap<String, String>,
    /// Movements of axes that it cannot load in 16 bits where they stand.
    pub crashes: Vec<Crash>,
    /// How fast it is, in words for the report.
    pub speed: Option<String>,
}

/// A Transpose that leaves the last axis where it is and moves the first, between these two operators.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crash {
    /// The operator in front of the Transpose.
    pub behind: String,
    /// The operator that reads it.
    pub before: String,
    /// The reason in words.
    pub reason: String,
}

impl Crash {
    fn applies(&self, model: &Model, id: NodeId) -> bool {
        let node = model.node(id);
        let Some(perm) = node.ints("perm").filter(|_| node.is("Transpose")) else { return false };
        let last = i64::try_from(perm.len()).unwrap_or(i64::MAX) - 1;
        let maker = node.input(0).and_then(|v| model.producer(v));
        let mut readers = node.output(0).into_iter().flat_map(|v| model.value(v).readers());
        perm.first() != Some(&0)
            && perm.last() == Some(&last)
            && maker.is_some_and(|m| model.node(m).is(&self.behind))
            && readers.any(|(r, _)| model.node(r).is(&self.before))
    }
}

impl Target {
    /// What it does with 16-bit floats of this type. Of types that it does not speak of, all is taken for possible.
    pub fn half(&self, dtype: DType) -> HalfFacts {
        self.halves.get(&dtype).cloned().unwrap_or_default()
    }
}

impl HalfFacts {
    /// Why a node keeps 32-bit floats in this runtime.
    pub fn refuses(&self, model: &Model, node: NodeId) -> Option<&str> {
        let crash = self.crashes.iter().find(|c| c.applies(model, node)).map(|c| c.reason.as_str());
        let node = model.node(node);
        self.refused.get(&node.op_type).filter(|_| node.in_onnx_domain()).map(String::as_str).or(crash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::testing::{find, model};

    #[test]
    fn transposes_that_crash() {
        let target = Target::load("onnxruntime-cpu").unwrap();
        let facts = target.half(DType::Float16);
        for (perm, crashes) in [("1, 0, 2", true), ("0, 1, 2", false), ("1, 2, 0", false)] {
            let m = model(&format!(
                "float[6,4] x
                int64[3] s = {{2, 3, 4}}
                float[4,4] w = {{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}}
                r = Reshape(x, s)
                t = Transpose <perm = [{perm}]> (r)
                y = MatMul(t, w)
                return y"
            ));
            let n = m.producer(find(&m, "t")).unwrap();
            assert_eq!(facts.refuses(&m, n).is_some(), crashes, "{perm}");
        }
    }
}
