//! ConvTranspose with `output_shape`: tract pads nothing, where the operator's definition spreads the padding that leads to
//! this shape over both ends. Once shapes are known, it is spelled out.

use tract_onnx::{
    model::ParsingContext,
    pb::{AttributeProto, ModelProto, NodeProto},
    prelude::*,
    tract_hir::internal::*,
};

use super::{Corrected, Correction, Parsed};
use crate::runtime::tract::tracts;

/// The node, with what it says of the window.
#[derive(Debug, Clone)]
pub(super) struct ConvTranspose {
    node: NodeProto,
    output: Vec<i64>,
    strides: Option<Vec<i64>>,
    dilations: Option<Vec<i64>>,
    output_padding: Option<Vec<i64>>,
    /// An odd padding has its larger half at the end.
    upper: bool,
}

pub(super) fn parse(cx: &ParsingContext, node: &NodeProto) -> Parsed {
    let (tracts, captured) = tracts::parse(cx, node)?;
    let Some(output) = node.get_attr_opt_vec::<i64>("output_shape")?.filter(|o| !o.is_empty()) else {
        return Ok((tracts, captured));
    };
    let layer = ConvTranspose {
        node: node.clone(),
        output,
        strides: node.get_attr_opt_vec("strides")?,
        dilations: node.get_attr_opt_vec("dilations")?,
        output_padding: node.get_attr_opt_vec("output_padding")?,
        upper: node.get_attr_opt::<&str>("auto_pad")?.unwrap_or("NOTSET") == "SAME_UPPER",
    };
    Ok((Box::new(Corrected { tracts, correction: Correction::ConvTranspose(Box::new(layer)) }), captured))
}

impl ConvTranspose {
    /// tract's operator for the same node with explicit paddings.
    pub(super) fn explicit(&self, target: &TypedModel, inputs: &[OutletId]) -> TractResult<Box<dyn InferenceOp>> {
        let lengths = |i: usize| -> TractResult<Vec<i64>> {
            let fact = target.outlet_fact(*inputs.get(i).context("has no weight")?)?;
            let shape = fact.shape.as_concrete().context("the shape of an input is not known")?;
            Ok(shape.iter().skip(2).map(|&d| d as i64).collect())
        };
        let (data, kernel) = (lengths(0)?, lengths(1)?);
        let axes = data.len();
        ensure!(kernel.len() == axes, "the data have {axes} axes, the weight has {}", kernel.len());
        let output = &self.output;
        ensure!(output.len() == axes, "output_shape has {} numbers for {axes} axes", output.len());
        let of = |list: &Option<Vec<i64>>, axis: usize, default: i64| {
            let given = list.as_ref().map_or(Some(default), |l| l.get(axis).copied());
            given.with_context(|| format!("an attribute has no number for axis {axis}"))
        };
        let (mut pads, mut extra) = (vec![0; 2 * axes], vec![0; axes]);
        for axis in 0..axes {
            let (stride, dilation) = (of(&self.strides, axis, 1)?, of(&self.dilations, axis, 1)?);
            let further = of(&self.output_padding, axis, 0)?;
            let sensible = |n: i64| (0..1 << 24).contains(&n);
            let numbers = [stride, dilation, further, data[axis], kernel[axis], output[axis]];
            ensure!(
                numbers.into_iter().all(sensible) && data[axis] > 0 && kernel[axis] > 0,
                "axis {axis}: {numbers:?}"
            );
            let all = stride * (data[axis] - 1) + further + (kernel[axis] - 1) * dilation + 1;
            let total = all - output[axis];
            let (small, large) = (total.max(0) / 2, total.max(0) - total.max(0) / 2);
            (pads[axis], pads[axes + axis]) = if self.upper { (small, large) } else { (large, small) };
            extra[axis] = further + (-total).max(0);
        }
        let mut node = self.node.clone();
        node.attribute.retain(|a| !["pads", "output_padding", "auto_pad", "output_shape"].contains(&a.name.as_str()));
        for (name, ints) in [("pads", pads), ("output_padding", extra)] {
            node.attribute.push(AttributeProto { name: name.to_owned(), r#type: 7, ints, ..AttributeProto::default() });
        }
        let (model, framework) = (ModelProto::default(), tract_onnx::onnx());
        let cx = ParsingContext {
            onnx_operator_set_version: 11,
            framework: &framework,
            model: &model,
            parent_graphs: vec![],
            model_dir: None,
            template: InferenceModel::default(),
        };
        Ok(tracts::of(&framework.op_register, &node.op_type)?(&cx, &node)?.0)
    }
}
