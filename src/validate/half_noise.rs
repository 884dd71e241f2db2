//! What each rounding to 16-bit floats adds to the noise of the answers, one by one, as [`noise`](super::noise) tells it of codes.

use std::collections::BTreeSet;

use super::{
    noise::{batches, constant_bytes, of_trials},
    rounded::Twin,
    switches::{Switches, When},
};
use crate::{
    calibrate::{Dataset, collect::Progress},
    error::Result,
    ir::{DType, Model, NodeId, Tensor, Use, ValueId},
    ops,
    plan::{Answers, HalfNoise, HalfSource},
    quant::halves::converted,
};

/// Measures these sources on some samples. `prepared` is the model that the plan speaks of, `answers` what it rounds. Runs in the
/// built-in runtime, the only one that tries alternatives.
pub fn measure(
    prepared: &Model,
    answers: &Answers<'_>,
    dtype: DType,
    wanted: &BTreeSet<HalfSource>,
    data: &Dataset,
    samples: &[usize],
    progress: &Progress<'_>,
) -> Result<HalfNoise> {
    let mut found = HalfNoise::new();
    let wanted: Vec<HalfSource> = wanted.iter().copied().collect();
    let bytes = |source: &HalfSource| match source {
        HalfSource::Constants(n) => constant_bytes(prepared, *n),
        HalfSource::Value(_) => 0,
    };
    for batch in batches(wanted.iter().map(bytes)) {
        let (model, sources) = switchable(prepared, answers, dtype, &wanted[batch].iter().copied().collect())?;
        if !sources.is_empty() {
            let sets = (0..sources.len()).map(|number| vec![number]).collect();
            let noise = of_trials(prepared, model, sets, data, samples, progress)?;
            found.extend(sources.into_iter().zip(noise));
        }
    }
    Ok(found)
}

/// The model in which the rounding of each source can be chosen, by its number in the list of them.
fn switchable(
    prepared: &Model,
    answers: &Answers<'_>,
    dtype: DType,
    wanted: &BTreeSet<HalfSource>,
) -> Result<(Model, Vec<HalfSource>)> {
    let (mut switches, mut sources) = (Switches::new(prepared), Vec::new());
    for n in prepared.nodes(prepared.main()) {
        let source = HalfSource::Constants(n);
        if wanted.contains(&source) {
            let constants = rounded_constants(prepared, n, dtype)?;
            if !constants.is_empty() {
                switches.node(n, Twin { constants, ..Twin::default() }, When::Chosen(sources.len()))?;
                sources.push(source);
            }
        }
    }
    for &source in wanted {
        let HalfSource::Value(v) = source else { continue };
        let uses = uses(prepared, answers, v);
        if !uses.is_empty() {
            switches.half(v, dtype, When::Chosen(sources.len()), &uses)?;
            sources.push(source);
        }
    }
    Ok((switches.finish()?, sources))
}

/// Who gets the rounded numbers: all where they are made so.
fn uses(prepared: &Model, answers: &Answers<'_>, v: ValueId) -> Vec<Use> {
    let rounded = |used: &Use| match *used {
        _ if answers.made_half(v) => true,
        Use::Input(n, i) => answers.reads_half(n, i),
        Use::Output(..) => false,
    };
    prepared.value(v).uses().iter().copied().filter(rounded).collect()
}

fn rounded_constants(prepared: &Model, n: NodeId, dtype: DType) -> Result<Vec<(usize, Tensor)>> {
    let mut found = Vec::new();
    for i in 0..prepared.node(n).inputs().len() {
        let constant = prepared.constant_input(n, i).filter(|t| t.dtype() == DType::Float);
        let Some(t) = constant.filter(|_| !ops::always_float(prepared, n, i)) else { continue };
        // What is no number then is a mask, and limited.
        let wide = t.to_f32()?.into_iter().any(|x| x.is_finite() && x.abs() > crate::quant::halves::largest(dtype));
        let half = Tensor::from_f32(t.dims(), &converted(t, dtype, None)?.to_f32()?);
        if !wide && !half.same_content(t) {
            found.push((i, half));
        }
    }
    Ok(found)
}
