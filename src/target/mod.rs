//! What a runtime can do, as data: which operator with which types becomes which integer kernel, and what it costs.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    ir::{AttrValue, DType, Model, NodeId},
};

mod costs;
mod cpus;
mod dynamic;
mod float8;
mod halves;
mod loading;
mod products;
mod recurrent;
mod written;

pub use costs::{Convolution, Costs};
pub use cpus::{Cpu, Saturates};
pub use dynamic::{DynamicKernel, ZeroPoints};
pub use float8::Float8Facts;
pub use halves::{Crash, HalfFacts, HalfForm};
pub use loading::{Chain, Layout, WeightAxis, WeightOnly};
pub use products::{DynamicCosts, ProductTimes};
pub use recurrent::{Layer, RecurrentCosts};
pub use written::{IntegerOp, IntegerOps};

/// A runtime on a kind of machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// The type of activations that all of its integer kernels take.
    pub activation: DType,
    /// Integer kernels.
    #[serde(default)]
    pub kernels: Vec<Kernel>,
    /// Kernels that quantize their data at run time.
    #[serde(default)]
    pub dynamic: Vec<DynamicKernel>,
    /// Integer operators that files may hold.
    #[serde(default)]
    pub qoperator: IntegerOps,
    /// Operators that vanish where the quantized range ends at their bounds.
    #[serde(default)]
    pub clamps: Vec<String>,
    /// Operators that only move elements and past which the runtime itself moves conversions, so that beside an integer
    /// kernel they compute on codes whatever the file says.
    #[serde(default)]
    pub passed_through: Vec<String>,
    /// Operators whose float weights the runtime quantizes by itself, with one scale for the whole tensor, where they stand
    /// between a DequantizeLinear and a QuantizeLinear.
    #[serde(default)]
    pub requantized: Vec<String>,
    /// Clamps that the runtime itself removes in front of a QuantizeLinear whose codes end where they cut.
    #[serde(default)]
    pub seen_through: Vec<String>,
    /// Kernels for float data and weights in few bits.
    #[serde(default)]
    pub weight_only: Vec<WeightOnly>,
    /// What becomes of integer products that the file spells out.
    #[serde(default)]
    pub chains: Vec<Chain>,
    /// What Transposes move past.
    #[serde(default)]
    pub layout: Layout,
    /// Operators that compute in integers as they stand in a file, with their domain in front where it is not ONNX's.
    #[serde(default)]
    pub integer: Vec<String>,
    /// What it does with 16-bit floats, by type.
    #[serde(default)]
    pub halves: BTreeMap<DType, HalfFacts>,
    /// What it does with floats of 8 bits.
    #[serde(default)]
    pub float8: Float8Facts,
    /// Why other operators stay float.
    #[serde(default)]
    pub never: BTreeMap<String, String>,
    /// Times of kernels.
    #[serde(default)]
    pub costs: Costs,
    /// Processors that it runs on; the first one is its own, which all of the above is said of.
    #[serde(default)]
    pub cpus: Vec<Cpu>,
    /// Which of them.
    #[serde(skip)]
    cpu: usize,
}

/// One row: an operator, the kernel that its Q/DQ form becomes, and the conditions.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// `op_type` in ai.onnx.
    pub op: String,
    /// The integer kernel.
    pub kernel: String,
    /// The kernel if the output stays float.
    #[serde(default)]
    pub float_output_kernel: Option<String>,
    /// Whether the output must be quantized.
    pub output: Output,
    /// Operators that, as the only reader of an optional output, keep the runtime from the integer kernel unless the output
    /// is quantized.
    #[serde(default)]
    pub required_before: Vec<String>,
    /// What the weight must be.
    #[serde(default)]
    pub weight: Option<Weight>,
    /// What becomes of constant data operands.
    #[serde(default)]
    pub constant: Constant,
    /// Input and output must have the same scale and zero point.
    #[serde(default)]
    pub same_scale: bool,
    /// The types of its data.
    #[serde(default = "loading::eight_bits")]
    pub codes: Vec<DType>,
    /// The types of its data if the weight is of the same type.
    #[serde(default)]
    pub codes_alike: Vec<DType>,
    /// Along which axis the scales of its weight may lie.
    #[serde(default)]
    pub weight_axis: WeightAxis,
    /// Whether the bias must have the scale of the data times that of the weight.
    #[serde(default)]
    pub bias_scale: bool,
    /// The first operator set whose form of the operator has the kernel.
    #[serde(default)]
    pub min_opset: i64,
    /// Attributes that must have this value, where they are present.
    #[serde(default)]
    pub attributes: BTreeMap<String, Scalar>,
    /// The same, where the node has a bias.
    #[serde(default)]
    pub bias_attributes: BTreeMap<String, Scalar>,
    /// The same for placement, which leaves forms that hardly occur in float, though there is a kernel.
    #[serde(default)]
    pub placed: BTreeMap<String, Scalar>,
}

/// Whether a kernel's output must be quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// Else there is no integer kernel.
    Required,
    /// There is one either way.
    Optional,
    /// It never is: the output holds whole numbers of its own.
    Whole,
}

/// What a kernel asks of the weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// A constant.
    Constant,
}

/// Constant data operands of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Constant {
    /// Quantized to the activation's type.
    AsActivation,
    /// No kernel with one.
    #[default]
    Never,
}

/// The value of an attribute in a row.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// An integer.
    Int(i64),
    /// A float.
    Float(f32),
    /// A string.
    Text(String),
}

impl Scalar {
    fn matches(&self, value: &AttrValue) -> bool {
        match (self, value) {
            (Self::Int(a), AttrValue::Int(b)) => a == b,
            (Self::Float(a), AttrValue::Float(b)) => a == b,
            (Self::Int(a), AttrValue::Float(b)) => *a as f32 == *b,
            (Self::Text(a), AttrValue::String(b)) => a.as_bytes() == &b[..],
            _ => false,
        }
    }
}

/// Whether a node's opset and attributes are those of a row.
fn check_form(model: &Model, id: NodeId, min_opset: i64, attributes: &BTreeMap<String, Scalar>) -> Result<(), String> {
    let opset = model.opset("").unwrap_or(1);
    if opset < min_opset {
        return Err(format!("its integer kernel needs opset {min_opset}, the model has {opset}"));
    }
    for (name, want) in attributes {
        if model.node(id).attr(name).is_some_and(|v| !want.matches(v)) {
            return Err(format!("no integer kernel with this {name}"));
        }
    }
    Ok(())
}

const BUILT_IN: &[(&str, &str)] = &[
    ("onnxruntime-cpu", include_str!("../../configs/targets/onnxruntime-cpu.yaml")),
    ("tensorrt", include_str!("../../configs/targets/tensorrt.yaml")),
];

impl Target {
    /// The names of the targets that need no file.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(n, _)| *n)
    }

    /// A built-in target by name, or one from a YAML file by path.
    pub fn load(name: &str) -> Result<Self> {
        let parse = |text: &str| {
            serde_yaml::from_str(text).map_err(|e| Error::config(format!("target {name:?} is not right: {e}")))
        };
        if let Some((_, text)) = BUILT_IN.iter().find(|(n, _)| *n == name) {
            return parse(text);
        }
        let path = Path::new(name);
        if !path.exists() {
            let known: Vec<_> = Self::names().collect();
            return Err(Error::config(format!("no target is called {name:?}, and no file has this name"))
                .help(format!("known targets: {}", known.join(", "))));
        }
        parse(&std::fs::read_to_string(path).map_err(|e| Error::io(path, "read the target", e))?)
    }

    /// The integer kernel that placement may choose for a node by its operator, attributes and opset; else why there is
    /// none.
    pub fn kernel(&self, model: &Model, id: NodeId) -> Result<&Kernel, String> {
        let row = self.fused_kernel(model, id)?;
        check_form(model, id, row.min_opset, &row.placed)?;
        Ok(row)
    }

    /// The integer kernel that the runtime makes of a node between conversions; else why there is none.
    pub fn fused_kernel(&self, model: &Model, id: NodeId) -> Result<&Kernel, String> {
        let node = model.node(id);
        let none = || match self.never.get(&node.op_type) {
            Some(reason) => reason.clone(),
            None if self.is_integer(node) => "it computes in integers already, and stays as it is".to_owned(),
            None => "no integer kernel".to_owned(),
        };
        let row = self.kernels.iter().find(|k| node.is(&k.op)).ok_or_else(none)?;
        check_form(model, id, row.min_opset, &row.attributes)?;
        if node.input(2).is_some() {
            check_form(model, id, row.min_opset, &row.bias_attributes)?;
        }
        Ok(row)
    }

    /// Whether the runtime moves conversions past the operator.
    pub fn passes_through(&self, op: &str) -> bool {
        self.passed_through.iter().any(|o| o == op)
    }

    /// Whether the runtime quantizes the operator's float weights by itself.
    pub fn requantizes(&self, op: &str) -> bool {
        self.requantized.iter().any(|o| o == op)
    }

    /// Whether the operator is a clamp that saturation can replace.
    pub fn is_clamp(&self, op: &str) -> bool {
        self.clamps.iter().any(|c| c == op)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_targets_parse() {
        for name in Target::names() {
            assert_eq!(Target::load(name).unwrap().name, name);
        }
        assert!(Target::load("tensorrt").unwrap().is_for_float8());
        assert!(!Target::load("onnxruntime-cpu").unwrap().is_for_float8());
        let e = Target::load("openvino").unwrap_err();
        assert!(e.help_text().unwrap().contains("onnxruntime-cpu"));
    }
}
