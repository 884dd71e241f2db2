//! Weights in few bits, where the plan calls nodes weight-only: a DequantizeLinear with blocks over the codes, of which the
//! runtime makes a kernel that reads them. A Gemm gets its weight as `[depth, outs]`. Tables of Gather keep their shape, and their
//! blocks lie along the rows (see [`super::fuse_into_gather_blocks`]).
//!
//! ```text
//! before: y = Gemm<transB = 1>(x, w, b)
//! after:  y = Gemm(x, DequantizeLinear<axis = 0, block_size = 32>(w_quantized, w_scale), b)
//! ```
//!
//! DequantizeLinear has blocks from opset 21 (25 for 2 bits), which the model is converted to unless all of them become operators
//! that need none (see [`super::fuse_into_matmul_nbits`]).

use std::collections::HashMap;

use super::{
    Context, convert_opset, fuse_into_gather_blocks, fuse_into_matmul_nbits, raise_matmul_nbits::needed_opset,
    support::convert::convert,
};
use crate::{
    error::{Error, Result},
    ir::{DType, GraphId, Model, NodeId, NodeSpec, Place, Tensor, ValueId},
    plan::{self, FewBits, Form, KnownReads, Plan, named_values},
    weights::{self, BlockedWeight, Layer},
};

/// See the module's documentation. Without a plan there is nothing to do.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let Some(plan) = cx.plan.take() else { return Ok(0) };
    let done = quantize_all(model, &plan, cx);
    cx.plan = Some(plan);
    done
}

fn quantize_all(model: &mut Model, plan: &Plan, cx: &mut Context) -> Result<usize> {
    let names = named_values(model);
    let mut found: HashMap<NodeId, FewBits> = HashMap::new();
    for (name, entry) in plan.nodes.iter().filter(|(_, n)| n.becomes == Form::WeightOnly) {
        let Some(id) = names.get(name).and_then(|&v| model.producer(v)) else { continue };
        let constant = plan::weight_of(model, id).is_some_and(|v| model.value(v).constant().is_some());
        if let Some(how) = entry.few_bits.as_ref().filter(|_| constant && model.node(id).is(&entry.op)) {
            found.insert(id, how.clone());
        }
    }
    if found.is_empty() {
        return Ok(0);
    }
    let nodes: Vec<NodeId> = model.nodes_below(model.main()).into_iter().filter(|n| found.contains_key(n)).collect();
    let mut rounder = Rounder { model, known: &cx.known, rounded: HashMap::new() };
    for &id in &nodes {
        let (label, op) = (rounder.model.node_label(id), rounder.model.node(id).op_type.clone());
        rounder.quantize(id, &found[&id]).map_err(|e| e.node(label, op))?;
    }
    // What needs no Q/DQ form needs no newer opset.
    fuse_into_matmul_nbits::run(model, cx)?;
    fuse_into_gather_blocks::run(model, cx)?;
    if let Some(opset) = needed(model).filter(|&opset| model.opset("").unwrap_or(1) < opset) {
        convert_opset::convert_to(model, opset, cx)?;
    }
    Ok(nodes.len())
}

/// The opset that the blocks of a model ask for.
fn needed(model: &Model) -> Option<i64> {
    let bits = |id: NodeId| {
        let node = model.node(id);
        let codes =
            node.input(0).filter(|_| node.is("DequantizeLinear") && node.int("block_size").is_some_and(|b| b > 0))?;
        Some(needed_opset(model.value(codes).constant()?.dtype().bits()))
    };
    model.all_nodes().into_iter().filter_map(bits).max()
}

struct Rounder<'a> {
    model: &'a mut Model,
    known: &'a KnownReads,
    /// Codes, scales and zero points of weights, by how they are quantized and whether they lie as `[outs, depth]`.
    rounded: HashMap<(ValueId, GraphId, FewBitsKey), [Option<ValueId>; 3]>,
}

type FewBitsKey = (DType, usize, bool, String, bool);

impl Rounder<'_> {
    fn quantize(&mut self, id: NodeId, how: &FewBits) -> Result<()> {
        let value = plan::weight_of(self.model, id).ok_or_else(|| Error::config("it has no weight"))?;
        let gather = self.model.node(id).is("Gather");
        let [codes, scales, zeros] = self.rounded(id, value, how, gather)?;
        let name = self.model.value(value).name().to_owned();
        let spec = NodeSpec::new("DequantizeLinear")
            .inputs([codes, scales].into_iter().chain(zeros.map(Some)))
            .attr("axis", i64::from(gather))
            .attr("block_size", how.block_size as i64)
            .output(format!("{name}_DequantizeLinear_Output"));
        let real = self.model.insert_value(spec, Place::Before(id))?;
        self.model.set_input(id, usize::from(!gather), Some(real));
        if self.model.node(id).is("Gemm") {
            let node = self.model.node(id);
            let inputs: Vec<Option<ValueId>> = node.inputs().to_vec();
            convert(self.model, id, "Gemm", &inputs, Vec::new());
        }
        Ok(())
    }

    fn rounded(&mut self, id: NodeId, value: ValueId, how: &FewBits, outs_first: bool) -> Result<[Option<ValueId>; 3]> {
        // Where the node is: ONNX Runtime makes no kernel in a branch of what stands outside of it.
        let graph = self.model.node(id).graph();
        let key = (how.dtype, how.block_size, how.symmetric, how.algorithm.clone(), outs_first);
        if let Some(&found) = self.rounded.get(&(value, graph, key.clone())) {
            return Ok(found);
        }
        let name = self.model.value(value).name().to_owned();
        let layout = plan::few_bits_layout(self.model, id).ok_or_else(|| Error::config("its weight is no matrix"))?;
        let tensor = self.model.value(value).constant().cloned();
        let tensor = tensor.ok_or_else(|| Error::config("its weight is not constant"))?;
        let known = self.known.of(&name);
        let layer = Layer::new(layout, how.block_size, how.grid()?, known.reads());
        let rounded = layer.round(&tensor, weights::by_name(&how.algorithm)?, outs_first)?;
        let BlockedWeight { codes, scales, zeros } = rounded;
        let mut add = |suffix: &str, t: Tensor| self.model.add_initializer(graph, &format!("{name}_{suffix}"), t);
        let codes = Some(add("quantized", codes));
        let scales = Some(add("scale", scales));
        let zeros = zeros.map(|z| add("zero_point", z));
        self.rounded.insert((value, graph, key), [codes, scales, zeros]);
        Ok([codes, scales, zeros])
    }
}
