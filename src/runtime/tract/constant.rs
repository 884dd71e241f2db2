//! `ConstantOfShape` with the standard's default: float zeros. tract's own makes doubles where the attribute `value` is
//! left out, as PyTorch's exporters do, and everything behind it then fails for mixed types.

use tract_onnx::{
    model::{OnnxOpRegister, ParsingContext},
    pb::NodeProto,
    prelude::*,
    tract_hir::{internal::*, ops::array::ConstantOfShape},
};

/// Puts our operator in the place of tract's.
pub(super) fn register(register: &mut OnnxOpRegister) {
    register.insert("ConstantOfShape", parse);
}

fn parse(cx: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let value = match node.get_attr_opt("value")? {
        Some(value) => cx.load_tensor(value)?,
        None => tensor0(0f32),
    };
    ensure!(value.len() == 1, "its value has {} elements, must have one", value.len());
    let scalar = if value.rank() == 0 { value } else { value.nth(0)? };
    let scalar = if scalar.rank() == 0 { scalar } else { scalar.into_shape(&[])? };
    Ok((expand(ConstantOfShape::new(scalar.into_arc_tensor())), vec![]))
}

#[cfg(test)]
mod tests {
    use crate::{
        ir::{Tensor, testing::model},
        runtime::{Runtime, tract::Tract},
    };

    #[test]
    fn zeros_are_float() {
        let m = model("int64[1] s \n float[1] x \n z = ConstantOfShape(s) \n y = Add(z, x) \n return y");
        let inputs = [Tensor::from_i64(&[1], &[3]), Tensor::from_f32(&[1], &[2.0])];
        let y = Tract.load(&m, &[]).unwrap().run(&inputs).unwrap();
        assert_eq!(y[0].to_f32().unwrap(), [2.0; 3]);
    }
}
