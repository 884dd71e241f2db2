//! int8 weights whose sums can saturate on processors without VNNI.
//!
//! Such x86 processors multiply uint8 data by int8 weights two by two and add the products with 16 bits: 255 · 127 twice is more
//! than fits, and up to half of the sum is lost. Whether that can happen depends on neighbouring weights of one product; on
//! processors with VNNI it cannot. For the processor that `--cpu` names, channels with such neighbours are rounded to fewer codes.
//!
//! ```text
//! before: (float[2] x) => (float[2] y) { y = Relu(x) }
//! ```

use super::{
    Changes, Context, Finding, Severity,
    support::weights::{self, Weight},
};
use crate::{
    error::Result,
    ir::{DType, NodeId, Tensor},
    kernels::Becomes,
    ops, plan,
    quant::{
        QuantTarget, QuantizedWeight,
        params::QParams,
        saturation::{Pairs, without_saturation},
    },
    target::Target,
};

pub(super) const WHAT: &str = "weights whose sums can saturate on processors without VNNI";
pub(super) const CURE: &str = "spread these channels over fewer codes: --cpu NAME says for which processor";

pub(super) fn find(cx: &Context<'_>) -> Result<Vec<Finding>> {
    if cx.target.other_cpu().is_some() {
        return on(cx, cx.target, true);
    }
    // On the target's own processor nothing saturates; on others it may.
    for cpu in cx.target.cpus().skip(1) {
        let other = cx.target.clone().on_cpu(cpu)?;
        let found = on(cx, &other, false)?;
        if let Some(first) = found.first().and_then(|f| f.node) {
            let fact = format!(
                "sums of {} layers ({} and others) can saturate on processors of the kind {cpu}; not on {}",
                found.len(),
                cx.node(first),
                cx.target.cpus().next().unwrap_or_default()
            );
            let fact = if found.len() == 1 {
                fact.replace("1 layers (", "one layer (").replace(" and others", "")
            } else {
                fact
            };
            return Ok(vec![Finding { node: None, ..Finding::at(Severity::Note, first, fact) }]);
        }
    }
    Ok(Vec::new())
}

fn on(cx: &Context<'_>, target: &Target, mends: bool) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for n in cx.nodes() {
        let Some((weight, axes, dq)) = weight_of(cx, n) else { continue };
        let kernel = cx.kernel(n).and_then(|k| k.kernel.clone()).unwrap_or_else(|| cx.model.node(n).op_type.clone());
        if !target.saturates(&kernel, weight.values.dtype(), plan::is_depthwise(cx.model, n, weight.values.dims())) {
            continue;
        }
        let pairs = Pairs::along(weight.values.dims(), &axes)?;
        let over = pairs.saturating(&weight)?;
        let many = over.iter().filter(|&&o| o).count();
        if many == 0 {
            continue;
        }
        let fact = match over.len() {
            1 => "neighbouring weights can exceed the 16 bits of their sum".to_owned(),
            all => format!("{many} of {all} channels have neighbouring weights whose sum can exceed 16 bits"),
        };
        let finding = Finding::at(Severity::Warning, n, fact);
        let Some(dq) = dq.filter(|_| mends) else {
            found.push(finding);
            continue;
        };
        let symmetric = weight.params.iter().all(|p| p.zero_point == 0);
        let how = QuantTarget { dtype: DType::Int8, symmetric, reduce_range: false };
        let real = weight.dequantized()?;
        let anew = without_saturation(&real, how, weight.clone(), &pairs)?;
        let whole = Weight::of(cx.model, dq);
        let away = whole.map_or(Ok(f64::INFINITY), |w| w.distance(&anew))?;
        let words = format!("changes numbers: fewer codes for these channels (weight {away:.1} dB)");
        found.push(finding.mend(Changes::As(words), weights::exchange(n, dq, anew)));
    }
    Ok(found)
}

/// The int8 weight of a node that computes in integers, the axes that its products add along, and its DequantizeLinear.
fn weight_of(cx: &Context<'_>, n: NodeId) -> Option<(QuantizedWeight, Vec<usize>, Option<NodeId>)> {
    if !matches!(cx.becomes(n), Some(Becomes::Integer | Becomes::Part)) {
        return None;
    }
    let node = cx.model.node(n);
    if node.op_type == "MatMulInteger" || node.op_type == "DynamicQuantizeMatMul" {
        let values = cx.model.constant_input(n, 1).filter(|t| t.dtype() == DType::Int8 && t.rank() >= 2)?.clone();
        let params = vec![QParams { scale: 1.0, zero_point: 0, dtype: DType::Int8 }];
        let axes = vec![values.rank() - 2];
        let scale = Tensor::from_f32(&[], &[1.0]);
        let zero_point = Tensor::from_u8(DType::Int8, &[], vec![0]);
        return Some((QuantizedWeight { values, scale, zero_point, axis: None, params }, axes, None));
    }
    let (spec, (_, weight)) = (ops::spec(cx.model, n)?, Weight::at(cx, n)?);
    if weight.dtype() != DType::Int8 {
        return None;
    }
    let rank = weight.codes.values.rank();
    let axes = plan::sum_axes(spec, rank, spec.weight_axis(node, rank))?;
    let alone = cx.model.value(weight.dq.output).uses().len() == 1;
    Some((weight.codes, axes, alone.then_some(weight.dq.node)))
}
