//! From placement and ranges to the plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Activation, Form, Learned, NodePlan, Plan, Readers, Weight, averages, known, named_values, saturation, weights,
};
use crate::{
    analysis::{
        placement::{self, Decision, Placement},
        types,
    },
    error::Result,
    ir::{DType, Model, NodeId, ValueId},
    ops::{self, Role},
    quant::{
        Grid,
        params::{QParams, QuantTarget, Range},
    },
    target::{Target, ZeroPoints},
};

/// The types and forms to quantize with.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheme {
    /// Activations.
    pub activation: QuantTarget,
    /// Weights.
    pub weight: QuantTarget,
    /// Weights have a scale per output channel.
    pub per_channel: bool,
    /// Per node, where the user asks for other weights.
    pub weights: BTreeMap<NodeId, (QuantTarget, bool)>,
    /// How weights are rounded: the name of an algorithm.
    pub algorithm: String,
    /// Per node, where the user asks for another algorithm.
    pub algorithms: BTreeMap<NodeId, String>,
    /// Per value, where the user asks for other activations.
    pub activations: BTreeMap<ValueId, QuantTarget>,
    /// What values are rounded to by training.
    pub grids: BTreeMap<ValueId, Grid>,
    /// The codes of weights that training has chosen.
    pub learned: Arc<Learned>,
    /// Which int8 values become uint8 with the same numbers, for a runtime that computes in uint8.
    pub as_uint8: AsUint8,
}

/// Which int8 values become uint8, with a zero point 128 higher: the same numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AsUint8 {
    /// None.
    #[default]
    None,
    /// Those that the runtime does not change by itself in Q/DQ form: with several readers, or beside a constant.
    Shared,
    /// All: integer operators of a file stay what they are, and those of int8 are slower than float.
    All,
}

impl Default for Scheme {
    fn default() -> Self {
        Self {
            activation: QuantTarget { dtype: DType::Uint8, symmetric: false, reduce_range: false },
            weight: QuantTarget { dtype: DType::Int8, symmetric: true, reduce_range: false },
            per_channel: true,
            weights: BTreeMap::new(),
            algorithm: weights::default_algorithm(),
            algorithms: BTreeMap::new(),
            activations: BTreeMap::new(),
            grids: BTreeMap::new(),
            learned: Arc::default(),
            as_uint8: AsUint8::None,
        }
    }
}

impl Scheme {
    /// The algorithm that rounds the weight of a node.
    pub fn algorithm(&self, node: NodeId) -> &str {
        self.algorithms.get(&node).unwrap_or(&self.algorithm)
    }
}

/// Makes the plan. `range_of` gives the range of a root value under the type it is quantized to.
pub fn decide(
    model: &Model,
    target: &Target,
    placement: &Placement,
    scheme: &Scheme,
    mut range_of: impl FnMut(ValueId, QuantTarget) -> Result<Range>,
) -> Result<Plan> {
    let cpu = target.other_cpu().map(str::to_owned);
    let mut plan = Plan { target: target.name.clone(), cpu, ..Plan::default() };
    let mut roots: BTreeMap<ValueId, QParams> = BTreeMap::new();
    let vanishes = placement.nodes.iter().filter(|(_, d)| matches!(d, Decision::Absorbed(_)));
    let absorbed: BTreeSet<NodeId> = vanishes.map(|(n, _)| *n).collect();
    let mut clips: BTreeMap<ValueId, [i32; 2]> = BTreeMap::new();
    for root in placement.roots() {
        let bounds = absorbed_bounds(model, &absorbed, root);
        if let Some(grid) = learned_grid(placement, scheme, root) {
            let grid = bounds.iter().fold(grid, |grid, &(lo, hi)| grid.clamped(lo, hi)).in_codes_of(target.activation);
            roots.insert(root, grid.params);
            clips.extend(grid.clip().map(|clip| (root, clip)));
            continue;
        }
        let types = scheme.activations.get(&root).copied().unwrap_or(scheme.activation);
        let range = within(range_of(root, types)?, &bounds);
        roots.insert(root, types.params(range).map_err(|e| e.value(model.value(root).name()))?);
    }
    let integer = placement.nodes.iter().filter(|(_, d)| matches!(d, Decision::Integer(_)));
    let integer: BTreeSet<NodeId> = integer.map(|(n, _)| *n).collect();
    averages::widen(model, &types::infer(model), placement, &mut roots);
    for (&v, q) in &placement.values {
        let Some(&(mut params)) = roots.get(&q.root) else { continue };
        let changes = match scheme.as_uint8 {
            AsUint8::None => false,
            AsUint8::Shared => !is_alone(model, &integer, v, q.readers),
            AsUint8::All => true,
        };
        if changes && params.dtype == DType::Int8 {
            params = params.as_uint8();
        }
        // What only moves codes makes none that were not there.
        let clip = clips.get(&v).copied();
        let readers = match q.readers {
            placement::Readers::All => Readers::All,
            placement::Readers::Integer => Readers::Integer,
        };
        let activation =
            Activation { dtype: params.dtype, scale: params.scale, zero_point: params.zero_point, clip, readers };
        plan.activations.insert(model.value(v).name().to_owned(), activation);
    }
    let names = named_values(model);
    for (id, decision) in &placement.nodes {
        let node = model.node(*id);
        let Some(out) = node.outputs().iter().copied().flatten().next() else { continue };
        let key = model.value(out).name();
        // A node of a subgraph whose output's name stands for something else too; placement leaves it in float.
        if names.get(key) != Some(&out) {
            continue;
        }
        let name = node.name.clone().filter(|n| !n.is_empty());
        let mut entry = NodePlan::new(name, &node.op_type, Form::Float);
        match decision {
            Decision::Integer(kernel) => {
                entry.becomes = Form::Integer;
                entry.kernel = Some(kernel.clone());
                entry.weight = learned_weight(model, scheme, *id)?.or_else(|| weight(model, scheme, *id));
            }
            Decision::Dynamic(kernel) => {
                entry.becomes = Form::Dynamic;
                entry.kernel = Some(kernel.clone());
                entry.weight = dynamic_weight(model, target, scheme, *id);
            }
            Decision::Absorbed(_) => entry.becomes = Form::Absorbed,
            Decision::Float(reason) => {
                entry.reason = Some(reason.clone());
                entry.fenced = target.requantizes(&node.op_type) && between_codes(model, target, placement, *id);
            }
        }
        plan.nodes.insert(key.to_owned(), entry);
    }
    saturation::avoid(model, target, &mut plan)?;
    Ok(plan)
}

/// What training rounds a root to, or a value that shares its scale.
pub fn learned_grid(placement: &Placement, scheme: &Scheme, root: ValueId) -> Option<Grid> {
    let mut sharing = placement.values.iter().filter(|(_, q)| q.root == root);
    scheme.grids.get(&root).copied().or_else(|| sharing.find_map(|(v, _)| scheme.grids.get(v).copied()))
}

/// The bounds of the absorbed clamps that make the value, the last one first.
fn absorbed_bounds(model: &Model, absorbed: &BTreeSet<NodeId>, value: ValueId) -> Vec<(f32, f32)> {
    let maker = |v: ValueId| model.producer(v).filter(|n| absorbed.contains(n));
    let before = |&clamp: &NodeId| model.node(clamp).input(0).and_then(maker);
    let clamps = std::iter::successors(maker(value), before);
    clamps.filter_map(|clamp| ops::clamp_bounds(model, clamp)).collect()
}

/// The weight of a node as training has left it.
fn learned_weight(model: &Model, scheme: &Scheme, id: NodeId) -> Result<Option<Weight>> {
    let found = scheme.learned.weight_of(model, id)?;
    Ok(found.map(|q| Weight {
        dtype: q.values.dtype(),
        axis: q.axis,
        symmetric: q.params.iter().all(|p| p.zero_point == 0),
        reduce_range: false,
        pair_axes: Vec::new(),
        learned: true,
        algorithm: weights::default_algorithm(),
    }))
}

/// The range cut to the bounds of the absorbed clamps that make the value: its ends stand in for them.
fn within(range: Range, bounds: &[(f32, f32)]) -> Range {
    bounds.iter().fold(range, |range, &(lo, hi)| Range::new(range.lo.clamp(lo, hi), range.hi.clamp(lo, hi)))
}

/// Whether one node alone reads what is quantized, with no constant beside it: the runtime changes the type of such a pair
/// by itself, but not that of a constant.
fn is_alone(model: &Model, integer: &BTreeSet<NodeId>, v: ValueId, readers: placement::Readers) -> bool {
    let reads: Vec<_> = match readers {
        placement::Readers::All if model.value(v).readers().count() != model.value(v).uses().len() => return false,
        placement::Readers::All => model.value(v).readers().collect(),
        placement::Readers::Integer => model.value(v).readers().filter(|(n, _)| integer.contains(n)).collect(),
    };
    let &[(reader, _)] = &reads[..] else { return false };
    let spec = ops::spec(model, reader);
    let constant =
        |i: usize| model.constant_input(reader, i).is_some() && spec.is_some_and(|s| s.role(i) == Role::Data);
    !(0..model.node(reader).inputs().len()).any(constant)
}

/// Whether a node reads what an integer kernel made, and what it makes is quantized again, clamps and movements between.
fn between_codes(model: &Model, target: &Target, placement: &Placement, id: NodeId) -> bool {
    let node = model.node(id);
    let quantized = |v: ValueId| placement.values.get(&v);
    let made = |v: ValueId| quantized(v).is_some_and(|q| q.readers == placement::Readers::All);
    if !node.in_onnx_domain() || !node.input(0).is_some_and(made) {
        return false;
    }
    let mut next = node.output(0);
    while let Some(v) = next {
        if quantized(v).is_some() {
            return true;
        }
        let reader = model.sole_reader(v).filter(|r| r.1 == 0);
        let passed = |op: &str| target.is_clamp(op) || target.passes_through(op);
        next = reader.map(|(n, _)| model.node(n)).filter(|n| passed(&n.op_type)).and_then(|n| n.output(0));
    }
    false
}

/// How the weight of a node is quantized whose data have ranges from calibration.
pub(super) fn weight(model: &Model, scheme: &Scheme, id: NodeId) -> Option<Weight> {
    let spec = ops::spec(model, id)?;
    let tensor = model.constant_input(id, spec.index_of(Role::Weight)?)?;
    let (types, per_channel) = scheme.weights.get(&id).copied().unwrap_or((scheme.weight, scheme.per_channel));
    let axis = if per_channel { spec.weight_axis(model.node(id), tensor.rank()) } else { None };
    let (symmetric, reduce_range) = (types.symmetric, types.reduce_range);
    let algorithm = match known::layout(model, id) {
        Some(_) => scheme.algorithm(id).to_owned(),
        None => weights::default_algorithm(),
    };
    Some(Weight { dtype: types.dtype, axis, symmetric, reduce_range, pair_axes: Vec::new(), learned: false, algorithm })
}

/// How the weight of a node is quantized whose data are quantized at run time.
pub fn dynamic_weight(model: &Model, target: &Target, scheme: &Scheme, id: NodeId) -> Option<Weight> {
    let mut weight = weight(model, scheme, id)?;
    if let Some(Ok(row)) = target.dynamic_kernel(model, id) {
        // Unless the user asks for something else at this very node.
        if !scheme.weights.contains_key(&id) {
            weight.dtype = row.weight.unwrap_or(weight.dtype);
            weight.axis = weight.axis.filter(|_| !row.per_tensor);
        }
        weight.symmetric |= weight.axis.is_some() && row.zero_points == ZeroPoints::PerWeight;
    }
    Some(weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::testing::model;

    #[test]
    fn values_that_several_nodes_read_are_uint8() {
        let m = model(
            "float[1,2] x \n float[1,2] c = {1, 2} \n a = Sigmoid(x) \n b = Sigmoid(a) \n d = Add(a, b) \n e = Mul(d, c) \n return e",
        );
        let target = Target::load("onnxruntime-cpu").unwrap();
        let mut placement = Placement::default();
        for n in m.nodes(m.main()) {
            placement.nodes.push((n, Decision::Integer("K".into())));
            for v in m.node(n).inputs().iter().chain(m.node(n).outputs()).flatten() {
                if m.value(*v).constant().is_none() {
                    let q = placement::Quantized { readers: placement::Readers::All, root: *v };
                    placement.values.insert(*v, q);
                }
            }
        }
        let int8 = QuantTarget { dtype: DType::Int8, symmetric: false, reduce_range: false };
        let mut scheme = Scheme { activation: int8, as_uint8: AsUint8::Shared, ..Scheme::default() };
        let plan = |scheme: &Scheme| decide(&m, &target, &placement, scheme, |_, _| Ok(Range::new(-1.0, 3.0))).unwrap();
        let (mixed, plain) = (plan(&scheme), {
            scheme.as_uint8 = AsUint8::None;
            plan(&scheme)
        });
        // Two readers, a constant beside it, and no reader but the caller: uint8.
        for (name, dtype) in
            [("x", DType::Int8), ("b", DType::Int8), ("a", DType::Uint8), ("d", DType::Uint8), ("e", DType::Uint8)]
        {
            let (now, then) = (&mixed.activations[name], &plain.activations[name]);
            assert_eq!((now.dtype, then.dtype, now.scale), (dtype, DType::Int8, then.scale), "{name}");
            assert_eq!(now.zero_point - then.zero_point, if dtype == DType::Uint8 { 128 } else { 0 }, "{name}");
        }
    }
}
