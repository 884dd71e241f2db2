//! Clamps of quantizers that cut nothing off in calibration, and go.

use std::collections::BTreeMap;

use crate::{
    calibrate::{
        Dataset, Observer,
        collect::{Watch, collect},
        observers,
    },
    error::Result,
    ir::{Model, NodeId, ValueId},
    ops,
    pipeline::Job,
    plan::{Form, Plan},
    quant::Grid,
};

/// Takes float clamps out that are those of quantizers, and whose input lies within them in all samples.
pub(super) fn take_out(
    job: &Job<'_>,
    model: &Model,
    grids: &BTreeMap<ValueId, Grid>,
    (data, samples): (&Dataset, &[usize]),
    plan: &mut Plan,
) -> Result<()> {
    let mut clamps: BTreeMap<ValueId, Vec<(NodeId, f32, f32)>> = BTreeMap::new();
    for id in model.nodes(model.main()) {
        let node = model.node(id);
        let (Some((lo, hi)), Some(from), Some(out)) = (ops::clamp_bounds(model, id), node.input(0), node.output(0))
        else {
            continue;
        };
        let ours = node.is("Clip") && grids.get(&out).is_some_and(|g| (g.range().lo, g.range().hi) == (lo, hi));
        let float = plan.nodes.get(model.value(out).name()).is_some_and(|e| e.becomes == Form::Float);
        if ours && float && !model.value(out).is_graph_output() && model.value(from).readers().count() == 1 {
            clamps.entry(from).or_default().push((id, lo, hi));
        }
    }
    if clamps.is_empty() || samples.is_empty() {
        return Ok(());
    }
    let method = observers::by_name("min_max")?;
    let observer = || Some(Observer::new(method, observers::Options::default()));
    let watches = clamps.keys().map(|&value| Watch { value, observer: observer(), means: None }).collect();
    let seen = collect(job.runtime, model, watches, samples, &|i| data.sample(i), &|_, _| {})?;
    for watch in seen {
        let Some(stats) = watch.observer.as_ref().map(Observer::stats) else { continue };
        for &(id, lo, hi) in clamps.get(&watch.value).into_iter().flatten() {
            let inside = stats.min >= lo && stats.max <= hi && stats.nan + stats.infinite == 0;
            let out = model.node(id).output(0).map(|v| model.value(v).name());
            if let Some(entry) = out.and_then(|o| plan.nodes.get_mut(o)).filter(|_| inside) {
                entry.becomes = Form::Absorbed;
                entry.reason = Some("it cuts nothing off in calibration".to_owned());
            }
        }
    }
    Ok(())
}
