//! Constants that stand in nodes.

use crate::ir::{AttrValue, Node, Tensor};

/// What a Constant node makes; `None` for other nodes, sparse constants and attributes that make no sense.
pub fn constant_tensor(node: &Node) -> Option<Tensor> {
    if !node.is("Constant") {
        return None;
    }
    node.attributes.iter().find_map(|a| match (a.name.as_str(), &a.value) {
        ("value", AttrValue::Tensor(t)) => Some(t.tensor.clone()),
        ("value_float", AttrValue::Float(f)) => Some(Tensor::from_f32(&[], &[*f])),
        ("value_floats", AttrValue::Floats(f)) => Some(Tensor::from_f32(&[f.len()], f)),
        ("value_int", AttrValue::Int(i)) => Some(Tensor::from_i64(&[], &[*i])),
        ("value_ints", AttrValue::Ints(i)) => Some(Tensor::from_i64(&[i.len()], i)),
        ("value_string", AttrValue::String(s)) => Tensor::strings(vec![], vec![s.clone()]).ok(),
        ("value_strings", AttrValue::Strings(s)) => Tensor::strings(vec![s.len()], s.clone()).ok(),
        _ => None,
    })
}
