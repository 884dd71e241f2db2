//! Which operators take 16-bit floats, from ONNX's schemas: what differs from "wherever they take 32-bit ones".

use crate::ir::{Model, NodeId};

/// Operators that take float16 in no opset, or only from this one on.
const SINCE: &[(&str, i64)] = &[
    ("Celu", 28),
    ("CumSum", 14),
    ("DequantizeLinear", 19),
    ("DynamicQuantizeLinear", i64::MAX),
    ("IsInf", 20),
    ("NonMaxSuppression", i64::MAX),
    ("QLinearConv", i64::MAX),
    ("QLinearMatMul", i64::MAX),
    ("QuantizeLinear", 19),
    ("Range", 27),
    ("TfIdfVectorizer", i64::MAX),
];

/// Inputs that are 32-bit floats whatever the others are: operator, opsets from … to, input.
const ALWAYS_FLOAT: &[(&str, [i64; 2], usize)] = &[
    ("Resize", [10, 10], 1),
    // The region may have either type.
    ("Resize", [11, i64::MAX], 1),
    ("Resize", [11, i64::MAX], 2),
    ("Upsample", [9, i64::MAX], 1),
];

/// The attribute that tells the type of what an operator makes, and whether it makes floats without it.
const TYPE_ATTRIBUTES: &[(&str, &str, bool)] = &[
    ("Bernoulli", "dtype", false),
    ("BlackmanWindow", "output_datatype", true),
    ("Cast", "to", false),
    ("EyeLike", "dtype", false),
    ("HammingWindow", "output_datatype", true),
    ("HannWindow", "output_datatype", true),
    ("MelWeightMatrix", "output_datatype", true),
    ("RandomNormal", "dtype", true),
    ("RandomNormalLike", "dtype", false),
    ("RandomUniform", "dtype", true),
    ("RandomUniformLike", "dtype", false),
];

/// Why a node cannot have 16-bit floats by its schema; `None` where it can.
pub fn half_refused(model: &Model, node: NodeId) -> Option<String> {
    let n = model.node(node);
    if !n.in_onnx_domain() {
        return Some("an operator of another domain, whose types are not known".to_owned());
    }
    let (_, first) = SINCE.iter().find(|(op, _)| n.op_type == *op)?;
    let opset = model.opset("").unwrap_or(1);
    match first {
        _ if opset >= *first => None,
        &i64::MAX => Some("ONNX has it for 32-bit floats alone".to_owned()),
        _ => Some(format!("ONNX has it for 16-bit floats from opset {first} on, the model has {opset}")),
    }
}

/// Whether an input is a 32-bit float even where its node computes in 16-bit ones.
pub fn always_float(model: &Model, node: NodeId, input: usize) -> bool {
    let opset = model.opset("").unwrap_or(1);
    let n = model.node(node);
    ALWAYS_FLOAT.iter().any(|(op, [from, to], i)| *i == input && (*from..=*to).contains(&opset) && n.is(op))
}

/// The attribute that holds the type of what a node makes, and whether the type is float where it is left out.
pub fn type_attribute(op: &str) -> Option<(&'static str, bool)> {
    TYPE_ATTRIBUTES.iter().find(|(name, ..)| *name == op).map(|&(_, attribute, float)| (attribute, float))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    #[test]
    fn opsets_and_inputs() {
        let model = |opset: i64, body: &str| {
            let head = format!("<ir_version: 8, opset_import: [\"\" : {opset}]> g (float[4] x, float[4] r) => (y)");
            text::parse(&format!("{head} {{ {body} }}")).unwrap()
        };
        let first = |m: &Model| m.nodes(m.main())[0];
        let refused = |m: &Model| half_refused(m, first(m));
        assert_eq!(refused(&model(17, "y = Relu(x)")), None);
        assert!(refused(&model(13, "y = CumSum(x, r)")).unwrap().contains("opset 14"));
        assert_eq!(refused(&model(14, "y = CumSum(x, r)")), None);
        assert!(refused(&model(17, "y = NonMaxSuppression(x, r)")).unwrap().contains("alone"));
        assert!(refused(&model(17, "y = my.Relu(x)")).unwrap().contains("another domain"));
        let resize = model(17, r#"y = Resize(x, "", r)"#);
        assert_eq!([0, 1, 2, 3].map(|i| always_float(&resize, first(&resize), i)), [false, true, true, false]);
        let old = model(10, "y = Resize(x, r)");
        assert_eq!([0, 1, 2].map(|i| always_float(&old, first(&old), i)), [false, true, false]);
    }
}
