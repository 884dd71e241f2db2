//! Between which numbers a value must lie, whatever the model reads: whether a clamp would change anything.

use std::collections::HashMap;

use super::{
    clamp::Clamp,
    constants,
    pairs::{Linear, moves_codes},
};
use crate::{
    analysis::types::Types,
    ir::{Model, NodeId, ValueId},
    quant::params::{QParams, Range},
};

/// Deeper than this nothing is known.
const DEPTH: usize = 64;

const ALL: Range = Range { lo: f32::NEG_INFINITY, hi: f32::INFINITY };

/// What is known of values; what makes them must not change behind its back.
#[derive(Default)]
pub struct Bounds {
    known: HashMap<ValueId, Range>,
}

impl Bounds {
    /// Least and greatest number of a value of floats, as far as is certain.
    pub fn of(&mut self, model: &Model, types: &Types, v: ValueId) -> Range {
        self.at(model, types, v, 0)
    }

    /// The ends of a range that would cut something off a value. What lies beyond an end by less than a step of the codes is only
    /// rounded, unless the end is 0, where a Relu may have stood.
    pub fn cut(
        &mut self,
        model: &Model,
        types: &Types,
        v: ValueId,
        (range, step): (Range, f32),
    ) -> (Option<f32>, Option<f32>) {
        let seen = self.of(model, types, v);
        let slack = |end: f32| if end == 0.0 { 0.0 } else { step };
        let below = seen.lo < range.lo - slack(range.lo);
        let above = seen.hi > range.hi + slack(range.hi);
        (below.then_some(range.lo), above.then_some(range.hi))
    }

    fn at(&mut self, model: &Model, types: &Types, v: ValueId, depth: usize) -> Range {
        if let Some(&known) = self.known.get(&v) {
            return known;
        }
        let Some(n) = model.producer(v).filter(|_| depth < DEPTH) else { return constant(model, v) };
        let found = match Linear::dequantized(model, v) {
            Some(codes) => dequantized(model, types, &codes).unwrap_or(ALL),
            None => self.node(model, types, n, depth + 1),
        };
        if depth == 0 || found != ALL {
            self.known.insert(v, found);
        }
        found
    }

    fn node(&mut self, model: &Model, types: &Types, n: NodeId, depth: usize) -> Range {
        let node = model.node(n);
        if !node.in_onnx_domain() {
            return ALL;
        }
        let read: Vec<ValueId> = node.inputs().iter().copied().flatten().collect();
        let mut input = |i: usize| read.get(i).map_or(ALL, |&v| self.at(model, types, v, depth));
        if let Some(clamp) = Clamp::of(model, types, n) {
            let of = self.at(model, types, clamp.x, depth);
            return Range::new(of.lo.clamp(clamp.lo, clamp.hi), of.hi.clamp(clamp.lo, clamp.hi));
        }
        match node.op_type.as_str() {
            "Sigmoid" | "HardSigmoid" | "Softmax" => Range::new(0.0, 1.0),
            "Tanh" | "Erf" | "Softsign" | "Sin" | "Cos" => Range::new(-1.0, 1.0),
            "Abs" | "Sqrt" | "Exp" | "Softplus" | "ReduceL1" | "ReduceL2" | "ReduceSumSquare" => {
                Range::new(0.0, f32::INFINITY)
            }
            "HardSwish" => Range::new(-0.375, input(0).hi.max(0.0)),
            "LeakyRelu" => {
                let (of, alpha) = (input(0), node.float("alpha").unwrap_or(0.01));
                let ends = [scaled(of.lo, alpha, of.lo < 0.0), scaled(of.hi, alpha, of.hi < 0.0)];
                // With another slope the order may turn.
                if (0.0..=1.0).contains(&alpha) { Range::new(ends[0], ends[1]) } else { ALL }
            }
            "Elu" => Range::new(-node.float("alpha").unwrap_or(1.0).abs(), input(0).hi.max(0.0)),
            "Neg" => {
                let of = input(0);
                Range::new(-of.hi, -of.lo)
            }
            "Identity" | "Dropout" | "GlobalMaxPool" | "GlobalAveragePool" | "ReduceMean" => input(0),
            "AveragePool" => with(input(0), 0.0),
            "Pad" => match padding(model, n) {
                Some(filled) => with(input(0), filled),
                None if node.string("mode").is_some_and(|mode| mode != "constant") => input(0),
                None => ALL,
            },
            "Resize" | "Upsample" if node.string("mode") == Some("linear") && !extrapolates(model, n) => input(0),
            "Concat" | "Max" | "Min" => {
                let all: Vec<_> = (0..read.len()).map(input).collect();
                all.into_iter().reduce(|a, b| Range::new(a.lo.min(b.lo), a.hi.max(b.hi))).unwrap_or(ALL)
            }
            "Where" => {
                let (a, b) = (input(1), input(2));
                Range::new(a.lo.min(b.lo), a.hi.max(b.hi))
            }
            "Add" => {
                let (a, b) = (input(0), input(1));
                Range::new(a.lo + b.lo, a.hi + b.hi)
            }
            "Sub" => {
                let (a, b) = (input(0), input(1));
                Range::new(a.lo - b.hi, a.hi - b.lo)
            }
            "Mul" if read.len() == 2 && read[0] == read[1] => Range::new(0.0, f32::INFINITY),
            "Mul" => product(input(0), input(1)),
            "Div" => match input(1) {
                by if by.lo > 0.0 => product(input(0), Range::new(1.0 / by.hi, 1.0 / by.lo)),
                _ => ALL,
            },
            "Pow" if node.input(1).and_then(|p| constants::scalar(model, p)).is_some_and(|p| p % 2.0 == 0.0) => {
                Range::new(0.0, f32::INFINITY)
            }
            _ if moves_codes(model, n) && !extrapolates(model, n) => input(0),
            _ => ALL,
        }
    }
}

/// A number times a factor, if that is asked for.
fn scaled(x: f32, by: f32, asked: bool) -> f32 {
    if asked { times(x, by) } else { x }
}

/// A product of ends of ranges. Numbers are finite, however large: 0 times any of them is 0.
fn times(a: f32, b: f32) -> f32 {
    if a == 0.0 || b == 0.0 { 0.0 } else { a * b }
}

fn product(a: Range, b: Range) -> Range {
    let ends = [times(a.lo, b.lo), times(a.lo, b.hi), times(a.hi, b.lo), times(a.hi, b.hi)];
    Range::new(ends.into_iter().fold(f32::INFINITY, f32::min), ends.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

fn with(range: Range, x: f32) -> Range {
    Range::new(range.lo.min(x), range.hi.max(x))
}

/// What a Pad of mode `constant` fills in.
fn padding(model: &Model, n: NodeId) -> Option<f32> {
    let node = model.node(n);
    if node.string("mode").is_some_and(|mode| mode != "constant") {
        return None;
    }
    match node.input(2) {
        Some(v) => constants::scalar(model, v),
        None => Some(node.float("value").unwrap_or(0.0)),
    }
}

/// Whether a Resize fills in a number of its own outside of what it reads.
fn extrapolates(model: &Model, n: NodeId) -> bool {
    model.node(n).string("coordinate_transformation_mode") == Some("tf_crop_and_resize")
}

/// What all codes of a type stand for.
fn dequantized(model: &Model, types: &Types, codes: &Linear) -> Option<Range> {
    let (scale, zero_point) = codes.per_tensor(model)?;
    let params = QParams { scale, zero_point: i32::try_from(zero_point).ok()?, dtype: codes.codes(model, types)? };
    params.representable().ok()
}

fn constant(model: &Model, v: ValueId) -> Range {
    /// Larger constants are not looked through.
    const MOST: usize = 1 << 16;
    let small = model.value(v).constant().filter(|t| t.len() <= MOST && !t.is_empty() && !t.is_deferred());
    let Some(numbers) = small.and_then(|t| t.to_f32().ok()) else { return ALL };
    if numbers.iter().any(|x| x.is_nan()) {
        return ALL;
    }
    Range::new(
        numbers.iter().copied().fold(f32::INFINITY, f32::min),
        numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{analysis::types::infer, ir::text::parse};

    /// Bounds of the output `y` of a graph in text.
    fn of(text: &str) -> (f32, f32) {
        let model = parse(text).unwrap();
        let y = model.find_value(model.main(), "y").unwrap();
        let range = Bounds::default().of(&model, &infer(&model), y);
        (range.lo, range.hi)
    }

    #[test]
    fn bounds_follow_from_makers() {
        let all = (f32::NEG_INFINITY, f32::INFINITY);
        for (body, want) in [
            ("y = Neg(x)", all),
            ("r = Relu(x) y = Neg(r)", (f32::NEG_INFINITY, 0.0)),
            ("a = Sigmoid(x) b = Tanh(x) y = Mul(a, b)", (-1.0, 1.0)),
            ("a = Sigmoid(x) b = Tanh(x) y = Sub(a, b)", (-1.0, 2.0)),
            ("a = Relu(x) b = Sigmoid(x) y = Mul(a, b)", (0.0, f32::INFINITY)),
            ("a = Exp(x) b = Clip(x, one, four) y = Div(a, b)", (0.0, f32::INFINITY)),
            ("a = Tanh(x) b = Clip(x, one, four) y = Div(a, b)", (-1.0, 1.0)),
            ("a = Tanh(x) y = LeakyRelu <alpha = 0.25> (a)", (-0.25, 1.0)),
            ("a = Tanh(x) y = Add(a, four)", (3.0, 5.0)),
            ("y = Pow(x, four)", (0.0, f32::INFINITY)),
            ("a = Clip(x, one, four) y = Pad(a, pads)", (0.0, 4.0)),
            ("a = Clip(x, one, four) y = Pad(a, pads, nine)", (1.0, 9.0)),
            ("a = Clip(x, one, four) y = Pad(a, pads, x0)", all),
            ("a = Clip(x, one, four) y = MaxPool <kernel_shape = [1, 1]> (a)", (1.0, 4.0)),
            ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", (-1.5, 126.0)),
        ] {
            let text = format!(
                "(float[1,1,2,2] x, float x0) => (y) <float one = {{1}}, float four = {{4}}, float nine = {{9}}, \
                 int64[8] pads = {{0, 0, 1, 1, 0, 0, 1, 1}}, float s = {{0.5}}, uint8 z = {{3}}> {{ {body} }}"
            );
            assert_eq!(of(&text), want, "{body}");
        }
    }

    #[test]
    fn what_is_only_rounded_is_not_cut() {
        let model = parse("(float[2] x) => (y, u) { y = Sigmoid(x) u = Tanh(x) }").unwrap();
        let types = infer(&model);
        let cut = |name: &str, lo: f32, hi: f32, step: f32| {
            let v = model.find_value(model.main(), name).unwrap();
            Bounds::default().cut(&model, &types, v, (Range::new(lo, hi), step))
        };
        assert_eq!(cut("y", 0.0, 0.996, 0.004), (None, None));
        assert_eq!(cut("y", 0.0, 0.9, 0.004), (None, Some(0.9)));
        assert_eq!(cut("u", -0.999, 0.999, 0.01), (None, None));
        assert_eq!(cut("u", 0.0, 1.0, 2.0), (Some(0.0), None));
    }
}
