//! Fuses a Gather whose table a DequantizeLinear with blocks makes into GatherBlockQuantized: ONNX Runtime would dequantize the
//! whole table at each run.
//!
//! ```text
//! before: y = Gather(DequantizeLinear<axis = 1, block_size = 32>(codes, scales), i)
//! after:  y = com.microsoft.GatherBlockQuantized<gather_axis = 0, quantize_axis = 1, block_size = 32, bits = 4>(codes, i, scales)
//! ```
//!
//! In whatever format the rest is written, but where only ONNX's own operators are asked for. Its inverse is
//! [`super::raise_gather_blocks`].

use std::collections::HashMap;

use super::{
    Context,
    support::{lazy, pairs::import, replace::insert_instead},
};
use crate::{
    error::{Error, Result},
    ir::{DType, Model, NodeId, NodeSpec, Tensor, ValueId},
    ops::{GATHER_BLOCKS, MICROSOFT},
    quant::pack,
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    if cx.options.onnx_only {
        return Ok(0);
    }
    let mut fused = 0;
    // A table that several nodes gather from is there once.
    let mut done = HashMap::new();
    for id in model.all_nodes() {
        let Some(table) = Table::of(model, id) else { continue };
        let (label, op) = (model.node_label(id), model.node(id).op_type.clone());
        table.fuse(model, id, &mut done).map_err(|e| e.node(label, op))?;
        fused += 1;
    }
    Ok(fused)
}

/// A table in blocks.
struct Table {
    codes: ValueId,
    scales: ValueId,
    zeros: Option<ValueId>,
    bits: usize,
    block: i64,
}

impl Table {
    fn of(model: &Model, id: NodeId) -> Option<Self> {
        let node = model.node(id);
        let dq = model.producer(node.input(0)?)?;
        let make = model.node(dq);
        let (axis, block) = (make.int("axis").unwrap_or(1), make.int("block_size")?);
        if !node.is("Gather") || node.int("axis").unwrap_or(0) != 0 || !make.is("DequantizeLinear") || axis != 1 {
            return None;
        }
        // Who else reads the table reads all of it.
        let real = make.output(0)?;
        if model.value(real).is_graph_output()
            || model.value(real).readers().any(|(n, i)| i != 0 || !model.node(n).is("Gather"))
        {
            return None;
        }
        let [codes, scales] = [make.input(0)?, make.input(1)?];
        let constant = |v: ValueId| model.value(v).constant();
        let (table, scale) = (constant(codes)?, constant(scales)?);
        let bits = match table.dtype() {
            DType::Int2 | DType::Uint2 => 2,
            DType::Int4 | DType::Uint4 => 4,
            DType::Int8 | DType::Uint8 => 8,
            _ => return None,
        };
        let &[rows, depth] = table.dims() else { return None };
        let size =
            usize::try_from(block).ok().filter(|&b| b >= 16 && b.is_power_of_two() && depth.is_multiple_of(b))?;
        if scale.dtype() != DType::Float || scale.dims() != [rows, depth / size] {
            return None;
        }
        let zeros = make.input(2);
        if zeros.is_some_and(|z| constant(z).is_none()) {
            return None;
        }
        Some(Self { codes, scales, zeros, bits, block })
    }

    fn fuse(self, model: &mut Model, id: NodeId, done: &mut HashMap<Inputs, Inputs>) -> Result<()> {
        let given = [Some(self.codes), Some(self.scales), self.zeros];
        let [data, scales, zero] = match done.get(&given) {
            Some(&packed) => packed,
            None => {
                let packed = if self.bits == 4 { given } else { self.packed(model)? };
                done.insert(given, packed);
                packed
            }
        };
        let outputs = model.take_outputs(id);
        let mut spec = NodeSpec::new(GATHER_BLOCKS)
            .domain(MICROSOFT)
            .inputs([data, model.node(id).input(1), scales])
            .inputs(zero.map(Some))
            .attr("gather_axis", 0i64)
            .attr("quantize_axis", 1i64)
            .attr("block_size", self.block)
            .attr("bits", self.bits as i64);
        for v in outputs {
            spec = spec.output_value(v);
        }
        insert_instead(model, id, spec);
        model.remove_node(id);
        import(model, MICROSOFT);
        Ok(())
    }

    /// Codes of 2 and 8 bits, scales and zero points as the operator takes them, all new, so that they are written together.
    fn packed(&self, model: &mut Model) -> Result<Inputs> {
        let constant = |v: ValueId| model.value(v).constant().cloned();
        let missing = || Error::bug("a table is not constant");
        let codes = constant(self.codes).ok_or_else(missing)?;
        let scales = constant(self.scales).ok_or_else(missing)?;
        // Without zero points, codes without a sign mean what they are; the operator takes their middle for 0 then.
        let zeros = match self.zeros.and_then(constant) {
            None if codes.dtype() == DType::Uint2 || codes.dtype() == DType::Uint8 => {
                Some(pack::pack(codes.dtype(), scales.dims(), &vec![0; scales.len()])?)
            }
            zeros => zeros,
        };
        let graph = model.value(self.codes).graph();
        let base = model.value(self.codes).name().trim_end_matches("_quantized").to_owned();
        let bits = self.bits;
        let packed = |t: &Tensor| {
            let dims = vec![t.dims()[0], t.dims()[1].div_ceil(8 / bits)];
            lazy::followed(t, DType::Uint8, dims, move |t| in_bytes(t, bits))
        };
        let (codes, zeros) = (packed(&codes)?, zeros.map(|z| packed(&z)).transpose()?);
        let mut add = |suffix: String, t: Tensor| model.add_initializer(graph, &format!("{base}_{suffix}"), t);
        let (data, scales) = (add(format!("Q{bits}"), codes), add("scales".to_owned(), scales));
        Ok([Some(data), Some(scales), zeros.map(|z| add("zero_points".to_owned(), z))])
    }
}

/// Codes, scales and zero points.
type Inputs = [Option<ValueId>; 3];

/// Codes of 2 or 8 bits as the operator takes them: bytes without a sign, each row beginning at one.
fn in_bytes(t: &Tensor, bits: usize) -> Result<Tensor> {
    if t.dtype() == DType::Uint8 {
        return Ok(t.clone());
    }
    let shift = if matches!(t.dtype(), DType::Int2 | DType::Int8) { 1 << (bits - 1) } else { 0 };
    let &[rows, columns] = t.dims() else { return Err(Error::bug("a table is no matrix")) };
    let per_byte = 8 / bits;
    let each = columns.div_ceil(per_byte);
    let mut bytes = vec![0u8; rows * each];
    for (i, code) in pack::unpack(t)?.into_iter().enumerate() {
        let (row, column) = (i / columns, i % columns);
        bytes[row * each + column / per_byte] |= ((code + shift) as u8) << (column % per_byte * bits);
    }
    Ok(Tensor::from_u8(DType::Uint8, &[rows, each], bytes))
}

/// The inverse of [`in_bytes`], for codes without a sign.
pub(super) fn from_bytes(t: &Tensor, bits: usize, columns: usize) -> Result<Tensor> {
    let &[rows, each] = t.dims() else { return Err(Error::malformed("a table is no matrix")) };
    let per_byte = 8 / bits;
    if each != columns.div_ceil(per_byte) {
        return Err(Error::malformed(format!("rows of {each} bytes do not hold {columns} codes of {bits} bits")));
    }
    let (bytes, mask) = (t.bytes()?, ((1u32 << bits) - 1) as u8);
    let code = |i: usize| {
        let (row, column) = (i / columns, i % columns);
        i32::from(bytes[row * each + column / per_byte] >> (column % per_byte * bits) & mask)
    };
    let dtype = match bits {
        2 => DType::Uint2,
        4 => DType::Uint4,
        _ => DType::Uint8,
    };
    pack::pack(dtype, &[rows, columns], &(0..rows * columns).map(code).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::text,
        passes::{raise_gather_blocks, testing::check},
        runtime::{Runtime, tract::Tract},
    };

    fn pairs(dtype: &str, codes: &str, zero: &str) -> String {
        let input = if zero.is_empty() { "" } else { ", t_zero_point" };
        format!(
            "<ir_version: 10, opset_import: [\"\" : 25]> g (int64[2] i) => (float[2,32] y)
             <{dtype}[3,32] t_quantized = {{{codes}}}, float[3,2] t_scale = {{0.5, 1, 2, 0.25, 1, 3}}{zero}>
             {{ t_DequantizeLinear_Output = DequantizeLinear<axis = 1, block_size = 16>(t_quantized, t_scale{input})
                y = Gather(t_DequantizeLinear_Output, i) }}"
        )
    }

    #[test]
    fn there_and_back_in_all_bits() {
        for (dtype, bits, zeros) in [
            ("int2", 2, false),
            ("uint2", 2, true),
            ("int4", 4, false),
            ("uint4", 4, true),
            ("int8", 8, false),
            ("uint8", 8, true),
            ("uint8", 8, false),
        ] {
            let lo = if dtype.starts_with("int") { -(1 << (bits - 1)) } else { 0 };
            let codes: Vec<String> = (0..96).map(|i| (lo + i * 7 % (1 << bits)).to_string()).collect();
            let zero =
                if zeros { format!(", {dtype}[3,2] t_zero_point = {{1, 2, 3, 1, 0, 2}}") } else { String::new() };
            let first = text::parse(&pairs(dtype, &codes.join(","), &zero)).unwrap();
            let run =
                |m: &Model| Tract.load(m, &[]).unwrap().run(&[Tensor::from_i64(&[2], &[2, 0])]).unwrap().remove(0);
            let mut model = first.clone();
            assert_eq!(super::run(&mut model, &mut Context::default()).unwrap(), 1, "{dtype}");
            assert!(model.all_nodes().iter().any(|&n| model.node(n).op_type == GATHER_BLOCKS));
            assert_eq!(raise_gather_blocks::run(&mut model, &mut Context::default()).unwrap(), 1, "{dtype}");
            model.verify().unwrap();
            assert_eq!(run(&model).to_f32().unwrap(), run(&first).to_f32().unwrap(), "{dtype}");
        }
    }

    #[test]
    fn a_table_with_two_readers_is_packed_once() {
        let codes: Vec<String> = (0..96).map(|i| (i % 200).to_string()).collect();
        let text = pairs("uint8", &codes.join(","), "");
        let text = text.replace("(float[2,32] y)", "(float[2,32] y, float[2,32] z)");
        let text = text.replace(
            "y = Gather(t_DequantizeLinear_Output, i)",
            "y = Gather(t_DequantizeLinear_Output, i) z = Gather(t_DequantizeLinear_Output, i)",
        );
        let mut model = text::parse(&text).unwrap();
        assert_eq!(super::run(&mut model, &mut Context::default()).unwrap(), 2);
        let tables = model.value_ids().into_iter().filter_map(|v| model.value(v).initializer());
        assert_eq!(tables.filter(|t| t.dtype() == DType::Uint8 && t.dims() == [3, 32]).count(), 2); // the codes as they were, too
    }

    #[test]
    fn what_the_kernel_has() {
        let before = "<ir_version: 10, opset_import: [\"\" : 21]> g (int64[1] i) => (float[1,16] y)
             <int4[1,16] t_quantized = {1,2,3,4,5,6,7,-8,1,2,3,4,5,6,7,0}, float[1,1] t_scale = {0.5}>
             { t_DequantizeLinear_Output = DequantizeLinear<axis = 1, block_size = 16>(t_quantized, t_scale)
               y = Gather(t_DequantizeLinear_Output, i) }";
        let after = "<ir_version: 10, opset_import: [\"\" : 21, \"com.microsoft\" : 1]> g (int64[1] i) => (float[1,16] y)
             <int4[1,16] t_quantized = {1,2,3,4,5,6,7,-8,1,2,3,4,5,6,7,0}, float[1,1] t_scale = {0.5}>
             { y = com.microsoft.GatherBlockQuantized<gather_axis = 0, quantize_axis = 1, block_size = 16, bits = 4>(t_quantized, i, t_scale) }";
        check(super::run, before, after);
        check(raise_gather_blocks::run, after, before);
        let mut kept = text::parse(&before.replace("Gather(", "Gather<axis = 1>(")).unwrap();
        assert_eq!(super::run(&mut kept, &mut Context::default()).unwrap(), 0);
    }
}
