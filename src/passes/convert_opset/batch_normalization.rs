//! BatchNormalization: `spatial` went with version 9, the outputs of training changed with 14.

use super::step::Step;
use crate::error::{Error, Result};

/// 7 → 9: `spatial = 0` normalizes every element of a sample by numbers of its own; that is plain arithmetic.
pub(super) fn drop_spatial(step: &mut Step<'_>) -> Result<()> {
    if step.take_int("spatial")?.unwrap_or(1) != 0 {
        return Ok(());
    }
    let epsilon = step.take_float("epsilon")?.unwrap_or(1e-5);
    if step.node().outputs().iter().skip(1).flatten().next().is_some() {
        return Err(Error::unsupported("spatial = 0 with the outputs of training has no form in opset 9"));
    }
    let [x, scale, bias, mean, variance] = [0, 1, 2, 3, 4].map(|i| step.input(i));
    let (x, scale, bias, mean, variance) = (x?, scale?, bias?, mean?, variance?);
    let epsilon = step.scalar("epsilon", epsilon, x)?;
    let centered = step.before("Sub", &[x, mean], vec![]);
    let padded = step.before("Add", &[variance, epsilon], vec![]);
    let deviation = step.before("Sqrt", &[padded], vec![]);
    let normalized = step.before("Div", &[centered, deviation], vec![]);
    let scaled = step.before("Mul", &[normalized, scale], vec![]);
    step.become_op("Add", &[scaled, bias], vec![]);
    Ok(())
}

/// 9 → 14: before, more than one output meant training. Exporters left them on inference models too, unread.
pub(super) fn drop_training_outputs(step: &mut Step<'_>) -> Result<()> {
    let extra: Vec<_> = step.node().outputs().iter().skip(1).copied().flatten().collect();
    if let Some(&v) = extra.iter().find(|&&v| !step.model.value(v).uses().is_empty()) {
        return Err(Error::unsupported("its outputs of training are read; opset 14 has others")
            .value(step.model.value(v).name())
            .help("export the model for inference (in PyTorch: model.eval() and training=TrainingMode.EVAL)"));
    }
    if !extra.is_empty() {
        let message = "has outputs of training that nothing reads; they were dropped, so that it runs as inference";
        step.warn("training_outputs_dropped", message);
    }
    step.model.truncate_outputs(step.node, 1);
    Ok(())
}
