//! Constants in int8 beside activations in uint8: tables of Gather, constant operands of Add and Mul.
//!
//! ONNX Runtime on x86-64 makes int8 activations uint8 when it loads a file, but leaves constants as they are; then codes of two
//! types meet, and the operator computes in float. The same numbers in uint8, with 128 added to codes and zero point, have a kernel.
//!
//! ```text
//! before: (int64[3] i) => (float[3,2] y) <int8[2,2] c = {1, -2, 3, -128}, float s = {0.5}, int8 z = {-1}, uint8 u = {127}> { t = DequantizeLinear(c, s, z) g = Gather(t, i) q = QuantizeLinear(g, s, u) y = DequantizeLinear(q, s, u) }
//! after: (int64[3] i) => (float[3,2] y) <uint8[2,2] c = {129, 126, 131, 0}, float s = {0.5}, uint8 z = {127}, uint8 u = {127}> { t = DequantizeLinear(c, s, z) g = Gather(t, i) q = QuantizeLinear(g, s, u) y = DequantizeLinear(q, s, u) }
//! ```

use super::{
    Changes, Context, Finding, Severity,
    support::weights::{self, Weight},
};
use crate::{
    error::Result,
    ir::{DType, Model},
    ops::{self, Role},
};

pub(super) const WHAT: &str = "constants in int8 beside activations in uint8";
pub(super) const CURE: &str = "write them as uint8 with 128 added to codes and zero point: the same numbers";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    if cx.target.activation != DType::Uint8 {
        return Ok(found);
    }
    for n in cx.nodes() {
        let (Some(spec), true) = (ops::spec(cx.model, n), cx.is_float(n)) else { continue };
        // Only between codes would it be in integers.
        let output = cx.model.node(n).output(0);
        let quantized = output.is_some_and(|v| {
            cx.model.value(v).readers().any(|(r, i)| i == 0 && cx.model.node(r).op_type == "QuantizeLinear")
        });
        if cx.row(n).is_none() || !quantized {
            continue;
        }
        for i in (0..cx.model.node(n).inputs().len()).filter(|&i| spec.role(i) == Role::Data) {
            let Some(dq) = cx.dequantized(n, i) else { continue };
            let weight = Weight::of(cx.model, dq.node).filter(|w| w.dtype() == DType::Int8 && w.codes.axis.is_none());
            let Some(weight) = weight else { continue };
            let anew = weights::as_uint8(&weight.codes)?;
            let bytes = weight.codes.values.byte_len();
            let fact = format!("its constant operand is int8 ({bytes} bytes), which keeps it in float");
            let node = dq.node;
            let repair = move |model: &mut Model| {
                let there = model.try_node(node).is_some();
                if there {
                    weights::set(model, node, &anew)?;
                }
                Ok(there)
            };
            let time = cx.times.node(n) + cx.times.node(dq.node);
            found.push(Finding::at(Severity::Warning, n, fact).on(dq.input).costs(time).mend(Changes::Nothing, repair));
        }
    }
    Ok(found)
}
