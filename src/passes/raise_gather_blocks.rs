//! Makes of GatherBlockQuantized a Gather whose table a DequantizeLinear with blocks makes.
//!
//! ```text
//! before: y = com.microsoft.GatherBlockQuantized<quantize_axis = 1, block_size = 32, bits = 4>(codes, i, scales)
//! after:  y = Gather(DequantizeLinear<axis = 1, block_size = 32>(codes, scales), i)
//! ```
//!
//! Only tables of two dims that are gathered row by row. Needs opset 21 (25 for 2 bits), which the model is converted to; where that
//! cannot be, the node stays. The inverse of [`super::fuse_into_gather_blocks`].

use super::{
    Context, convert_opset,
    fuse_into_gather_blocks::from_bytes,
    raise_matmul_nbits::needed_opset,
    support::{
        pairs::{forget_import, stay},
        replace::insert_instead,
    },
};
use crate::{
    diagnostics::Diagnostic,
    error::Result,
    ir::{DType, Model, NodeId, NodeSpec, Place, Tensor, ValueId},
    ops::{GATHER_BLOCKS, MICROSOFT},
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let all = model.all_nodes();
    let is =
        |n: &NodeId| model.node(*n).op_type == GATHER_BLOCKS && model.node(*n).domain.as_deref() == Some(MICROSOFT);
    let (mut found, mut odd) = (Vec::new(), Vec::new());
    for id in all.into_iter().filter(is) {
        match Table::of(model, id) {
            Some(table) => found.push((id, table)),
            None => odd.push(model.node_label(id)),
        }
    }
    if !odd.is_empty() {
        let text = format!("{}: its table is not one of rows in blocks", stay(&odd, GATHER_BLOCKS));
        cx.diagnostics.push(Diagnostic::note("not_raised", text));
    }
    let Some(needed) = found.iter().map(|(_, t)| needed_opset(t.bits)).max() else { return Ok(0) };
    if model.opset("").is_none_or(|v| v < needed) {
        let mut newer = model.clone();
        if let Err(e) = convert_opset::convert_to(&mut newer, needed, cx) {
            let labels: Vec<String> = found.iter().map(|(id, _)| model.node_label(*id)).collect();
            let text = format!("{}: the Q/DQ form needs opset {needed}, and {e}", stay(&labels, GATHER_BLOCKS));
            cx.diagnostics.push(Diagnostic::note("not_raised", text));
            return Ok(0);
        }
        *model = newer;
    }
    let count = found.len();
    for (id, table) in found {
        let (label, op) = (model.node_label(id), model.node(id).op_type.clone());
        table.raise(model, id).map_err(|e| e.node(label, op))?;
    }
    forget_import(model, MICROSOFT);
    Ok(count)
}

struct Table {
    codes: ValueId,
    scales: ValueId,
    zeros: Option<ValueId>,
    bits: usize,
    block: usize,
    /// Columns of the table and of its scales.
    columns: [usize; 2],
}

impl Table {
    fn of(model: &Model, id: NodeId) -> Option<Self> {
        let node = model.node(id);
        let [codes, scales] = [node.input(0)?, node.input(2)?];
        let constant = |v: ValueId| model.value(v).constant();
        let (table, scale) = (constant(codes)?, constant(scales)?);
        let block = usize::try_from(node.int("block_size").unwrap_or(128)).ok().filter(|b| b.is_power_of_two())?;
        let bits = match table.dtype() {
            DType::Int4 | DType::Uint4 => 4,
            DType::Uint8 => usize::try_from(node.int("bits").unwrap_or(4)).ok().filter(|b| [2, 4, 8].contains(b))?,
            _ => return None,
        };
        let per_byte = if table.dtype() == DType::Uint8 { 8 / bits } else { 1 };
        let (&[rows, stored], &[same, blocks]) = (table.dims(), scale.dims()) else { return None };
        let depth = stored.checked_mul(per_byte)?;
        let along = node.int("quantize_axis").unwrap_or(1);
        let fits = rows == same && depth == blocks.checked_mul(block)? && (along == 1 || along == -1);
        let plain = fits && node.int("gather_axis").unwrap_or(0) == 0 && scale.dtype() == DType::Float;
        let zeros = node.input(3);
        if !plain || zeros.is_some_and(|z| constant(z).is_none()) {
            return None;
        }
        Some(Self { codes, scales, zeros, bits, block, columns: [depth, blocks] })
    }

    fn raise(self, model: &mut Model, id: NodeId) -> Result<()> {
        let (graph, name) = (model.value(self.codes).graph(), model.value(self.codes).name().to_owned());
        let base = name.trim_end_matches(&format!("_Q{}", self.bits)).trim_end_matches("_quantized").to_owned();
        let (mut codes, mut zeros) = (self.codes, self.zeros);
        let in_bytes = |v: ValueId| model.value(v).constant().filter(|t| t.dtype() == DType::Uint8).cloned();
        if let Some(bytes) = in_bytes(self.codes) {
            let unsigned = from_bytes(&bytes, self.bits, self.columns[0])?;
            let zero = match self.zeros.and_then(in_bytes) {
                Some(z) => from_bytes(&z, self.bits, self.columns[1])?,
                None => {
                    let rows = unsigned.dims()[0];
                    let middle = vec![1 << (self.bits - 1); rows * self.columns[1]];
                    crate::quant::pack::pack(unsigned.dtype(), &[rows, self.columns[1]], &middle)?
                }
            };
            let mut add = |suffix: &str, t: Tensor| model.add_initializer(graph, &format!("{base}_{suffix}"), t);
            codes = add("quantized", unsigned);
            zeros = Some(add("zero_point", zero));
        }
        let spec = NodeSpec::new("DequantizeLinear")
            .inputs([Some(codes), Some(self.scales)].into_iter().chain(zeros.map(Some)))
            .attr("axis", 1i64)
            .attr("block_size", self.block as i64)
            .output(format!("{base}_DequantizeLinear_Output"));
        let real = model.insert_value(spec, Place::Before(id))?;
        let outputs = model.take_outputs(id);
        let mut spec = NodeSpec::new("Gather").inputs([Some(real), model.node(id).input(1)]);
        for v in outputs {
            spec = spec.output_value(v);
        }
        insert_instead(model, id, spec);
        model.remove_node(id);
        Ok(())
    }
}
