//! Which products must not be quantized at run time because rounding their weights would destroy what they compute.

use std::collections::BTreeMap;

use super::{Scheme, decide::dynamic_weight};
use crate::{
    analysis::placement::Wishes,
    error::Result,
    ir::{DType, Model, NodeId},
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
        let rounded = how.quantize_alike(tensor).and_then(|q| q.dequantized());
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
}
