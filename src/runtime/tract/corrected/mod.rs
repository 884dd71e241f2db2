//! Operators of tract that compute something else than ONNX Runtime in some forms, wired anew from parts that do not.
//!
//! Types and shapes are still inferred by tract's operator; only what becomes of it in the plan is ours. Found by comparing
//! both runtimes on small models (tract 0.23, ONNX Runtime 1.32); [`super::refused`] has what is not worth a correction.

mod conv_transpose;
mod resize;
mod wiring;

use tract_onnx::{
    model::{OnnxOpRegister, ParsingContext},
    pb::{AttributeProto, NodeProto, TensorProto},
    prelude::*,
    tract_hir::internal::*,
};

use super::tracts;
use wiring::Wiring;

/// What a parser of tract's returns.
type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// Puts the corrected operators in the place of tract's, which stay in the register by another name.
pub(super) fn register(register: &mut OnnxOpRegister) {
    for (op, parse) in [
        ("Cast", parse_cast as fn(&ParsingContext, &NodeProto) -> Parsed),
        ("Celu", parse_celu),
        ("ConstantOfShape", parse_constant_of_shape),
        ("ConvTranspose", conv_transpose::parse),
        ("GlobalLpPool", parse_global_lp_pool),
        ("LogSoftmax", parse_log_softmax),
        ("MeanVarianceNormalization", parse_mvn),
        ("ReduceLogSumExp", parse_log_sum_exp),
        ("Resize", resize::parse),
        ("Softplus", |cx, node| parsed(cx, node, Wiring::Softplus)),
        ("Swish", parse_swish),
    ] {
        tracts::replace(register, op, parse);
    }
}

fn parsed(cx: &ParsingContext, node: &NodeProto, wiring: Wiring) -> Parsed {
    let (tracts, captured) = tracts::parse(cx, node)?;
    Ok((Box::new(Corrected { tracts, correction: Correction::Wiring(wiring) }), captured))
}

/// tract's saturates, ONNX Runtime's wraps around. Files that compute zero points by hand meet it.
fn parse_cast(cx: &ParsingContext, node: &NodeProto) -> Parsed {
    let to = match node.get_attr_opt::<i64>("to")? {
        Some(2) => DatumType::U8,
        Some(3) => DatumType::I8,
        Some(4) => DatumType::U16,
        Some(5) => DatumType::I16,
        _ => return tracts::parse(cx, node),
    };
    parsed(cx, node, Wiring::WrappingCast { to })
}

/// tract's does not scale what it makes of numbers below zero.
fn parse_celu(cx: &ParsingContext, node: &NodeProto) -> Parsed {
    let alpha = node.get_attr_opt("alpha")?.unwrap_or(1.0);
    parsed(cx, node, Wiring::Celu { alpha })
}

/// tract's default is 0 of type double.
fn parse_constant_of_shape(cx: &ParsingContext, node: &NodeProto) -> Parsed {
    if node.attribute.iter().any(|a| a.name == "value") {
        return tracts::parse(cx, node);
    }
    let zero = TensorProto { dims: vec![1], data_type: 1, float_data: vec![0.0], ..TensorProto::default() };
    let value = AttributeProto { name: "value".to_owned(), r#type: 4, t: Some(zero), ..AttributeProto::default() };
    let mut node = node.clone();
    node.attribute.push(value);
    tracts::parse(cx, &node)
}

/// tract's divides by the number of elements, and takes odd powers of negative numbers.
fn parse_global_lp_pool(cx: &ParsingContext, node: &NodeProto) -> Parsed {
    let p = node.get_attr_opt::<i64>("p")?.unwrap_or(2) as f32;
    parsed(cx, node, Wiring::GlobalLpPool { p })
}

/// tract's is the logarithm of a softmax, which is minus infinity 88 below the maximum.
fn parse_log_softmax(cx: &ParsingContext, node: &NodeProto) -> Parsed {
    let to_the_end = cx.onnx_operator_set_version < 13;
    let axis = node.get_attr_opt("axis")?.unwrap_or(if to_the_end { 1 } else { -1 });
    parsed(cx, node, Wiring::LogSoftmax { axis, to_the_end })
}

/// tract's subtracts the square of the mean from the mean of the squares, which leaves nothing of a small variance.
fn parse_mvn(cx: &ParsingContext, node: &NodeProto) -> Parsed {
    let axes = node.get_attr_opt_vec("axes")?.unwrap_or_else(|| vec![0, 2, 3]);
    parsed(cx, node, Wiring::MeanVariance { axes })
}

/// tract's is infinite where any element is above 88.
fn parse_log_sum_exp(cx: &ParsingContext, node: &NodeProto) -> Parsed {
    let wiring = Wiring::LogSumExp {
        axes: node.get_attr_opt_vec("axes")?,
        keep: node.get_attr_opt::<i64>("keepdims")?.unwrap_or(1) == 1,
        none_if_empty: node.get_attr_opt::<i64>("noop_with_empty_axes")?.unwrap_or(0) == 1,
    };
    parsed(cx, node, wiring)
}

/// tract's has no `alpha`.
fn parse_swish(cx: &ParsingContext, node: &NodeProto) -> Parsed {
    match node.get_attr_opt("alpha")?.unwrap_or(1.0) {
        1.0 => tracts::parse(cx, node),
        alpha => parsed(cx, node, Wiring::Swish { alpha }),
    }
}

#[derive(Debug, Clone)]
enum Correction {
    Wiring(Wiring),
    Resize(resize::Resize),
    ConvTranspose(Box<conv_transpose::ConvTranspose>),
}

/// An operator of tract's with a correction.
#[derive(Debug, Clone)]
struct Corrected {
    tracts: Box<dyn InferenceOp>,
    correction: Correction,
}

impl PartialEq for Corrected {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}

impl Eq for Corrected {}

impl Op for Corrected {
    fn name(&self) -> StaticName {
        self.tracts.name()
    }

    not_a_typed_op!();
}

impl EvalOp for Corrected {
    not_out_of_plan!();
}

impl InferenceOp for Corrected {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
        self.tracts.infer_facts(inputs, outputs, observed)
    }

    fn nboutputs(&self) -> TractResult<usize> {
        self.tracts.nboutputs()
    }

    fn to_typed(
        &self,
        source: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        let inputs = node.inputs.iter().map(|o| mapping.get(o).copied()).collect::<Option<TVec<OutletId>>>();
        let inputs = inputs.context("an input has no producer")?;
        match &self.correction {
            Correction::Wiring(wiring) => {
                if let Some(outputs) = wiring.wire(&node.name, target, &inputs)? {
                    return Ok(outputs);
                }
            }
            Correction::Resize(resize) => {
                let corrected = resize.scales(node, target, &inputs)?;
                if let Some((input, scales)) = corrected {
                    let constant = target.add_const(format!("{}.scales", node.name), scales)?;
                    let mut mapping = mapping.clone();
                    mapping.insert(node.inputs[input], constant);
                    return self.tracts.to_typed(source, node, target, &mapping);
                }
            }
            Correction::ConvTranspose(layer) => {
                let tracts = layer.explicit(target, &inputs)?;
                return tracts.to_typed(source, node, target, mapping);
            }
        }
        self.tracts.to_typed(source, node, target, mapping)
    }

    as_op!();
}
