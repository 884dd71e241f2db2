//! What calibration saw of values, on its way into ranges.

use std::collections::BTreeMap;

use crate::{
    calibrate::{Observer, Table, Watch},
    diagnostics::Diagnostic,
    error::{Error, Result},
    ir::{Model, ValueId},
    quant::{QuantTarget, Range},
    scheme::Resolved,
};

/// Observers by the value that they saw.
pub(super) struct Observed(BTreeMap<ValueId, Observer>);

impl Observed {
    /// Means go into the table at once.
    pub(super) fn of(model: &Model, watches: Vec<Watch>, table: &mut Table) -> Self {
        let mut observed = BTreeMap::new();
        for watch in watches {
            let name = model.value(watch.value).name();
            table.input_means.extend(watch.means.and_then(|m| m.means()).map(|m| (name.to_owned(), m)));
            observed.extend(watch.observer.map(|o| (watch.value, o)));
        }
        Self(observed)
    }

    /// Whether no value was observed.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The range of a value: the given one, else what its observer makes of what it saw, which the table then has, else the table's.
    pub(super) fn range(
        &self,
        model: &Model,
        resolved: &Resolved,
        table: &mut Table,
        value: ValueId,
        types: QuantTarget,
    ) -> Result<Range> {
        if let Some(range) = resolved.ranges.get(&value) {
            return Ok(*range);
        }
        let name = model.value(value).name();
        if let Some(observer) = self.0.get(&value) {
            table.insert(name, observer, types)?;
        }
        table.get(name).ok_or_else(|| Error::bug("a value was not observed").value(name))
    }

    /// Says what is odd in what was seen.
    pub(super) fn diagnose(&self, model: &Model, noticed: &mut Vec<Diagnostic>) {
        for found in self.0.iter().flat_map(|(v, o)| o.stats().diagnose(model.value(*v).name())) {
            // Inputs were looked at before, on fewer samples.
            noticed.retain(|d| d.code != found.code || d.subject != found.subject);
            noticed.push(found);
        }
    }
}
