//! What values are rounded to: by quantizers, and by what follows from those.

use std::collections::BTreeMap;

use crate::{
    calibrate::Table,
    diagnostics::{Diagnostic, count},
    ir::{DType, Model, NodeId, ValueId},
    ops,
    passes::support::pairs::moves_codes,
    plan::Learned,
    quant::{Grid, QParams, Range},
    scheme::Resolved,
};

/// The grids of values: those of quantizers, and of what follows from them.
pub(super) struct Grids {
    /// By value of the prepared model.
    pub(super) all: BTreeMap<ValueId, Grid>,
}

impl Grids {
    /// Of all values; `measured`: what does not follow exactly is found by calibration.
    pub(super) fn of(model: &Model, learned: &Learned, measured: bool, noticed: &mut Vec<Diagnostic>) -> Self {
        let mut all = BTreeMap::new();
        let mut wide = Vec::new();
        for (&v, grids) in &learned.values {
            let name = model.value(v).name();
            let narrow: Vec<&Grid> = grids.iter().filter(|g| g.params.dtype.bits() == 8).collect();
            let span = |g: &Grid| g.range().hi - g.range().lo;
            let Some(chosen) = narrow.iter().copied().max_by(|a, b| span(a).total_cmp(&span(b))) else {
                wide.push(name);
                continue;
            };
            all.insert(v, *chosen);
            let others: Vec<String> =
                narrow.iter().filter(|g| **g != chosen).map(|g| g.params.scale.to_string()).collect();
            if !others.is_empty() {
                let text = format!(
                    "its quantizers round it in {} ways; one is kept, of scale {}, which reaches farthest, in the place of scale {}",
                    narrow.len(),
                    chosen.params.scale,
                    others.join(", ")
                );
                let help = "a kernel hands out codes of one scale; look at the comparison, and train with one quantizer for all readers";
                noticed.push(Diagnostic::warning("learned_scales_merged", text).on(name).help(help));
            }
        }
        if let Some(first) = wide.first() {
            let text = format!(
                "{} of more than 8 bits, which no kernel computes with, are left out",
                count(wide.len(), "quantizer")
            );
            let help = match measured {
                true => "what kernels need gets ranges of 8 bits from calibration: look at the comparison",
                false => "give --calibration for ranges of 8 bits",
            };
            noticed.push(Diagnostic::note("wide_quantizers", text).on(*first).help(help));
        }
        let mut grids = Self { all };
        let mut derived = Vec::new();
        for id in model.nodes(model.main()) {
            let Some(out) = model.node(id).output(0).filter(|v| !grids.all.contains_key(v)) else { continue };
            let found = grids.exactly(model, id).or_else(|| {
                let found = grids.roughly(model, id).filter(|_| !measured)?;
                derived.push(model.value(out).name());
                Some(found)
            });
            grids.all.extend(found.map(|g| (out, g)));
        }
        if let Some(first) = derived.first() {
            let text = format!(
                "there is no quantizer for {}: a range follows from those in front, wider than need be",
                count(derived.len(), "value")
            );
            noticed.push(
                Diagnostic::note("derived_ranges", text).on(*first).help("give --calibration to have it measured"),
            );
        }
        grids
    }

    /// Takes out those of values that the user gives ranges for, and says so.
    pub(super) fn give_way(&mut self, model: &Model, resolved: &Resolved, table: Option<&Table>) -> Option<Diagnostic> {
        let name = |v: &ValueId| model.value(*v).name();
        let given = |v: &ValueId| resolved.ranges.contains_key(v) || table.is_some_and(|t| t.get(name(v)).is_some());
        let replaced: Vec<ValueId> = self.all.keys().copied().filter(given).collect();
        self.all.retain(|v, _| !replaced.contains(v));
        let first = replaced.first()?;
        let text =
            format!("the learned scales of {} give way to the ranges that are given", count(replaced.len(), "value"));
        Some(Diagnostic::warning("learned_scales_replaced", text).on(name(first)))
    }

    fn input(&self, model: &Model, id: NodeId, i: usize) -> Option<Grid> {
        model.node(id).input(i).and_then(|v| self.all.get(&v)).copied()
    }

    /// The grid of what a node makes, if its numbers are on it by themselves.
    fn exactly(&self, model: &Model, id: NodeId) -> Option<Grid> {
        let node = model.node(id);
        if moves_codes(model, id) {
            return self.input(model, id, 0);
        }
        if let Some((lo, hi)) = ops::clamp_bounds(model, id).filter(|(lo, hi)| *lo <= 0.0 && *hi >= 0.0 && lo < hi) {
            return self.input(model, id, 0).map(|g| g.clamped(lo, hi));
        }
        match node.op_type.as_str() {
            "Concat" => {
                let first = self.input(model, id, 0)?;
                (1..node.inputs().len()).all(|i| self.input(model, id, i) == Some(first)).then_some(first)
            }
            "Sign" => Grid::between(QParams { scale: 1.0, zero_point: 0, dtype: DType::Int8 }, -1, 1).ok(),
            "Mul" => {
                let (by, sign) = match (model.constant_input(id, 0), model.constant_input(id, 1)) {
                    (Some(by), None) => (by, 1),
                    (None, Some(by)) => (by, 0),
                    _ => return None,
                };
                let scale = by.scalar_f32().filter(|s| *s > 0.0 && s.is_normal())?;
                let signs = model.node(model.producer(node.input(sign)?)?).is("Sign");
                let params = QParams { scale, zero_point: 0, dtype: DType::Int8 };
                signs.then(|| Grid::between(params, -1, 1).ok())?
            }
            // The sign of a number, as training in one bit has it.
            "Where" => {
                let number = |i: usize| model.constant_input(id, i)?.scalar_f32();
                let (scale, other) = (number(1)?, number(2)?);
                let params = QParams { scale, zero_point: 0, dtype: DType::Int8 };
                (scale > 0.0 && other == -scale).then(|| Grid::between(params, -1, 1).ok())?
            }
            _ => None,
        }
    }

    /// A grid that holds what a node makes, which is rounded once more by it.
    fn roughly(&self, model: &Model, id: NodeId) -> Option<Grid> {
        let node = model.node(id);
        let inputs = || (0..node.inputs().len()).map(|i| self.input(model, id, i)).collect::<Option<Vec<Grid>>>();
        let over = |lo: f32, hi: f32| {
            let range = Range::new(lo, hi);
            Grid::of(QParams::from_range(range, DType::Uint8, false, false).ok()?).ok()
        };
        match node.op_type.as_str() {
            // Between the least and the greatest number, and seldom one of few codes.
            "AveragePool" | "GlobalAveragePool" | "ReduceMean" => {
                let range = self.input(model, id, 0)?.range();
                over(range.lo, range.hi)
            }
            "Concat" => {
                let range = inputs()?.iter().map(Grid::range).reduce(Range::union)?;
                over(range.lo, range.hi)
            }
            "Add" => {
                let ranges: Vec<_> = inputs()?.iter().map(Grid::range).collect();
                over(ranges.iter().map(|r| r.lo).sum(), ranges.iter().map(|r| r.hi).sum())
            }
            _ => None,
        }
    }
}
