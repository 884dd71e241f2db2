//! Which products must not be quantized at run time, as far as the model alone tells: because rounding their weights would
//! destroy what they compute, or because their data are of a kind that one scale for all does not fit.

use std::collections::{BTreeMap, BTreeSet};

use super::{Known, Scheme, decide::dynamic_weight};
use crate::{
    analysis::placement::Wishes,
    error::Result,
    ir::{DType, Model, NodeId, ValueId},
    ops::{self, Class, Role},
    target::Target,
};

/// The share of a weight's numbers that may become zero by rounding. Of numbers that are spread normally it is a percent;
/// where it is most of them, single ones are far larger than all others.
const MOST_LOST: f64 = 0.5;

/// The nodes that would be quantized at run time, but whose weights would not survive it, with the reason in words.
pub fn fragile_weights(
    model: &Model,
    target: &Target,
    scheme: &Scheme,
    wishes: &Wishes,
) -> Result<BTreeMap<NodeId, String>> {
    let mut found = BTreeMap::new();
    for id in model.nodes_below(model.main()) {
        let Some(spec) = ops::spec(model, id).filter(|s| s.class == Class::Product) else { continue };
        let asked = wishes.at_run_time(model, id) && wishes.keeps_float(model, id).is_none();
        let free = asked && !wishes.ignore_cost && !wishes.forces(model, id);
        let weight = spec.index_of(Role::Weight).and_then(|i| model.constant_input(id, i));
        let Some(tensor) = weight.filter(|t| free && t.dtype() == DType::Float && !t.is_empty()) else { continue };
        let Some(how) = dynamic_weight(model, target, scheme, id) else { continue };
        let rounded = how.quantize_alike(tensor, Known::default()).and_then(|q| q.dequantized());
        let rounded = rounded.map_err(|e| e.node(model.node_label(id), &model.node(id).op_type))?;
        let numbers = tensor.to_f32()?;
        let some = numbers.iter().filter(|&&w| w != 0.0).count();
        let lost = numbers.iter().zip(rounded).filter(|(w, r)| **w != 0.0 && *r == 0.0).count();
        if lost as f64 > MOST_LOST * some as f64 {
            let text = format!(
                "{lost} of the {some} numbers of its weight would become 0 in 8 bits, so much larger are others"
            );
            found.insert(id, text);
        }
    }
    Ok(found)
}

/// Nodes that are looked at on the way from data back to the layers that make them.
const MOST_NODES: usize = 24;

/// The products whose data are what two layers make, multiplied with each other: gated layers, as in most language models.
/// The largest of such numbers are the products of the largest, far from all others. In a small Llama these 5 of 36
/// products cause five sixths of the loss.
pub fn gated_products(model: &Model, wishes: &Wishes) -> BTreeMap<NodeId, String> {
    let mut found = BTreeMap::new();
    for id in model.nodes_below(model.main()) {
        let product = ops::spec(model, id).is_some_and(|s| s.class == Class::Product);
        let asked = product && wishes.at_run_time(model, id) && wishes.keeps_float(model, id).is_none();
        let free = asked && !wishes.ignore_cost && !wishes.forces(model, id);
        if free && model.node(id).input(0).is_some_and(|x| is_gated(model, x)) {
            let text = "its data are the product of what two layers make, which one scale for all may not fit: give \
                        --calibration to have it measured";
            found.insert(id, text.to_owned());
        }
    }
    found
}

fn is_gated(model: &Model, x: ValueId) -> bool {
    let Some(mul) = model.producer(x).map(|n| model.node(n)).filter(|n| n.is("Mul")) else { return false };
    let &[Some(a), Some(b)] = mul.inputs() else { return false };
    let (a, b) = (layers_behind(model, a), layers_behind(model, b));
    !a.is_empty() && !b.is_empty() && a.is_disjoint(&b)
}

/// The products that a value is made of without others between.
fn layers_behind(model: &Model, x: ValueId) -> BTreeSet<NodeId> {
    let (mut layers, mut seen) = (BTreeSet::new(), BTreeSet::new());
    let mut stack = vec![x];
    while let Some(v) = stack.pop() {
        let Some(n) = model.producer(v).filter(|n| seen.len() < MOST_NODES && seen.insert(*n)) else { continue };
        match ops::spec(model, n).is_some_and(|s| s.class == Class::Product) {
            true => drop(layers.insert(n)),
            false => stack.extend(model.node(n).inputs().iter().flatten()),
        }
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Tensor, text};

    #[test]
    fn a_number_far_from_the_others() {
        let mut model = text::parse(
            "<ir_version: 8, opset_import: [\"\" : 17]> g (float[n, 64] x) => (float y, float z)
            <float w = {0}, float v = {0}> { [a] y = MatMul(x, w) [b] z = MatMul(x, v) }",
        )
        .unwrap();
        for (name, far) in [("w", 1.0), ("v", 3000.0)] {
            let v = model.find_value(model.main(), name).unwrap();
            let number = |i: usize| (i as f32 * 0.7 + 0.1).sin() * if i < 2 { far } else { 1.0 };
            let tensor = Tensor::from_f32(&[64, 2], &(0..128).map(number).collect::<Vec<_>>());
            model.set_initializer(v, Some(tensor));
        }
        let target = Target::load("onnxruntime-cpu").unwrap();
        let mut wishes = Wishes { dynamic: true, ..Wishes::default() };
        let found = |wishes: &Wishes| fragile_weights(&model, &target, &Scheme::default(), wishes).unwrap();
        let reasons: Vec<_> = found(&wishes).into_iter().map(|(n, text)| (model.node_label(n), text)).collect();
        assert!(reasons.len() == 1 && reasons[0].0 == "b" && reasons[0].1.contains("of the 128"), "{reasons:?}");
        wishes.ignore_cost = true;
        assert!(found(&wishes).is_empty());
        assert!(found(&Wishes::default()).is_empty());
    }

    #[test]
    fn gates_of_other_layers() {
        let model = text::parse(
            "<ir_version: 8, opset_import: [\"\" : 17]> g (float[n, 2] x) => (float y, float z)
            <float[2, 2] w = {1, 2, 3, 4}, float[2, 2] v = {1, 2, 3, 4}> {
                a = MatMul(x, w) b = MatMul(x, v) s = Sigmoid(a) silu = Mul(a, s) gated = Mul(silu, b)
                [down] y = MatMul(gated, w) [plain] z = MatMul(silu, w)
            }",
        )
        .unwrap();
        let mut wishes = Wishes { dynamic: true, ..Wishes::default() };
        let labels = |wishes: &Wishes| -> Vec<String> {
            gated_products(&model, wishes).into_keys().map(|n| model.node_label(n)).collect()
        };
        assert_eq!(labels(&wishes), ["down"]);
        wishes.ignore_cost = true;
        assert!(labels(&wishes).is_empty());
    }
}
