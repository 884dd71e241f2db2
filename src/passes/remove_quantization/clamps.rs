//! Clamps that quantizers did besides, as operators again.

use std::collections::HashMap;

use serde::Serialize;

use crate::{
    analysis::types::Types,
    error::Result,
    ir::{DType, GraphId, Model, Tensor, ValueId},
    passes::support::{
        bounds::Bounds,
        clamp::{Clamp, clamping},
        replace::behind_maker,
    },
    quant::params::Range,
};

/// Which clamps come back where a quantizer goes: its codes end somewhere, and a clamp in front of it may have been left out for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Clamps {
    /// All, wherever a value could leave the range: what was left out is not always a Relu, and what training saturated at is part
    /// of what it learned.
    #[default]
    Keep,
    /// Where the range begins or ends at 0, at that end alone.
    Relu,
    /// None.
    None,
}

/// A clamp that came back.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Clamped {
    /// The value that it clamps.
    pub value: String,
    /// The least number, if there is one.
    pub lo: Option<f32>,
    /// The greatest.
    pub hi: Option<f32>,
}

#[derive(Default)]
pub(super) struct Maker {
    constants: HashMap<(GraphId, u32, DType), ValueId>,
    made: HashMap<(ValueId, u32, u32), ValueId>,
    pub(super) bounds: Bounds,
    pub(super) done: Vec<Clamped>,
}

impl Maker {
    /// A value as it is behind a quantizer with a range, and a step between codes: clamped, if that is asked for and does anything.
    pub(super) fn clamped(
        &mut self,
        model: &mut Model,
        types: &Types,
        (x, dtype): (ValueId, DType),
        range: (Range, f32),
        which: Clamps,
    ) -> Result<ValueId> {
        let (below, above) = self.bounds.cut(model, types, x, range);
        let only = |bound: Option<f32>| bound.filter(|&b| which == Clamps::Keep || (which == Clamps::Relu && b == 0.0));
        let (below, above) = (only(below), only(above));
        if below.is_none() && above.is_none() {
            return Ok(x);
        }
        let key = (x, below.map_or(u32::MAX, f32::to_bits), above.map_or(u32::MAX, f32::to_bits));
        if let Some(&known) = self.made.get(&key) {
            return Ok(known);
        }
        let name = model.value(x).name().to_owned();
        let (from, below, above) = joined(model, types, x, (below, above));
        let ty = model.value(x).ty.clone();
        let graph = model.value(x).graph();
        let spec = clamping(model, from, (below, above), |model, _, bound| self.constant(model, graph, bound, dtype))?;
        self.done.push(Clamped { value: name.clone(), lo: below, hi: above });
        let place = behind_maker(model, x, graph);
        let made = model.insert_value(spec.typed_output(format!("{name}_clamped"), ty), place)?;
        self.made.insert(key, made);
        Ok(made)
    }

    fn constant(&mut self, model: &mut Model, graph: GraphId, bound: f32, dtype: DType) -> Result<ValueId> {
        let key = (graph, bound.to_bits(), dtype);
        if let Some(&known) = self.constants.get(&key) {
            return Ok(known);
        }
        let tensor = match dtype {
            DType::Float16 | DType::Bfloat16 => {
                crate::quant::halves::converted(&Tensor::from_f32(&[], &[bound]), dtype, None)?
            }
            _ => Tensor::from_f32(&[], &[bound]),
        };
        let made = model.add_initializer(graph, &format!("clamp_{bound}"), tensor);
        self.constants.insert(key, made);
        Ok(made)
    }
}

/// A clamp of a value, together with one that makes it.
fn joined(
    model: &Model,
    types: &Types,
    x: ValueId,
    (lo, hi): (Option<f32>, Option<f32>),
) -> (ValueId, Option<f32>, Option<f32>) {
    let Some(inner) = model.producer(x).and_then(|n| Clamp::of(model, types, n)) else { return (x, lo, hi) };
    let outer = Clamp { x, lo: lo.unwrap_or(f32::NEG_INFINITY), hi: hi.unwrap_or(f32::INFINITY) };
    let both = inner.then(outer);
    let given = |bound: f32| Some(bound).filter(|b| b.is_finite());
    (both.x, given(both.lo), given(both.hi))
}
