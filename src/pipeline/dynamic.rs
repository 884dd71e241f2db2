//! What is known before data are quantized at run time: shapes without a sample, and which products that would destroy.

use std::collections::BTreeMap;

use crate::{
    analysis::{
        placement::{Decision, Placement, Shapes, Wishes},
        stand_ins,
    },
    diagnostics::Diagnostic,
    error::Result,
    ir::{Model, NodeId, Tensor, ValueId},
    plan::{self, Known, Scheme, Weight},
    quant::{
        QuantTarget, Range,
        arith::{Quantizer, dot},
        error,
    },
    runtime::Runtime,
    scheme::Resolved,
    target::Target,
};

/// What a product must answer at least, beside its float answer, dB: under this most of what it says is lost.
const LEAST: f64 = 15.0;
/// What is good enough, whatever the others do. Usual products have 30 to 45 dB.
const ENOUGH: f64 = 30.0;
/// How far a product may be behind the middle one of its model, dB. Those that are farther cause most of the loss, and are few:
/// in a small Llama 5 of 36, whose data hold single numbers far larger than the rest, cause five sixths of it.
const BEHIND: f64 = 9.0;
/// Rows of the data that a product is computed on.
const ROWS: usize = 16;
/// Samples that the data are measured on.
pub(super) const MEASURED: usize = 4;

/// Shapes without a sample, and what they rest on.
pub(super) fn shapes_without_data(model: &Model) -> (Shapes, Option<Diagnostic>) {
    let (shapes, taken) = stand_ins::shapes(model);
    // A batch of one is what anyone expects.
    let telling = taken.values().any(|&size| size > 1);
    let taken: Vec<_> = taken.iter().map(|(name, size)| format!("{name} = {size}")).collect();
    let note = telling.then(|| {
        let text = format!("without data, what gains is weighed for these sizes: {}", taken.join(", "));
        Diagnostic::note("assumed_sizes", text)
            .help("give --calibration with a typical sample to have it weighed for that")
    });
    (shapes, note)
}

/// The wishes, with those products in float that would not survive as far as the model tells; `measured`: with data, what
/// products read is not guessed but measured.
pub(super) fn wishes(model: &Model, target: &Target, resolved: &Resolved, measured: bool) -> Result<Wishes> {
    let mut wishes = resolved.wishes.clone();
    let fragile = plan::fragile_weights(model, target, &resolved.scheme, &wishes)?;
    wishes.keep_float.extend(fragile);
    if !measured {
        let gated = plan::gated_products(model, &wishes);
        wishes.keep_float.extend(gated);
    }
    Ok(wishes)
}

/// The matrix products placed to quantize their data at run time that answer too far from float in one of the samples, with
/// the reason in words. Each is computed by itself on some rows, its weight rounded as planned.
pub(super) fn fragile_data(
    runtime: &dyn Runtime,
    model: &Model,
    target: &Target,
    placement: &Placement,
    scheme: &Scheme,
    free: impl Fn(NodeId) -> bool,
    samples: impl Iterator<Item = Result<Vec<Tensor>>>,
) -> Result<BTreeMap<NodeId, String>> {
    let mut readers: BTreeMap<ValueId, Vec<(NodeId, Weight, f64)>> = BTreeMap::new();
    for (id, decision) in &placement.nodes {
        let node = model.node(*id);
        let matrix = node.graph() == model.main() && (node.is("MatMul") || node.is("Gemm"));
        let measured = matches!(decision, Decision::Dynamic(_)) && matrix && free(*id);
        let how = plan::dynamic_weight(model, target, scheme, *id).filter(|_| measured);
        if let (Some(how), Some(x)) = (how, node.input(0)) {
            readers.entry(x).or_default().push((*id, how, f64::INFINITY));
        }
    }
    let values: Vec<ValueId> = readers.keys().copied().collect();
    if values.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut readers: Vec<_> = readers.into_values().collect();
    let session = runtime.load(model, &values)?;
    for inputs in samples {
        session.run_observed(&inputs?, &mut |i, value| {
            let x = value.floats()?;
            // One weight at a time: all of them rounded would be as large as the model.
            readers[i].iter_mut().try_for_each(|(node, how, worst)| {
                let matrix = Matrix::of(model, *node, how)?;
                *worst = worst.min(matrix.map_or(Ok(f64::INFINITY), |m| m.left_of(&x))?);
                Ok(())
            })
        })?;
    }
    for (node, _, worst) in readers.iter().flatten() {
        log::debug!("{}: {worst:.1} dB of its float answer with data quantized at run time", model.node_label(*node));
    }
    let least = least(readers.iter().flatten().map(|(_, _, worst)| *worst).collect());
    let lost = readers.into_iter().flatten().filter(|(_, _, worst)| *worst < least);
    let reason = |left: f64| {
        format!(
            "quantized at run time it answers with {left:.1} dB beside its float answer, {least:.1} dB is the least"
        )
    };
    Ok(lost.map(|(node, _, worst)| (node, reason(worst))).collect())
}

/// What a product must answer at least in a model whose products answer so, dB.
fn least(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    let middle = all.get(all.len() / 2).copied().unwrap_or(LEAST);
    (middle - BEHIND).clamp(LEAST, ENOUGH)
}

/// A matrix product with its weight in float and as rounded.
struct Matrix {
    depth: usize,
    /// `[columns, depth]`.
    weight: Vec<f32>,
    rounded: Vec<f32>,
}

impl Matrix {
    /// `None` where the weight is no matrix.
    fn of(model: &Model, node: NodeId, how: &Weight) -> Result<Option<Self>> {
        let (n, Some(w)) = (model.node(node), model.constant_input(node, 1)) else { return Ok(None) };
        let &[rows, columns] = w.dims() else { return Ok(None) };
        let (float, rounded) = (w.to_f32()?, how.quantize_alike(w, Known::default())?.dequantized()?);
        if n.is("Gemm") && n.int("transB").unwrap_or(0) != 0 {
            return Ok(Some(Self { depth: columns, weight: float, rounded }));
        }
        let turned = |m: &[f32]| (0..columns).flat_map(|c| (0..rows).map(move |r| m[r * columns + c])).collect();
        let (weight, rounded) = (turned(&float), turned(&rounded));
        Ok(Some(Self { depth: rows, weight, rounded }))
    }

    /// The answer on quantized data beside that in float, dB.
    fn left_of(&self, x: &[f32]) -> Result<f64> {
        let rows = x.len().checked_div(self.depth).unwrap_or(0);
        let finite = x.iter().copied().filter(|v| v.is_finite());
        let range = finite.fold(Range::new(0.0, 0.0), |range, v| range.union(Range::new(v, v)));
        let codes = Quantizer::new(QuantTarget::ACTIVATION.params(range)?)?;
        let (mut signal, mut noise) = (0.0, 0.0);
        for i in 0..rows.min(ROWS) {
            let at = i * rows / rows.min(ROWS) * self.depth;
            let row = &x[at..at + self.depth];
            let kept: Vec<f32> = row.iter().map(|&v| codes.round_trip(v)).collect();
            for (w, r) in self.weight.chunks_exact(self.depth).zip(self.rounded.chunks_exact(self.depth)) {
                let (float, integer) = (dot(row, w), dot(&kept, r));
                if float.is_finite() {
                    signal += f64::from(float).powi(2);
                    noise += f64::from(float - integer).powi(2);
                }
            }
        }
        // Where there is no answer but zero, nothing is lost.
        Ok(if signal > 0.0 { error::sqnr_db(signal, noise) } else { f64::INFINITY })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_far_from_the_rest_that_the_weight_does_not_ask_for() {
        let weight: Vec<f32> = (0..64).map(|i| if i % 32 == 7 { 1e-4 } else { (i as f32 * 0.9).sin() }).collect();
        let matrix = Matrix { depth: 32, weight: weight.clone(), rounded: weight };
        let mut x: Vec<f32> = (0..320).map(|i| (i as f32 * 0.37).sin()).collect();
        assert_eq!(matrix.left_of(&[0.0; 64]).unwrap(), f64::INFINITY);
        let left = matrix.left_of(&x).unwrap();
        assert!(left > 35.0, "{left}");
        x[7] = 400.0;
        let left = matrix.left_of(&x).unwrap();
        assert!(left < LEAST, "{left}");
    }

    #[test]
    fn those_far_behind_the_others() {
        assert_eq!(least(vec![25.0, 39.0, 40.0, 41.0]), 30.0);
        assert_eq!(least(vec![25.0, 29.0, 31.0, 33.0]), 22.0);
        assert_eq!(least(vec![11.0, 12.0]), LEAST);
        assert_eq!(least(Vec::new()), LEAST);
    }
}
