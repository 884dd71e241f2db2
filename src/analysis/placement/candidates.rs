//! What each node of the main graph could become, before anything is chosen.

use std::collections::HashMap;

use super::{Shapes, Wishes};
use crate::{
    analysis::types::{self, Types},
    ir::{DType, Model, NodeId, ValueId},
    ops::{self, Class, OpSpec, Role},
    target::{Constant, Kernel, Output, Target},
};

/// A node with what the tables say of it.
pub(super) struct Candidate<'a> {
    pub(super) id: NodeId,
    pub(super) spec: Option<&'static OpSpec>,
    /// The integer kernel it could become.
    pub(super) kernel: Option<&'a Kernel>,
    /// Whether the kernel's output is quantized in any case, and float readers read it dequantized.
    pub(super) quantizes: bool,
    /// Whether the runtime moves conversions past it.
    pub(super) passed_through: bool,
    /// Why there is none, or why it would stay float where nothing joins it.
    pub(super) reason: String,
    /// Its data inputs that are no constants.
    pub(super) data: Vec<ValueId>,
    /// Its outputs, behind the clamps that its saturation replaces.
    pub(super) outputs: Vec<ValueId>,
    /// The node that absorbs this one, if it is a clamp: an index into the nodes.
    pub(super) host: Option<usize>,
}

/// All nodes of the main graph in order.
pub(super) struct Candidates<'a> {
    pub(super) nodes: Vec<Candidate<'a>>,
    /// The node that makes a value, seen through absorbed clamps.
    pub(super) maker: HashMap<ValueId, usize>,
    /// The nodes that read a value as data; `usize::MAX` stands for a reader that is never integer.
    pub(super) readers: HashMap<ValueId, Vec<usize>>,
}

impl<'a> Candidates<'a> {
    pub(super) fn of(model: &Model, target: &'a Target, shapes: &Shapes, wishes: &Wishes) -> Self {
        let ids = model.nodes(model.main());
        let types = types::infer(model);
        let index: HashMap<NodeId, usize> = ids.iter().enumerate().map(|(i, &n)| (n, i)).collect();
        let mut nodes: Vec<_> = ids.iter().map(|&id| candidate(model, &types, target, shapes, wishes, id)).collect();
        let mut maker = HashMap::new();
        for i in 0..nodes.len() {
            let mut out = nodes[i].outputs.clone();
            if can_absorb(&nodes[i]) && !wishes.symmetric {
                let mirrored = |v: &ValueId| wishes.symmetric_values.contains(v);
                while let Some((clamp, behind)) = absorbable(model, target, out[0]).filter(|(_, v)| !mirrored(v)) {
                    nodes[index[&clamp]].host = Some(i);
                    out[0] = behind;
                }
            }
            // What an absorbed clamp hands out is made by the node that absorbs it.
            if nodes[i].host.is_none() {
                maker.extend(out.iter().map(|&v| (v, i)));
            }
            nodes[i].outputs = out;
        }
        let mut readers: HashMap<ValueId, Vec<usize>> = HashMap::new();
        for (i, node) in nodes.iter().enumerate() {
            for &v in &node.data {
                readers.entry(v).or_default().push(i);
            }
        }
        for v in nodes.iter().flat_map(|n| n.outputs.clone()).chain(model.graph(model.main()).inputs().iter().copied())
        {
            let known = readers.get(&v).map_or(0, Vec::len);
            // Graph outputs, subgraphs and inputs in other roles read the float value.
            if model.value(v).uses().len() > known {
                readers.entry(v).or_default().push(usize::MAX);
            }
        }
        Self { nodes, maker, readers }
    }

    /// Whether an integer kernel makes the value.
    pub(super) fn made_integer(&self, v: ValueId, integer: &[bool]) -> bool {
        self.maker.get(&v).is_some_and(|&i| integer[i])
    }

    /// Whether some integer kernel reads the value as data.
    pub(super) fn read_integer(&self, v: ValueId, integer: &[bool]) -> bool {
        self.readers.get(&v).is_some_and(|r| r.iter().any(|&i| i != usize::MAX && integer[i]))
    }

    /// Whether nothing but integer kernels reads the value.
    pub(super) fn only_integer_readers(&self, v: ValueId, integer: &[bool]) -> bool {
        self.readers.get(&v).is_some_and(|r| r.iter().all(|&i| i != usize::MAX && integer[i]))
    }
}

fn can_absorb(node: &Candidate) -> bool {
    node.kernel.is_some_and(|k| !k.same_scale) && node.outputs.len() == 1
}

/// The clamp that alone reads `v`, with its output, if the end of a quantized range can stand in for it.
fn absorbable(model: &Model, target: &Target, v: ValueId) -> Option<(NodeId, ValueId)> {
    let (clamp, 0) = model.sole_reader(v)? else { return None };
    if !target.is_clamp(&model.node(clamp).op_type) {
        return None;
    }
    let (lo, hi) = ops::clamp_bounds(model, clamp)?;
    // The range always includes zero, so a clamp that cuts zero off is not its end; and it always holds more than zero.
    (lo <= 0.0 && hi >= 0.0 && lo < hi).then(|| model.node(clamp).output(0).map(|out| (clamp, out)))?
}

fn candidate<'a>(
    model: &Model,
    types: &Types,
    target: &'a Target,
    shapes: &Shapes,
    wishes: &Wishes,
    id: NodeId,
) -> Candidate<'a> {
    let node = model.node(id);
    let spec = ops::spec(model, id);
    let outputs = node.outputs().iter().copied().flatten().collect();
    let passed_through = node.in_onnx_domain() && target.passes_through(&node.op_type);
    let (kernel, reason, data, host) = (None, String::new(), Vec::new(), None);
    let mut c = Candidate { id, spec, kernel, quantizes: false, passed_through, reason, data, outputs, host };
    match conditions(model, target, shapes, id, spec, &mut c.data) {
        Ok(_) if wishes.at_run_time(model, id) => {
            c.data.clear();
            c.reason = "no kernel that quantizes its data at run time".to_owned();
        }
        Ok(kernel) => {
            c.quantizes = kernel.output == Output::Required || required_by_reader(model, types, kernel, id);
            c.kernel = Some(kernel);
        }
        Err(reason) => c.reason = reason,
    }
    if let Some(rule) = wishes.keep_float.get(&id) {
        c.kernel = None;
        c.reason.clone_from(rule);
    }
    c
}

fn conditions<'a>(
    model: &Model,
    target: &'a Target,
    shapes: &Shapes,
    id: NodeId,
    spec: Option<&OpSpec>,
    data: &mut Vec<ValueId>,
) -> Result<&'a Kernel, String> {
    let kernel = target.kernel(model, id)?;
    let node = model.node(id);
    let spec = spec.ok_or("no integer kernel")?;
    for (i, input) in node.inputs().iter().enumerate() {
        let Some(v) = *input else { continue };
        let constant = model.value(v).constant();
        match (spec.role(i), constant) {
            (Role::Weight, Some(t)) if t.dtype() == DType::Float && weight_fits(spec, t.rank()) => {}
            (Role::Weight, Some(t)) => return Err(format!("its weight is {t:?}, which has no integer kernel")),
            (Role::Weight, None) => return Err(super::not_constant(model, v).to_owned()),
            (Role::Bias, Some(t)) if t.dtype() == DType::Float => {}
            (Role::Bias, _) => return Err("its bias is not a float constant".to_owned()),
            (Role::Data, None) if shapes.is_float(v) => data.push(v),
            (Role::Data, None) => return Err("it does not compute in float".to_owned()),
            (Role::Data, Some(t)) => {
                if kernel.constant == Constant::Never || t.dtype() != DType::Float {
                    return Err("it has a constant operand, which has no integer kernel".to_owned());
                }
            }
            (Role::Parameter, _) => {}
        }
    }
    if spec.class == Class::Product && !node.outputs().iter().flatten().any(|&v| shapes.is_float(v)) {
        return Err("its output was not seen in the sample run".to_owned());
    }
    if data.is_empty() {
        return Err("it has no data input".to_owned());
    }
    Ok(kernel)
}

/// Whether ONNX Runtime turns MatMul and Add into Gemm: for matrices, and for more dims where all are known.
fn becomes_gemm(types: &Types, input: Option<ValueId>) -> bool {
    input.is_some_and(|v| types.rank(v) == Some(2) || types.known_shape(v).is_some())
}

/// Whether the node's only reader is one before which the runtime has the integer kernel only with a quantized output.
fn required_by_reader(model: &Model, types: &Types, kernel: &Kernel, id: NodeId) -> bool {
    let Some((reader, _)) = model.node(id).output(0).and_then(|v| model.sole_reader(v)) else { return false };
    let op = &model.node(reader).op_type;
    let named = model.node(reader).in_onnx_domain() && kernel.required_before.contains(op);
    named && (op != "Add" || becomes_gemm(types, model.node(id).input(0)))
}

/// Matrix products take two-dimensional weights; convolutions any.
fn weight_fits(spec: &OpSpec, rank: usize) -> bool {
    if spec.name == "Conv" { rank >= 3 } else { rank == 2 }
}
