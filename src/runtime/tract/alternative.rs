//! [`ALTERNATIVE`](crate::runtime::ALTERNATIVE): a value beside which stands what may take its place.
//!
//! tract does not look inside, so that nothing is fused across it and each value computes as it would by itself.

use tract_onnx::{model::OnnxOpRegister, pb::NodeProto, prelude::*, tract_hir::internal::*};

use crate::runtime::{ALTERNATIVE, NUMBER};

/// Makes the operator known.
pub(super) fn register(register: &mut OnnxOpRegister) {
    register.insert(ALTERNATIVE, |_, node: &NodeProto| {
        let number = node.get_attr::<i64>(NUMBER)?;
        let number = usize::try_from(number).with_context(|| format!("{NUMBER} is {number}"))?;
        Ok((expand(Alternative { number }), vec![]))
    });
}

/// Its first input, unless the second is in its place where this number is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Alternative {
    pub(super) number: usize,
}

impl Expansion for Alternative {
    fn name(&self) -> StaticName {
        Op::name(self)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 2)?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        s.equals(&inputs[0].shape, &outputs[0].shape)?;
        s.equals(&inputs[0].datum_type, &inputs[1].datum_type)?;
        s.equals(&inputs[0].shape, &inputs[1].shape)
    }

    fn wire(&self, prefix: &str, target: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        target.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Alternative {
    fn name(&self) -> StaticName {
        ALTERNATIVE.into()
    }

    op_as_typed_op!();
}

impl EvalOp for Alternative {
    op_out_of_plan!();

    fn eval(&self, _cx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(inputs.into_iter().take(1).collect())
    }
}

impl TypedOp for Alternative {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let x = inputs.first().context("has no input")?;
        Ok(tvec!(x.without_value()))
    }
}
