//! Weights that hold NaN or infinity: whatever reads them answers nothing of use, and a runtime may hide it, since what it makes
//! of NaN in a clamp is its own affair.

use std::collections::BTreeMap;

use crate::{
    diagnostics::{Diagnostic, count},
    error::Result,
    ir::{DType, Model, NodeId, Tensor, ValueId},
    onnx_file,
    ops::{self, Role},
};

/// Nodes that are named, at most.
const NAMED: usize = 3;

/// The nodes with weights that are NaN or infinite, each with what they hold; and what is said of them.
pub(super) fn weights(model: &Model) -> Result<(Vec<String>, Option<Diagnostic>)> {
    let mut known: BTreeMap<ValueId, [usize; 2]> = BTreeMap::new();
    let mut found = Vec::new();
    for n in model.all_nodes() {
        for (i, value) in model.node(n).inputs().iter().enumerate() {
            let Some((value, tensor)) = value.zip(model.constant_input(n, i)) else {
                continue;
            };
            if !is_weight(model, n, i) || !tensor.dtype().is_float() {
                continue;
            }
            let [nan, infinite] = match known.get(&value) {
                Some(counts) => *counts,
                None => {
                    let counts = counts(tensor)?;
                    known.insert(value, counts);
                    counts
                }
            };
            let odd = nan + infinite;
            if odd > 0 {
                let node = model.node(n);
                let what = match (nan, infinite) {
                    (_, 0) => "NaN",
                    (0, _) => "infinite",
                    _ => "NaN or infinite",
                };
                let is = if odd == 1 { "is" } else { "are" };
                let (of, name, label) = (tensor.len(), model.value(value).name(), model.node_label(n));
                found.push(format!(
                    "{odd} of {of} numbers of {name:?}, which node {label:?} ({}) reads, {is} {what}",
                    node.op_type
                ));
                break;
            }
        }
    }
    let diagnostic = (!found.is_empty()).then(|| {
        let more = match found.len().saturating_sub(NAMED) {
            0 => String::new(),
            n => format!("; and so in {}", count(n, "more node")),
        };
        let text = format!("{}{more}", found.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; "));
        Diagnostic::warning("weights_not_finite", text)
            .help("train or export the model anew; no form of it answers with numbers")
    });
    Ok((found, diagnostic))
}

/// How many numbers are NaN and infinite, looked at where they stand: large weights are not copied.
fn counts(tensor: &Tensor) -> Result<[usize; 2]> {
    let count =
        |nan: usize, infinite: usize, v: f32| (nan + usize::from(v.is_nan()), infinite + usize::from(v.is_infinite()));
    let (nan, infinite) = if tensor.dtype() == DType::Float {
        let bytes = tensor.bytes()?;
        let mut found = (0, 0);
        for chunk in bytes.chunks(CHUNK) {
            let numbers = chunk.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            found = numbers.fold(found, |(nan, infinite), v| count(nan, infinite, v));
            onnx_file::release(chunk);
        }
        found
    } else {
        tensor.to_f32()?.into_iter().fold((0, 0), |(nan, infinite), v| count(nan, infinite, v))
    };
    Ok([nan, infinite])
}

/// Bytes that are looked at before their pages are given back.
const CHUNK: usize = 1 << 24;

/// Whether an input is a weight or a bias. Infinity elsewhere may be meant, as in bounds and masks.
fn is_weight(model: &Model, n: NodeId, i: usize) -> bool {
    ops::spec(model, n).is_some_and(|s| matches!(s.role(i), Role::Weight | Role::Bias))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::testing::model;

    #[test]
    fn weights_are_named_and_masks_are_not() {
        let m = model(
            "float[1,2] x \n float[2,2] w = {1, nan, 2, inf} \n float[2] b = {-inf, 0} \n y = MatMul(x, w) \n z = Add(y, b) \n return z",
        );
        let (found, said) = weights(&m).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("2 of 4 numbers of \"w\", which node"), "{found:?}");
        assert!(found[0].ends_with("(MatMul) reads, are NaN or infinite"), "{found:?}");
        assert_eq!(said.unwrap().code, "weights_not_finite");
        let m = model("float[1,2] x \n float[2] b = {-inf, 0} \n z = Add(x, b) \n return z");
        assert_eq!(weights(&m).unwrap().0, [""; 0]);
    }
}
