//! RNN, GRU, LSTM and `com.microsoft.DynamicQuantizeLSTM` as one operator of tract, with ONNX Runtime's arithmetic.
//!
//! [`layer`] reads the node and its tensors, [`sequence`] runs one direction over them, [`cell`] is what the operators differ
//! in; [`product`] and [`activation`] are its parts. tract's own (0.23) know neither `direction = reverse` nor `activations`
//! and `clip` (LSTM: `input_forget`), and say nothing; they refuse peepholes, lengths of sequences, and unknown batches
//! without an initial state. `layout = 1` is an error, here as in ONNX Runtime.

mod activation;
mod cell;
mod layer;
mod product;
mod sequence;

use tract_onnx::{
    model::{OnnxOpRegister, ParsingContext},
    pb::NodeProto,
    prelude::*,
    tract_hir::internal::*,
};

use layer::{Layer, Operator, X};

/// Puts our operator in the place of tract's.
pub(super) fn register(register: &mut OnnxOpRegister) {
    register.insert("RNN", |_: &ParsingContext, node: &NodeProto| parse(node, Operator::Rnn));
    register.insert("GRU", |_: &ParsingContext, node: &NodeProto| parse(node, Operator::Gru));
    register.insert("LSTM", |_: &ParsingContext, node: &NodeProto| parse(node, Operator::Lstm));
    register.insert("DynamicQuantizeLSTM", |_: &ParsingContext, node: &NodeProto| parse(node, Operator::QuantizedLstm));
}

fn parse(node: &NodeProto, operator: Operator) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    Ok((expand(Layer::of(node, operator)?), vec![]))
}

impl Expansion for Layer {
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
        if self.operator.quantized() {
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

impl Op for Layer {
    fn name(&self) -> StaticName {
        self.operator.name().into()
    }

    op_as_typed_op!();
}

impl EvalOp for Layer {
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

impl TypedOp for Layer {
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
mod tests;
