//! Fuses a MatMul whose weight a DequantizeLinear with blocks makes into MatMulNBits.
//!
//! ```text
//! before: y = MatMul(a, DequantizeLinear<axis = 0, block_size = 32>(codes, scales, zero_points))
//! after:  y = com.microsoft.MatMulNBits<K = 64, N = 8, bits = 4, block_size = 32, accuracy_level = 4>(a, b, scales, zero_points)
//! ```
//!
//! What ONNX Runtime makes of the Q/DQ form when it loads it, with the same level of accuracy. Where the QOperator format is asked
//! for; else only where the runtime makes nothing of the Q/DQ form, or something wrong: several products share the codes, a Relu or
//! Clip stands behind, or codes have 2 bits: their Q/DQ form needs opset 25, and is computed wrongly where columns are no multiple of 4. The inverse of [`super::raise_matmul_nbits`].

use std::collections::HashMap;

use super::{
    Context,
    raise_matmul_nbits::{ACCURACY_LEVEL, OP},
    support::{lazy, pairs::import, replace::insert_instead},
};
use crate::{
    error::Result,
    ir::{DType, Model, NodeId, NodeSpec, Tensor, ValueId},
    ops::MICROSOFT,
    quant::nbits::NBits,
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let all = cx.options.qoperator.is_some();
    if cx.options.onnx_only {
        return Ok(0);
    }
    let mut fused = 0;
    let mut packed = HashMap::new();
    for id in model.all_nodes() {
        let Some(weight) = Blocked::of(model, id).filter(|w| all || w.must(model, id, &cx.options.seen_through)) else {
            continue;
        };
        let (label, op) = (model.node_label(id), model.node(id).op_type.clone());
        weight.fuse(model, id, &mut packed).map_err(|e| e.node(label, op))?;
        fused += 1;
    }
    Ok(fused)
}

/// A weight as the operator takes it, and what it was made of beside its codes: scales and zero points.
type Packed = ([Option<ValueId>; 3], Tensor, Option<Tensor>);

fn same(a: Option<&Tensor>, b: Option<&Tensor>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.same_content(b),
        (None, None) => true,
        _ => false,
    }
}

/// The weight of a MatMul or Gemm, in blocks.
struct Blocked {
    sizes: NBits,
    codes: ValueId,
    scales: Tensor,
    zero_points: Option<Tensor>,
}

impl Blocked {
    fn of(model: &Model, id: NodeId) -> Option<Self> {
        let node = model.node(id);
        let dq = model.producer(node.input(1)?)?;
        let make = model.node(dq);
        let gemm = node.is("Gemm") && ["transA", "transB"].iter().all(|name| node.int(name).unwrap_or(0) == 0);
        let scaled = |name| node.float(name).is_some_and(|x| x != 1.0);
        let gemm = gemm && !scaled("alpha") && (node.input(2).is_none() || !scaled("beta"));
        // A bias of the kernel is a row.
        let row = |v: ValueId| model.value(v).constant().is_some_and(|t| t.rank() == 1);
        let gemm = gemm && node.input(2).is_none_or(row);
        if !(node.is("MatMul") || gemm) || !make.is("DequantizeLinear") || make.int("axis").unwrap_or(1) != 0 {
            return None;
        }
        // The runtime makes nothing of a weight that others read as well: that product is computed with numbers.
        if make.output(0).is_none_or(|w| model.value(w).uses().len() != 1) {
            return None;
        }
        let codes = make.input(0)?;
        let tensor = model.value(codes).constant()?;
        let block = usize::try_from(make.int("block_size")?).ok()?;
        let &[k, n] = tensor.dims() else { return None };
        let bits = match tensor.dtype() {
            DType::Int2 | DType::Uint2 => 2,
            DType::Int4 | DType::Uint4 => 4,
            DType::Int8 | DType::Uint8 => 8,
            _ => return None,
        };
        let sizes = NBits { k, n, bits, block };
        let scales = model.constant_input(dq, 1).filter(|t| t.dtype() == DType::Float)?.clone();
        let zero_points = make.input(2).map(|z| model.value(z).constant().cloned());
        // Blocks that the operator has.
        let fits = block.is_power_of_two() && block >= 16 && scales.dims() == [sizes.blocks(), n];
        if !fits || matches!(zero_points, Some(None)) {
            return None;
        }
        Some(Self { sizes, codes, scales, zero_points: zero_points.flatten() })
    }

    /// Whether the runtime makes nothing right of the Q/DQ form.
    fn must(&self, model: &Model, id: NodeId, seen_through: &[String]) -> bool {
        let seen = |id: NodeId| {
            let out = model.node(id).output(0)?;
            let (reader, _) = model.sole_reader(out)?;
            let node = model.node(reader);
            Some((reader, seen_through.iter().any(|op| node.is(op)), node.is("Add")))
        };
        // The runtime makes a Gemm of MatMul and Add first.
        let looked_through = match seen(id) {
            Some((_, true, _)) => true,
            Some((add, _, true)) => seen(add).is_some_and(|(_, seen, _)| seen),
            _ => false,
        };
        if looked_through {
            return true;
        }
        let readers =
            model.value(self.codes).readers().filter(|&(n, i)| i == 0 && model.node(n).is("DequantizeLinear"));
        self.sizes.bits == 2 || readers.count() > 1
    }

    fn fuse(self, model: &mut Model, id: NodeId, done: &mut HashMap<ValueId, Packed>) -> Result<()> {
        let Self { sizes, codes, scales, zero_points } = self;
        let tensor = model.value(codes).constant().cloned();
        let Some(tensor) = tensor else { return Ok(()) };
        let base = model.value(codes).name().trim_end_matches("_quantized").to_owned();
        let graph = model.value(codes).graph();
        let known =
            done.get(&codes).filter(|(_, s, z)| s.same_content(&scales) && same(z.as_ref(), zero_points.as_ref()));
        let [weight, scales, zeros] = match known {
            Some(&(found, _, _)) => found,
            None => {
                let [weight_dims, zero_dims] = sizes.packed_dims();
                let (weight, zeros) = match &zero_points {
                    Some(z) if tensor.is_deferred() => {
                        let zeros = lazy::followed(z, DType::Uint8, zero_dims, move |z| sizes.packed_zero_points(z))?;
                        (
                            lazy::followed(&tensor, DType::Uint8, weight_dims, move |t| sizes.packed_codes(t))?,
                            Some(zeros),
                        )
                    }
                    _ => sizes.packed(&tensor, zero_points.as_ref())?,
                };
                let packed_dims = vec![sizes.n, sizes.blocks()];
                let packed = lazy::followed(&scales, DType::Float, packed_dims, move |s| sizes.packed_scales(s))?;
                let mut add = |suffix: String, t: Tensor| model.add_initializer(graph, &format!("{base}_{suffix}"), t);
                let weight = add(format!("Q{}", sizes.bits), weight);
                let packed = add("scales".to_owned(), packed);
                let zeros = zeros.map(|z| add("zero_points".to_owned(), z));
                let found = [Some(weight), Some(packed), zeros];
                done.insert(codes, (found, scales, zero_points));
                found
            }
        };
        let outputs = model.take_outputs(id);
        let mut spec = NodeSpec::new(OP)
            .domain(MICROSOFT)
            .inputs([model.node(id).input(0), weight, scales])
            .inputs(match model.node(id).input(2) {
                Some(bias) => vec![zeros, None, Some(bias)],
                None => zeros.map(Some).into_iter().collect(),
            })
            .attr("K", sizes.k as i64)
            .attr("N", sizes.n as i64)
            .attr("bits", sizes.bits as i64)
            .attr("block_size", sizes.block as i64)
            .attr("accuracy_level", ACCURACY_LEVEL);
        for v in outputs {
            spec = spec.output_value(v);
        }
        insert_instead(model, id, spec);
        model.remove_node(id);
        import(model, MICROSOFT);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        passes::{
            raise_matmul_nbits,
            testing::{check, check_skipped, check_with},
        },
        target::Target,
    };

    /// The runtime computes such products with numbers, not with codes of 8 bits.
    #[test]
    fn a_shared_weight_stays() {
        let mut cx = Context::default();
        cx.options.qoperator = Some(Target::load("onnxruntime-cpu").unwrap().integer_ops());
        for outputs in ["float[2,1] y, float[16,1] w_DequantizeLinear_Output", "float[2,1] y, float[2,1] y2"] {
            let text = PAIRS.replace("float[2,1] y", outputs);
            let text = match outputs.contains("y2") {
                true => text.replace("y = MatMul", "y2 = MatMul(a, w_DequantizeLinear_Output) y = MatMul"),
                false => text,
            };
            let mut model = crate::ir::text::parse(&text).unwrap();
            assert_eq!(run(&mut model, &mut cx).unwrap(), 0, "{text}");
        }
    }

    /// ONNX Runtime 1.32 computes the Q/DQ form of two bits wrongly there.
    #[test]
    fn two_bits_in_uneven_columns_stay() {
        let node = "y = com.microsoft.MatMulNBits<K = 16, N = 1, bits = 2, block_size = 16>(a, b, s)";
        let head =
            "<ir_version: 10, opset_import: [\"\" : 25, \"com.microsoft\" : 1]> g (float[2,16] a) => (float[2,1] y)";
        let constants = "<uint8[1,1,4] b = {1,2,3,4}, float[1] s = {0.5}>";
        let text = format!("{head} {constants} {{ {node} }}");
        let mut cx = Context::default();
        cx.options.onnx_only = true;
        let mut model = crate::ir::text::parse(&text).unwrap();
        assert_eq!(raise_matmul_nbits::run(&mut model, &mut cx).unwrap(), 0);
        assert_eq!(cx.diagnostics[0].code, "not_raised");
        // Elsewhere they come back, in whatever format.
        assert_eq!(raise_matmul_nbits::run(&mut model, &mut Context::default()).unwrap(), 1);
        assert_eq!(run(&mut model, &mut Context::default()).unwrap(), 1);
        // Sizes of which the product overflows.
        let node = node
            .replace("K = 16", "K = 4611686018427387904")
            .replace("block_size = 16", "block_size = 4611686018427387904");
        let constants = "<uint8[0] b = {}, float[1] s = {0.5}>";
        check_skipped(raise_matmul_nbits::run, &format!("{head} {constants} {{ {node} }}"), "not_raised");
    }

    const PAIRS: &str = "<ir_version: 10, opset_import: [\"\" : 21]> g (float[2,16] a) => (float[2,1] y)
        <uint4[16,1] w_quantized = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,0}, float[1,1] w_scale = {0.5}, uint4[1,1] w_zero_point = {9}>
        { w_DequantizeLinear_Output = DequantizeLinear<axis = 0, block_size = 16>(w_quantized, w_scale, w_zero_point)
          y = MatMul(a, w_DequantizeLinear_Output) }";
    const NBITS: &str = "<ir_version: 10, opset_import: [\"\" : 21, \"com.microsoft\" : 1]> g (float[2,16] a) => (float[2,1] y)
        <uint8[1,1,8] w_Q4 = {33,67,101,135,169,203,237,15}, float[1,1] w_scales = {0.5}, uint8[1] w_zero_points = {9}>
        { y = com.microsoft.MatMulNBits<K = 16, N = 1, bits = 4, block_size = 16, accuracy_level = 4>(a, w_Q4, w_scales, w_zero_points) }";

    #[test]
    fn there_and_back() {
        let mut cx = Context::default();
        cx.options.qoperator = Some(Target::load("onnxruntime-cpu").unwrap().integer_ops());
        check_with(run, &mut cx, PAIRS, NBITS);
        check(raise_matmul_nbits::run, NBITS, PAIRS);
        check_skipped(run, PAIRS, "");
    }

    #[test]
    fn blocks_that_the_operator_has_not_stay() {
        let mut cx = Context::default();
        cx.options.qoperator = Some(Target::load("onnxruntime-cpu").unwrap().integer_ops());
        let mut model = crate::ir::text::parse(&PAIRS.replace("block_size = 16", "block_size = 24")).unwrap();
        assert_eq!(run(&mut model, &mut cx).unwrap(), 0);
    }
}
