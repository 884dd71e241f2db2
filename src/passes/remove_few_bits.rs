//! Makes of ONNX Runtime's operators on weights in few bits the float operators that they compute.
//!
//! ```text
//! before: y = com.microsoft.MatMulNBits<K = 64, N = 8, bits = 4, block_size = 32>(a, codes, scales, zero_points)
//!         t = com.microsoft.GatherBlockQuantized<block_size = 32>(codes, i, scales)
//! after:  y = MatMul(a, w); t = Gather(w, i)
//! ```
//!
//! Unlike the Q/DQ form of them, which [`super::raise_matmul_nbits`] and [`super::raise_gather_blocks`] make, this needs no new
//! opset. Large weights are computed when they are written.

use std::collections::HashMap;

use rayon::prelude::*;

use super::{
    Context,
    remove_quantization::NOT_REMOVED,
    support::{lazy::releasing, pairs::stay, replace::product_instead},
};
use crate::{
    diagnostics::Diagnostic,
    error::{Error, Result},
    ir::{DType, Model, NodeId, NodeSpec, Tensor, ValueId},
    ops::{GATHER_BLOCKS, MICROSOFT},
    quant::{coding, pack},
};

const MATMUL: &str = "MatMulNBits";
/// Columns that are unpacked at a time.
const STRIP: usize = 32;

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let mut changes = 0;
    // What one node read another may read too: tied weights stay one.
    let mut made: HashMap<Key, ValueId> = HashMap::new();
    for op in [MATMUL, GATHER_BLOCKS] {
        let mut odd = Vec::new();
        for id in model.all_nodes() {
            let node = model.node(id);
            if node.op_type != op || node.domain.as_deref() != Some(MICROSOFT) {
                continue;
            }
            let weight = if op == MATMUL { product(model, id) } else { table(model, id) };
            let label = model.node_label(id);
            let Some(weight) = weight.map_err(|e| e.node(label.clone(), op))? else {
                odd.push(label);
                continue;
            };
            let key = key(model, id);
            let known = made.get(&key).copied();
            cx.removed.weights += usize::from(known.is_none());
            let real = known.unwrap_or_else(|| {
                let codes = key.0.first().copied().flatten().map_or("weight", |v| model.value(v).name());
                let name = base_name(codes).to_owned();
                model.add_initializer(model.node(id).graph(), &name, weight)
            });
            // A weight of a subgraph is not seen outside of it.
            if model.value(real).graph() == model.main() {
                made.insert(key, real);
            }
            replace(model, id, real);
            changes += 1;
        }
        if !odd.is_empty() {
            let text =
                format!("{}: its codes are not constant, or laid out in a way that is not known here", stay(&odd, op));
            cx.diagnostics.push(Diagnostic::warning(NOT_REMOVED, text));
        }
    }
    Ok(changes)
}

/// How the codes of one weight lie, and what scales them.
#[derive(Clone)]
struct Packed {
    bits: usize,
    /// Codes with a sign, one after the other in dims of their own; else bytes that hold several.
    signed: bool,
    /// Elements of the weight.
    dims: Vec<usize>,
    /// Codes in a row of bytes, and bytes that it takes.
    row: [usize; 2],
    scales: Tensor,
    zeros: Zeros,
    /// The scale of each element of a row of codes, by row and place.
    block: usize,
    /// Which block a place of a row belongs to, where it is not its number by the block size.
    groups: Option<Tensor>,
    transposed: bool,
}

#[derive(Clone)]
enum Zeros {
    /// One for all.
    All(i32),
    /// Codes, packed in bytes row by row, or whole.
    Codes(Tensor),
    /// Numbers in units of the scale.
    Numbers(Tensor),
}

impl Packed {
    fn weight(&self, codes: &Tensor) -> Result<Tensor> {
        let made = coding::later(codes, self, DType::Float, self.dims.clone(), Self::compute)?;
        releasing(made, codes)
    }

    fn compute(&self, codes: &Tensor) -> Result<Vec<f32>> {
        let [length, stride] = self.row;
        let (bytes, scales) = (codes.bytes()?, self.scales.to_f32()?);
        let blocks = length.div_ceil(self.block);
        let (per_byte, mask) = (8 / self.bits, (1i32 << self.bits) - 1);
        let at = |bytes: &[u8], i: usize| i32::from(bytes[i / per_byte]) >> (i % per_byte * self.bits) & mask;
        let sign = |code: i32| if self.signed && code >> (self.bits - 1) == 1 { code - (mask + 1) } else { code };
        let rows = bytes.len() / stride.max(1);
        let zeros: Vec<f32> = match &self.zeros {
            Zeros::All(zero) => vec![*zero as f32; rows * blocks],
            Zeros::Numbers(zeros) => zeros.to_f32()?,
            Zeros::Codes(zeros) if zeros.dtype() != DType::Uint8 => {
                pack::unpack(zeros)?.into_iter().map(|z| z as f32).collect()
            }
            Zeros::Codes(zeros) => {
                let (bytes, each) = (zeros.bytes()?, blocks.div_ceil(per_byte));
                let zero = |i: usize| at(&bytes[i / blocks * each..], i % blocks) as f32;
                (0..rows * blocks).map(zero).collect()
            }
        };
        let groups = self.groups.as_ref().map(Tensor::to_i64).transpose()?;
        let group = |i: usize| groups.as_ref().map_or(i / self.block, |g| g[i] as usize);
        if scales.len() < rows * blocks || zeros.len() < rows * blocks || (0..length).any(|i| group(i) >= blocks) {
            return Err(Error::malformed("there are fewer scales than blocks"));
        }
        let mut numbers = vec![0.0; rows * length];
        let number = |row: usize, i: usize| {
            let at_scale = row * blocks + group(i);
            (sign(at(&bytes[row * stride..], i)) as f32 - zeros[at_scale]) * scales[at_scale]
        };
        if rows == 0 || length == 0 {
            return Ok(numbers);
        }
        if self.transposed {
            // Some columns at a time, so that what is written of them lies together.
            numbers.par_chunks_mut(STRIP * rows).enumerate().for_each(|(strip, out)| {
                let columns = out.len() / rows;
                for row in 0..rows {
                    for i in 0..columns {
                        out[i * rows + row] = number(row, strip * STRIP + i);
                    }
                }
            });
        } else {
            let fill =
                |(row, out): (usize, &mut [f32])| out.iter_mut().enumerate().for_each(|(i, x)| *x = number(row, i));
            numbers.par_chunks_mut(length).enumerate().for_each(fill);
        }
        Ok(numbers)
    }
}

/// The weight of a MatMulNBits as `[K, N]`.
fn product(model: &Model, id: NodeId) -> Result<Option<Tensor>> {
    let node = model.node(id);
    let size = |name: &str| node.int(name).and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    let bits = node.int("bits").unwrap_or(4);
    let (Some(k), Some(n), Some(block)) = (size("K"), size("N"), size("block_size")) else { return Ok(None) };
    let constant = |i: usize| model.constant_input(id, i).cloned();
    let (Some(codes), Some(scales)) = (constant(1), constant(2)) else { return Ok(None) };
    let bits = match bits {
        2 | 4 | 8 => bits as usize,
        _ => return Ok(None),
    };
    // No product of them may overflow.
    let all = k.checked_add(block).and_then(|k| k.checked_mul(n)).and_then(|codes| codes.checked_mul(bits));
    if all.is_none_or(|all| i64::try_from(all).is_err()) {
        return Ok(None);
    }
    let stride = k.div_ceil(block) * block * bits / 8;
    let whole = |i: usize| node.input(i).is_none() || constant(i).is_some();
    let sound = codes.dtype() == DType::Uint8 && codes.len() == n * stride && scales.dtype().is_float();
    if !(sound && whole(3) && whole(4) && scales.len() == n * k.div_ceil(block)) {
        return Ok(None);
    }
    let zeros = match constant(3) {
        None => Zeros::All(1 << (bits - 1)),
        Some(z) if z.dtype() == DType::Uint8 && z.len() == n * (k.div_ceil(block) * bits).div_ceil(8) => {
            Zeros::Codes(z)
        }
        Some(z) if z.dtype().is_float() && z.len() == scales.len() => Zeros::Numbers(z),
        Some(_) => return Ok(None),
    };
    let groups = constant(4).filter(|g| !g.is_empty());
    if groups.as_ref().is_some_and(|g| g.len() != k || g.dtype() != DType::Int32) {
        return Ok(None);
    }
    let (row, dims) = ([k, stride], vec![k, n]);
    Packed { bits, signed: false, dims, row, scales, zeros, block, groups, transposed: true }.weight(&codes).map(Some)
}

/// The table of a GatherBlockQuantized, where its blocks lie along the last axis.
fn table(model: &Model, id: NodeId) -> Result<Option<Tensor>> {
    let node = model.node(id);
    let constant = |i: usize| model.constant_input(id, i).cloned();
    let (Some(codes), Some(scales)) = (constant(0), constant(2)) else { return Ok(None) };
    let block = usize::try_from(node.int("block_size").unwrap_or(128)).unwrap_or(0);
    let rank = codes.rank() as i64;
    let along = node.int("quantize_axis").unwrap_or(1);
    let (bits, signed) = match codes.dtype() {
        DType::Int4 => (4, true),
        DType::Uint4 => (4, false),
        DType::Uint8 => (node.int("bits").unwrap_or(4), false),
        _ => return Ok(None),
    };
    if !matches!(bits, 2 | 4 | 8)
        || rank == 0
        || block == 0
        || along.checked_add(rank).is_none_or(|a| a % rank != rank - 1)
    {
        return Ok(None);
    }
    let bits = bits as usize;
    let per_byte = 8 / bits;
    let mut dims = codes.dims().to_vec();
    let last = dims.len() - 1;
    if codes.dtype() == DType::Uint8 {
        dims[last] *= per_byte;
    }
    let mut blocks = dims.clone();
    blocks[last] = dims[last].div_ceil(block);
    let length = dims[last];
    if scales.dims() != blocks || !scales.dtype().is_float() || !length.is_multiple_of(per_byte) {
        return Ok(None);
    }
    let zeros = match (constant(3), node.input(3)) {
        (Some(z), _) => Zeros::Codes(z),
        (None, Some(_)) => return Ok(None),
        // Bytes are codes without a sign around the middle, the others mean what they are.
        (None, None) if codes.dtype() == DType::Uint8 => Zeros::All(1 << (bits - 1)),
        (None, None) => Zeros::All(0),
    };
    let row = [length, length / per_byte];
    Packed { bits, signed, dims, row, scales, zeros, block, groups: None, transposed: false }.weight(&codes).map(Some)
}

/// What a weight is made of: the inputs that hold it, the operator, bits and block size.
type Key = (Vec<Option<ValueId>>, bool, [Option<i64>; 2]);

fn key(model: &Model, id: NodeId) -> Key {
    let node = model.node(id);
    let gathers = node.op_type == GATHER_BLOCKS;
    let inputs: &[usize] = if gathers { &[0, 2, 3] } else { &[1, 2, 3, 4] };
    (inputs.iter().map(|&i| node.input(i)).collect(), gathers, ["bits", "block_size"].map(|name| node.int(name)))
}

/// Puts a float operator with this weight in the place of a node.
fn replace(model: &mut Model, id: NodeId, real: ValueId) {
    let gathers = model.node(id).op_type == GATHER_BLOCKS;
    let node = model.node(id);
    let (data, bias, axis) = (node.input(usize::from(gathers)), node.input(5), node.int("gather_axis"));
    let spec = if gathers {
        NodeSpec::new("Gather").attr("axis", axis.unwrap_or(0)).inputs([Some(real), data])
    } else {
        NodeSpec::new("MatMul").inputs([data, Some(real)])
    };
    product_instead(model, id, spec, bias.filter(|_| !gathers));
}

/// The name of a weight of which codes bear the name that quantizers give them.
pub(super) fn base_name(codes: &str) -> &str {
    let suffixes = ["_quantized_transposed", "_quantized", "_Q2", "_Q4", "_Q8", "_DequantizeLinear_Output"];
    suffixes.iter().find_map(|s| codes.strip_suffix(s)).filter(|base| !base.is_empty()).unwrap_or(codes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped};

    const HEAD: &str = "<ir_version: 8, opset_import: [\"\" : 17, \"com.microsoft\" : 1]>";

    /// Three rows in blocks of 16 (one, cut short), two columns; the second with a zero point of its own.
    #[test]
    fn products() {
        let matmul = |inputs: &str, constants: &str| {
            format!(
                "{HEAD} g (float[1,3] x) => (y) <uint8[2,1,8] w_Q4 = {{33, 4, 0, 0, 0, 0, 0, 0, 169, 15, 0, 0, 0, 0, 0, 0}},
                 float[2] s = {{0.5, 2}}{constants}> {{
                    y = com.microsoft.MatMulNBits<K = 3, N = 2, bits = 4, block_size = 16>({inputs}) }}"
            )
        };
        let float = |w: &str, rest: &str| format!("{HEAD} g (float[1,3] x) => (y) <float[3,2] w = {{{w}}}{rest}");
        check(run, &matmul("x, w_Q4, s", ""), &float("-3.5, 2, -3, 4, -2, 14", "> { y = MatMul(x, w) }"));
        check(
            run,
            &matmul("x, w_Q4, s, z, , b", ", uint8[2] z = {1, 9}, float[2] b = {1, 2}"),
            &float(
                "0, 0, 0.5, 2, 1.5, 12",
                ", float[2] b = {1, 2}> { y_without_bias = MatMul(x, w) y = Add(y_without_bias, b) }",
            ),
        );
        // Zero points that are numbers, and an order of rows.
        check(
            run,
            &matmul("x, w_Q4, s, z, g", ", float[2] z = {0.5, 9}, int32[3] g = {0, 0, 0}"),
            &float("0.25, 0, 0.75, 2, 1.75, 12", "> { y = MatMul(x, w) }"),
        );
        check_skipped(run, &matmul("x, w_Q4, s, z", ", uint8[1] z = {1}"), NOT_REMOVED);
    }

    #[test]
    fn tables_and_what_is_tied() {
        let before = format!(
            "{HEAD} g (int64[n] i, int64[n] j) => (y, z) <uint8[2,1] t_quantized = {{24, 127}}, float[2,1] s = {{0.5, 2}}> {{
                y = com.microsoft.GatherBlockQuantized<block_size = 16>(t_quantized, i, s)
                z = com.microsoft.GatherBlockQuantized<block_size = 16>(t_quantized, j, s) }}"
        );
        let after = format!(
            "{HEAD} g (int64[n] i, int64[n] j) => (y, z) <float[2,2] t = {{0, -3.5, 14, -2}}> {{
                y = Gather<axis = 0>(t, i) z = Gather<axis = 0>(t, j) }}"
        );
        check(run, &before, &after);
    }
}
