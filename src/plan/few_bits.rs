//! Weights of float nodes in few bits, for kernels that read the codes: which nodes have them, and how.

use serde::{Deserialize, Serialize};

use super::{Form, NodePlan, Plan, known, named_values, store::SMALLEST, weights::default_algorithm};
use crate::{
    diagnostics::count,
    error::{Error, Result},
    ir::{DType, Model, NodeId, Tensor, ValueId},
    ops::GATHER_BLOCKS,
    target::{Target, WeightOnly},
    weights::{self, Grid, Layout},
};

/// Sizes of blocks that the kernels take.
pub const BLOCK_SIZES: &[usize] = &[16, 32, 64, 128, 256];

/// How the weight of a node is stored in few bits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FewBits {
    /// Type of the codes: of 2, 4 or 8 bits.
    pub dtype: DType,
    /// Weights along the depth that share a scale.
    pub block_size: usize,
    /// All zero points in the middle of the codes.
    pub symmetric: bool,
    /// How it is rounded.
    #[serde(default = "default_algorithm", skip_serializing_if = "super::weights::is_default_algorithm")]
    pub algorithm: String,
}

impl FewBits {
    /// The codes.
    pub fn grid(&self) -> Result<Grid> {
        Grid::of(self.dtype, self.symmetric)
    }
}

/// Gives the nodes that are `wanted` a weight in few bits, where the target has a kernel and the node is float by the plan; the
/// others get the reason why not. Those of subgraphs, too, as far as names tell them apart.
pub fn weights_in_few_bits(
    model: &Model,
    plan: &mut Plan,
    target: &Target,
    wanted: impl Fn(NodeId) -> Option<FewBits>,
) {
    let names = named_values(model);
    for id in model.nodes_below(model.main()) {
        let node = model.node(id);
        let Some(out) = node.output(0).filter(|&v| names.get(model.value(v).name()) == Some(&v)) else { continue };
        let Some(how) = wanted(id) else { continue };
        let key = model.value(out).name();
        if plan.nodes.get(key).is_some_and(|n| n.becomes != Form::Float) {
            continue;
        }
        let weight = weight_of(model, id).map(|v| model.value(v).name());
        if let Some(packed) = weight.and_then(|name| plan.packed_weights.get(name)) {
            let tensor = weight_of(model, id).and_then(|v| model.value(v).constant());
            let rows = tensor.and_then(|t| t.dims().first()).copied().unwrap_or(1);
            let exact = tensor.is_some_and(|t| [1, rows].iter().any(|&rows| super::packed_exactly(t, rows).is_some()));
            let bits = count(packed.bits, "bit");
            let text = match exact {
                true => {
                    format!("its weight has {} numbers only, and is packed in {bits} without loss", packed.bits + 1)
                }
                false => format!("its weight is packed in {bits}, and float again when the file is loaded"),
            };
            if let Some(entry) = plan.nodes.get_mut(key) {
                entry.reason = Some(text);
            }
            continue;
        }
        match check(model, target, id, &how) {
            None => {}
            Some(Ok((row, how))) => {
                let name = node.name.clone().filter(|n| !n.is_empty());
                let entry = NodePlan {
                    kernel: Some(row.kernel.clone()),
                    few_bits: Some(how),
                    ..NodePlan::new(name, &node.op_type, Form::WeightOnly)
                };
                plan.nodes.insert(key.to_owned(), entry);
            }
            Some(Err(why)) => {
                if let Some(entry) = plan.nodes.get_mut(key) {
                    entry.reason = Some(why);
                }
            }
        }
    }
}

/// Whether a node can have a weight in few bits, as it can: a smaller block where the depth asks for it. `None` for operators
/// that no kernel of the kind is for.
pub fn check<'t>(
    model: &Model,
    target: &'t Target,
    id: NodeId,
    how: &FewBits,
) -> Option<std::result::Result<(&'t WeightOnly, FewBits), String>> {
    let node = model.node(id);
    let row = target.weight_only.iter().find(|row| node.is(&row.op))?;
    let of = if node.is("Gather") { "table" } else { "weight" };
    Some((|| {
        let weight = weight_of(model, id).ok_or("it has no weight")?;
        let Some(tensor) = model.value(weight).constant() else { return Err(format!("its {of} is not a constant")) };
        if tensor.dtype() != DType::Float {
            return Err(format!("its {of} is of type {}, not float", tensor.dtype()));
        }
        if tensor.len() < SMALLEST {
            return Err(format!("its {of} has {} elements only", tensor.len()));
        }
        if model.value(weight).is_graph_output() {
            return Err(format!("its {of} is an output of the model"));
        }
        let bits = how.dtype.bits();
        if !row.bits.contains(&bits) {
            return Err(format!("{} takes no weights of {bits} bits", row.kernel));
        }
        let Some(layout) = layout(model, id) else {
            return Err(format!("{} has no form of it: {}", row.kernel, odd(model, id, tensor)));
        };
        let mut how = how.clone();
        if row.kernel == GATHER_BLOCKS && !layout.depth.is_multiple_of(how.block_size) {
            // Rows of a table are whole numbers of blocks.
            let fits = |size: &&usize| layout.depth.is_multiple_of(**size) && **size < how.block_size;
            let Some(&size) = BLOCK_SIZES.iter().rev().find(fits) else {
                return Err(format!("rows of its table have {} elements, no multiple of 16", layout.depth));
            };
            how.block_size = size;
        }
        if how.block_size < row.least_block {
            return Err(format!("{} takes no blocks of {}", row.kernel, how.block_size));
        }
        if !weights::by_name(&how.algorithm).is_ok_and(|a| a.reads) || known::layout(model, id).is_some() {
            return Ok((row, how));
        }
        // Nothing is multiplied with a table: its rows are read as they are.
        how.algorithm = weights::MSE.to_owned();
        Ok((row, how))
    })())
}

/// How the weight of a node lies: its outputs, or the rows of a table, and what is cut into blocks.
pub fn layout(model: &Model, id: NodeId) -> Option<Layout> {
    let node = model.node(id);
    if node.is("Gather") {
        let table = model.constant_input(id, 0)?;
        let &[outs, depth] = table.dims() else { return None };
        let whole = node.int("axis").unwrap_or(0) == 0;
        return whole.then_some(Layout { outs, depth, groups: 1, depth_first: false });
    }
    let scaled = |name| node.float(name).is_some_and(|x| x != 1.0);
    if node.is("Gemm") && (scaled("alpha") || scaled("beta") && node.input(2).is_some()) {
        return None;
    }
    known::layout(model, id).filter(|_| node.is("MatMul") || node.is("Gemm"))
}

/// Why there is no layout.
fn odd(model: &Model, id: NodeId, weight: &Tensor) -> String {
    match weight.dims() {
        [_, _] if model.node(id).is("Gather") => "it does not gather rows".to_owned(),
        [_, _] => "alpha, beta or transA".to_owned(),
        dims => format!("its weight is no matrix, but {dims:?}"),
    }
}

/// The value of a node that has the weight.
pub fn weight_of(model: &Model, id: NodeId) -> Option<ValueId> {
    model.node(id).input(weight_input(model, id))
}

/// The number of the input that has it.
pub fn weight_input(model: &Model, id: NodeId) -> usize {
    usize::from(!model.node(id).is("Gather"))
}

/// Refuses what cannot be carried out.
pub(super) fn refuse(model: &Model, target: &Target, entry: &NodePlan, id: NodeId) -> Result<()> {
    let how = entry.few_bits.as_ref();
    let how =
        how.ok_or_else(|| Error::config("it is weight-only, but the plan does not say in which bits (few_bits)"))?;
    if !BLOCK_SIZES.contains(&how.block_size) {
        let text = format!("few_bits.block_size is {}, must be one of {BLOCK_SIZES:?}", how.block_size);
        return Err(Error::config(text));
    }
    how.grid()?;
    let found = weights::by_name(&how.algorithm)?;
    if found.blocks.is_none() {
        return Err(Error::config(format!("{} does not round blocks", found.name)));
    }
    match check(model, target, id, how) {
        Some(Ok((_, can))) if can.block_size == how.block_size => Ok(()),
        Some(Ok((_, can))) => {
            Err(Error::config(format!("blocks of {} do not fit, blocks of {} do", how.block_size, can.block_size)))
        }
        Some(Err(why)) => Err(Error::config(why)),
        None => Err(Error::config(format!("{} has no kernel of the kind for {}", target.name, entry.op))),
    }
}
