//! Floats of 8 bits, which tract has no type for: their codes are bytes there, and the operators that make or read them are
//! told the type by an attribute.

use std::collections::HashMap;

use crate::{
    error::{Error, Result},
    ir::{Attr, DType, Model, NodeId, Tensor, ValueId},
    quant::float8::Float8,
};

/// The attribute that tells the type, by its number in ONNX.
pub(super) const TYPE: &str = "qonvert_float8";

/// Operators that only move what they read.
const MOVES: &[&str] = &[
    "Identity",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Slice",
    "Concat",
    "Gather",
    "Expand",
    "Tile",
    "DepthToSpace",
    "SpaceToDepth",
];

fn converts(model: &Model, n: NodeId) -> bool {
    let node = model.node(n);
    let ours = node.in_onnx_domain() || node.domain.as_deref() == Some("com.microsoft");
    ours && matches!(node.op_type.as_str(), "QuantizeLinear" | "DequantizeLinear")
}

/// The model with bytes in the place of all floats of 8 bits, or `None` where it has none.
pub(super) fn as_bytes(model: &Model) -> Result<Option<Model>> {
    let types = types(model);
    if types.is_empty() {
        return Ok(None);
    }
    let mut bytes = model.clone();
    for (&v, &dtype) in &types {
        let value = model.value(v);
        if let Some(tensor) = value.initializer() {
            let codes = Tensor::new(DType::Uint8, tensor.dims().to_vec(), tensor.bytes()?)?;
            bytes.set_initializer(v, Some(codes));
        } else if value.is_graph_output() || value.producer().is_none() {
            let text = format!("the built-in runtime does not have inputs and outputs of type {dtype}");
            return Err(Error::runtime(text).value(value.name()).help("use --runtime onnxruntime"));
        }
        bytes.value_mut(v).ty = None;
    }
    for n in model.all_nodes() {
        let node = model.node(n);
        let read = node.inputs().iter().chain(node.outputs()).flatten().find_map(|v| types.get(v).copied());
        let Some(dtype) = read else { continue };
        if converts(model, n) {
            bytes.node_mut(n).attributes.push(Attr::new(TYPE, i64::from(dtype.to_onnx())));
        } else if !MOVES.iter().any(|op| node.is(op)) {
            let text = format!("the built-in runtime does not have this operator for {dtype}");
            return Err(Error::runtime(text)
                .node(model.node_label(n), &node.op_type)
                .help("use --runtime onnxruntime"));
        }
    }
    Ok(Some(bytes))
}

/// All values of these types.
fn types(model: &Model) -> HashMap<ValueId, DType> {
    let float8 = |d: &DType| Float8::of(*d).is_some();
    let known = |v: ValueId| {
        let value = model.value(v);
        value.initializer().map(Tensor::dtype).or_else(|| value.dtype().filter(|_| value.producer().is_none()))
    };
    let mut types: HashMap<ValueId, DType> =
        model.value_ids().into_iter().filter_map(|v| Some((v, known(v).filter(float8)?))).collect();
    let nodes = model.all_nodes();
    loop {
        let before = types.len();
        for &n in &nodes {
            let node = model.node(n);
            let input = |i: usize| node.input(i).and_then(|v| types.get(&v).copied());
            let attribute = |name: &str| {
                let number = node.int(name).and_then(|n| i32::try_from(n).ok());
                number.and_then(DType::from_onnx).filter(float8)
            };
            let made = if converts(model, n) {
                input(2).or_else(|| attribute("output_dtype")).filter(|_| node.op_type == "QuantizeLinear")
            } else if node.is("Cast") {
                attribute("to")
            } else {
                input(0).filter(|_| MOVES.iter().any(|op| node.is(op)))
            };
            if let Some((v, dtype)) = node.output(0).zip(made) {
                types.insert(v, dtype);
            }
        }
        // A subgraph may stand before what it reads of the graph around it.
        if types.len() == before {
            return types;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::text,
        runtime::{Runtime, tract::Tract},
    };

    fn model(body: &str) -> Model {
        let head = "<ir_version: 10, opset_import: [\"\" : 21]> g (float[2,2] x) => (float[2,2] y)";
        text::parse(&format!("{head} <float s = {{0.5}}> {{ {body} }}")).unwrap()
    }

    #[test]
    fn pairs_and_moved_codes() {
        let x = Tensor::from_f32(&[2, 2], &[0.3, -1000.0, 0.26, 1e-9]);
        let run = |body: &str| Tract.load(&model(body), &[]).unwrap().run(std::slice::from_ref(&x)).unwrap().remove(0);
        let pair = run("q = QuantizeLinear <output_dtype = 17> (x, s) y = DequantizeLinear (q, s)");
        assert_eq!(pair.to_f32().unwrap(), [0.3125, -224.0, 0.25, 0.0]);
        let moved = run("q = QuantizeLinear <output_dtype = 19> (x, s) t = Transpose (q) y = DequantizeLinear (t, s)");
        assert_eq!(moved.to_f32().unwrap(), [0.3125, 0.25, -1024.0, 0.0]);
        let lost = run("q = QuantizeLinear <output_dtype = 17, saturate = 0> (x, s) y = DequantizeLinear (q, s)");
        assert!(lost.to_f32().unwrap()[1].is_nan());
    }

    #[test]
    fn what_tract_cannot_do_is_said() {
        let body = "q = QuantizeLinear <output_dtype = 18> (x, s) y = Cast <to = 1> (q)";
        let error = Tract.load(&model(body), &[]).err().unwrap();
        assert!(error.to_string().contains("Cast") && error.to_string().contains("float8e4m3fnuz"), "{error}");
        assert!(as_bytes(&model("y = Relu (x)")).unwrap().is_none());
    }
}
