//! What is told of one layer: what it computes in, its weight, the quantizer of what it makes, its kernel, its size.

use std::collections::HashSet;

use serde::Serialize;

use super::side::Side;
use crate::{
    ir::{AttrValue, DType, Model, NodeId, Tensor, ValueId},
    kernels::Becomes,
    quant::{float8::Float8, pack, params::type_range},
};

/// A layer of one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Layer {
    /// Its name, or its first output's.
    pub name: String,
    /// The float operator that it computes, in whatever form.
    pub op: String,
    /// What it computes in: `float32`, `uint8 x int8`, `float32, weight uint4`.
    pub precision: String,
    /// Its largest constant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<Weight>,
    /// How what it makes is quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantizer: Option<Quantizer>,
    /// The kernel that the target's runtime makes of it; `None` where it stays a float operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Bytes of its constants in the file.
    pub bytes: u64,
}

/// How a constant is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Weight {
    /// Type of its elements.
    pub dtype: String,
    /// `per tensor`, `per channel`, `blocks of 32`; empty for floats.
    pub granularity: String,
    /// Whether all zero points are those of a symmetric range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<bool>,
    /// Least and greatest scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scales: Option<(f32, f32)>,
}

/// How a value is quantized.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quantizer {
    /// Type of the codes.
    pub dtype: String,
    /// Least and greatest number; `None` where scales are chosen at run time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<(f32, f32)>,
    /// Scale, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f32>,
    /// Zero point, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_point: Option<i64>,
}

impl Quantizer {
    /// In a few words: `uint8 -1.2..3.4`.
    pub fn words(&self) -> String {
        match self.range {
            Some((lo, hi)) => format!("{} {}..{}", self.dtype, short(lo), short(hi)),
            None => self.dtype.clone(),
        }
    }
}

impl Weight {
    /// In a few words: `int8 per channel`.
    pub fn words(&self) -> String {
        let mut words = self.dtype.clone();
        if !self.granularity.is_empty() {
            words += &format!(" {}", self.granularity);
        }
        if self.symmetric == Some(false) {
            words += " asymmetric";
        }
        words
    }
}

/// A number with three digits.
pub fn short(x: f32) -> String {
    let size = x.abs();
    let text = match () {
        () if x == 0.0 || !x.is_finite() => return format!("{x}"),
        () if !(1e-3..1e5).contains(&size) => return format!("{x:.2e}"),
        () if size >= 100.0 => format!("{x:.0}"),
        () if size >= 10.0 => format!("{x:.1}"),
        () if size >= 1.0 => format!("{x:.2}"),
        () => format!("{x:.4}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The constant input of a layer with most elements.
pub(super) fn weight_index(side: &Side, n: NodeId) -> Option<(usize, &Tensor)> {
    let node = side.float.node(n);
    let constants = (0..node.inputs().len()).filter_map(|i| Some((i, side.float.constant_input(n, i)?)));
    let floats = constants.filter(|(_, t)| t.dtype().is_float() && t.len() > 1);
    // The first of equals.
    floats.max_by_key(|(i, t)| (t.len(), usize::MAX - i))
}

pub(super) fn layer(side: &Side, n: NodeId) -> Layer {
    let node = side.float.node(n);
    let raised = side.raised_node(n);
    let weight = weight_index(side, n).and_then(|(i, _)| weight(side, raised, i));
    let out = node.outputs().iter().copied().flatten().next();
    Layer {
        name: side.float.node_label(n),
        op: node.op_type.clone(),
        precision: precision(side, n, raised, weight.as_ref()),
        quantizer: out.and_then(|v| quantizer(&side.raised, v)),
        kernel: kernel(side, n),
        bytes: raised.map_or(0, |n| bytes(&side.raised, n)),
        weight,
    }
}

fn kernel(side: &Side, n: NodeId) -> Option<String> {
    let told = side.kernel(n)?;
    // What became one node of several is what the last of them is part of.
    let whole = side
        .raised_node(n)
        .is_some_and(|r| side.raised.node(r).op_type != told.op.rsplit('.').next().unwrap_or_default());
    match told.becomes {
        Becomes::Part if whole => told.kernel.clone(),
        Becomes::Integer | Becomes::Moves => told.kernel.clone(),
        Becomes::Part => told.kernel.as_ref().filter(|k| **k != told.op).map(|k| format!("part of {k}")),
        _ => None,
    }
}

fn name_of(dtype: DType) -> &'static str {
    if dtype == DType::Float { "float32" } else { dtype.name() }
}

fn precision(side: &Side, n: NodeId, raised: Option<NodeId>, weight: Option<&Weight>) -> String {
    let m = &side.raised;
    let out = side.float.node(n).outputs().iter().copied().flatten().next();
    let made = out.and_then(|v| side.types.dtype(v).or_else(|| m.try_value(v)?.dtype()));
    let made = made.or_else(|| out.and_then(|v| side.float_types.dtype(v)));
    let Some(node) = raised else { return made.map_or("unknown", name_of).to_owned() };
    let of = |v: ValueId| {
        let codes = m.node(m.producer(v).filter(|&p| m.node(p).op_type == "DequantizeLinear")?).input(0)?;
        let known = m.value(codes).constant().is_none();
        let at_run_time = m.producer(codes).is_some_and(|p| m.node(p).op_type == "DynamicQuantizeLinear");
        let dtype = side.types.dtype(codes).or_else(|| m.value(codes).dtype()).map_or("codes", name_of);
        known.then(|| if at_run_time { format!("{dtype} at run time") } else { dtype.to_owned() })
    };
    let mut data: Vec<String> = m.node(node).inputs().iter().flatten().filter_map(|&v| of(v)).collect();
    data.dedup();
    let plain = |w: &&Weight| w.granularity.is_empty() && Some(w.dtype.as_str()) == made.map(name_of);
    let coded = weight.filter(|w| !plain(w) && w.dtype != "float32");
    match (data.is_empty(), coded) {
        (false, Some(w)) => format!("{} x {}", data.join(" x "), w.dtype),
        (false, None) => data.join(" x "),
        (true, Some(w)) => format!("{}, weight {}", made.map_or("float32", name_of), w.dtype),
        (true, None) => made.map_or("unknown", name_of).to_owned(),
    }
}

fn weight(side: &Side, raised: Option<NodeId>, i: usize) -> Option<Weight> {
    let m = &side.raised;
    let node = m.node(raised?);
    let plain = |t: &Tensor| Weight {
        dtype: name_of(t.dtype()).to_owned(),
        granularity: String::new(),
        symmetric: None,
        scales: None,
    };
    if matches!(node.op_type.as_str(), "MatMulNBits" | "GatherBlockQuantized") {
        let bits = node.int("bits").unwrap_or(4);
        let zeros = 3; // in both
        let scales = m.constant_input(raised?, 2).and_then(|t| t.to_f32().ok());
        return Some(Weight {
            dtype: format!("{}int{bits}", if node.input(zeros).is_some() { "u" } else { "" }),
            granularity: format!("blocks of {}", node.int("block_size").unwrap_or(0)),
            symmetric: Some(node.input(zeros).is_none()),
            scales: scales.and_then(|s| least_and_greatest(&s)),
        });
    }
    let v = node.input(i)?;
    if let Some(t) = m.value(v).constant() {
        return Some(plain(t));
    }
    let maker = m.producer(v)?;
    let dq = m.node(maker);
    if dq.op_type != "DequantizeLinear" {
        return stored(m, v).map(|dtype| Weight {
            dtype: name_of(dtype).to_owned(),
            granularity: if dtype.is_float() { "" } else { "unpacked at load" }.to_owned(),
            symmetric: None,
            scales: None,
        });
    }
    let codes = dq.input(0)?;
    let Some(t) = m.value(codes).constant() else {
        // Rounded by a QuantizeLinear of the file.
        let dtype = side.types.dtype(codes)?;
        let count = dq.input(1).and_then(|s| m.value(s).constant()).map_or(1, Tensor::len);
        return Some(Weight {
            granularity: granularity(count, 0),
            dtype: name_of(dtype).to_owned(),
            symmetric: None,
            scales: None,
        });
    };
    let scales = m.constant_input(maker, 1)?;
    let block = dq.int("block_size").unwrap_or(0);
    let middle = match type_range(t.dtype()) {
        Ok((0, greatest)) => i64::from(greatest / 2 + 1),
        _ => 0,
    };
    let zeros = m.constant_input(maker, 2).and_then(|z| pack::unpack(z).ok());
    let symmetric = match &zeros {
        None => middle == 0,
        Some(z) => z.iter().all(|&z| i64::from(z) == middle),
    };
    Some(Weight {
        dtype: name_of(t.dtype()).to_owned(),
        granularity: granularity(scales.len(), block),
        symmetric: Some(symmetric),
        scales: scales.to_f32().ok().and_then(|s| least_and_greatest(&s)),
    })
}

fn granularity(scales: usize, block: i64) -> String {
    match (scales, block) {
        (_, 1..) => format!("blocks of {block}"),
        (1, _) => "per tensor".to_owned(),
        _ => "per channel".to_owned(),
    }
}

fn least_and_greatest(numbers: &[f32]) -> Option<(f32, f32)> {
    let least = numbers.iter().copied().reduce(f32::min)?;
    Some((least, numbers.iter().copied().reduce(f32::max)?))
}

/// The type of the codes that a constant is computed of when the file is loaded.
fn stored(m: &Model, v: ValueId) -> Option<DType> {
    let (constants, _) = cone(m, v)?;
    let codes = constants.into_iter().filter_map(|c| m.value(c).constant());
    let codes = codes.filter(|t| t.dtype() != DType::Int64 && t.rank() > 0).max_by_key(|t| t.byte_len())?;
    (!matches!(codes.dtype(), DType::Float | DType::Int32)).then(|| codes.dtype())
}

/// The constants that a value is computed of, and the nodes that do it, in an order that follows from the graph; `None` where it
/// depends on the model's inputs.
pub(super) fn cone(m: &Model, v: ValueId) -> Option<(Vec<ValueId>, Vec<NodeId>)> {
    const MOST: usize = 64;
    let (mut found, mut makers, mut stack) = (Vec::new(), Vec::new(), vec![v]);
    while let Some(v) = stack.pop() {
        if m.value(v).constant().is_some() {
            found.push(v);
            continue;
        }
        let maker = m.producer(v).filter(|_| makers.len() < MOST)?;
        makers.push(maker);
        stack.extend(m.node(maker).inputs().iter().flatten());
    }
    Some((found, makers))
}

fn bytes(m: &Model, n: NodeId) -> u64 {
    let constants: HashSet<ValueId> =
        m.node(n).inputs().iter().flatten().filter_map(|&v| cone(m, v)).flat_map(|(found, _)| found).collect();
    // Shapes and indices are not what a layer weighs.
    let weights = constants.into_iter().filter_map(|v| m.value(v).constant()).filter(|t| t.dtype() != DType::Int64);
    weights.map(|t| t.byte_len() as u64).sum()
}

/// How a value is quantized, if it is.
pub(super) fn quantizer(m: &Model, v: ValueId) -> Option<Quantizer> {
    let readers = m.try_value(v)?.readers().filter(|(_, i)| *i == 0).map(|(n, _)| n);
    let node = readers.filter(|&n| m.node(n).op_type.ends_with("QuantizeLinear")).min()?;
    let n = m.node(node);
    if n.op_type == "DynamicQuantizeLinear" {
        return Some(Quantizer { dtype: "uint8 at run time".to_owned(), range: None, scale: None, zero_point: None });
    }
    let told = n.int("output_dtype").and_then(|i| DType::from_onnx(i32::try_from(i).ok()?));
    let zero_point = m.constant_input(node, 2);
    let dtype =
        zero_point.map(Tensor::dtype).or(told).or_else(|| m.value(n.output(0)?).dtype()).unwrap_or(DType::Uint8);
    let scale = m.constant_input(node, 1).and_then(Tensor::scalar_f32);
    let zero = match zero_point {
        Some(z) if Float8::of(z.dtype()).is_none() => {
            pack::unpack(z).ok().filter(|z| z.len() == 1).map(|z| i64::from(z[0]))
        }
        _ => Some(0),
    };
    let range = scale.zip(zero).and_then(|(s, z)| match Float8::of(dtype) {
        Some(float8) => Some((-float8.largest() * s, float8.largest() * s)),
        None => type_range(dtype).ok().map(|(lo, hi)| ((i64::from(lo) - z) as f32 * s, (i64::from(hi) - z) as f32 * s)),
    });
    Some(Quantizer { dtype: name_of(dtype).to_owned(), range, scale, zero_point: zero })
}

/// Whether an attribute says what holds without it.
pub(super) fn is_default(name: &str, value: &str) -> bool {
    match name {
        "alpha" | "beta" => value == "1",
        "group" | "keepdims" => value == "1",
        "transA"
        | "transB"
        | "allowzero"
        | "ceil_mode"
        | "storage_order"
        | "count_include_pad"
        | "noop_with_empty_axes" => value == "0",
        "auto_pad" => value == "NOTSET",
        "pads" => value.chars().all(|c| "[0,]".contains(c)),
        "strides" | "dilations" => value.chars().all(|c| "[1,]".contains(c)),
        _ => false,
    }
}

/// An attribute in words; `None` for subgraphs, whose nodes are compared themselves.
pub(super) fn attribute(value: &AttrValue) -> Option<String> {
    let list = |items: Vec<String>| format!("[{}]", items.join(","));
    Some(match value {
        AttrValue::Float(f) => f.to_string(),
        AttrValue::Int(i) => i.to_string(),
        AttrValue::String(s) => String::from_utf8_lossy(s).chars().take(40).collect(),
        AttrValue::Floats(v) => list(v.iter().take(8).map(ToString::to_string).collect()),
        AttrValue::Ints(v) => list(v.iter().map(ToString::to_string).collect()),
        AttrValue::Strings(v) => list(v.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect()),
        AttrValue::Tensor(t) => match (t.tensor.len(), t.tensor.to_f32(), t.tensor.to_i64()) {
            (1, Ok(f), _) => f[0].to_string(),
            (1, _, Ok(i)) => i[0].to_string(),
            _ => format!("{:?}", t.tensor),
        },
        AttrValue::Reference(name, _) => format!("@{name}"),
        AttrValue::Graph(_) | AttrValue::Graphs(_) | AttrValue::Tensors(_) | AttrValue::Other(_) => return None,
    })
}
