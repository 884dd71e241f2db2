//! Fuses products of data that are quantized at run time into integer products, scaled to float behind them: the form that
//! ONNX Runtime makes DynamicQuantizeMatMul (or, where several products read the same data, MatMulIntegerToFloat) of.
//!
//! ```text
//! before: x' = DequantizeLinear(q, s, z), where q, s, z = DynamicQuantizeLinear(x)
//!         y = MatMul(x', DequantizeLinear(w, s_w, z_w))
//! after:  y = Mul(Cast(MatMulInteger(q, w, z, z_w)), Mul(s, s_w))
//! ```
//!
//! Conv becomes ConvInteger in the same way, its bias an Add behind that. The runtime puts an Add that follows a MatMul into
//! its kernel by itself.

use super::{
    Context,
    support::{convert::convert, pairs::Linear},
};
use crate::{
    error::Result,
    ir::{Attr, DType, Model, NodeId, NodeSpec, Place, Tensor, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut changes = 0;
    for node in model.all_nodes() {
        changes += usize::from(fuse(model, node)?);
    }
    Ok(changes)
}

/// The DequantizeLinear of 8-bit codes that makes input `i` of a node.
fn codes(model: &Model, node: NodeId, i: usize) -> Option<Linear> {
    let eight_bits = |v: ValueId| match model.value(v).constant() {
        Some(t) => matches!(t.dtype(), DType::Int8 | DType::Uint8),
        None => is_dynamic(model, v, 0),
    };
    let dq = Linear::dequantized(model, model.node(node).input(i)?)?;
    (model.node(dq.node).in_onnx_domain() && eight_bits(dq.input)).then_some(dq)
}

/// Whether a value is output `i` of a DynamicQuantizeLinear.
fn is_dynamic(model: &Model, v: ValueId, i: usize) -> bool {
    model.value(v).producer().is_some_and(|(n, at)| at == i && model.node(n).is("DynamicQuantizeLinear"))
}

/// How the scales of a weight lie.
enum Scales {
    One,
    /// One for each column, or output channel.
    Each,
}

fn fuse(model: &mut Model, node: NodeId) -> Result<bool> {
    let n = model.node(node);
    let conv = n.is("Conv");
    if !conv && !n.is("MatMul") {
        return Ok(false);
    }
    let (Some(x), Some(w)) = (codes(model, node, 0), codes(model, node, 1)) else { return Ok(false) };
    let dynamic = is_dynamic(model, x.input, 0) && is_dynamic(model, x.scale, 1);
    let Some(scales) = scales_of_weight(model, &w, conv).filter(|_| dynamic) else { return Ok(false) };
    let Some(zero_point) = zero_point_of_weight(model, &w, conv)? else { return Ok(false) };
    let bias = n.input(2).filter(|_| conv);
    let bias = match bias.map(|b| (b, model.value(b).constant().cloned())) {
        None => None,
        Some((b, Some(t))) => Some((b, t)),
        Some((_, None)) => return Ok(false),
    };
    let (graph, attributes) = (n.graph(), n.attributes.clone());
    let Some(out) = n.output(0) else { return Ok(false) };
    let (name, rank) = (model.value(out).name().to_owned(), model.value(w.input).constant().map_or(2, Tensor::rank));
    // Channels of a convolution's output lie along axis 1.
    let along_channels = |t: &Tensor| t.reshaped([vec![t.len()], vec![1; rank.saturating_sub(2)]].concat());
    let w_scale = match (scales, model.value(w.scale).constant()) {
        (Scales::Each, Some(t)) if conv => {
            let t = along_channels(t)?;
            let own = format!("{}_channels", model.value(w.scale).name());
            model.add_initializer(graph, &own, t)
        }
        _ => w.scale,
    };
    let op = if conv { "ConvInteger" } else { "MatMulInteger" };
    let mut inputs = vec![Some(x.input), Some(w.input), x.zero_point];
    match zero_point {
        Zero::None => {}
        Zero::As(v) => inputs.push(Some(v)),
        Zero::One(t) => {
            let own = format!("{}_zero_point", model.value(w.input).name());
            inputs.push(Some(model.add_initializer(graph, &own, t)));
        }
    }
    while inputs.last() == Some(&None) {
        inputs.pop();
    }
    let mut insert = |spec: NodeSpec, suffix: &str| -> Result<ValueId> {
        model.insert_value(spec.output(format!("{name}_{suffix}")), Place::Before(node))
    };
    let kept = attributes.into_iter().filter(|_| conv);
    let sums = insert(NodeSpec::new(op).inputs(inputs).attrs(kept), "sums")?;
    let real = insert(NodeSpec::new("Cast").input(sums).attr("to", i64::from(DType::Float.to_onnx())), "Cast_Output")?;
    let scale = insert(NodeSpec::new("Mul").input(x.scale).input(w_scale), "scale")?;
    match bias {
        None => convert(model, node, "Mul", &[Some(real), Some(scale)], Vec::<Attr>::new()),
        Some((b, t)) => {
            let product = insert(NodeSpec::new("Mul").input(real).input(scale), "Mul_Output")?;
            let own = format!("{}_channels", model.value(b).name());
            let t = along_channels(&t)?;
            let b = model.add_initializer(graph, &own, t);
            convert(model, node, "Add", &[Some(product), Some(b)], Vec::<Attr>::new());
        }
    }
    Ok(true)
}

fn scales_of_weight(model: &Model, w: &Linear, conv: bool) -> Option<Scales> {
    if is_dynamic(model, w.scale, 1) {
        return Some(Scales::One).filter(|_| !conv);
    }
    let (codes, scale) = (model.value(w.input).constant()?, model.value(w.scale).constant()?);
    if scale.dtype() != DType::Float {
        return None;
    }
    if scale.rank() == 0 || scale.len() == 1 && !conv {
        return Some(Scales::One);
    }
    // Weights of higher rank are a batch of matrices, which the runtime's integer kernels do not take in one.
    let rank = codes.rank();
    let axis = if conv { 0 } else { rank.checked_sub(1).filter(|_| rank == 2)? };
    let fits =
        scale.rank() == 1 && w.axis_of(rank) == Some(axis) && codes.dims().get(axis) == Some(&scale.len()) && rank >= 2;
    fits.then_some(Scales::Each)
}

/// The zero point of a weight, for the integer operator.
enum Zero {
    /// It is zero.
    None,
    /// As it stands.
    As(ValueId),
    /// The only one: ConvInteger has one for the whole weight.
    One(Tensor),
}

/// `None` where the integer operator does not take it.
fn zero_point_of_weight(model: &Model, w: &Linear, conv: bool) -> Result<Option<Zero>> {
    let Some(v) = w.zero_point else { return Ok(Some(Zero::None)) };
    let Some(t) = model.value(v).constant() else {
        return Ok((!conv && is_dynamic(model, v, 2)).then_some(Zero::As(v)));
    };
    let zeros = t.to_i64()?;
    let Some(&first) = zeros.first() else { return Ok(None) };
    let alike = zeros.iter().all(|&z| z == first);
    Ok(match (alike, conv) {
        (true, _) if first == 0 => Some(Zero::None),
        (true, true) if t.rank() > 0 => {
            Some(Zero::One(crate::quant::pack::pack(t.dtype(), &[], &[i32::try_from(first).unwrap_or(0)])?))
        }
        (true, _) | (false, false) => Some(Zero::As(v)),
        (false, true) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped};

    const X: &str = "q, s, z = DynamicQuantizeLinear(x) r = DequantizeLinear(q, s, z)";

    fn matmul(constants: &str, weight: &str) -> String {
        format!(
            "(float[n, 2] x) => (float[n, 2] y) <int8[2, 2] w = {{1, 2, 3, 4}}, {constants}> {{ {X} d = DequantizeLinear {weight} y = MatMul(r, d) }}"
        )
    }

    #[test]
    fn scales_for_each_column() {
        check(
            run,
            &matmul("float[2] t = {1, 2}, int8[2] u = {0, 0}", "<axis = 1> (w, t, u)"),
            "(float[n, 2] x) => (float[n, 2] y) <int8[2, 2] w = {1, 2, 3, 4}, float[2] t = {1, 2}> {
                q, s, z = DynamicQuantizeLinear(x)
                y_sums = MatMulInteger(q, w, z)
                y_Cast_Output = Cast <to = 1> (y_sums)
                y_scale = Mul(s, t)
                y = Mul(y_Cast_Output, y_scale)
            }",
        );
    }

    #[test]
    fn products_of_two_data() {
        check(
            run,
            "(float[n, 2] x, float[2, m] v) => (float[n, m] y) {
                q, s, z = DynamicQuantizeLinear(x) r = DequantizeLinear(q, s, z)
                p, t, u = DynamicQuantizeLinear(v) d = DequantizeLinear(p, t, u)
                y = MatMul(r, d)
            }",
            "(float[n, 2] x, float[2, m] v) => (float[n, m] y) {
                q, s, z = DynamicQuantizeLinear(x)
                p, t, u = DynamicQuantizeLinear(v)
                y_sums = MatMulInteger(q, p, z, u)
                y_Cast_Output = Cast <to = 1> (y_sums)
                y_scale = Mul(s, t)
                y = Mul(y_Cast_Output, y_scale)
            }",
        );
    }

    #[test]
    fn convolutions_with_a_bias() {
        let model = |body: &str, constants: &str| {
            format!(
                "(float[1, 1, 4] x) => (float[1, 2, 2] y) <uint8[2, 1, 3] w = {{1, 2, 3, 4, 5, 6}}, {constants}> {{ {body} }}"
            )
        };
        check(
            run,
            &model(
                &format!(
                    "{X} d = DequantizeLinear <axis = 0> (w, t, u) y = Conv <strides = [1], pads = [0, 0]> (r, d, b)"
                ),
                "float[2] t = {1, 2}, uint8[2] u = {128, 128}, float[2] b = {3, 4}",
            ),
            &model(
                "q, s, z = DynamicQuantizeLinear(x)
                y_sums = ConvInteger <strides = [1], pads = [0, 0]> (q, w, z, w_zero_point)
                y_Cast_Output = Cast <to = 1> (y_sums)
                y_scale = Mul(s, t_channels)
                y_Mul_Output = Mul(y_Cast_Output, y_scale)
                y = Add(y_Mul_Output, b_channels)",
                "float[2, 1] t_channels = {1, 2}, float[2, 1] b_channels = {3, 4}, uint8 w_zero_point = {128}",
            ),
        );
        let other = "float[2] t = {1, 2}, uint8[2] u = {128, 127}";
        check_skipped(run, &model(&format!("{X} d = DequantizeLinear <axis = 0> (w, t, u) y = Conv(r, d)"), other), "");
    }

    #[test]
    fn what_the_integer_operator_does_not_know_stays() {
        check_skipped(run, &matmul("float[2] t = {1, 2}", "<axis = 0> (w, t)"), "");
        let fixed = matmul("float t = {1}, float f = {0.5}, uint8 o = {0}", "(w, t)")
            .replace(X, "q = QuantizeLinear(x, f, o) r = DequantizeLinear(q, f, o)");
        check_skipped(run, &fixed, "");
    }
}
