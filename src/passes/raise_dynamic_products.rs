//! Brings integer products that scale to float behind themselves into the form of a float product between
//! DequantizeLinears, as this program writes all that is quantized before it fuses it. Scales and zero points stay as they
//! are, bit for bit.
//!
//! ```text
//! before: y = Mul(Cast(MatMulInteger(q, w, z, z_w)), Mul(s, s_w)), where q, s, z = DynamicQuantizeLinear(x)
//! after:  y = MatMul(DequantizeLinear(q, s, z), DequantizeLinear(w, s_w, z_w))
//! ```
//!
//! The same of ConvInteger, its bias with it, and of com.microsoft's MatMulIntegerToFloat and DynamicQuantizeMatMul. Where
//! data and weight have one scale that is not told apart, all of it goes to the weight, and the data's is 1.

use super::{
    Context,
    support::{convert::convert, pairs::dynamic_quantize, replace::behind_maker},
};
use crate::{
    error::{Error, Result},
    ir::{Attr, DType, Model, NodeId, NodeSpec, Place, Tensor, ValueId},
    ops::MICROSOFT,
};

/// DequantizeLinear has scales per channel from here on.
const PER_AXIS: i64 = 13;

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    // Asked for as they are.
    if cx.options.qoperator.is_some() {
        return Ok(0);
    }
    let mut changes = 0;
    for node in model.all_nodes() {
        if model.try_node(node).is_some() && model.opset("").unwrap_or(1) >= PER_AXIS {
            changes += usize::from(raise(model, node)?);
        }
    }
    Ok(changes)
}

/// Codes with what they stand for.
#[derive(Debug, Clone, Copy)]
struct Codes {
    codes: ValueId,
    scale: ValueId,
    zero_point: Option<ValueId>,
}

fn raise(model: &mut Model, node: NodeId) -> Result<bool> {
    let n = model.node(node);
    let op = n.op_type.as_str();
    let microsoft = n.domain.as_deref() == Some(MICROSOFT);
    match op {
        "MatMulInteger" | "ConvInteger" if n.in_onnx_domain() => chain(model, node),
        "MatMulIntegerToFloat" if microsoft => {
            let (Some(a), Some(b), Some(sa), Some(sb)) = (n.input(0), n.input(1), n.input(2), n.input(3)) else {
                return Ok(false);
            };
            let data = Codes { codes: a, scale: sa, zero_point: n.input(4) };
            if several(model, data.zero_point) {
                return Ok(false);
            }
            let weight = Codes { codes: b, scale: sb, zero_point: n.input(5) };
            let Some(weight) = weight_scales(model, weight, false)? else { return Ok(false) };
            whole(model, node, data, weight, model.node(node).input(6))
        }
        "DynamicQuantizeMatMul" if microsoft => {
            let (Some(x), Some(b), Some(sb)) = (n.input(0), n.input(1), n.input(2)) else { return Ok(false) };
            let weight = Codes { codes: b, scale: sb, zero_point: n.input(3) };
            let Some(weight) = weight_scales(model, weight, false)? else { return Ok(false) };
            let spec = dynamic_quantize(model, x);
            let quantize = model.insert(spec, Place::Before(node));
            let &[Some(codes), Some(scale), zero_point] = model.node(quantize).outputs() else {
                return Err(Error::bug("the new node has no outputs"));
            };
            whole(model, node, Codes { codes, scale, zero_point }, weight, model.node(node).input(4))
        }
        _ => Ok(false),
    }
}

/// An operator that does all in one becomes a MatMul, and an Add of its bias.
fn whole(
    model: &mut Model,
    node: NodeId,
    data: Codes,
    (weight, axis): (Codes, Option<usize>),
    bias: Option<ValueId>,
) -> Result<bool> {
    let x = dequantized(model, data, None, node)?;
    let w = dequantized(model, weight, axis, node)?;
    model.node_mut(node).domain = None;
    let Some(bias) = bias else {
        convert(model, node, "MatMul", &[Some(x), Some(w)], Vec::new());
        return Ok(true);
    };
    let name = model.node(node).output(0).map_or_else(String::new, |v| model.value(v).name().to_owned());
    let spec = NodeSpec::new("MatMul").input(x).input(w).output(format!("{name}_MatMul_Output"));
    let matmul = model.insert(spec, Place::Before(node));
    let product = model.node(matmul).output(0);
    convert(model, node, "Add", &[product, Some(bias)], Vec::new());
    Ok(true)
}

/// MatMulInteger or ConvInteger, Cast, and one or two Mul with the scales.
fn chain(model: &mut Model, node: NodeId) -> Result<bool> {
    let n = model.node(node);
    let conv = n.is("ConvInteger");
    let (Some(a), Some(b), Some(sums)) = (n.input(0), n.input(1), n.output(0)) else { return Ok(false) };
    let (za, zb, attributes) = (n.input(2), n.input(3), n.attributes.clone());
    if several(model, za) {
        return Ok(false);
    }
    let Some((cast, _)) = model.sole_reader(sums).filter(|(c, _)| model.node(*c).is("Cast")) else {
        return Ok(false);
    };
    let to_float = model.node(cast).int("to") == Some(i64::from(DType::Float.to_onnx()));
    let Some(real) = model.node(cast).output(0).filter(|_| to_float) else { return Ok(false) };
    let Some((mul, other)) = scaled(model, real) else { return Ok(false) };
    // What each of the two scales is.
    let product = model.producer(other).filter(|&p| model.node(p).is("Mul"));
    let pair = product.and_then(|p| Some((model.node(p).input(0)?, model.node(p).input(1)?)));
    let (last, scales) = match pair {
        Some((first, second)) => (mul, Some((first, second))),
        None => match model.node(mul).output(0).and_then(|v| scaled(model, v)) {
            Some((next, second)) => (next, Some((other, second))),
            None => (mul, None),
        },
    };
    let told = scales.and_then(|(first, second)| {
        let belongs = |scale: ValueId, codes: ValueId| made_with(model, scale, codes);
        match (belongs(first, a), belongs(second, a)) {
            (true, _) => Some((first, second)),
            (_, true) => Some((second, first)),
            _ => None,
        }
    });
    let (sa, sb, last) = match told {
        Some((sa, sb)) => (Some(sa), sb, last),
        // One constant for both, or an order that says nothing.
        None if model.value(other).constant().is_some() => (None, other, mul),
        None => return Ok(false),
    };
    let Some(weight) = weight_scales(model, Codes { codes: b, scale: sb, zero_point: zb }, conv)? else {
        return Ok(false);
    };
    let sa = match sa {
        Some(v) if is_scalar(model, v) => v,
        Some(_) => return Ok(false),
        None => {
            let one = Tensor::from_f32(&[], &[1.0]);
            let name = format!("{}_one", model.value(a).name());
            model.add_initializer(model.node(node).graph(), &name, one)
        }
    };
    let x = dequantized(model, Codes { codes: a, scale: sa, zero_point: za }, None, node)?;
    let w = dequantized(model, weight.0, weight.1, node)?;
    let op = if conv { "Conv" } else { "MatMul" };
    let bias = if conv { channel_bias(model, last, weight.0.codes)? } else { None };
    let kept: Vec<Attr> = attributes.into_iter().filter(|_| conv).collect();
    match bias {
        Some((add, b)) => convert(model, add, op, &[Some(x), Some(w), Some(b)], kept),
        None => convert(model, last, op, &[Some(x), Some(w)], kept),
    }
    Ok(true)
}

/// Whether there is a zero point for each row, which DequantizeLinear has not beside a scalar.
fn several(model: &Model, zero_point: Option<ValueId>) -> bool {
    zero_point.and_then(|v| model.value(v).constant()).is_some_and(|t| t.len() > 1)
}

/// The only reader of a value, if it is a Mul, with what that multiplies by.
fn scaled(model: &Model, v: ValueId) -> Option<(NodeId, ValueId)> {
    let (mul, i) = model.sole_reader(v).filter(|(n, _)| model.node(*n).is("Mul"))?;
    Some((mul, model.node(mul).input(1 - i.min(1))?))
}

/// Whether a scale is the one that codes were made with.
fn made_with(model: &Model, scale: ValueId, codes: ValueId) -> bool {
    let Some(maker) = model.producer(codes) else { return false };
    match model.node(maker) {
        n if n.is("DynamicQuantizeLinear") => n.output(1) == Some(scale),
        n if n.is("QuantizeLinear") => n.input(1) == Some(scale),
        _ => false,
    }
}

fn is_scalar(model: &Model, v: ValueId) -> bool {
    match model.value(v).constant() {
        Some(t) => t.rank() == 0 && t.dtype() == DType::Float,
        None => model.value(v).producer().is_some_and(|(n, i)| i == 1 && model.node(n).is("DynamicQuantizeLinear")),
    }
}

/// A weight with its scales as DequantizeLinear takes them, and their axis. `None` where it does not take them.
fn weight_scales(model: &mut Model, w: Codes, conv: bool) -> Result<Option<(Codes, Option<usize>)>> {
    let has_axes = |v: ValueId| model.value(v).constant().is_some_and(|t| t.rank() > 0);
    if is_scalar(model, w.scale) && !w.zero_point.is_some_and(has_axes) {
        return Ok(Some((w, None)));
    }
    let (Some(codes), Some(scale)) = (model.value(w.codes).constant(), model.value(w.scale).constant()) else {
        return Ok(None);
    };
    let zeros = w.zero_point.map(|v| model.value(v).constant().cloned());
    if scale.dtype() != DType::Float || codes.rank() < 2 || matches!(zeros, Some(None)) {
        return Ok(None);
    }
    let (codes, scale, zeros) = (codes.clone(), scale.clone(), zeros.flatten());
    let graph = model.value(w.scale).graph();
    let mut copy = |v: ValueId, t: Tensor| {
        let name = format!("{}_1", model.value(v).name());
        model.add_initializer(graph, &name, t)
    };
    // One with more axes than the product gives it more axes, too.
    if scale.rank() > codes.rank() {
        return Ok(None);
    }
    // One scale beside a zero point for each column.
    let each = |z: &Tensor| !conv && codes.rank() == 2 && z.len() == codes.dims()[1];
    let scale = match zeros.as_ref().filter(|z| z.len() > 1 && scale.len() == 1) {
        Some(z) if each(z) => Tensor::from_f32(&[z.len()], &vec![scale.to_f32()?[0]; z.len()]),
        Some(_) => return Ok(None),
        None => scale,
    };
    if scale.len() == 1 && zeros.as_ref().is_none_or(|z| z.len() == 1) {
        let scale = copy(w.scale, scale.reshaped(vec![])?);
        let zero_point = match (w.zero_point, zeros) {
            (Some(v), Some(t)) => Some(copy(v, t.reshaped(vec![])?)),
            _ => None,
        };
        return Ok(Some((Codes { codes: w.codes, scale, zero_point }, None)));
    }
    // `[C, 1, 1]` or `[1, C, 1, 1]` behind a convolution, `[N]` or `[1, N]` behind a product.
    let rank = codes.rank();
    let axis = if conv { 0 } else { rank - 1 };
    let count = codes.dims()[axis];
    let dims = scale.dims();
    let at = if conv { (dims.len() + 1).checked_sub(rank) } else { dims.len().checked_sub(1) };
    let fits = at.is_some_and(|at| dims.get(at) == Some(&count)) && scale.len() == count && (conv || rank == 2);
    let zeros_fit = zeros.as_ref().is_none_or(|z| z.len() == 1 || z.rank() == 1 && z.len() == count);
    if !fits || !zeros_fit {
        return Ok(None);
    }
    let scale = copy(w.scale, scale.reshaped(vec![count])?);
    let zero_point = match (w.zero_point, zeros) {
        (Some(v), Some(t)) if t.len() == 1 && count > 1 => {
            let zero = i32::try_from(t.to_i64()?[0]).unwrap_or(0);
            Some(copy(v, crate::quant::pack::pack(t.dtype(), &[count], &vec![zero; count])?))
        }
        (Some(v), Some(t)) => Some(copy(v, t.reshaped(vec![count])?)),
        _ => None,
    };
    Ok(Some((Codes { codes: w.codes, scale, zero_point }, Some(axis))))
}

/// The Add behind a convolution that adds a constant to each channel, and that constant as a bias.
fn channel_bias(model: &mut Model, last: NodeId, weight: ValueId) -> Result<Option<(NodeId, ValueId)>> {
    let Some(dims) = model.value(weight).constant().map(|t| t.dims().to_vec()) else { return Ok(None) };
    let reader = model.node(last).output(0).and_then(|v| model.sole_reader(v));
    let Some((add, i)) = reader.filter(|(n, _)| model.node(*n).is("Add")) else { return Ok(None) };
    let Some(v) = model.node(add).input(1 - i.min(1)) else { return Ok(None) };
    let Some(t) = model.value(v).constant().filter(|t| t.dtype() == DType::Float) else { return Ok(None) };
    let (Some(&channels), at) = (dims.first(), (t.rank() + 1).checked_sub(dims.len())) else { return Ok(None) };
    if t.len() != channels || at.is_none_or(|at| t.dims().get(at) != Some(&channels)) || t.rank() > dims.len() {
        return Ok(None);
    }
    let (t, graph) = (t.reshaped(vec![t.len()])?, model.node(add).graph());
    let name = format!("{}_1", model.value(v).name());
    Ok(Some((add, model.add_initializer(graph, &name, t))))
}

/// The DequantizeLinear of these codes that is there, or a new one in front of a node.
fn dequantized(model: &mut Model, c: Codes, axis: Option<usize>, before: NodeId) -> Result<ValueId> {
    let graph = model.node(before).graph();
    let alike = |(n, i): (NodeId, usize)| {
        let n = model.node(n);
        let same = n.input(1) == Some(c.scale) && n.input(2) == c.zero_point && n.int("axis") == axis.map(|a| a as i64);
        (i == 0 && n.is("DequantizeLinear") && n.graph() == graph && same).then(|| n.output(0)).flatten()
    };
    let scale_here = model.producer(c.scale) == model.producer(c.codes) || model.value(c.scale).constant().is_some();
    let there = model.value(c.codes).readers().find_map(alike);
    if let Some(v) = there {
        // It may stand behind the node.
        if let Some(d) = model.producer(v).filter(|_| scale_here) {
            let place = behind_maker(model, c.codes, graph);
            model.move_node(d, place);
        }
        return Ok(v);
    }
    let name = model.value(c.codes).name().to_owned();
    let name = name.strip_suffix("_quantized").unwrap_or(&name);
    let mut spec = NodeSpec::new("DequantizeLinear")
        .input(c.codes)
        .input(c.scale)
        .inputs(c.zero_point.map(Some))
        .output(format!("{name}_DequantizeLinear_Output"));
    if let Some(axis) = axis {
        spec = spec.attr("axis", axis as i64);
    }
    let place = if scale_here { behind_maker(model, c.codes, graph) } else { Place::Before(before) };
    model.insert_value(spec, place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped};

    const HEAD: &str = "<ir_version: 8, opset_import: [\"\" : 17, \"com.microsoft\" : 1]>";
    fn matmul(constants: &str, body: &str) -> String {
        format!("{HEAD} g (float[n, 2] x) => (float[n, 2] y) <int8[2, 2] w = {{1, 2, 3, 4}}, {constants}> {{ {body} }}")
    }

    #[test]
    fn both_orders_and_two_steps() {
        let constants = "float[2] t = {1, 2}, int8[2] u = {3, 4}";
        let after = matmul(
            "float[2] t_1 = {1, 2}, int8[2] u_1 = {3, 4}",
            "w_DequantizeLinear_Output = DequantizeLinear <axis = 1> (w, t_1, u_1)
            q, s, z = DynamicQuantizeLinear(x)
            q_DequantizeLinear_Output = DequantizeLinear(q, s, z)
            y = MatMul(q_DequantizeLinear_Output, w_DequantizeLinear_Output)",
        );
        for tail in [
            "p = Mul(s, t) y = Mul(f, p)",
            "p = Mul(t, s) y = Mul(p, f)",
            "p = Mul(f, s) y = Mul(p, t)",
            "p = Mul(t, f) y = Mul(s, p)",
        ] {
            let sums = "q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z, u) f = Cast <to = 1> (i)";
            check(run, &matmul(constants, &format!("{sums} {tail}")), &after);
        }
    }

    #[test]
    fn one_scale_for_both_goes_to_the_weight() {
        check(
            run,
            &matmul(
                "float k = {0.25}, float f = {0.5}, uint8 o = {3}",
                "q = QuantizeLinear(x, f, o) i = MatMulInteger(q, w, o) c = Cast <to = 1> (i) y = Mul(c, k)",
            ),
            &matmul(
                "float k = {0.25}, float f = {0.5}, uint8 o = {3}, float q_one = {1}",
                "w_DequantizeLinear_Output = DequantizeLinear(w, k)
                q = QuantizeLinear(x, f, o)
                q_DequantizeLinear_Output = DequantizeLinear(q, q_one, o)
                y = MatMul(q_DequantizeLinear_Output, w_DequantizeLinear_Output)",
            ),
        );
    }

    /// DequantizeLinear has as many zero points as scales.
    #[test]
    fn one_scale_beside_several_zero_points() {
        let body = "q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z, u) f = Cast <to = 1> (i) p = Mul(s, t) y = Mul(f, p)";
        let after = "w_DequantizeLinear_Output = DequantizeLinear <axis = 1> (w, t_1, u_1)
            q, s, z = DynamicQuantizeLinear(x)
            q_DequantizeLinear_Output = DequantizeLinear(q, s, z)
            y = MatMul(q_DequantizeLinear_Output, w_DequantizeLinear_Output)";
        check(
            run,
            &matmul("float t = {2}, int8[2] u = {3, 4}", body),
            &matmul("float[2] t_1 = {2, 2}, int8[2] u_1 = {3, 4}", after),
        );
        let plain = after.replace(" <axis = 1>", "");
        check(run, &matmul("float t = {2}, int8[1] u = {3}", body), &matmul("float t_1 = {2}, int8 u_1 = {3}", &plain));
    }

    /// A zero point for each row of the data, and a scale that gives the product another rank.
    #[test]
    fn what_no_float_product_says_stays() {
        let body = "c = Cast <to = 2> (x) i = MatMulInteger(c, w, o) f = Cast <to = 1> (i) y = Mul(f, t)";
        check_skipped(run, &matmul("float t = {2}, uint8[2] o = {3, 4}", body), "");
        let body = "q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z) f = Cast <to = 1> (i) p = Mul(s, t) y = Mul(f, p)";
        check_skipped(run, &matmul("float[1, 1, 1] t = {2}", body), "");
    }

    #[test]
    fn microsofts() {
        let constants = "float t = {2}, int8 u = {3}, float[2] b = {4, 5}";
        let raised = |x: &str, q: &str| {
            format!(
                "w_DequantizeLinear_Output = DequantizeLinear(w, t, u)
                {q} = DynamicQuantizeLinear(x)
                {x}_DequantizeLinear_Output = DequantizeLinear({q})
                y_MatMul_Output = MatMul({x}_DequantizeLinear_Output, w_DequantizeLinear_Output)
                y = Add(y_MatMul_Output, b)"
            )
        };
        check(
            run,
            &matmul(constants, "y = com.microsoft.DynamicQuantizeMatMul(x, w, t, u, b)"),
            &matmul(constants, &raised("x", "x_quantized, x_scale, x_zero_point")),
        );
        let parts = "q, s, z = DynamicQuantizeLinear(x)";
        check(
            run,
            &matmul(constants, &format!("{parts} y = com.microsoft.MatMulIntegerToFloat(q, w, s, t, z, u, b)")),
            &matmul(constants, &raised("q", "q, s, z")),
        );
    }

    #[test]
    fn convolutions_with_their_bias() {
        let model = |constants: &str, body: &str| {
            format!(
                "{HEAD} g (float[1, 1, 4] x) => (float[1, 2, 2] y) <uint8[2, 1, 3] w = {{1, 2, 3, 4, 5, 6}}, {constants}> {{ {body} }}"
            )
        };
        check(
            run,
            &model(
                "float[2, 1] t = {1, 2}, uint8 u = {128}, float[1, 2, 1] b = {3, 4}",
                "q, s, z = DynamicQuantizeLinear(x) i = ConvInteger <strides = [1]> (q, w, z, u) f = Cast <to = 1> (i)
                p = Mul(s, t) m = Mul(f, p) y = Add(b, m)",
            ),
            &model(
                "float[2] t_1 = {1, 2}, uint8[2] u_1 = {128, 128}, float[2] b_1 = {3, 4}",
                "w_DequantizeLinear_Output = DequantizeLinear <axis = 0> (w, t_1, u_1)
                q, s, z = DynamicQuantizeLinear(x) q_DequantizeLinear_Output = DequantizeLinear(q, s, z)
                y = Conv <strides = [1]> (q_DequantizeLinear_Output, w_DequantizeLinear_Output, b_1)",
            ),
        );
    }

    #[test]
    fn what_is_no_scaled_product_stays() {
        for tail in [
            "f = Cast <to = 11> (i) y = Cast <to = 1> (f)",
            "f = Cast <to = 1> (i) y = Add(f, t)",
            "f = Cast <to = 1> (i) g = Mul(f, f) y = Add(g, s)",
        ] {
            let body = format!("q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z) {tail}");
            check_skipped(run, &matmul("float[2] t = {1, 2}", &body), "");
        }
        let old = matmul("float t = {1}", "y = com.microsoft.DynamicQuantizeMatMul(x, w, t)").replace(": 17", ": 12");
        check_skipped(run, &old, "");
    }
}
