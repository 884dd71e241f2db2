//! [`ROUNDED`](crate::runtime::ROUNDED): numbers rounded to those of 16-bit floats, and kept in 32 bits.

use tract_onnx::{model::OnnxOpRegister, pb::NodeProto, prelude::*, tract_hir::internal::*};

use crate::{
    ir::DType,
    quant::halves,
    runtime::{NUMBER, ROUNDED},
};

/// Makes the operator known.
pub(super) fn register(register: &mut OnnxOpRegister) {
    register.insert(ROUNDED, |_, node: &NodeProto| {
        let number = node.get_attr::<i64>(NUMBER)?;
        let dtype = i32::try_from(number).ok().and_then(DType::from_onnx);
        let dtype = dtype.with_context(|| format!("{NUMBER} is {number}, which is no type"))?;
        Ok((expand(Rounded { dtype }), vec![]))
    });
}

/// Each number is the nearest that the type has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Rounded {
    dtype: DType,
}

impl Expansion for Rounded {
    fn name(&self) -> StaticName {
        Op::name(self)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        s.equals(&inputs[0].shape, &outputs[0].shape)
    }

    fn wire(&self, prefix: &str, target: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        target.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Rounded {
    fn name(&self) -> StaticName {
        ROUNDED.into()
    }

    op_as_typed_op!();
}

impl EvalOp for Rounded {
    op_out_of_plan!();

    fn eval(&self, _cx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = inputs.into_iter().next().context("has no input")?;
        let mut made = x.cast_to::<f32>()?.into_owned();
        let mut view = made.try_as_plain_ram_mut()?;
        view.as_slice_mut::<f32>()?.iter_mut().for_each(|v| *v = halves::rounded(self.dtype, *v));
        Ok(tvec!(made.into_tvalue()))
    }
}

impl TypedOp for Rounded {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let x = inputs.first().context("has no input")?;
        Ok(tvec!(x.without_value()))
    }
}
