//! A recurrent layer: what its node says, and the way from its tensors to [`super::sequence`] and back.

use tract_onnx::{
    model::{optional_inputs, optional_outputs},
    pb::NodeProto,
    prelude::*,
    tract_hir::internal::*,
};

use super::{
    activation::Activation,
    cell::{Cell, Form},
    product::{Numbers, Weight},
    sequence::{Direction, Sequence},
};

/// Inputs of all operators by their place in the signature.
pub(super) const X: usize = 0;
const W: usize = 1;
const R: usize = 2;
const B: usize = 3;
const SEQUENCE_LENS: usize = 4;
const INITIAL_H: usize = 5;
/// Those of an LSTM alone.
const INITIAL_C: usize = 6;
const PEEPHOLES: usize = 7;
/// Those of a quantized one.
const W_SCALE: usize = 8;
const W_ZERO_POINT: usize = 9;
const R_SCALE: usize = 10;
const R_ZERO_POINT: usize = 11;

/// What the layers differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Rnn,
    Gru,
    Lstm,
    /// Weights are codes, and data and state become some.
    QuantizedLstm,
}

impl Operator {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rnn => "RNN",
            Self::Gru => "GRU",
            Self::Lstm => "LSTM",
            Self::QuantizedLstm => "DynamicQuantizeLSTM",
        }
    }

    pub(super) fn quantized(self) -> bool {
        self == Self::QuantizedLstm
    }

    /// Gates, for each of which the weights have `hidden_size` columns.
    fn gates(self) -> usize {
        match self {
            Self::Rnn => 1,
            Self::Gru => 3,
            Self::Lstm | Self::QuantizedLstm => 4,
        }
    }

    /// Activations of a direction that names none.
    fn activations(self) -> &'static [&'static str] {
        match self {
            Self::Rnn => &["Tanh"],
            Self::Gru => &["Sigmoid", "Tanh"],
            Self::Lstm | Self::QuantizedLstm => &["Sigmoid", "Tanh", "Tanh"],
        }
    }

    fn inputs(self) -> usize {
        match self {
            Self::Rnn | Self::Gru => 6,
            Self::Lstm => 8,
            Self::QuantizedLstm => 12,
        }
    }

    /// Y, Y_h, and of an LSTM Y_c.
    fn outputs(self) -> usize {
        match self {
            Self::Rnn | Self::Gru => 2,
            Self::Lstm | Self::QuantizedLstm => 3,
        }
    }
}

/// The operator of tract.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layer {
    pub(super) operator: Operator,
    pub(super) hidden: usize,
    pub(super) directions: Vec<Direction>,
    /// Of all directions, one after the other.
    activations: Vec<Activation>,
    clip: f32,
    /// Of an LSTM: the forget gate is what the input gate leaves.
    input_forget: bool,
    /// Of a GRU.
    linear_before_reset: bool,
    /// For each input of the signature, which of tract's it is.
    pub(super) inputs: Vec<Option<usize>>,
    /// The same for the outputs.
    pub(super) outputs: Vec<Option<usize>>,
}

impl Eq for Layer {}

impl Layer {
    pub(super) fn of(node: &NodeProto, operator: Operator) -> TractResult<Self> {
        let layout = node.get_attr_opt::<i64>("layout")?.unwrap_or(0);
        ensure!(
            layout == 0,
            "layout = {layout}, with the batch in front, is not supported (nor is it in ONNX Runtime)"
        );
        let hidden = node.get_attr_opt::<i64>("hidden_size")?.context("has no hidden_size")?;
        let sensible = usize::try_from(hidden).ok().filter(|h| (1..1 << 24).contains(h));
        let hidden = sensible.with_context(|| format!("hidden_size is {hidden}"))?;
        let directions = match node.get_attr_opt::<&str>("direction")?.unwrap_or("forward") {
            "forward" => vec![Direction::Forward],
            "reverse" => vec![Direction::Reverse],
            "bidirectional" => vec![Direction::Forward, Direction::Reverse],
            other => bail!("direction is {other:?}"),
        };
        let default = operator.activations();
        let names: Vec<String> = match node.get_attr_opt_vec::<String>("activations")? {
            Some(names) if !names.is_empty() => names,
            _ => default.repeat(directions.len()).into_iter().map(str::to_owned).collect(),
        };
        let count = directions.len();
        ensure!(names.len() == default.len() * count, "{} activations for {count} directions", names.len());
        let alphas: Vec<f32> = node.get_attr_opt_vec("activation_alpha")?.unwrap_or_default();
        let betas: Vec<f32> = node.get_attr_opt_vec("activation_beta")?.unwrap_or_default();
        let (mut alphas, mut betas) = (alphas.into_iter(), betas.into_iter());
        let activation = |name: &String| {
            Activation::new(name, &mut alphas, &mut betas).with_context(|| format!("activation {name:?} is not known"))
        };
        let inputs: Vec<_> = optional_inputs(node).take(operator.inputs()).collect();
        for (name, i) in [("X", X), ("W", W), ("R", R)] {
            ensure!(inputs.get(i).is_some_and(Option::is_some), "has no input {name}");
        }
        Ok(Self {
            operator,
            hidden,
            directions,
            activations: names.iter().map(activation).collect::<TractResult<_>>()?,
            clip: node.get_attr_opt("clip")?.unwrap_or(f32::MAX),
            input_forget: node.get_attr_opt::<i64>("input_forget")?.unwrap_or(0) != 0,
            linear_before_reset: node.get_attr_opt::<i64>("linear_before_reset")?.unwrap_or(0) != 0,
            inputs,
            outputs: optional_outputs(node).take(operator.outputs()).collect(),
        })
    }

    pub(super) fn input<'a>(&self, inputs: &'a [TValue], i: usize) -> Option<&'a Tensor> {
        inputs.get((*self.inputs.get(i)?)?).map(|t| &**t)
    }

    /// The elements of a float input of this shape, if it is given.
    fn floats<'a>(&self, inputs: &'a [TValue], i: usize, dims: &[usize]) -> TractResult<Option<&'a [f32]>> {
        let Some(t) = self.input(inputs, i) else { return Ok(None) };
        ensure!(t.shape() == dims, "input {i} has shape {:?}, not {dims:?}", t.shape());
        Ok(Some(t.try_as_plain_ram()?.as_slice::<f32>()?))
    }

    /// One direction of W or R: codes `[directions, k, gates * hidden]`, or numbers
    /// `[directions, gates * hidden, k]`.
    fn weight(&self, inputs: &[TValue], [at, scale, zero]: [usize; 3], k: usize, d: usize) -> TractResult<Weight> {
        let columns = self.operator.gates() * self.hidden;
        if !self.operator.quantized() {
            let all = self.floats(inputs, at, &[self.directions.len(), columns, k])?.context("has no weight")?;
            return Ok(Weight {
                columns,
                depth: k,
                numbers: Numbers::Float(all[d * k * columns..][..k * columns].to_vec()),
            });
        }
        let (codes, scale) = (self.input(inputs, at), self.input(inputs, scale));
        let (codes, scale) = (codes.context("has no weight")?, scale.context("has no scale")?);
        let (dims, count) = ([self.directions.len(), k, columns], self.directions.len());
        ensure!(codes.shape() == dims, "input {at} has shape {:?}, not {dims:?}", codes.shape());
        let fits = |shape: &[usize]| shape == [count] || shape == [count, columns];
        ensure!(fits(scale.shape()), "the scale of input {at} has shape {:?}", scale.shape());
        let scales = scale.try_as_plain_ram()?.as_slice::<f32>()?;
        let each = scales.len() / count;
        let zero_point = match self.input(inputs, zero) {
            None => 0,
            Some(z) => {
                ensure!(z.shape() == scale.shape(), "the zero point of input {at} has shape {:?}", z.shape());
                let z = z.cast_to::<i32>()?;
                let zeros = &z.try_as_plain_ram()?.as_slice::<i32>()?[d * each..(d + 1) * each];
                let first = zeros.first().copied().unwrap_or(0);
                ensure!(zeros.iter().all(|&z| z == first), "the channels of input {at} have different zero points");
                first
            }
        };
        let from = d * k * columns..(d + 1) * k * columns;
        let less = |code: i32| (code - zero_point) as i16;
        let plain = codes.try_as_plain_ram()?;
        let codes: Vec<i16> = match codes.datum_type() {
            DatumType::I8 => plain.as_slice::<i8>()?[from].iter().map(|&c| less(c.into())).collect(),
            DatumType::U8 => plain.as_slice::<u8>()?[from].iter().map(|&c| less(c.into())).collect(),
            other => bail!("codes of type {other:?} are not supported"),
        };
        let scales = scales[d * each..(d + 1) * each].to_vec();
        Ok(Weight { columns, depth: k, numbers: Numbers::Quantized { codes, scales } })
    }

    /// Y, Y_h and Y_c (of no meaning where the operator has none), all in f32.
    pub(super) fn compute(&self, inputs: &[TValue]) -> TractResult<[Tensor; 3]> {
        let x = self.input(inputs, X).context("has no data")?;
        let &[steps, batch, width] = x.shape() else { bail!("the data have shape {:?}", x.shape()) };
        ensure!(width > 0, "the data have shape {:?}", x.shape());
        let (count, hidden, gates) = (self.directions.len(), self.hidden, self.operator.gates());
        let numbers = x.try_as_plain_ram()?.as_slice::<f32>()?;
        let bias = self.floats(inputs, B, &[count, 2 * gates * hidden])?;
        let peepholes = self.floats(inputs, PEEPHOLES, &[count, 3 * hidden])?;
        let initial = [INITIAL_H, INITIAL_C].map(|i| self.floats(inputs, i, &[count, batch, hidden]));
        let [initial_h, initial_c] = initial;
        let (initial_h, initial_c) = (initial_h?, initial_c?);
        let lengths: Vec<usize> = match self.input(inputs, SEQUENCE_LENS) {
            None => vec![steps; batch],
            Some(t) => {
                let t = t.cast_to::<i64>()?;
                let given = t.try_as_plain_ram()?.as_slice::<i64>()?;
                ensure!(given.len() == batch, "{} lengths for {batch} sequences", given.len());
                let length = |&n: &i64| usize::try_from(n).ok().filter(|n| *n <= steps);
                given.iter().map(length).collect::<Option<_>>().context("a sequence is longer than the data")?
            }
        };
        // Before anything of the layer's size is made: the weights prove that the size is true.
        let weights = |d| {
            let data = self.weight(inputs, [W, W_SCALE, W_ZERO_POINT], width, d)?;
            Ok([data, self.weight(inputs, [R, R_SCALE, R_ZERO_POINT], hidden, d)?])
        };
        let weights: Vec<[Weight; 2]> = (0..count).map(weights).collect::<TractResult<_>>()?;
        let mut y = Tensor::zero::<f32>(&[steps, count, batch, hidden])?;
        let mut last = [Tensor::zero::<f32>(&[count, batch, hidden])?, Tensor::zero::<f32>(&[count, batch, hidden])?];
        let functions = self.operator.activations().len();
        for ((d, &direction), [data, mut state]) in self.directions.iter().enumerate().zip(weights) {
            let cell = Cell {
                form: match self.operator {
                    Operator::Rnn => Form::Rnn,
                    Operator::Gru => Form::Gru {
                        linear_before_reset: self.linear_before_reset,
                        candidate: state.split_off(2 * hidden).context("has no weight of the candidate")?,
                    },
                    Operator::Lstm | Operator::QuantizedLstm => Form::Lstm {
                        input_forget: self.input_forget,
                        peepholes: peepholes.map(|p| &p[d * 3 * hidden..(d + 1) * 3 * hidden]),
                    },
                },
                activations: &self.activations[d * functions..(d + 1) * functions],
                clip: self.clip,
                bias: bias.map(|b| &b[d * 2 * gates * hidden..(d + 1) * 2 * gates * hidden]),
                hidden,
            };
            let size = batch * hidden;
            let initial =
                |given: Option<&[f32]>| given.map_or(vec![0.0; size], |g| g[d * size..(d + 1) * size].to_vec());
            let mut sequence = Sequence {
                cell: &cell,
                data: &data,
                state: &state,
                lengths: &lengths,
                direction,
                keeps_state: self.outputs.first().is_none_or(Option::is_none),
                h: initial(initial_h),
                c: initial(initial_c),
            };
            let mut view = y.try_as_plain_ram_mut()?;
            let all = view.as_slice_mut::<f32>()?;
            // `[steps, directions, batch, hidden]`: this direction's rows of a step lie together.
            let ends = sequence.run(numbers, |step, row, h| {
                let at = ((step * count + d) * batch + row) * hidden;
                all[at..at + hidden].copy_from_slice(h);
            });
            for (last, end) in last.iter_mut().zip(ends) {
                let mut view = last.try_as_plain_ram_mut()?;
                view.as_slice_mut::<f32>()?[d * size..(d + 1) * size].copy_from_slice(&end);
            }
        }
        let [h, c] = last;
        Ok([y, h, c])
    }
}
