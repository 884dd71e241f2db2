//! Clamps of quantizers that cut nothing off in calibration, and go.

use std::collections::BTreeMap;

use super::{own_clamps, take_out};
use crate::{
    calibrate::{
        Dataset, Observer,
        collect::{Watch, collect},
        observers,
    },
    error::Result,
    ir::{Model, ValueId},
    pipeline::Job,
    plan::Plan,
    quant::Grid,
};

/// Takes float clamps out that are those of quantizers, and whose input lies within them in all samples.
pub(super) fn drop_clamps(
    job: &Job<'_>,
    model: &Model,
    grids: &BTreeMap<ValueId, Grid>,
    (data, samples): (&Dataset, &[usize]),
    plan: &mut Plan,
) -> Result<()> {
    let clamps = own_clamps(model, grids, plan);
    if clamps.is_empty() || samples.is_empty() {
        return Ok(());
    }
    let method = observers::by_name("min_max")?;
    let observer = || Some(Observer::new(method, observers::Options::default()));
    let watches = clamps.iter().map(|c| Watch { value: c.from, observer: observer(), means: None }).collect();
    let seen = collect(job.runtime, model, watches, samples, &|i| data.sample(i), &|_, _| {})?;
    for (clamp, watch) in clamps.iter().zip(seen) {
        let Some(stats) = watch.observer.as_ref().map(Observer::stats) else { continue };
        if stats.min >= clamp.range.lo && stats.max <= clamp.range.hi && stats.nan + stats.infinite == 0 {
            take_out(model, plan, clamp.out, "it cuts nothing off in calibration");
        }
    }
    Ok(())
}
