//! Operators that ONNX had as experiments, without a version, and took away with version 10. ONNX Runtime runs some of
//! them in files below that version; their meaning here is its own.

use super::step::Step;
use crate::{
    error::{Error, Result},
    ir::{Tensor, ValueId},
};

/// `alpha * x + beta`
pub(super) fn affine(step: &mut Step<'_>) -> Result<()> {
    let (x, alpha, beta) = coefficients(step)?;
    let scaled = step.before("Mul", &[x, alpha], vec![]);
    step.become_op("Add", &[scaled, beta], vec![]);
    Ok(())
}

/// `alpha * tanh(beta * x)`
pub(super) fn scaled_tanh(step: &mut Step<'_>) -> Result<()> {
    let (x, alpha, beta) = coefficients(step)?;
    let scaled = step.before("Mul", &[x, beta], vec![]);
    let tanh = step.before("Tanh", &[scaled], vec![]);
    step.become_op("Mul", &[tanh, alpha], vec![]);
    Ok(())
}

/// `alpha * log(1 + exp(beta * x))`
pub(super) fn parametric_softplus(step: &mut Step<'_>) -> Result<()> {
    let (x, alpha, beta) = coefficients(step)?;
    let scaled = step.before("Mul", &[x, beta], vec![]);
    let softplus = step.before("Softplus", &[scaled], vec![]);
    step.become_op("Mul", &[softplus, alpha], vec![]);
    Ok(())
}

/// The input, and `alpha` and `beta` as constants. Only Affine has defaults for them.
fn coefficients(step: &mut Step<'_>) -> Result<(ValueId, ValueId, ValueId)> {
    let x = step.input(0)?;
    let mut constants = Vec::new();
    for (name, default) in [("alpha", 1.0), ("beta", 0.0)] {
        let default = Some(default).filter(|_| step.node().op_type == "Affine");
        let value = step.take_float(name)?.or(default);
        let value = value.ok_or_else(|| Error::malformed(format!("lacks attribute {name:?}")))?;
        constants.push(step.scalar(name, value, x)?);
    }
    Ok((x, constants[0], constants[1]))
}

/// `scale * x`
pub(super) fn scale(step: &mut Step<'_>) -> Result<()> {
    let x = step.input(0)?;
    let factor = step.take_float("scale")?.unwrap_or(1.0);
    let factor = step.scalar("scale", factor, x)?;
    step.become_op("Mul", &[x, factor], vec![]);
    Ok(())
}

/// `scale * x + bias`, the bias per channel of N x C x H x W.
pub(super) fn image_scaler(step: &mut Step<'_>) -> Result<()> {
    let x = step.input(0)?;
    let factor = step.take_float("scale")?.unwrap_or(1.0);
    let bias = step.take_floats("bias")?.unwrap_or_default();
    let factor = step.scalar("scale", factor, x)?;
    let bias = step.constant("bias", Tensor::from_f32(&[bias.len(), 1, 1], &bias));
    let scaled = step.before("Mul", &[x, factor], vec![]);
    step.become_op("Add", &[scaled, bias], vec![]);
    Ok(())
}

/// Cuts `border` (left, top, right, bottom) off an image; with `scale` (height, width) to that size.
pub(super) fn crop(step: &mut Step<'_>) -> Result<()> {
    let x = step.input(0)?;
    let border = step.take_ints("border")?.unwrap_or_default();
    let size = step.take_ints("scale")?;
    let &[left, top, right, bottom] = border.as_slice() else {
        return Err(Error::malformed(format!("attribute \"border\" has {} elements, not 4", border.len())));
    };
    let ends = match size.as_deref() {
        None => [bottom, right].map(|border| if border == 0 { i64::MAX } else { border.saturating_neg() }),
        Some(&[height, width]) => [top.saturating_add(height), left.saturating_add(width)],
        Some(other) => {
            return Err(Error::malformed(format!("attribute \"scale\" has {} elements, not 2", other.len())));
        }
    };
    let inputs = [x, step.ints("starts", &[top, left]), step.ints("ends", &ends), step.ints("axes", &[2, 3])];
    step.become_op("Slice", &inputs, vec![]);
    Ok(())
}

/// Slice of version 10 under its former name.
pub(super) fn dynamic_slice(step: &mut Step<'_>) -> Result<()> {
    step.model.node_mut(step.node).op_type = "Slice".to_owned();
    Ok(())
}

/// No runtime has it.
pub(super) fn gone(_: &mut Step<'_>) -> Result<()> {
    Err(Error::unsupported("this experimental operator was taken out of ONNX with opset 10 and has no successor"))
}
