//! `com.microsoft.DynamicQuantizeLSTM` as an operator of tract, with ONNX Runtime's arithmetic ([`super::recurrence`]).
//!
//! The same operator stands for a float LSTM, since both are to be compared: tract's own (0.23) knows neither
//! `direction = reverse` nor `activations`, `clip` and `input_forget`, and says nothing; it refuses peepholes, lengths of
//! sequences, and batches without an initial state. Where it is right, it is as fast. It still does `layout = 1`.

use tract_onnx::{
    model::{OnnxOpRegister, ParsingContext, optional_inputs, optional_outputs},
    ops::rec::lstm::lstm as tracts_lstm,
    pb::NodeProto,
    prelude::*,
    tract_hir::internal::*,
};

use super::recurrence::{Activation, Cell, Direction, Numbers, Sequence, Weight};

/// Adds the operator to those that tract has.
pub(super) fn register(register: &mut OnnxOpRegister) {
    register
        .insert("DynamicQuantizeLSTM", |_: &ParsingContext, node: &NodeProto| Ok((expand(parse(node, true)?), vec![])));
    register.insert("LSTM", |cx: &ParsingContext, node: &NodeProto| match node.get_attr_opt::<i64>("layout")? {
        None | Some(0) => Ok((expand(parse(node, false)?), vec![])),
        Some(_) => tracts_lstm(cx, node),
    });
}

/// The operator, or an error that names the node as tract does once it has a number for it.
fn parse(node: &NodeProto, quantized: bool) -> TractResult<Lstm> {
    let label = if node.name.is_empty() { node.output.iter().find(|o| !o.is_empty()) } else { Some(&node.name) };
    let label = label.map_or("", String::as_str);
    Lstm::of(node, quantized).with_context(|| format!("parsing #0 \"{label}\" {}", node.op_type))
}

/// Inputs of the operator by their place in its signature.
const X: usize = 0;
const W: usize = 1;
const R: usize = 2;
const B: usize = 3;
const SEQUENCE_LENS: usize = 4;
const INITIAL_H: usize = 5;
const INITIAL_C: usize = 6;
const PEEPHOLES: usize = 7;
const W_SCALE: usize = 8;
const W_ZERO_POINT: usize = 9;
const R_SCALE: usize = 10;
const R_ZERO_POINT: usize = 11;
const INPUTS: usize = 12;
const FLOAT_INPUTS: usize = 8;

#[derive(Debug, Clone, PartialEq)]
struct Lstm {
    /// Weights are codes, and data and state become some.
    quantized: bool,
    hidden: usize,
    directions: Vec<Direction>,
    /// Three for each direction: of the gates, of the candidate, of the cell on its way out.
    activations: Vec<[Activation; 3]>,
    clip: f32,
    input_forget: bool,
    /// For each input of the signature, which of tract's it is.
    inputs: Vec<Option<usize>>,
    /// The same for the outputs Y, Y_h, Y_c.
    outputs: Vec<Option<usize>>,
}

impl Eq for Lstm {}

impl Lstm {
    fn of(node: &NodeProto, quantized: bool) -> TractResult<Self> {
        let hidden = node.get_attr_opt::<i64>("hidden_size")?.context("has no hidden_size")?;
        let sensible = usize::try_from(hidden).ok().filter(|h| (1..1 << 24).contains(h));
        let hidden = sensible.with_context(|| format!("hidden_size is {hidden}"))?;
        let directions = match node.get_attr_opt::<&str>("direction")?.unwrap_or("forward") {
            "forward" => vec![Direction::Forward],
            "reverse" => vec![Direction::Reverse],
            "bidirectional" => vec![Direction::Forward, Direction::Reverse],
            other => bail!("direction is {other:?}"),
        };
        let names: Vec<String> = match node.get_attr_opt_vec::<String>("activations")? {
            Some(names) if !names.is_empty() => names,
            _ => ["Sigmoid", "Tanh", "Tanh"].repeat(directions.len()).into_iter().map(str::to_owned).collect(),
        };
        ensure!(names.len() == 3 * directions.len(), "{} activations for {} directions", names.len(), directions.len());
        let alphas: Vec<f32> = node.get_attr_opt_vec("activation_alpha")?.unwrap_or_default();
        let betas: Vec<f32> = node.get_attr_opt_vec("activation_beta")?.unwrap_or_default();
        let (mut alphas, mut betas) = (alphas.into_iter(), betas.into_iter());
        let activation = |name: &String| {
            Activation::new(name, &mut alphas, &mut betas).with_context(|| format!("activation {name:?} is not known"))
        };
        let all: Vec<Activation> = names.iter().map(activation).collect::<TractResult<_>>()?;
        let inputs: Vec<_> = optional_inputs(node).take(if quantized { INPUTS } else { FLOAT_INPUTS }).collect();
        for (name, i) in [("X", X), ("W", W), ("R", R)] {
            ensure!(inputs[i].is_some(), "has no input {name}");
        }
        Ok(Self {
            quantized,
            hidden,
            directions,
            activations: all.chunks_exact(3).map(|c| [c[0], c[1], c[2]]).collect(),
            clip: node.get_attr_opt("clip")?.unwrap_or(f32::MAX),
            input_forget: node.get_attr_opt::<i64>("input_forget")?.unwrap_or(0) != 0,
            inputs,
            outputs: optional_outputs(node).take(3).collect(),
        })
    }

    fn input<'a>(&self, inputs: &'a [TValue], i: usize) -> Option<&'a Tensor> {
        inputs.get((*self.inputs.get(i)?)?).map(|t| &**t)
    }

    /// The elements of a float input of this shape, if it is given.
    fn floats<'a>(&self, inputs: &'a [TValue], i: usize, dims: &[usize]) -> TractResult<Option<&'a [f32]>> {
        let Some(t) = self.input(inputs, i) else { return Ok(None) };
        ensure!(t.shape() == dims, "input {i} has shape {:?}, not {dims:?}", t.shape());
        Ok(Some(t.try_as_plain_ram()?.as_slice::<f32>()?))
    }

    /// One direction of W or R: codes `[directions, k, 4 * hidden]`, or numbers `[directions, 4 * hidden, k]`.
    fn weight(&self, inputs: &[TValue], [at, scale, zero]: [usize; 3], k: usize, d: usize) -> TractResult<Weight> {
        let columns = 4 * self.hidden;
        if !self.quantized {
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

    fn compute(&self, inputs: &[TValue]) -> TractResult<[Tensor; 3]> {
        let x = self.input(inputs, X).context("has no data")?;
        let &[steps, batch, width] = x.shape() else { bail!("the data have shape {:?}", x.shape()) };
        ensure!(width > 0, "the data have shape {:?}", x.shape());
        let (count, hidden) = (self.directions.len(), self.hidden);
        let numbers = x.try_as_plain_ram()?.as_slice::<f32>()?;
        let bias = self.floats(inputs, B, &[count, 8 * hidden])?;
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
        for (d, &direction) in self.directions.iter().enumerate() {
            let cell = Cell {
                activations: self.activations[d],
                clip: self.clip,
                input_forget: self.input_forget,
                bias: bias.map(|b| &b[d * 8 * hidden..(d + 1) * 8 * hidden]),
                peepholes: peepholes.map(|p| &p[d * 3 * hidden..(d + 1) * 3 * hidden]),
                hidden,
            };
            let size = batch * hidden;
            let state = |given: Option<&[f32]>| given.map_or(vec![0.0; size], |g| g[d * size..(d + 1) * size].to_vec());
            let mut sequence = Sequence {
                cell: &cell,
                data: &weights[d][0],
                state: &weights[d][1],
                lengths: &lengths,
                direction,
                keeps_state: self.outputs[0].is_none(),
                h: state(initial_h),
                c: state(initial_c),
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

impl Expansion for Lstm {
    fn name(&self) -> StaticName {
        Op::name(self)
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.outputs.iter().flatten().count())
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, self.inputs.iter().flatten().count())?;
        check_output_arity(outputs, self.outputs.iter().flatten().count())?;
        let x = &inputs[self.inputs[X].context("has no data")?];
        if self.quantized {
            s.equals(&x.datum_type, f32::datum_type())?;
        }
        s.equals(&x.rank, 3)?;
        let (count, hidden) = (self.directions.len().to_dim(), self.hidden.to_dim());
        for (i, output) in self.outputs.iter().enumerate() {
            let Some(output) = output.map(|o| &outputs[o]) else { continue };
            s.equals(&output.datum_type, &x.datum_type)?;
            let axis = usize::from(i == 0);
            s.equals(&output.rank, 3 + axis as i64)?;
            if i == 0 {
                s.equals(&output.shape[0], &x.shape[0])?;
            }
            s.equals(&output.shape[axis], &count)?;
            s.equals(&output.shape[axis + 1], &x.shape[1])?;
            s.equals(&output.shape[axis + 2], &hidden)?;
        }
        Ok(())
    }

    fn wire(&self, prefix: &str, target: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        target.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Lstm {
    fn name(&self) -> StaticName {
        if self.quantized { "DynamicQuantizeLSTM".into() } else { "LSTM".into() }
    }

    op_as_typed_op!();
}

impl EvalOp for Lstm {
    op_out_of_plan!();

    fn eval(&self, _cx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let datum = self.input(&inputs, X).context("has no data")?.datum_type();
        // All is computed in f32, also where the model's numbers are wider or narrower.
        let to_f32 = |t: &TValue| match t.datum_type() {
            d if d.is_float() => Ok(t.cast_to::<f32>()?.into_owned().into_tvalue()),
            _ => Ok(t.clone()),
        };
        let made = if datum == f32::datum_type() {
            self.compute(&inputs)?
        } else {
            self.compute(&inputs.iter().map(to_f32).collect::<TractResult<Vec<_>>>()?)?
        };
        let made = made.into_iter().zip(&self.outputs).filter(|(_, o)| o.is_some());
        made.map(|(t, _)| Ok(t.cast_to_dt(datum)?.into_owned().into_tvalue())).collect()
    }
}

impl TypedOp for Lstm {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let x = self.inputs[X].and_then(|i| inputs.get(i)).context("has no data")?;
        ensure!(x.rank() == 3 && x.datum_type.is_float(), "the data are {x:?}");
        let last = [self.directions.len().to_dim(), x.shape[1].clone(), self.hidden.to_dim()];
        let fact = |i: usize| {
            let steps = (i == 0).then(|| x.shape[0].clone());
            x.datum_type.fact(steps.into_iter().chain(last.clone()).collect::<TVec<TDim>>())
        };
        Ok(self.outputs.iter().enumerate().filter(|(_, o)| o.is_some()).map(|(i, _)| fact(i)).collect())
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use crate::{
        error::Result,
        ir::{DType, Model, Tensor, text},
        runtime::{Runtime, tract::Tract},
    };

    fn run(model: &Model, x: Tensor) -> Result<Vec<Tensor>> {
        Tract.load(model, &[])?.run(&[x])
    }

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.7).sin()).collect()
    }

    fn layer(dtype: DType) -> (Model, Tensor) {
        let make = |dims: &[usize]| {
            let values = numbers(dims.iter().product());
            match dtype {
                DType::Float16 => {
                    let bytes: Vec<u8> = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
                    Tensor::new(dtype, dims.to_vec(), bytes).unwrap()
                }
                _ => Tensor::from_f32(dims, &values),
            }
        };
        let mut model = text::parse(&format!(
            "<ir_version: 8, opset_import: [\"\" : 14]> g ({dtype}[2, 1, 3] x) => ({dtype} y)
             <{dtype} w = {{0}}, {dtype} r = {{0}}> {{ y = LSTM <hidden_size = 2, direction = \"reverse\"> (x, w, r) }}"
        ))
        .unwrap();
        for (name, dims) in [("w", [1, 8, 3]), ("r", [1, 8, 2])] {
            let v = model.find_value(model.main(), name).unwrap();
            model.set_initializer(v, Some(make(&dims)));
        }
        (model, make(&[2, 1, 3]))
    }

    #[test]
    fn half_precision_stays_what_it_is() {
        let [wide, narrow] = [DType::Float, DType::Float16].map(|dtype| {
            let (model, x) = layer(dtype);
            let y = run(&model, x).unwrap().remove(0);
            assert_eq!((y.dtype(), y.dims()), (dtype, &[2, 1, 1, 2][..]));
            y.to_f32().unwrap()
        });
        assert!(wide.iter().zip(&narrow).all(|(a, b)| (a - b).abs() < 2e-3), "{wide:?} {narrow:?}");
    }

    #[test]
    fn what_does_not_fit_is_an_error_that_names_the_node() {
        let error = |call: &str, w: [usize; 3], scale: &[usize]| {
            let mut model = text::parse(&format!(
                "<ir_version: 8, opset_import: [\"\" : 14, \"com.microsoft\" : 1]> g (float[2, 1, 3] x) => (float y)
                 <int8 w = {{0}}, int8 r = {{0}}, float s = {{1}}, int8 z = {{0}}> {{
                    y = com.microsoft.DynamicQuantizeLSTM <{call}> (x, w, r, , , , , , s, z, s, z)
                 }}"
            ))
            .unwrap();
            for (name, dims) in [("w", &w[..]), ("r", &[1, 2, 8]), ("s", scale), ("z", scale)] {
                let count = dims.iter().product();
                let tensor = match name {
                    "s" => Tensor::from_f32(dims, &vec![0.1; count]),
                    _ => Tensor::from_u8(DType::Int8, dims, vec![1; count]),
                };
                let v = model.find_value(model.main(), name).unwrap();
                model.set_initializer(v, Some(tensor));
            }
            run(&model, Tensor::from_f32(&[2, 1, 3], &numbers(6)))
                .map(|y| y[0].dims().to_vec())
                .map_err(|e| e.to_string())
        };
        assert_eq!(error("hidden_size = 2", [1, 3, 8], &[1, 8]), Ok(vec![2, 1, 1, 2]));
        assert_eq!(error("hidden_size = 2", [1, 3, 8], &[1]), Ok(vec![2, 1, 1, 2]));
        for (call, w, scale, words) in [
            ("hidden_size = 2", [1, 4, 8], &[1, 8][..], "input 1 has shape [1, 4, 8], not [1, 3, 8]"),
            ("hidden_size = 2", [1, 3, 8], &[8], "the scale of input 1 has shape [8]"),
            ("hidden_size = 3", [1, 3, 8], &[1, 8], "input 1 has shape [1, 3, 8], not [1, 3, 12]"),
            ("hidden_size = 99999999999", [1, 3, 8], &[1, 8], "hidden_size is 99999999999"),
            ("direction = \"forward\"", [1, 3, 8], &[1, 8], "no hidden_size"),
            ("hidden_size = 2, direction = \"up\"", [1, 3, 8], &[1, 8], "direction is \"up\""),
            (
                "hidden_size = 2, activations = [\"Sine\", \"Tanh\", \"Tanh\"]",
                [1, 3, 8],
                &[1, 8],
                "\"Sine\" is not known",
            ),
        ] {
            let text = error(call, w, scale).unwrap_err();
            assert!(text.contains(words) && text.contains("DynamicQuantizeLSTM"), "{text}");
        }
    }
}
