//! MeanVarianceNormalization 1 → 9 and GroupNormalization 18 → 21.

use super::step::Step;
use crate::{
    error::{Error, Result},
    ir::{Attr, ValueId},
};

/// 1 → 9: two flags became a list of axes. The old form, an experiment, is what ONNX Runtime makes of it: statistics
/// over the batch too.
pub(super) fn mean_variance_axes(step: &mut Step<'_>) -> Result<()> {
    let across = step.take_int("across_channels")?.unwrap_or(0) != 0;
    let normalize = step.take_int("normalize_variance")?.unwrap_or(1) != 0;
    let over: &[i64] = if across { &[0, 1, 2, 3] } else { &[0, 2, 3] };
    if normalize {
        step.set("axes", over.to_vec());
    } else {
        let x = step.input(0)?;
        let mean = step.before("ReduceMean", &[x], vec![Attr::new("axes", over.to_vec())]);
        step.become_op("Sub", &[x, mean], vec![]);
    }
    Ok(())
}

/// 18 → 21: scale and bias have an element per channel, before per group. Each is repeated for the channels of its
/// group: `[G] → [G, 1] → [G, C/G] → [C]`.
pub(super) fn group_parameters_per_channel(step: &mut Step<'_>) -> Result<()> {
    let groups = step.node().int("num_groups").filter(|&g| g > 0);
    let groups = groups.ok_or_else(|| Error::malformed("lacks a positive attribute \"num_groups\""))?;
    let x = step.input(0)?;
    let channels = step.types.shape(x).and_then(|dims| dims.get(1)?.known());
    let repeated = match channels.and_then(|c| i64::try_from(c).ok()) {
        Some(channels) => step.ints("group_shape", &[groups, channels / groups]),
        None => {
            let range = vec![Attr::new("start", 1i64), Attr::new("end", 2i64)];
            let channels = step.before("Shape", &[x], range);
            let groups = step.ints("groups", &[groups]);
            let each = step.before("Div", &[channels, groups], vec![]);
            step.before("Concat", &[groups, each], vec![Attr::new("axis", 0i64)])
        }
    };
    let column = step.ints("column", &[groups, 1]);
    let flat = step.ints("flat", &[-1]);
    for i in [1, 2] {
        let v = step.input(i)?;
        let per_channel = repeat(step, v, [column, repeated, flat]);
        step.model.set_input(step.node, i, Some(per_channel));
    }
    Ok(())
}

fn repeat(step: &mut Step<'_>, v: ValueId, [column, repeated, flat]: [ValueId; 3]) -> ValueId {
    let stood = step.before("Reshape", &[v, column], vec![]);
    let wide = step.before("Expand", &[stood, repeated], vec![]);
    step.before("Reshape", &[wide, flat], vec![])
}
