//! `DynamicQuantizeLinear` as an operator of tract, with ONNX Runtime's arithmetic ([`super::kernels`]): range, scale, zero
//! point and codes are those of its CPU kernel, bit for bit.

use tract_onnx::{model::OnnxOpRegister, prelude::*, tract_hir::internal::*};

use super::kernels;

/// Puts our operator in the place of tract's.
pub(super) fn register(register: &mut OnnxOpRegister) {
    register.insert("DynamicQuantizeLinear", |_, _| Ok((expand(Dynamic), vec![])));
}

/// From numbers to codes, their scale and their zero point.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Dynamic;

impl Expansion for Dynamic {
    fn name(&self) -> StaticName {
        Op::name(self)
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(3)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 3)?;
        s.equals(&inputs[0].datum_type, f32::datum_type())?;
        s.equals(&outputs[0].datum_type, u8::datum_type())?;
        s.equals(&outputs[0].shape, &inputs[0].shape)?;
        s.equals(&outputs[1].datum_type, f32::datum_type())?;
        s.equals(&outputs[1].rank, 0)?;
        s.equals(&outputs[2].datum_type, u8::datum_type())?;
        s.equals(&outputs[2].rank, 0)
    }

    fn wire(&self, prefix: &str, target: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        target.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Dynamic {
    fn name(&self) -> StaticName {
        "DynamicQuantizeLinear".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Dynamic {
    op_out_of_plan!();

    fn eval(&self, _cx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = inputs.first().context("has no input")?;
        let numbers = input.try_as_plain_ram()?.as_slice::<f32>()?;
        let (scale, zero_point) = kernels::dynamic_params(numbers);
        let mut codes = Tensor::zero::<u8>(input.shape())?;
        let mut view = codes.try_as_plain_ram_mut()?;
        kernels::quantize(numbers, view.as_slice_mut::<u8>()?, scale, zero_point.into());
        Ok(tvec!(codes.into_tvalue(), tensor0(scale).into_tvalue(), tensor0(zero_point).into_tvalue()))
    }
}

impl TypedOp for Dynamic {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let x = inputs.first().context("has no input")?;
        Ok(tvec!(u8::fact(x.shape.clone()), f32::scalar_fact(), u8::scalar_fact()))
    }
}
