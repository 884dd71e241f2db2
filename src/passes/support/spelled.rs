//! Quantizers that are spelled out in arithmetic, read from their last node to their first.
//!
//! What stands in front of a Round and what stands behind it are lines `k * x + m` and clamps, in any order. Clamps move to the end of
//! the lines in front of the rounding, where their bounds are numbers of steps; there they may as well come behind it, with
//! rounded bounds, since rounding keeps the order of numbers. What is left is `c * clamp(round(a * x + b), lo, hi) + d`: the arithmetic of
//! QuantizeLinear and DequantizeLinear with the scale `c` where `a * c` is 1, `b + d / c` is 0, and `b` is whole.

use crate::{
    ir::{DType, Model, NodeId, Tensor, ValueId},
    ops,
    quant::params::type_range,
};

/// How far the product of both factors may be from 1, and offsets from each other as a share of them: they are numbers of 24 bits.
const NEAR: f64 = 1e-6;
/// How far a number of steps may be from a whole one to be meant as that.
const WHOLE: f64 = 1e-3;
/// How near a bound may be to the middle between two codes before it cannot be told to which of them 32 bits round it.
const TIE: f64 = 1e-4;
/// The most numbers that a constant of a quantizer has.
const MOST_CHANNELS: usize = 1 << 16;
/// The most nodes that a quantizer is spelled with.
const LONGEST: usize = 16;

/// What was found to end with a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// What QuantizeLinear and DequantizeLinear compute.
    Quantizer(Spelled),
    /// A quantizer, but for its offset, which is so many steps: no whole number, or one of a zero that lies outside of the codes.
    Offset(f64),
}

/// A quantizer spelled out.
#[derive(Debug, Clone, PartialEq)]
pub struct Spelled {
    /// What it rounds.
    pub input: ValueId,
    /// One scale, or one for each channel.
    pub scales: Vec<f32>,
    /// The shape as which they are broadcast.
    pub dims: Vec<usize>,
    /// As many zero points.
    pub zero_points: Vec<i32>,
    /// The type of the codes.
    pub dtype: DType,
    /// The least and greatest code.
    pub bounds: (i32, i32),
    /// The most axes that its constants have.
    pub rank: usize,
}

/// One number, or one for each channel.
#[derive(Debug, Clone, PartialEq)]
struct Each {
    /// The shape without leading ones; empty for one number.
    dims: Vec<usize>,
    numbers: Vec<f64>,
}

impl Each {
    fn one(x: f64) -> Self {
        Self { dims: Vec::new(), numbers: vec![x] }
    }

    fn of(tensor: &Tensor) -> Option<Self> {
        let numbers: Vec<f64> = tensor.to_f32().ok()?.into_iter().map(f64::from).collect();
        let dims = match numbers.len() {
            1 => Vec::new(),
            _ => tensor.dims().iter().copied().skip_while(|&d| d == 1).collect(),
        };
        numbers.iter().all(|x| x.is_finite()).then_some(Self { dims, numbers })
    }

    /// Both together, number by number; `None` where they belong to different channels.
    fn with(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Option<Self> {
        let numbers = match (&self.numbers[..], &other.numbers[..]) {
            (a, &[b]) => a.iter().map(|&a| f(a, b)).collect(),
            (&[a], b) => b.iter().map(|&b| f(a, b)).collect(),
            (a, b) if self.dims == other.dims => a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect(),
            _ => return None,
        };
        let longer = if self.numbers.len() > 1 { self } else { other };
        Some(Self { dims: longer.dims.clone(), numbers })
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self { dims: self.dims.clone(), numbers: self.numbers.iter().map(|&x| f(x)).collect() }
    }

    fn all(&self, is: impl Fn(f64) -> bool) -> bool {
        self.numbers.iter().all(|&x| is(x))
    }

    /// Whole numbers, where all of them are meant as such.
    fn whole(&self) -> Option<Self> {
        let near = |x: f64| x.is_infinite() || (x - x.round()).abs() <= WHOLE;
        self.all(near).then(|| self.map(f64::round))
    }
}

/// `clamp(factor * x + offset, lo, hi)`.
#[derive(Debug, Clone)]
struct Line {
    factor: Each,
    offset: Each,
    lo: Each,
    hi: Each,
}

impl Line {
    fn new(lo: Each, hi: Each) -> Self {
        Self { factor: Each::one(1.0), offset: Each::one(0.0), lo, hi }
    }

    /// With `k * x + m` in the place of `x`.
    fn of_line(&mut self, k: &Each, m: &Each) -> Option<()> {
        self.offset = self.factor.with(m, |c, m| c * m)?.with(&self.offset, |m, d| m + d)?;
        self.factor = self.factor.with(k, |c, k| c * k)?;
        self.factor.all(|c| c > 0.0 && c.is_finite()).then_some(())
    }

    /// With `clamp(x, lo, hi)` in the place of `x`.
    fn of_clamp(&mut self, (lo, hi): (f32, f32)) -> Option<()> {
        let within = |x: f32, line: &Self| {
            let scaled = line.factor.map(|c| c * f64::from(x)).with(&line.offset, |x, d| x + d)?;
            scaled.with(&line.lo, f64::max)?.with(&line.hi, f64::min)
        };
        (self.lo, self.hi) = (within(lo, self)?, within(hi, self)?);
        Some(())
    }
}

/// A quantizer in the making: what stands behind the Round, and in front of it.
struct Halves {
    behind: Line,
    before: Line,
    /// The zero point that is subtracted in the end.
    zeros: Each,
}

impl Halves {
    /// Goes from behind the Round in front of it, with the bounds.
    fn new(behind: Line, zeros: Option<Each>) -> Option<Self> {
        let steps =
            |bound: &Each| bound.with(&behind.offset, |y, d| y - d)?.with(&behind.factor, |y, c| y / c)?.whole();
        let before = Line::new(steps(&behind.lo)?, steps(&behind.hi)?);
        Some(Self { behind, before, zeros: zeros.unwrap_or(Each::one(0.0)) })
    }

    /// Whether both are the same line, there and back.
    fn mirrored(&self) -> bool {
        let product = self.before.factor.with(&self.behind.factor, |a, c| a * c);
        let back = self.behind.offset.with(&self.behind.factor, |d, c| d / c);
        let sum = back.and_then(|back| {
            self.before.offset.with(&back, |b, back| (b + back).abs() - 10.0 * NEAR * (1.0 + b.abs()))
        });
        product.is_some_and(|p| p.all(|p| (p - 1.0).abs() < NEAR)) && sum.is_some_and(|s| s.all(|s| s <= 0.0))
    }

    fn bounded(&self) -> bool {
        self.before.lo.all(f64::is_finite) && self.before.hi.all(f64::is_finite)
    }

    /// What the quantizer of this input is.
    fn found(&self, input: ValueId, rank: usize) -> Option<Found> {
        let Line { offset, lo, hi, .. } = &self.before;
        let Some(added) = offset.whole() else {
            let far = |x: &&f64| (**x - x.round()).abs() > WHOLE;
            return offset.numbers.iter().find(far).map(|&x| Found::Offset(x));
        };
        let code = |bound: &Each| {
            let clear = bound.all(|x| (x - x.floor() - 0.5).abs() >= TIE);
            clear.then(|| bound.map(f64::round_ties_even))?.with(&added, |x, z| x - z)
        };
        let (lo, hi) = (code(lo)?, code(hi)?);
        let scale = &self.behind.factor;
        let scales: Vec<f32> = scale.numbers.iter().map(|&c| c as f32).collect();
        // Zero points as written, none, and what makes the least code 0.
        let written = [DType::Uint8, DType::Int8].map(|dtype| (self.zeros.clone(), dtype));
        let none = [DType::Uint8, DType::Int8].map(|dtype| (Each::one(0.0), dtype));
        let candidates = written.into_iter().chain(none).chain([(lo.map(|x| -x), DType::Uint8)]);
        for (zeros, dtype) in candidates {
            let (least, most) = type_range(dtype).ok()?;
            let same = |bound: &Each| {
                let codes = bound.with(&zeros, |x, z| x + z)?;
                let first = codes.numbers[0];
                let fits = (f64::from(least)..=f64::from(most)).contains(&first);
                (fits && codes.all(|x| x == first)).then_some(first as i32)
            };
            let (Some(low), Some(high)) = (same(&lo), same(&hi)) else { continue };
            let within = zeros.all(|z| (f64::from(least)..=f64::from(most)).contains(&z));
            let zero_points: Vec<i32> = match zeros.numbers[..] {
                [one] => vec![one as i32; scales.len()],
                ref several => several.iter().map(|&z| z as i32).collect(),
            };
            let sound = zero_points.len() == scales.len() && low < high && scales.iter().all(|s| s.is_normal());
            if within && sound {
                let bounds = (low, high);
                return Some(Found::Quantizer(Spelled {
                    input,
                    scales,
                    dims: scale.dims.clone(),
                    zero_points,
                    dtype,
                    bounds,
                    rank,
                }));
            }
        }
        // As many codes as there are, but none of 0.0.
        let offset = self.before.offset.numbers[0];
        let few = lo.with(&hi, |lo, hi| hi - lo)?.all(|codes| (1.0..=255.0).contains(&codes));
        let outside = lo.all(|lo| lo > 0.0) || hi.all(|hi| hi < 0.0);
        (few && outside && offset != 0.0).then_some(Found::Offset(offset))
    }
}

impl Found {
    /// The quantizer that this node ends.
    pub fn ending_with(model: &Model, id: NodeId) -> Option<Self> {
        let mut behind = Line::new(Each::one(f64::NEG_INFINITY), Each::one(f64::INFINITY));
        let (mut scaled, mut rank, mut zeros) = (false, 0, None);
        let mut step = Step::of(model, id).filter(|s| matches!(s.what, What::Line(..)))?;
        let mut left = LONGEST;
        let value = loop {
            left = left.checked_sub(1)?;
            rank = rank.max(step.rank);
            match &step.what {
                What::Line(k, m) => {
                    behind.of_line(k, m)?;
                    scaled |= *k != Each::one(1.0);
                    let back = behind.offset.with(&behind.factor, |d, c| -d / c)?;
                    let written = || back.whole().filter(|z| scaled && !z.all(|z| z == 0.0));
                    zeros = zeros.or_else(written);
                }
                What::Clamp(lo, hi) => behind.of_clamp((*lo, *hi))?,
                What::Round => break step.of,
            }
            step = Step::of_sole(model, step.of)?;
        };
        let mut halves = Halves::new(behind, zeros).filter(|_| scaled)?;
        let mut value = value;
        loop {
            let mirrored = halves.mirrored();
            if mirrored && halves.bounded() {
                return halves.found(without_nothing(model, value), rank);
            }
            left = left.checked_sub(1)?;
            let alone = Step::of_sole(model, value);
            let step = match alone {
                // A clamp whose result others read stays, and tells of the bounds.
                None if mirrored => Step::of(model, model.producer(value)?)?,
                step => step?,
            };
            rank = rank.max(step.rank);
            match &step.what {
                What::Clamp(lo, hi) => {
                    halves.before.of_clamp((*lo, *hi))?;
                    let shared = model.sole_reader(value).is_none();
                    if shared {
                        return halves.found(value, rank).filter(|_| halves.bounded());
                    }
                }
                // What comes before a quantizer without bounds is no part of it.
                What::Line(k, m) if !mirrored => halves.before.of_line(k, m)?,
                _ => return None,
            }
            value = step.of;
        }
    }
}

/// What steps that change nothing start from, as those of an offset that training left at 0.
fn without_nothing(model: &Model, value: ValueId) -> ValueId {
    let before = |&v: &ValueId| {
        let step = Step::of_sole(model, v).filter(|s| s.rank == 0)?;
        let nothing = matches!(&step.what, What::Line(k, m) if *k == Each::one(1.0) && *m == Each::one(0.0));
        nothing.then_some(step.of)
    };
    std::iter::successors(Some(value), before).last().unwrap_or(value)
}

/// One node of a quantizer, as a function of one value.
struct Step {
    of: ValueId,
    what: What,
    /// The axes of its constant.
    rank: usize,
}

enum What {
    /// `k * x + m`.
    Line(Each, Each),
    Clamp(f32, f32),
    Round,
}

impl Step {
    /// The node that makes a value which nothing else reads.
    fn of_sole(model: &Model, value: ValueId) -> Option<Self> {
        model.sole_reader(value)?;
        Self::of(model, model.producer(value)?)
    }

    fn of(model: &Model, id: NodeId) -> Option<Self> {
        let node = model.node(id);
        let number =
            |t: &&Tensor| t.dtype() == DType::Float && !t.is_deferred() && (1..=MOST_CHANNELS).contains(&t.len());
        let constant = |i: usize| model.constant_input(id, i).filter(number);
        let is = |ops: &[&str]| ops.iter().any(|op| node.is(op));
        let new = |of, what, rank| Some(Self { of, what, rank });
        if is(&["Round"]) {
            return new(node.input(0)?, What::Round, 0);
        }
        if is(&["Relu", "Clip"]) {
            let (lo, hi) = ops::clamp_bounds(model, id).filter(|(lo, hi)| lo <= hi)?;
            return new(node.input(0)?, What::Clamp(lo, hi), 0);
        }
        if !is(&["Add", "Sub", "Mul", "Div", "Max", "Min"]) || node.inputs().len() != 2 {
            return None;
        }
        let (at, given) = match (constant(0), constant(1)) {
            (None, Some(t)) => (0, t),
            (Some(t), None) if !is(&["Sub", "Div"]) => (1, t),
            // Of a weight and what it is scaled by, the weight is the larger one.
            (Some(a), Some(b)) if !is(&["Sub", "Div"]) && a.len() < b.len() => (1, a),
            (Some(_), Some(b)) => (0, b),
            _ => return None,
        };
        let number = Each::of(given)?;
        let (one, none) = (Each::one(1.0), Each::one(0.0));
        let what = match node.op_type.as_str() {
            "Add" => What::Line(one, number),
            "Sub" => What::Line(one, number.map(|m| -m)),
            "Mul" => What::Line(number, none),
            "Div" => What::Line(number.map(|k| 1.0 / k), none),
            clamp => {
                let &[bound] = &number.numbers[..] else { return None };
                let bound = bound as f32;
                if clamp == "Max" { What::Clamp(bound, f32::INFINITY) } else { What::Clamp(f32::NEG_INFINITY, bound) }
            }
        };
        new(node.input(at)?, what, given.rank())
    }
}

/// The nodes of a quantizer that ends with this one, from its last one back to its Round.
pub fn behind_rounding(model: &Model, id: NodeId) -> Vec<NodeId> {
    let before = |&n: &NodeId| model.producer(Step::of(model, n).filter(|s| !matches!(s.what, What::Round))?.of);
    std::iter::successors(Some(id), before).take(LONGEST).collect()
}
