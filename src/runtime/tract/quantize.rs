//! `QuantizeLinear` and `DequantizeLinear` as operators of tract, with ONNX Runtime's arithmetic ([`super::kernels`]).
//!
//! Scales and zero points are ordinary inputs. A dequantized constant becomes a float constant when the plan is made,
//! and a pair with the same parameters becomes one operator from float to float, so that a Q/DQ model runs at about
//! the speed of its float model.

use tract_onnx::{model::OnnxOpRegister, pb::NodeProto, prelude::*, tract_hir::internal::*};

use super::{
    float8,
    kernels::{self, Code, Runs},
};
use crate::{ir::DType, quant::float8::Float8};

/// Puts our operators in the place of tract's.
pub(super) fn register(register: &mut OnnxOpRegister) {
    register.insert("QuantizeLinear", |_, node| Ok((expand(Linear::of(node, Direction::Quantize)?), vec![])));
    register.insert("DequantizeLinear", |_, node| Ok((expand(Linear::of(node, Direction::Dequantize)?), vec![])));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Direction {
    Quantize,
    Dequantize,
    /// Quantized and dequantized again.
    RoundTrip,
}

/// One of the two operators, or both in one. Inputs: numbers or codes, scale, zero point (may be left out).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Linear {
    direction: Direction,
    axis: i64,
    /// Block size; 0 is per tensor or per axis.
    block: usize,
    /// Type of the codes where no zero point tells it.
    codes: DatumType,
    /// Codes are floats of 8 bits, of this type; what is beyond it saturates or not.
    float: Option<(DType, bool)>,
    inputs: usize,
}

impl Linear {
    fn of(node: &NodeProto, direction: Direction) -> TractResult<Self> {
        let axis = node.get_attr_opt::<i64>("axis")?.unwrap_or(1);
        let block = node.get_attr_opt::<i64>("block_size")?.unwrap_or(0);
        let block = usize::try_from(block).with_context(|| format!("block_size is {block}"))?;
        let float = node.get_attr_opt::<i64>(float8::TYPE)?.and_then(|n| DType::from_onnx(i32::try_from(n).ok()?));
        let saturate = node.get_attr_opt::<i64>("saturate")?.unwrap_or(1) != 0;
        let codes = match node.get_attr_opt::<i64>("output_dtype")?.unwrap_or(0) {
            0 | 2 => DatumType::U8,
            3 => DatumType::I8,
            4 => DatumType::U16,
            5 => DatumType::I16,
            _ if direction == Direction::Dequantize || float.is_some() => DatumType::U8,
            other => bail!("output_dtype {other} is not supported"),
        };
        let inputs = node.input.iter().filter(|name| !name.is_empty()).count();
        ensure!(inputs == 2 || inputs == 3, "needs 2 or 3 inputs, has {inputs}");
        Ok(Self { direction, axis, block, codes, float: float.map(|dtype| (dtype, saturate)), inputs })
    }

    fn compute(&self, x: &Tensor, scale: &Tensor, zero_point: Option<&Tensor>) -> TractResult<Tensor> {
        let codes = match self.direction {
            Direction::Dequantize => x.datum_type(),
            _ => zero_point.map_or(self.codes, Tensor::datum_type),
        };
        let runs = Runs::new(x.shape(), scale.shape(), self.axis, self.block).with_context(|| {
            format!(
                "scale has shape {:?}, which does not fit shape {:?} along axis {}",
                scale.shape(),
                x.shape(),
                self.axis
            )
        })?;
        let scales = scale.cast_to::<f32>()?;
        let scales = scales.try_as_plain_ram()?.as_slice::<f32>()?;
        let zeros = match zero_point {
            None => vec![0; scales.len()],
            Some(z) => z.cast_to::<i32>()?.try_as_plain_ram()?.as_slice::<i32>()?.to_vec(),
        };
        ensure!(zeros.len() == scales.len(), "{} scales and {} zero points", scales.len(), zeros.len());
        let work = Work { runs, scales, zeros: &zeros };
        if let Some((dtype, saturate)) = self.float {
            let float = Float8::of(dtype).with_context(|| format!("{dtype} is no float of 8 bits"))?;
            return work.float8(self.direction, float, saturate, x, scale.datum_type());
        }
        match (self.direction, codes) {
            (Direction::Dequantize, DatumType::U8) => work.dequantize::<u8>(x, scale.datum_type()),
            (Direction::Dequantize, DatumType::I8) => work.dequantize::<i8>(x, scale.datum_type()),
            (Direction::Dequantize, DatumType::U16) => work.dequantize::<u16>(x, scale.datum_type()),
            (Direction::Dequantize, DatumType::I16) => work.dequantize::<i16>(x, scale.datum_type()),
            (Direction::Dequantize, DatumType::I32) => work.dequantize::<i32>(x, scale.datum_type()),
            (Direction::Quantize, DatumType::U8) => work.quantize::<u8>(x),
            (Direction::Quantize, DatumType::I8) => work.quantize::<i8>(x),
            (Direction::Quantize, DatumType::U16) => work.quantize::<u16>(x),
            (Direction::Quantize, DatumType::I16) => work.quantize::<i16>(x),
            (Direction::RoundTrip, DatumType::U8) => work.round_trip::<u8>(x, scale.datum_type()),
            (Direction::RoundTrip, DatumType::I8) => work.round_trip::<i8>(x, scale.datum_type()),
            (Direction::RoundTrip, DatumType::U16) => work.round_trip::<u16>(x, scale.datum_type()),
            (Direction::RoundTrip, DatumType::I16) => work.round_trip::<i16>(x, scale.datum_type()),
            (_, other) => bail!("codes of type {other:?} are not supported"),
        }
    }
}

struct Work<'a> {
    runs: Runs,
    scales: &'a [f32],
    zeros: &'a [i32],
}

impl Work<'_> {
    fn float8(
        &self,
        direction: Direction,
        float: Float8,
        saturate: bool,
        x: &Tensor,
        to: DatumType,
    ) -> TractResult<Tensor> {
        let numbers = float.numbers();
        if direction == Direction::Dequantize {
            let codes = x.try_as_plain_ram()?.as_slice::<u8>()?;
            let mut made = Tensor::zero::<f32>(x.shape())?;
            let mut view = made.try_as_plain_ram_mut()?;
            let y = view.as_slice_mut::<f32>()?;
            self.runs.each(codes.len(), |a, b, s| {
                let real = |code: u8| numbers[usize::from(code)] * self.scales[s];
                y[a..b].iter_mut().zip(&codes[a..b]).for_each(|(y, &code)| *y = real(code));
            });
            return Ok(made.cast_to_dt(to)?.into_owned());
        }
        let x = x.cast_to::<f32>()?;
        let real = x.try_as_plain_ram()?.as_slice::<f32>()?;
        if direction == Direction::Quantize {
            let mut made = Tensor::zero::<u8>(x.shape())?;
            let mut view = made.try_as_plain_ram_mut()?;
            let y = view.as_slice_mut::<u8>()?;
            self.runs.each(real.len(), |a, b, s| float.quantize(&real[a..b], &mut y[a..b], self.scales[s], saturate));
            return Ok(made);
        }
        let mut made = Tensor::zero::<f32>(x.shape())?;
        let mut view = made.try_as_plain_ram_mut()?;
        let y = view.as_slice_mut::<f32>()?;
        self.runs.each(real.len(), |a, b, s| {
            let scale = self.scales[s];
            let pairs = y[a..b].iter_mut().zip(&real[a..b]);
            match saturate {
                true => pairs.for_each(|(y, x)| *y = float.rounded(x / scale) * scale),
                false => pairs.for_each(|(y, x)| *y = numbers[usize::from(float.code(x / scale, false))] * scale),
            }
        });
        Ok(made.cast_to_dt(to)?.into_owned())
    }

    fn dequantize<T: Code + Datum>(&self, x: &Tensor, to: DatumType) -> TractResult<Tensor> {
        let mut made = Tensor::zero::<f32>(x.shape())?;
        let codes = x.try_as_plain_ram()?.as_slice::<T>()?;
        let mut view = made.try_as_plain_ram_mut()?;
        let y = view.as_slice_mut::<f32>()?;
        self.runs.each(codes.len(), |a, b, s| {
            kernels::dequantize(&codes[a..b], &mut y[a..b], self.scales[s], self.zeros[s]);
        });
        Ok(made.cast_to_dt(to)?.into_owned())
    }

    fn quantize<T: Code + Datum + Default>(&self, x: &Tensor) -> TractResult<Tensor> {
        let x = x.cast_to::<f32>()?;
        let mut made = Tensor::zero_dt(T::datum_type(), x.shape())?;
        let numbers = x.try_as_plain_ram()?.as_slice::<f32>()?;
        let mut view = made.try_as_plain_ram_mut()?;
        let y = view.as_slice_mut::<T>()?;
        self.runs.each(numbers.len(), |a, b, s| {
            kernels::quantize(&numbers[a..b], &mut y[a..b], self.scales[s], self.zeros[s]);
        });
        Ok(made)
    }

    fn round_trip<T: Code>(&self, x: &Tensor, to: DatumType) -> TractResult<Tensor> {
        let x = x.cast_to::<f32>()?;
        let mut made = Tensor::zero::<f32>(x.shape())?;
        let numbers = x.try_as_plain_ram()?.as_slice::<f32>()?;
        let mut view = made.try_as_plain_ram_mut()?;
        let y = view.as_slice_mut::<f32>()?;
        self.runs.each(numbers.len(), |a, b, s| {
            kernels::round_trip::<T>(&numbers[a..b], &mut y[a..b], self.scales[s], self.zeros[s]);
        });
        Ok(made.cast_to_dt(to)?.into_owned())
    }
}

impl Expansion for Linear {
    fn name(&self) -> StaticName {
        Op::name(self)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, self.inputs)?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].shape, &outputs[0].shape)?;
        match (self.direction, inputs.get(2)) {
            (Direction::Quantize, Some(zero_point)) => s.equals(&outputs[0].datum_type, &zero_point.datum_type)?,
            (Direction::Quantize, None) => s.equals(&outputs[0].datum_type, self.codes)?,
            _ => s.equals(&outputs[0].datum_type, &inputs[1].datum_type)?,
        }
        Ok(())
    }

    fn wire(&self, prefix: &str, target: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let constant = |&i: &OutletId| target.outlet_fact(i).map(|f| f.konst.clone());
        let constants = inputs.iter().map(constant).collect::<TractResult<Option<Vec<_>>>>();
        if let Ok(Some(c)) = constants.map(|c| c.filter(|_| self.direction == Direction::Dequantize)) {
            // Here, because tract's own folding leaves large and shared constants as they are.
            let made = self.compute(&c[0], &c[1], c.get(2).map(|t| &**t))?;
            return Ok(tvec!(target.add_const(prefix, made)?));
        }
        target.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Linear {
    fn name(&self) -> StaticName {
        match self.direction {
            Direction::Quantize => "QuantizeLinear".into(),
            Direction::Dequantize => "DequantizeLinear".into(),
            Direction::RoundTrip => "QuantizeDequantizeLinear".into(),
        }
    }

    op_as_typed_op!();
}

impl EvalOp for Linear {
    op_out_of_plan!();

    fn eval(&self, _cx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        ensure!(inputs.len() == self.inputs, "needs {} inputs, has {}", self.inputs, inputs.len());
        let made = self.compute(&inputs[0], &inputs[1], inputs.get(2).map(|t| &**t))?;
        Ok(tvec!(made.into_tvalue()))
    }
}

impl TypedOp for Linear {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == self.inputs, "needs {} inputs, has {}", self.inputs, inputs.len());
        let datum = match self.direction {
            Direction::Quantize => inputs.get(2).map_or(self.codes, |z| z.datum_type),
            _ => inputs[1].datum_type,
        };
        Ok(tvec!(datum.fact(inputs[0].shape.clone())))
    }

    fn declutter(&self, model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
        if self.direction != Direction::Dequantize {
            return Ok(None);
        }
        let before = model.node(node.inputs[0].node);
        let Some(quantize) = before.op_as::<Self>() else { return Ok(None) };
        let same_constant = |i: usize| -> TractResult<bool> {
            let (a, b) = (model.outlet_fact(before.inputs[i])?, model.outlet_fact(node.inputs[i])?);
            Ok(matches!((&a.konst, &b.konst), (Some(a), Some(b)) if a == b))
        };
        let same = quantize.direction == Direction::Quantize
            && (quantize.axis, quantize.block, quantize.inputs) == (self.axis, self.block, self.inputs)
            && quantize.float.map(|f| f.0) == self.float.map(|f| f.0)
            && before.outputs[0].successors.len() == 1
            && !model.outputs.contains(&node.inputs[0])
            && same_constant(1)?
            && (self.inputs == 2 || same_constant(2)?);
        if !same {
            return Ok(None);
        }
        let op = Self { direction: Direction::RoundTrip, ..quantize.clone() };
        TypedModelPatch::replace_single_op(model, node, &before.inputs, op).map(Some)
    }
}
