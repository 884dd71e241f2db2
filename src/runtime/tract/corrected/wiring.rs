//! Corrected operators made of tract's elementary ones.

use tract_onnx::{
    prelude::*,
    tract_core::ops::{
        cast::cast,
        math::{abs, add, div, exp, ln, max, min, mul, neg, pow, sqrt, square, sub},
        nn::{Reduce, Reducer, Softmax, SoftmaxKind, sigmoid},
    },
    tract_hir::internal::*,
};

/// What is wired.
#[derive(Debug, Clone)]
pub(super) enum Wiring {
    /// `max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0)`.
    Celu { alpha: f32 },
    /// `sum(|x|^p)^(1/p)` over all but the first two axes.
    GlobalLpPool { p: f32 },
    /// Over an axis, or from it to the last.
    LogSoftmax { axis: i64, to_the_end: bool },
    /// `log(sum(exp(x - m))) + m` with the maximum `m`; `axes` are an attribute or the second input.
    LogSumExp { axes: Option<Vec<i64>>, keep: bool, none_if_empty: bool },
    /// `d / (sqrt(mean(d^2)) + 1e-9)` with `d = x - mean(x)`.
    MeanVariance { axes: Vec<i64> },
    /// `max(x, 0) + log(1 + exp(-|x|))`.
    Softplus,
    /// `x * sigmoid(alpha * x)`.
    Swish { alpha: f32 },
    /// To an integer type of less than 32 bits: the low bits of what is outside of it.
    WrappingCast { to: DatumType },
}

impl Wiring {
    /// The outputs, or `None` where tract's own are as good.
    pub(super) fn wire(
        &self,
        prefix: &str,
        target: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<Option<TVec<OutletId>>> {
        let x = *inputs.first().context("has no input")?;
        let fact = target.outlet_fact(x)?.clone();
        if !fact.datum_type.is_float() {
            return Ok(None);
        }
        let rank = fact.rank();
        let mut w = Wires { prefix, target, rank, datum: fact.datum_type, made: 0 };
        let y = match self {
            Self::WrappingCast { to } => {
                let whole = w.add(cast(DatumType::I32), &[x])?;
                w.add(cast(*to), &[whole])?
            }
            Self::Celu { alpha } => {
                let (zero, one, alpha) = (w.scalar(0.0)?, w.scalar(1.0)?, w.scalar(*alpha)?);
                let scaled = w.add(div(), &[x, alpha])?;
                let grown = w.add(exp(), &[scaled])?;
                let below = w.add(sub(), &[grown, one])?;
                let below = w.add(mul(), &[below, alpha])?;
                let (below, above) = (w.add(min(), &[below, zero])?, w.add(max(), &[x, zero])?);
                w.add(add(), &[above, below])?
            }
            Self::GlobalLpPool { p } => {
                let (power, root) = (w.scalar(*p)?, w.scalar(1.0 / p)?);
                let size = w.add(abs(), &[x])?;
                let powers = w.add(pow(), &[size, power])?;
                let sum = w.add(Reduce::new((2..rank).collect(), Reducer::Sum), &[powers])?;
                w.add(pow(), &[sum, root])?
            }
            Self::LogSoftmax { axis, to_the_end } => {
                let axis = axis_of(*axis, rank)?;
                let axes = if *to_the_end { (axis..rank).collect() } else { tvec!(axis) };
                w.add(Softmax { axes, quant_output_dt: None, kind: SoftmaxKind::LogSoftmax }, &[x])?
            }
            Self::LogSumExp { axes, keep, none_if_empty } => {
                let given = match (axes, inputs.get(1)) {
                    (Some(axes), _) => axes.clone(),
                    (None, None) => vec![],
                    (None, Some(&input)) => {
                        let Some(axes) = w.target.outlet_fact(input)?.konst.clone() else { return Ok(None) };
                        let axes = axes.cast_to::<i64>()?;
                        axes.try_as_plain_ram()?.as_slice::<i64>()?.to_vec()
                    }
                };
                if given.is_empty() && *none_if_empty {
                    return Ok(None);
                }
                let axes = if given.is_empty() { (0..rank).collect() } else { axes_of(&given, rank)? };
                w.log_sum_exp(x, axes, *keep)?
            }
            Self::MeanVariance { axes } => {
                let axes = axes_of(axes, rank)?;
                let lengths = fact.shape.as_concrete().context("the shape of the data is not known")?;
                let count: usize = axes.iter().map(|&a| lengths[a]).product();
                let (count, small) = (w.scalar(count as f32)?, w.scalar(1e-9)?);
                let sum = w.add(Reduce::new(axes.clone(), Reducer::Sum), &[x])?;
                let mean = w.add(div(), &[sum, count])?;
                let less = w.add(sub(), &[x, mean])?;
                let squares = w.add(square(), &[less])?;
                let sum = w.add(Reduce::new(axes, Reducer::Sum), &[squares])?;
                let variance = w.add(div(), &[sum, count])?;
                let deviation = w.add(sqrt(), &[variance])?;
                let deviation = w.add(add(), &[deviation, small])?;
                w.add(div(), &[less, deviation])?
            }
            Self::Softplus => {
                let (zero, one) = (w.scalar(0.0)?, w.scalar(1.0)?);
                let above = w.add(max(), &[x, zero])?;
                let size = w.add(abs(), &[x])?;
                let negative = w.add(neg(), &[size])?;
                let small = w.add(exp(), &[negative])?;
                let sum = w.add(add(), &[small, one])?;
                let rest = w.add(ln(), &[sum])?;
                w.add(add(), &[above, rest])?
            }
            Self::Swish { alpha } => {
                let alpha = w.scalar(*alpha)?;
                let scaled = w.add(mul(), &[x, alpha])?;
                let gate = w.add(sigmoid(), &[scaled])?;
                w.add(mul(), &[x, gate])?
            }
        };
        Ok(Some(tvec!(y)))
    }
}

fn axis_of(axis: i64, rank: usize) -> TractResult<usize> {
    let from_start = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    let axis_in = from_start.and_then(|a| usize::try_from(a).ok()).filter(|&a| a < rank);
    axis_in.with_context(|| format!("axis {axis} of {rank} axes"))
}

/// In order, each once.
fn axes_of(axes: &[i64], rank: usize) -> TractResult<TVec<usize>> {
    let mut axes = axes.iter().map(|&a| axis_of(a, rank)).collect::<TractResult<TVec<usize>>>()?;
    axes.sort_unstable();
    axes.dedup();
    Ok(axes)
}

/// Adds operators one after the other, all of one rank and type.
struct Wires<'a> {
    prefix: &'a str,
    target: &'a mut TypedModel,
    rank: usize,
    datum: DatumType,
    made: usize,
}

impl Wires<'_> {
    fn name(&mut self) -> String {
        self.made += 1;
        format!("{}.part{}", self.prefix, self.made)
    }

    fn scalar(&mut self, value: f32) -> TractResult<OutletId> {
        let scalar = tensor0(value).cast_to_dt(self.datum)?.into_owned().broadcast_into_rank(self.rank)?;
        let name = self.name();
        self.target.add_const(name, scalar)
    }

    fn add(&mut self, op: impl Into<Box<dyn TypedOp>>, inputs: &[OutletId]) -> TractResult<OutletId> {
        let name = self.name();
        self.target.wire_node(name, op, inputs)?.first().copied().context("makes nothing")
    }

    fn log_sum_exp(&mut self, x: OutletId, axes: TVec<usize>, keep: bool) -> TractResult<OutletId> {
        // Infinities are left to the exponential: `inf - inf` is no number.
        let (lowest, highest) = match self.datum {
            DatumType::F16 => (-65504.0, 65504.0),
            _ => (f32::MIN, f32::MAX),
        };
        let (lowest, highest) = (self.scalar(lowest)?, self.scalar(highest)?);
        let most = self.add(Reduce::new(axes.clone(), Reducer::Max), &[x])?;
        let most = self.add(max(), &[most, lowest])?;
        let most = self.add(min(), &[most, highest])?;
        let less = self.add(sub(), &[x, most])?;
        let powers = self.add(exp(), &[less])?;
        let sum = self.add(Reduce::new(axes.clone(), Reducer::Sum), &[powers])?;
        let log = self.add(ln(), &[sum])?;
        let mut y = self.add(add(), &[log, most])?;
        for &axis in axes.iter().rev().filter(|_| !keep) {
            y = self.add(AxisOp::Rm(axis), &[y])?;
        }
        Ok(y)
    }
}
