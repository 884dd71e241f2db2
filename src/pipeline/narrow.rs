//! Narrower ranges where the model's answers are nearer to the original's with them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Clock,
    auto::{Found, GAINS, Search},
    prices::integer_sources,
};
use crate::{analysis::placement::Wishes, error::Result, ir::ValueId, validate::noise::Source};

/// Values whose rounding uses less of the budget are not looked at for narrower ranges, nor more values than these.
const LOUD: f64 = 0.01;
const LOUDEST: usize = 24;
/// Shares of the range that are tried.
const FACTORS: [f32; 3] = [0.8, 0.65, 0.5];

impl Search<'_, '_> {
    /// Chooses narrower ranges where the model's answers are nearer to the original's with them: by the noise at the
    /// outputs of each value alone, and kept if the plan as a whole fits the budget with them.
    pub(super) fn narrow(&mut self, found: Found, wishes: &Wishes, clock: &mut Clock<'_>) -> Result<Found> {
        clock.step("measure");
        let model = self.planner.task.model;
        let mut loud: Vec<(f64, ValueId)> = Vec::new();
        for source in integer_sources(&found.placement) {
            let Source::Value(v) = source else { continue };
            let noise = self.known.worst([&source]);
            if noise >= LOUD && !self.planner.task.resolved.ranges.contains_key(&v) {
                loud.push((noise, v));
            }
        }
        loud.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        loud.truncate(LOUDEST);
        let wanted: BTreeSet<Source> = loud.iter().map(|&(_, v)| Source::Value(v)).collect();
        let mut best: BTreeMap<ValueId, (f64, f32)> = loud.iter().map(|&(noise, v)| (v, (noise, 1.0))).collect();
        if wanted.is_empty() {
            return Ok(found);
        }
        for factor in FACTORS {
            let mut plan = found.plan.clone();
            for v in best.keys() {
                if let Some(a) = plan.activations.get_mut(model.value(*v).name()) {
                    a.scale *= factor;
                }
            }
            let noise = self.noise_of(&plan, &found.known, &wanted)?;
            for (v, (least, chosen)) in &mut best {
                let now = noise.worst([&Source::Value(*v)]);
                if now < *least {
                    (*least, *chosen) = (now, factor);
                }
            }
        }
        let before: BTreeMap<ValueId, f64> = loud.into_iter().map(|(noise, v)| (v, noise)).collect();
        best.retain(|v, (noise, factor)| *factor < 1.0 && *noise < GAINS * before[v]);
        let table = self.planner.table.clone();
        for (v, (_, factor)) in &best {
            self.planner.table.narrow(model.value(*v).name(), *factor);
        }
        let made = self.planner.plan(wishes, clock)?;
        let narrower = self.judged(made, clock)?;
        let (before, after) = (found.noise, narrower.noise);
        log::info!("auto: {} narrower ranges: {before:.2e} of the budget, {after:.2e} with them", best.len());
        // Cut off is what is rare, and on few samples that may look better than it is: only where it saves other cures.
        if best.is_empty() || narrower.noise > 1.0 {
            self.planner.table = table;
            return Ok(found);
        }
        self.narrowed = best.len();
        Ok(narrower)
    }
}
