//! What is in a model: inputs, outputs, operators, sizes, and the precision of each node.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use super::terminal::{bytes, count};
use crate::{
    analysis::types,
    ir::{Model, NodeId, Tensor, ValueId},
    quant::float8::Float8,
};

/// The facts of a model.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Inspection {
    /// The file.
    pub file: String,
    /// Bytes on disk, external data included.
    pub size: u64,
    /// Version of the file format.
    pub ir_version: i64,
    /// Operator sets by domain (`ai.onnx` is ONNX's own).
    pub opsets: BTreeMap<String, i64>,
    /// The tool that made it.
    pub producer: Option<String>,
    /// What a caller must feed.
    pub inputs: Vec<Port>,
    /// What it gives.
    pub outputs: Vec<Port>,
    /// Operators, the most frequent first; those of subgraphs and functions count too.
    pub operators: Vec<Operator>,
    /// Nodes inside subgraphs and functions.
    pub inner_nodes: usize,
    /// Bytes of constants by element type.
    pub weights: BTreeMap<String, u64>,
    /// The largest constants.
    pub largest: Vec<Constant>,
    /// Every node of the main graph, in order.
    pub nodes: Vec<NodeFacts>,
}

/// An input or output.
#[derive(Debug, Clone, Serialize)]
pub struct Port {
    /// Name.
    pub name: String,
    /// Type in ONNX's textual syntax, `float[N,3,224,224]`.
    pub r#type: String,
}

/// One operator type.
#[derive(Debug, Clone, Serialize)]
pub struct Operator {
    /// `op_type`, with the domain in front where it is not ONNX's.
    pub op: String,
    /// Nodes.
    pub count: usize,
    /// How many of them compute in integers.
    pub integer: usize,
}

/// A constant.
#[derive(Debug, Clone, Serialize)]
pub struct Constant {
    /// Name.
    pub name: String,
    /// Element type and shape.
    pub r#type: String,
    /// Bytes.
    pub bytes: u64,
}

/// A node of the main graph.
#[derive(Debug, Clone, Serialize)]
pub struct NodeFacts {
    /// Its name, or its first output's.
    pub name: String,
    /// Operator.
    pub op: String,
    /// What it computes in.
    pub precision: Precision,
    /// Type of its first output.
    pub output: String,
    /// Type and shape of its constants.
    pub constants: Vec<String>,
}

/// What a node computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Floating point numbers.
    Float,
    /// Floating point numbers; constants are stored in few bits.
    FloatStoredSmall,
    /// Codes of 8 bits or so, between Q/DQ pairs or as an integer operator.
    Integer,
    /// Floats of 8 bits, between Q/DQ pairs, where the runtime has kernels of them.
    Float8,
    /// Converts from or to codes.
    Conversion,
    /// Whole numbers, truth values, strings: shapes, indices, conditions.
    Other,
}

/// How many constants [`Inspection::largest`] names.
const LARGEST: usize = 10;

impl Inspection {
    /// Looks at a model. `size` is that of its files.
    pub fn of(model: &Model, file: &str, size: u64) -> Self {
        let types = types::infer(model);
        let main = model.graph(model.main());
        let port = |v: ValueId| Port { name: model.value(v).name().to_owned(), r#type: types.text(v) };
        let domain = |d: &Option<String>| match d.as_deref() {
            None | Some("") => "ai.onnx".to_owned(),
            Some(d) => d.to_owned(),
        };
        let info = &model.info;
        let producer = info.producer_name.clone().filter(|p| !p.is_empty());
        let version = info.producer_version.clone().filter(|v| !v.is_empty());
        let mut out = Self {
            file: file.to_owned(),
            size,
            ir_version: model.ir_version,
            opsets: model.opset_imports.iter().map(|(d, v)| (domain(d), *v)).collect(),
            producer: producer.map(|p| version.map_or(p.clone(), |v| format!("{p} {v}"))),
            inputs: model.required_inputs().into_iter().map(port).collect(),
            outputs: main.outputs().iter().map(|&v| port(v)).collect(),
            ..Self::default()
        };
        out.constants(model);
        let mut operators: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for id in model.all_nodes() {
            let precision = precision(model, &types, id);
            let entry = operators.entry(op_name(model, id)).or_default();
            entry.0 += 1;
            entry.1 += usize::from(precision == Precision::Integer);
            if model.node(id).graph() == model.main() {
                out.nodes.push(node_facts(model, &types, id, precision));
            } else {
                out.inner_nodes += 1;
            }
        }
        out.operators = operators.into_iter().map(|(op, (count, integer))| Operator { op, count, integer }).collect();
        out.operators.sort_by_key(|o| std::cmp::Reverse(o.count)); // stable: then by name
        out
    }

    fn constants(&mut self, model: &Model) {
        for v in model.value_ids() {
            let Some(t) = model.value(v).initializer() else { continue };
            let bytes = t.byte_len() as u64;
            *self.weights.entry(t.dtype().name().to_owned()).or_default() += bytes;
            self.largest.push(Constant { name: model.value(v).name().to_owned(), r#type: tensor_type(t), bytes });
        }
        for id in model.all_nodes() {
            let Some(t) = crate::analysis::constants::constant_tensor(model.node(id)) else { continue };
            let bytes = t.byte_len() as u64;
            *self.weights.entry(t.dtype().name().to_owned()).or_default() += bytes;
            self.largest.push(Constant { name: model.node_label(id), r#type: tensor_type(&t), bytes });
        }
        self.largest.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        self.largest.truncate(LARGEST);
    }

    /// The facts as text; `nodes` lists every node.
    pub fn render(&self, nodes: bool) -> String {
        let mut out = String::new();
        // Writing into a string cannot fail.
        let opsets: Vec<_> = self.opsets.iter().map(|(d, v)| format!("{d} {v}")).collect();
        let producer = self.producer.as_ref().map(|p| format!(", made by {p}")).unwrap_or_default();
        let _ = writeln!(out, "{}: ONNX IR {}, opset {}{producer}", self.file, self.ir_version, opsets.join(", "));
        let weights: Vec<_> = self.weights.iter().map(|(t, n)| format!("{t} {}", bytes(*n))).collect();
        let _ = writeln!(out, "{:<10}{}; constants: {}", "size", bytes(self.size), or_none(weights.join(", ")));
        for (label, ports) in [("inputs", &self.inputs), ("outputs", &self.outputs)] {
            for (i, p) in ports.iter().enumerate() {
                let _ = writeln!(out, "{:<10}{}  {}", if i == 0 { label } else { "" }, p.name, p.r#type);
            }
        }
        let inner = if self.inner_nodes > 0 {
            format!(", {} more in subgraphs and functions", self.inner_nodes)
        } else {
            String::new()
        };
        let _ = writeln!(out, "{:<10}{}{inner}; {}", "nodes", self.nodes.len(), self.precisions());
        let width = self.operators.iter().map(|o| o.op.len()).max().unwrap_or(0);
        for o in &self.operators {
            let integer = if o.integer > 0 { format!("  {} in integers", o.integer) } else { String::new() };
            let _ = writeln!(out, "{}", format!("          {:>5}  {:width$}{integer}", o.count, o.op).trim_end());
        }
        let width = self.largest.iter().map(|c| c.r#type.len()).max().unwrap_or(0);
        for (i, c) in self.largest.iter().enumerate() {
            let label = if i == 0 { "largest" } else { "" };
            let _ = writeln!(out, "{label:<10}{:>9}  {:width$}  {}", bytes(c.bytes), c.r#type, c.name);
        }
        if nodes {
            self.list_nodes(&mut out);
        }
        out
    }

    fn precisions(&self) -> String {
        let n = |p: Precision| self.nodes.iter().filter(|n| n.precision == p).count();
        let parts = [
            (n(Precision::Float), "in float"),
            (n(Precision::FloatStoredSmall), "in float with constants in few bits"),
            (n(Precision::Integer), "in integers"),
            (n(Precision::Float8), "on floats of 8 bits"),
            (n(Precision::Conversion), "convert between them"),
            (n(Precision::Other), "on shapes, indices and conditions"),
        ];
        let parts: Vec<_> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        or_none(parts.join(", "))
    }

    fn list_nodes(&self, out: &mut String) {
        let _ = writeln!(out, "\n{}:", count(self.nodes.len(), "node"));
        let width = self.nodes.iter().map(|n| n.op.len()).max().unwrap_or(0);
        for n in &self.nodes {
            let precision = match n.precision {
                Precision::Float => "float",
                Precision::FloatStoredSmall => "float*",
                Precision::Integer => "int",
                Precision::Float8 => "float8",
                Precision::Conversion => "convert",
                Precision::Other => "-",
            };
            let constants =
                if n.constants.is_empty() { String::new() } else { format!("  [{}]", n.constants.join(", ")) };
            let _ = writeln!(out, "{precision:<8}{:width$}  {}  -> {}{constants}", n.op, n.name, n.output);
        }
        if self.nodes.iter().any(|n| n.precision == Precision::FloatStoredSmall) {
            let _ = writeln!(out, "float* computes in float, its constants are stored in few bits");
        }
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

fn tensor_type(t: &Tensor) -> String {
    let dims: Vec<_> = t.dims().iter().map(ToString::to_string).collect();
    format!("{}[{}]", t.dtype(), dims.join(","))
}

fn op_name(model: &Model, id: NodeId) -> String {
    let node = model.node(id);
    match node.domain.as_deref() {
        None | Some("" | "ai.onnx") => node.op_type.clone(),
        Some(domain) => format!("{domain}.{}", node.op_type),
    }
}

fn node_facts(model: &Model, types: &types::Types, id: NodeId, precision: Precision) -> NodeFacts {
    let node = model.node(id);
    let output = node.outputs().iter().copied().flatten().next();
    let constants = node.inputs().iter().flatten().filter_map(|&v| model.value(v).constant());
    NodeFacts {
        name: model.node_label(id),
        op: op_name(model, id),
        precision,
        output: output.map_or_else(String::new, |v| types.text(v)),
        constants: constants.filter(|t| t.rank() > 0).map(tensor_type).collect(),
    }
}

fn precision(model: &Model, types: &types::Types, id: NodeId) -> Precision {
    let node = model.node(id);
    let op = node.op_type.as_str();
    if matches!(op, "QuantizeLinear" | "DequantizeLinear" | "DynamicQuantizeLinear") {
        return Precision::Conversion;
    }
    if op.starts_with("QLinear") || op == "QGemm" || op.starts_with("DynamicQuantize") || op.contains("Integer") {
        return Precision::Integer;
    }
    let made_by_dq = |v: ValueId| {
        model.producer(v).map(|n| model.node(n)).filter(|n| n.op_type == "DequantizeLinear").and_then(|n| n.input(0))
    };
    let float8 = |v: &ValueId| types.dtype(*v).and_then(Float8::of).is_some();
    let codes: Vec<ValueId> = node.inputs().iter().flatten().filter_map(|&v| made_by_dq(v)).collect();
    if codes.iter().any(|&v| model.value(v).constant().is_none()) {
        return if codes.iter().any(float8) { Precision::Float8 } else { Precision::Integer };
    }
    if !codes.is_empty() {
        return Precision::FloatStoredSmall;
    }
    let float = |v: &ValueId| types.dtype(*v).is_none_or(crate::ir::DType::is_float);
    if node.outputs().iter().flatten().any(float) { Precision::Float } else { Precision::Other }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    #[test]
    fn floats_of_8_bits() {
        let model = text::parse(
            r#"<ir_version: 9, opset_import: ["" : 19]>
            g (float[N,2] x) => (float[N,2] y) <float s = {0.1}, float8e4m3fn z = {0}, float8e5m2[2,2] w = {1, 2, 3, 4}> {
                xq = QuantizeLinear(x, s, z)
                xd = DequantizeLinear(xq, s, z)
                wd = DequantizeLinear(w, s)
                m = MatMul(xd, wd)
                y = MatMul(m, wd)
            }"#,
        )
        .unwrap();
        let text = Inspection::of(&model, "m.onnx", 400).render(true);
        assert!(text.contains("1 in float with constants in few bits, 1 on floats of 8 bits, 3 convert"), "{text}");
        assert!(text.contains("float8  MatMul") && text.contains("xq  -> float8e4m3fn[N,2]"), "{text}");
        assert!(text.contains("[float8e5m2[2,2]]"), "{text}");
    }

    #[test]
    fn says_what_is_in_a_quantized_model() {
        let model = text::parse(
            r#"<ir_version: 8, opset_import: ["" : 17], producer_name: "test", producer_version: "1">
            g (float[N,2] x) => (float[N,2] y) <float s = {0.1}, uint8 z = {0}, int8[2,2] w = {1, 2, 3, 4}> {
                xq = QuantizeLinear(x, s, z)
                xd = DequantizeLinear(xq, s, z)
                wd = DequantizeLinear(w, s)
                [mm] m = MatMul(xd, wd)
                [mm2] m2 = MatMul(m, wd)
                n = Shape(m2)
                [act] y = Relu(m2)
            }"#,
        )
        .unwrap();
        let i = Inspection::of(&model, "m.onnx", 400);
        let of = |name: &str| i.nodes.iter().find(|n| n.name == name).unwrap().precision;
        assert_eq!(
            [of("mm"), of("mm2"), of("act"), of("xd")],
            [Precision::Integer, Precision::FloatStoredSmall, Precision::Float, Precision::Conversion]
        );
        insta::assert_snapshot!(i.render(true), @r#"
        m.onnx: ONNX IR 8, opset ai.onnx 17, made by test 1
        size      400 bytes; constants: float 4 bytes, int8 4 bytes, uint8 1 bytes
        inputs    x  float[N,2]
        outputs   y  float[N,2]
        nodes     7; 1 in float, 1 in float with constants in few bits, 1 in integers, 3 convert between them, 1 on shapes, indices and conditions
                      2  DequantizeLinear
                      2  MatMul            1 in integers
                      1  QuantizeLinear
                      1  Relu
                      1  Shape
        largest     4 bytes  float[]    s
                    4 bytes  int8[2,2]  w
                    1 bytes  uint8[]    z

        7 nodes:
        convert QuantizeLinear    xq  -> uint8[N,2]
        convert DequantizeLinear  xd  -> float[N,2]
        convert DequantizeLinear  wd  -> float[2,2]  [int8[2,2]]
        int     MatMul            mm  -> float[N,2]
        float*  MatMul            mm2  -> float[N,2]
        -       Shape             n  -> int64[2]
        float   Relu              act  -> float[N,2]
        float* computes in float, its constants are stored in few bits
        "#);
    }
}
