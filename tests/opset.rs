//! The converter of old files, against ONNX Runtime: each operator gives the same numbers in its old and its new form.

mod common;

use common::ort_run;
use qonvert::ir::{DType, Model, NodeSpec, Place, Tensor, Type};

#[test]
fn helper_runs() {
    let mut m = Model::new(7);
    m.set_opset("", 13);
    let g = m.main();
    let x = m.add_value(g, "x");
    m.value_mut(x).ty = Some(Type::tensor(DType::Float, None));
    m.add_input(x);
    let n = m.insert(NodeSpec::new("Neg").input(x).output("y"), Place::End(g));
    let y = m.node(n).output(0).unwrap();
    m.value_mut(y).ty = Some(Type::tensor(DType::Float, None));
    m.add_output(g, y);
    let bytes = qonvert::onnx_file::to_bytes(&m).unwrap();
    let Some(out) = ort_run(&bytes, &[("x", Tensor::from_f32(&[2], &[1.0, -2.0]))]) else { return };
    assert_eq!(out[0].to_f32().unwrap(), [-1.0, 2.0]);
}
