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
    Context, convert_opset, fuse_into_gather_blocks, fuse_into_matmul_nbits,
    raise_matmul_nbits::needed_opset,
    support::{convert::convert, lazy},
};
use crate::{
    error::{Error, Result},
    ir::{GraphId, Model, NodeId, NodeSpec, Place, Tensor, ValueId},
    onnx_file,
    plan::{self, FewBits, Form, KnownReads, Plan, named_values},
    weights::{self, BlockedWeight, Layer, Layout},
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
    let sizes = nodes.iter().filter_map(|&id| model.value(plan::weight_of(model, id)?).constant());
    let bytes: usize = sizes.map(Tensor::byte_len).sum();
    let deferred = cx.options.stream_weights.is_some_and(|most| bytes > most);
    let mut rounder = Rounder { model, known: &cx.known, deferred, rounded: HashMap::new() };
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

/// A weight, the graph that reads it, how it lies and is quantized, and whether its codes lie as `[outs, depth]`.
type Key = (ValueId, GraphId, Layout, FewBits, bool);

struct Rounder<'a> {
    model: &'a mut Model,
    known: &'a KnownReads,
    /// Weights are rounded when they are written.
    deferred: bool,
    /// Codes, scales and zero points of weights.
    rounded: HashMap<Key, [Option<ValueId>; 3]>,
}

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
            let inputs = self.model.node(id).inputs().to_vec();
            convert(self.model, id, "Gemm", &inputs, Vec::new());
        }
        Ok(())
    }

    fn rounded(&mut self, id: NodeId, value: ValueId, how: &FewBits, outs_first: bool) -> Result<[Option<ValueId>; 3]> {
        // Where the node is: ONNX Runtime makes no kernel in a branch of what stands outside of it.
        let graph = self.model.node(id).graph();
        let layout = plan::few_bits_layout(self.model, id).ok_or_else(|| Error::config("its weight is no matrix"))?;
        let key = (value, graph, layout, how.clone(), outs_first);
        if let Some(&found) = self.rounded.get(&key) {
            return Ok(found);
        }
        let name = self.model.value(value).name().to_owned();
        let tensor = self.model.value(value).constant().cloned();
        let tensor = tensor.ok_or_else(|| Error::config("its weight is not constant"))?;
        let grid = how.grid()?;
        let [codes, scales, zeros] = match self.deferred {
            true => {
                let (block, algorithm) = (how.block_size, how.algorithm.clone());
                let like = Layer::new(layout, block, grid, None).like(outs_first);
                let at = name.clone();
                lazy::deferred(like, move || {
                    let layer = Layer::new(layout, block, grid, None);
                    round(&layer, &tensor, &algorithm, outs_first).map_err(|e| e.value(&at))
                })?
            }
            false => {
                let known = self.known.of(&name);
                let layer = Layer::new(layout, how.block_size, grid, known.reads());
                let rounded = round(&layer, &tensor, &how.algorithm, outs_first).map_err(|e| e.value(&name))?;
                let BlockedWeight { codes, scales, zeros } = rounded;
                [Some(codes), Some(scales), zeros]
            }
        };
        let mut add = |suffix: &str, t: Option<Tensor>| {
            t.map(|t| self.model.add_initializer(graph, &format!("{name}_{suffix}"), t))
        };
        let found = [add("quantized", codes), add("scale", scales), add("zero_point", zeros)];
        self.rounded.insert(key, found);
        Ok(found)
    }
}

fn round(layer: &Layer<'_>, tensor: &Tensor, algorithm: &str, outs_first: bool) -> Result<BlockedWeight> {
    let rounded = layer.rounded(tensor, weights::by_name(algorithm)?, outs_first)?;
    onnx_file::give_back(tensor);
    Ok(rounded)
}
