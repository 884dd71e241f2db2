//! Weights that are stored in so few bits that files have no type for them, packed in bytes, and become float again when the runtime
//! loads the file: those that were trained to two or three numbers, exactly, and others where the user asks for size.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Plan,
    store::{SMALLEST, is_integer},
    weights::default_algorithm,
};
use crate::{
    error::{Error, Result},
    ir::{DType, Model, NodeId, Tensor, ValueId},
    ops,
    quant::pack,
    weights::{self, BlockedWeight, Grid, Layer, Layout},
};

/// How a weight is packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedWeight {
    /// Bits of a code: 1, 2 or 4.
    pub bits: usize,
    /// Elements, in their order, that share a scale; it divides the number of elements.
    pub block_size: usize,
    /// How it is rounded: binary and ternary change nothing where the weight has no other numbers.
    #[serde(default = "default_algorithm", skip_serializing_if = "super::weights::is_default_algorithm")]
    pub algorithm: String,
}

/// The codes of a packed weight, from 0 on: an element is `scale * (code - zero)`.
#[derive(Debug, Clone)]
pub struct Packed {
    /// One for each element.
    pub codes: Vec<i32>,
    /// One for each block.
    pub scales: Vec<f32>,
    /// The same for all.
    pub zero: f32,
}

impl PackedWeight {
    /// The weight's codes.
    pub fn round(&self, tensor: &Tensor) -> Result<Packed> {
        let binary = self.bits == 1;
        let dtype = if self.bits == 4 { DType::Int4 } else { DType::Int2 };
        if !matches!(self.bits, 1 | 2 | 4) || self.block_size == 0 || !tensor.len().is_multiple_of(self.block_size) {
            let (bits, size, len) = (self.bits, self.block_size, tensor.len());
            return Err(Error::config(format!("{len} weights cannot be packed in {bits} bits and blocks of {size}"))
                .help("bits are 1, 2 or 4, and blocks divide the number of weights"));
        }
        let (outs, depth) = (tensor.len() / self.block_size, self.block_size);
        let layout = Layout { outs, depth, groups: 1, depth_first: false };
        let grid = Grid::of(dtype, true)?;
        let algorithm = weights::by_name(if binary { "binary" } else { &self.algorithm })?;
        let layer = Layer::new(layout, depth, grid, None);
        let BlockedWeight { codes, scales, .. } = layer.rounded(tensor, algorithm, true)?;
        let codes = pack::unpack(&codes)?;
        let scales = scales.to_f32()?;
        // Two signs are half a step beside the middle.
        Ok(match binary {
            true => {
                // Blocks of zeros have no sign.
                let twice = |(block, s): (&[i32], &f32)| if block.iter().all(|c| *c == 0) { 0.0 } else { 2.0 * s };
                Packed {
                    scales: codes.chunks(depth).zip(&scales).map(twice).collect(),
                    codes: codes.iter().map(|c| i32::from(*c > 0)).collect(),
                    zero: 0.5,
                }
            }
            false => Packed { codes: codes.iter().map(|c| c - grid.lo).collect(), scales, zero: -grid.lo as f32 },
        })
    }

    /// The numbers that the runtime will compute with.
    pub fn unpacked(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let Packed { codes, scales, zero } = self.round(tensor)?;
        let real = |(i, &c): (usize, &i32)| (c as f32 - zero) * scales[i / self.block_size];
        Ok(codes.iter().enumerate().map(real).collect())
    }
}

/// How a weight with these numbers is packed without any loss: where each block, of the whole tensor or of each of its `rows`, has
/// the numbers a and -a only, or 0 beside them.
pub fn exactly(tensor: &Tensor, rows: usize) -> Option<PackedWeight> {
    if tensor.dtype() != DType::Float || tensor.len() < SMALLEST || tensor.is_deferred() {
        return None;
    }
    // Most weights show in a few numbers that they have more than three.
    let bytes = tensor.bytes().ok()?;
    let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let mut sizes: Vec<u32> = Vec::new();
    let first = tensor.len() / rows.max(1);
    for b in bytes.chunks_exact(4).take(first.min(4096)) {
        let size = number(b).abs().to_bits();
        if size != 0 && !sizes.contains(&size) {
            sizes.push(size);
        }
        if sizes.len() > 1 {
            return None;
        }
    }
    let values = tensor.to_f32().ok()?;
    let of = |count: usize| -> Option<PackedWeight> {
        let size = values.len() / count;
        let mut zeros = false;
        for block in values.chunks_exact(size) {
            let most = block.iter().fold(0f32, |m, w| m.max(w.abs()));
            if !(most == 0.0 || most.is_normal()) || !block.iter().all(|w| *w == 0.0 || w.abs() == most) {
                return None;
            }
            zeros |= block.contains(&0.0);
        }
        let (bits, algorithm) = if zeros { (2, "ternary") } else { (1, "binary") };
        Some(PackedWeight { bits, block_size: size, algorithm: algorithm.to_owned() })
    };
    let rows = if rows > 0 && values.len().is_multiple_of(rows) { rows } else { 1 };
    of(1).or_else(|| of(rows))
}

/// Packs the weights of those float nodes that lose nothing by it.
pub(super) fn pack_exactly(model: &Model, plan: &mut Plan, may: impl Fn(NodeId) -> bool) {
    pack(model, plan, may, |_, _| None);
}

/// Adds to the plan every weight of float nodes that is packed: those that lose nothing by it, and those that `wanted` says how to
/// pack.
pub fn pack_weights(model: &Model, plan: &mut Plan, wanted: impl Fn(NodeId, &Tensor) -> Option<PackedWeight>) {
    pack(model, plan, |_| true, wanted);
}

fn pack(
    model: &Model,
    plan: &mut Plan,
    may: impl Fn(NodeId) -> bool,
    wanted: impl Fn(NodeId, &Tensor) -> Option<PackedWeight>,
) {
    let mut found: BTreeMap<ValueId, PackedWeight> = BTreeMap::new();
    for v in model.value_ids() {
        let value = model.value(v);
        let Some(t) = value.constant() else { continue };
        if t.dtype() != DType::Float || t.len() < SMALLEST || value.is_graph_output() {
            continue;
        }
        let float = |(n, i): (NodeId, usize)| {
            let axes = ops::weight_axes(model, n, i, t.rank())?;
            (may(n) && !is_integer(model, plan, n)).then_some(axes)
        };
        let Some(axes) = value.readers().next().and_then(float) else { continue };
        if !value.readers().all(|r| float(r).is_some()) {
            continue;
        }
        let rows = if *axes.start() == 0 { t.dims()[axes].iter().product() } else { 1 };
        let asked = || value.readers().next().and_then(|(n, _)| wanted(n, t));
        if let Some(how) = exactly(t, rows).or_else(asked) {
            found.insert(v, how);
        }
    }
    for (v, how) in found {
        plan.packed_weights.entry(model.value(v).name().to_owned()).or_insert(how);
    }
}
