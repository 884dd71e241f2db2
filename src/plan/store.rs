//! Which weights of float nodes are stored in 8 or 16 bits.

use std::collections::BTreeMap;

use super::{Form, Plan, Scheme, StoredWeight, known, packed, weights};
use crate::{
    ir::{DType, Model, NodeId, ValueId},
    ops,
};

/// Below this many elements, codes, scales and the two nodes that compute them back save nothing worth having.
pub(super) const SMALLEST: usize = 512;

/// Adds to the plan every weight that only float nodes read, in subgraphs too, and that the plan does not speak of yet; those that
/// have two or three numbers only are packed. `stored`
/// is the type that a node's weights shall be stored in, int8 or float16; `None` where the user wants them as they are. What
/// several nodes read is stored as the most exacting of them has it.
pub fn store_float_weights(model: &Model, plan: &mut Plan, scheme: &Scheme, stored: impl Fn(NodeId) -> Option<DType>) {
    packed::pack_exactly(model, plan, |n| stored(n).is_some());
    let mut found: BTreeMap<ValueId, StoredWeight> = BTreeMap::new();
    for v in model.value_ids() {
        let value = model.value(v);
        let Some(t) = value.constant() else { continue };
        let packed = plan.packed_weights.contains_key(value.name());
        if packed || t.dtype() != DType::Float || t.len() < SMALLEST || value.is_graph_output() {
            continue;
        }
        let axes = |(n, i): (NodeId, usize)| {
            let float = !is_integer(model, plan, n) && stored(n).is_some();
            ops::weight_axes(model, n, i, t.rank()).filter(|_| float)
        };
        let mut readers = value.readers();
        let Some(node) = value.readers().next().map(|(n, _)| n) else { continue };
        let Some(first) = readers.next().and_then(axes) else { continue };
        // Readers that would want other scales (an embedding that is the output layer too) still share the first one's.
        if !readers.all(|r| axes(r).is_some()) {
            continue;
        }
        let half = value.readers().any(|(n, _)| stored(n) == Some(DType::Float16));
        if half {
            if StoredWeight::fits_half(t) {
                found.insert(v, StoredWeight::half(DType::Float16));
            }
            continue;
        }
        let fits = known::layout(model, node)
            .is_some_and(|own| value.readers().all(|(n, i)| i == 1 && known::layout(model, n) == Some(own)));
        let algorithm = if fits { scheme.algorithm(node).to_owned() } else { weights::default_algorithm() };
        let stored =
            StoredWeight { dtype: DType::Int8, first_axis: *first.start(), last_axis: *first.end(), algorithm };
        let rows: usize = t.dims()[first].iter().product();
        // A scale for every few elements would be no saving.
        if rows * 8 <= t.len() {
            found.insert(v, stored);
        }
    }
    for (v, stored) in found {
        plan.stored_weights.entry(model.value(v).name().to_owned()).or_insert(stored);
    }
}

/// Whether the plan quantizes the node's weights for an integer kernel.
pub(super) fn is_integer(model: &Model, plan: &Plan, node: NodeId) -> bool {
    let out = model.node(node).outputs().iter().copied().flatten().next();
    let entry = out.and_then(|v| plan.nodes.get(model.value(v).name()));
    // Only dynamic nodes stand in subgraphs, and there the name is theirs alone.
    entry.is_some_and(|n| match n.becomes {
        Form::Integer | Form::Float8 => model.node(node).graph() == model.main(),
        Form::Dynamic | Form::WeightOnly => model.node(node).op_type == n.op,
        Form::Absorbed | Form::Half | Form::Float => false,
    })
}
