//! Makes of weights that training has rounded the numbers that they stand for, and notes their codes and scales.
//!
//! ```text
//! before: w' = DequantizeLinear(Clip(QuantizeLinear(w, s, z), lo, hi), s, z); y = Conv(x, w')
//! after:  y = Conv(x, w')        where w' is a constant, and what it was made of stands in the context
//! ```
//!
//! So every pass that changes float weights does so here, too, and the plan finds the codes again by what they stand for
//! ([`crate::plan::Learned`]). Of weights that exporters have computed to the end, the codes are found by their numbers alone. Only in the main graph, and where the import of
//! quantizers is asked for. Tables that are gathered from stay codes.

use super::{
    Context,
    support::{
        pairs::Linear,
        quantizer::{FakeQuantizer, stored},
        replace::{replace_by_constant, replaceable_by_constant},
    },
};
use crate::{
    analysis::types,
    diagnostics::{Diagnostic, count},
    error::Result,
    ir::{DType, Model, NodeId, Tensor, ValueId},
    ops::{self, Class, Role},
    plan::LearnedWeight,
    quant::{Granularity, QuantizedWeight, lattice},
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    if !cx.options.import_quantizers {
        return Ok(0);
    }
    let types = types::infer(model);
    let mut changes = 0;
    for id in model.nodes(model.main()) {
        let Some(found) = weight(model, &types, id).map_err(|e| e.node(model.node_label(id), "DequantizeLinear"))?
        else {
            continue;
        };
        let Weight { of, output, codes } = found;
        let name = model.value(of).name().to_owned();
        if is_table(model, output) {
            // Codes already, or codes from now on.
            let made = model.node(id).input(0).is_some_and(|v| model.producer(v).is_some());
            if made && codes.values.dtype().bits() == 8 {
                store_codes(model, id, &name, codes);
                changes += 1;
            }
            continue;
        }
        replace_by_constant(model, output, Tensor::from_f32(codes.values.dims(), &codes.dequantized()?));
        if codes.values.dtype() != DType::Int32 {
            cx.learned.weights.push(LearnedWeight::of(name, &codes)?);
        }
        changes += 1;
    }
    let mut without_zero = Vec::new();
    for id in model.nodes(model.main()) {
        let levels = note_rounded(model, cx, id).map_err(|e| e.node(model.node_label(id), &model.node(id).op_type))?;
        without_zero.extend(levels.map(|levels| (model.node_label(id), levels)));
    }
    if let Some((first, levels)) = without_zero.first() {
        const CODE: &str = "weights_without_zero";
        let text = format!(
            "the weights of {} have {levels} levels, and none of them is 0, which 8 bits with a whole zero point do not hold: they get the nearest codes",
            count(without_zero.len(), "node")
        );
        let help =
            "train with an odd number of levels (tanh weights: round(w * 254) in the place of 255), or with fewer bits";
        cx.diagnostics.retain(|d| d.code != CODE);
        cx.diagnostics.push(Diagnostic::warning(CODE, text).on(first).help(help));
    }
    Ok(changes)
}

/// Makes codes of constants that quantizers round, and leaves the DequantizeLinear behind them.
pub fn store_codes_of_constants(model: &mut Model) -> Result<usize> {
    let types = types::infer(model);
    let mut changes = 0;
    for id in model.all_nodes() {
        let Some(fake) = FakeQuantizer::ending_with(model, &types, id) else { continue };
        let constant = model.value(fake.input).constant().filter(|t| t.dtype() == DType::Float && !t.is_deferred());
        let Some(numbers) = constant.cloned().filter(|_| fake.dtype.bits() == 8) else { continue };
        let codes = fake.codes(&numbers).map_err(|e| e.node(model.node_label(id), "DequantizeLinear"))?;
        let name = model.value(fake.input).name().to_owned();
        store_codes(model, id, &name, codes);
        changes += 1;
    }
    Ok(changes)
}

/// Notes the codes of a product's weight of which the exporter has left the rounded numbers alone. Returns how many levels it has
/// where these have no codes.
fn note_rounded(model: &Model, cx: &mut Context, id: NodeId) -> Result<Option<i32>> {
    let Some(spec) = ops::spec(model, id).filter(|s| s.class == Class::Product) else { return Ok(None) };
    let Some((at, tensor)) = spec.index_of(Role::Weight).and_then(|i| Some((i, model.constant_input(id, i)?))) else {
        return Ok(None);
    };
    let name = model.node(id).input(at).map_or("", |v| model.value(v).name());
    let axis = spec.weight_axis(model.node(id), tensor.rank());
    let known = cx.learned.weights.iter().any(|w| w.name == name);
    if known || tensor.is_deferred() || tensor.dtype() != DType::Float || cx.learned.weight_of(model, id)?.is_some() {
        return Ok(None);
    }
    let numbers = tensor.to_f32()?;
    let found = [None, axis].into_iter().find_map(|axis| {
        let (channels, inner) = Granularity::from_axis(axis).layout(tensor.dims()).ok()?;
        lattice::steps(&numbers, channels, inner).map(|found| (axis, found))
    });
    let Some((axis, (scales, steps))) = found else { return Ok(lattice::levels_beside_zero(&numbers)) };
    let zero_points = vec![0; scales.len()];
    let (name, dims) = (name.to_owned(), tensor.dims().to_vec());
    cx.learned.weights.push(LearnedWeight { name, dims, steps, scales, zero_points, dtype: DType::Int8, axis });
    Ok(None)
}

/// A constant that a DequantizeLinear hands out.
struct Weight {
    of: ValueId,
    output: ValueId,
    codes: QuantizedWeight,
}

/// The constant that this node makes numbers of: codes, or numbers behind a quantizer.
fn weight(model: &Model, types: &types::Types, id: NodeId) -> Result<Option<Weight>> {
    let Some(linear) = Linear::of(model, id, "DequantizeLinear").filter(|l| replaceable_by_constant(model, l.output))
    else {
        return Ok(None);
    };
    if let Some(constant) = model.value(linear.input).constant() {
        let integer =
            matches!(constant.dtype(), DType::Int8 | DType::Uint8 | DType::Int16 | DType::Uint16 | DType::Int32);
        let codes = if integer { stored(model, &linear)? } else { None };
        return Ok(codes.map(|codes| Weight { of: linear.input, output: linear.output, codes }));
    }
    let Some(fake) = FakeQuantizer::ending_with(model, types, id) else { return Ok(None) };
    let Some(numbers) = model.value(fake.input).constant().filter(|t| t.dtype() == DType::Float) else {
        return Ok(None);
    };
    Ok(Some(Weight { of: fake.input, output: fake.output, codes: fake.codes(numbers)? }))
}

/// Whether rows of it are gathered, and nothing else is done with it.
fn is_table(model: &Model, v: ValueId) -> bool {
    let mut readers = model.value(v).readers().peekable();
    readers.peek().is_some() && readers.all(|(n, i)| i == 0 && model.node(n).is("Gather"))
}

/// Makes the DequantizeLinear read constant codes.
fn store_codes(model: &mut Model, id: NodeId, name: &str, codes: QuantizedWeight) {
    let stored = model.add_initializer(model.node(id).graph(), &format!("{name}_quantized"), codes.values);
    model.set_input(id, 0, Some(stored));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check_skipped, check_with};

    fn importing() -> Context {
        let mut cx = Context::default();
        cx.options.import_quantizers = true;
        cx
    }

    #[test]
    fn weights_and_their_codes() {
        let mut cx = importing();
        check_with(
            run,
            &mut cx,
            "(float[1,2] x) => (y) <float[2,2] w = {0.26, -0.74, 9, -9}, float s = {0.5}, int8 z = {0}, int8 lo = {-7}, int8 hi = {7},
              int8[2] v = {3, -5}, float[2] t = {0.5, 0.25}> {
                q = QuantizeLinear(w, s, z) c = Clip(q, lo, hi) d = DequantizeLinear(c, s, z)
                e = DequantizeLinear <axis = 0> (v, t)
                a = MatMul(x, d) y = Add(a, e) }",
            "(float[1,2] x) => (y) <float[2,2] d = {0.5, -0.5, 3.5, -3.5}, float[2] e = {1.5, -1.25}> {
                a = MatMul(x, d) y = Add(a, e) }",
        );
        let found: Vec<_> = cx.learned.weights.iter().map(|w| (w.name.as_str(), w.steps.clone(), w.axis)).collect();
        assert_eq!(found, [("w", vec![1, -1, 7, -7], None), ("v", vec![3, -5], Some(0))]);
    }

    #[test]
    fn tables_stay_codes() {
        let mut cx = importing();
        check_with(
            run,
            &mut cx,
            "(int64[1] i) => (y) <float[2,2] w = {0.26, -0.74, 1, -1}, float s = {0.5}, int8 z = {0}> {
                q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = Gather(d, i) }",
            "(int64[1] i) => (y) <int8[2,2] w_quantized = {1, -1, 2, -2}, float s = {0.5}, int8 z = {0}> {
                d = DequantizeLinear(w_quantized, s, z) y = Gather(d, i) }",
        );
        assert!(cx.learned.weights.is_empty());
    }

    #[test]
    fn codes_of_weights_that_were_computed_to_the_end() {
        let mut cx = importing();
        let numbers: Vec<String> = (0..16).map(|i| format!("{}", 0.25 * f64::from(i * 5 % 17 - 8))).collect();
        let text = format!(
            "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1,4] x) => (y) <float[4,4] w = {{{}}}> {{ y = MatMul(x, w) }}",
            numbers.join(", ")
        );
        let mut model = crate::ir::text::parse(&text).unwrap();
        assert_eq!((run(&mut model, &mut cx).unwrap(), run(&mut model, &mut cx).unwrap()), (0, 0));
        let found: Vec<_> = cx.learned.weights.iter().map(|w| (w.scales.clone(), w.steps.clone())).collect();
        assert_eq!(found, [(vec![0.25], (0..16).map(|i| i * 5 % 17 - 8).collect())]);
    }

    #[test]
    fn only_where_it_is_asked_for() {
        check_skipped(
            run,
            "(float[1,2] x) => (y) <int8[2,2] w = {1, 2, 3, 4}, float s = {0.5}> { d = DequantizeLinear(w, s) y = MatMul(x, d) }",
            "",
        );
    }
}
