//! Makes of MatMulNBits a MatMul whose weight a DequantizeLinear with blocks makes.
//!
//! ```text
//! before: y = com.microsoft.MatMulNBits<K = 64, N = 8, bits = 4, block_size = 32>(a, b, scales, zero_points)
//! after:  y = MatMul(a, DequantizeLinear<axis = 0, block_size = 32>(codes, scales, zero_points))
//! ```
//!
//! Not where the QOperator format is asked for, in which they are already. Needs opset 21 (25 for 2 bits), which the model is
//! converted to; where that cannot be, the node stays. So do weights whose Q/DQ form ONNX Runtime computes wrongly, where only
//! ONNX's own operators are asked for. The inverse of [`super::fuse_into_matmul_nbits`].

use super::{
    Context, convert_opset,
    support::{
        pairs::{forget_import, stay},
        replace::product_instead,
    },
};
use crate::{
    diagnostics::{Diagnostic, count},
    error::Result,
    ir::{DType, Model, Node, NodeId, NodeSpec, Place, Tensor},
    ops::MICROSOFT,
    quant::nbits::NBits,
};

/// The operator.
pub(super) const OP: &str = "MatMulNBits";

/// With int8: what ONNX Runtime computes the Q/DQ form with.
pub(super) const ACCURACY_LEVEL: i64 = 4;

/// The first operator set whose DequantizeLinear has blocks of codes with so many bits.
pub(super) fn needed_opset(bits: usize) -> i64 {
    if bits == 2 { 25 } else { 21 }
}

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    if cx.options.qoperator.is_some() {
        return Ok(0);
    }
    let (mut found, mut odd, mut uneven) = (Vec::new(), Vec::new(), Vec::new());
    for id in model.all_nodes() {
        let node = model.node(id);
        if node.op_type != OP || node.domain.as_deref() != Some(MICROSOFT) {
            continue;
        }
        match sizes(node).filter(|s| is_plain(model, id, s)) {
            Some(sizes) if sizes.is_uneven() && cx.options.onnx_only => uneven.push(model.node_label(id)),
            Some(sizes) => found.push((id, sizes)),
            None => odd.push(model.node_label(id)),
        }
    }
    // Measured with 1.32: what it makes of such pairs answers something else than they do.
    let uneven_text = "ONNX Runtime computes its Q/DQ form wrongly where 2-bit columns are not a multiple of 4";
    let odd_text = "permuted or scaled in a way that DequantizeLinear has not";
    for (nodes, reason) in [(odd, odd_text), (uneven, uneven_text)] {
        if !nodes.is_empty() {
            cx.diagnostics.push(Diagnostic::note("not_raised", format!("{}: {reason}", stay(&nodes, OP))));
        }
    }
    let Some(needed) = found.iter().map(|(_, s)| needed_opset(s.bits)).max() else { return Ok(0) };
    if model.opset("").is_none_or(|v| v < needed) {
        let mut newer = model.clone();
        if let Err(e) = convert_opset::convert_to(&mut newer, needed, cx) {
            let text =
                format!("{} stay as they are: their Q/DQ form needs opset {needed}, and {e}", count(found.len(), OP));
            cx.diagnostics.push(Diagnostic::note("not_raised", text));
            return Ok(0);
        }
        *model = newer;
    }
    let exact = |&&(id, _): &&(NodeId, NBits)| model.node(id).int("accuracy_level").unwrap_or(0) != ACCURACY_LEVEL;
    let exact = found.iter().filter(exact).count();
    if exact > 0 {
        let text = format!(
            "{} computed with more than 8 bits: ONNX Runtime computes their Q/DQ form with 8, as if accuracy_level were {}",
            count(exact, OP),
            ACCURACY_LEVEL
        );
        cx.diagnostics.push(
            Diagnostic::note("accuracy_level", text)
                .help("the session option session.qdq_matmulnbits_accuracy_level of ONNX Runtime sets another level"),
        );
    }
    for &(id, sizes) in &found {
        let (label, op) = (model.node_label(id), model.node(id).op_type.clone());
        raise(model, id, &sizes).map_err(|e| e.node(label, op))?;
    }
    forget_import(model, MICROSOFT);
    Ok(found.len())
}

fn sizes(node: &Node) -> Option<NBits> {
    let size = |name: &str| node.int(name).and_then(|n| usize::try_from(n).ok());
    let bits = usize::try_from(node.int("bits").unwrap_or(4)).ok()?;
    let sizes = NBits { k: size("K")?, n: size("N")?, bits, block: size("block_size")? };
    let sound = sizes.dtypes().is_some() && sizes.k > 0 && sizes.n > 0 && sizes.block > 0;
    // No product of them may overflow.
    let codes = sizes.k.checked_add(sizes.block)?.checked_mul(sizes.n)?.checked_mul(bits)?;
    (sound && i64::try_from(codes).is_ok()).then_some(sizes)
}

/// Whether the node is no more than a product with blocks of codes: no permutation, zero points that are codes.
fn is_plain(model: &Model, id: NodeId, sizes: &NBits) -> bool {
    let node = model.node(id);
    let constant = |i: usize| model.constant_input(id, i);
    let zero_points = match node.input(3) {
        None => true,
        Some(_) => constant(3).is_some_and(|t| t.dtype() == DType::Uint8),
    };
    let scales = constant(2).is_some_and(|t| t.dtype() == DType::Float && t.len() == sizes.n * sizes.blocks());
    node.input(4).is_none() && zero_points && scales && constant(1).is_some()
}

fn raise(model: &mut Model, id: NodeId, sizes: &NBits) -> Result<()> {
    let node = model.node(id);
    let graph = node.graph();
    let (a, bias) = (node.input(0), node.input(5));
    let name = node.input(1).map_or_else(String::new, |v| model.value(v).name().to_owned());
    let base = name.trim_end_matches(&format!("_Q{}", sizes.bits)).to_owned();
    let input = |i: usize| model.constant_input(id, i).cloned();
    let (Some(weight), Some(scales)) = (input(1), input(2)) else { return Ok(()) };
    let zero_points = input(3).map(|z| sizes.zero_points(&z)).transpose()?;
    let codes = sizes.codes(&weight, zero_points.is_some())?;
    let scales = sizes.scales(&scales)?;
    let mut add = |suffix: &str, t: Tensor| model.add_initializer(graph, &format!("{base}_{suffix}"), t);
    let inputs = [Some(add("quantized", codes)), Some(add("scale", scales)), zero_points.map(|z| add("zero_point", z))];
    let spec = NodeSpec::new("DequantizeLinear")
        .inputs(inputs.into_iter().filter(Option::is_some))
        .attr("axis", 0i64)
        .attr("block_size", sizes.block as i64)
        .output(format!("{base}_DequantizeLinear_Output"));
    let dq = model.insert(spec, Place::Before(id));
    let real = model.node(dq).output(0);
    product_instead(model, id, NodeSpec::new("MatMul").inputs([a, real]), bias);
    Ok(())
}
