//! Codes that end where a clamp in front of them cuts, so that saturation does its work; and clamps in the place of saturation.

use super::pairs::Pair;
use crate::{
    analysis::{placement, types::Types},
    error::Result,
    ir::{DType, Model, Place, Tensor, ValueId},
    lint::Context,
    passes::support::{bounds::Bounds, clamp::clamping},
    quant::params::{QParams, Range, type_range},
};

/// Codes of a type that end within the bounds of a clamp, and where given ones end: on the same grid if that can be, else on a finer
/// one that ends at the bounds. `None` where 0 lies beyond the clamp.
pub fn absorbing(old: QParams, (lo, hi): (f32, f32), dtype: DType) -> Option<QParams> {
    if !(lo <= 0.0 && hi >= 0.0) {
        return None;
    }
    let (qmin, qmax) = type_range(dtype).ok()?;
    let ends = |p: QParams| p.representable().ok().is_some_and(|r| lo <= r.lo && hi >= r.hi);
    let steps = (qmax - qmin) as f32;
    // Of the same scale, if the codes begin (or end) at 0.
    let one_sided = match (lo == 0.0, hi == 0.0) {
        (true, _) => Some(qmin),
        (_, true) => Some(qmax),
        _ => None,
    };
    if let Some(zero_point) = one_sided {
        let bound = if lo == 0.0 { hi } else { -lo };
        // What the old codes saturated at stays the end.
        let end = old.representable().ok().map(|r| if lo == 0.0 { r.hi } else { -r.lo });
        let bound = end.filter(|&e| e > 0.0).map_or(bound, |end| bound.min(end));
        let mut scale = old.scale.min(bound / steps);
        // Rounding may have brought the end beyond the bound.
        while scale > 0.0 && scale * steps > bound {
            scale = f32::from_bits(scale.to_bits() - 1);
        }
        let params = QParams { scale, zero_point, dtype };
        return (scale >= f32::MIN_POSITIVE && ends(params)).then_some(params);
    }
    let seen = old.representable().ok()?;
    let range = Range::new(seen.lo.max(lo), seen.hi.min(hi));
    let mut params = QParams::from_range(range, dtype, false, false).ok()?;
    for _ in 0..4 {
        if ends(params) {
            return Some(params);
        }
        params.scale *= 1.0 - 0.5 / steps;
    }
    None
}

/// The clamp that must stay when a pair goes: tools take a Relu or Clip in front of a QuantizeLinear out, and let its codes end
/// where that cut; and what training saturated at is part of what it learned.
#[derive(Debug, Clone, Copy)]
pub struct Saturation {
    lo: Option<f32>,
    hi: Option<f32>,
}

impl Saturation {
    /// What a pair cuts off, as far as anything is.
    pub fn of(model: &Model, types: &Types, pair: &Pair) -> Option<Self> {
        let (lo, hi) = Bounds::default().cut(model, types, pair.value(), (pair.range(), pair.params.scale));
        (lo.is_some() || hi.is_some()).then_some(Self { lo, hi })
    }

    /// What a clamp takes about, in nanoseconds: nothing behind a layer that takes it along.
    pub fn time(cx: &Context<'_>, pair: &Pair) -> f64 {
        let v = pair.value();
        let maker = cx.model.producer(v).map(|n| cx.model.node(n));
        let along = maker.is_some_and(|n| n.is("Conv") || n.is("Relu") || n.is("Clip"));
        match along && cx.model.value(v).uses().len() == 1 {
            true => 0.0,
            false => placement::conversion_time(&cx.target.costs, cx.elements(v), false),
        }
    }

    /// The value with the clamp behind it, in front of the pair.
    pub fn clamped(self, model: &mut Model, pair: &Pair) -> Result<ValueId> {
        let (v, graph) = (pair.value(), model.node(pair.q.node).graph());
        let name = model.value(v).name().to_owned();
        let spec = clamping(model, v, (self.lo, self.hi), |model, what, bound| {
            Ok(model.add_initializer(graph, &format!("{name}_clip_{what}"), Tensor::from_f32(&[], &[bound])))
        })?;
        let op = if (self.lo, self.hi) == (Some(0.0), None) { "Relu" } else { "Clip" };
        model.insert_value(spec.output(format!("{name}_{op}_Output")), Place::Before(pair.q.node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_end_where_clamps_cut() {
        let old = QParams { scale: 0.1, zero_point: 0, dtype: DType::Int8 };
        let of = |lo, hi| absorbing(old, (lo, hi), DType::Uint8);
        let relu = of(0.0, f32::INFINITY).unwrap();
        assert_eq!((relu.scale, relu.zero_point, relu.dtype), (12.7 / 255.0, 0, DType::Uint8));
        for (lo, hi) in [(0.0, 6.0), (0.0, 0.3), (-1.0, 1.0), (-3.0, 3.0), (-6.0, 0.0), (-0.5, 7.0)] {
            let p = of(lo, hi).unwrap();
            let r = p.representable().unwrap();
            assert!(r.lo >= lo && r.hi <= hi, "{lo} {hi}: {p:?}");
            assert!((hi.min(12.7) - lo.max(-12.8)) * 0.95 < r.hi - r.lo, "{lo} {hi}: {p:?}");
        }
        assert_eq!(of(1.0, 6.0), None);
    }
}
