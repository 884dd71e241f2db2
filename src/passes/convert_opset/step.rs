//! What a conversion sees and does: one node, on its way to one version.

use crate::{
    analysis::{constants::constant_tensor, types::Types},
    diagnostics::Diagnostic,
    error::{Error, Result},
    ir::{Attr, AttrValue, DType, Model, Node, NodeId, NodeSpec, Place, Tensor, Use, ValueId},
    passes::support,
};

/// Brings a node to the form of the next version of its operator.
pub(super) type Convert = fn(&mut Step<'_>) -> Result<()>;

/// One node on its way to the next version.
pub(super) struct Step<'a> {
    pub(super) model: &'a mut Model,
    pub(super) node: NodeId,
    /// What was known of the values before the first conversion.
    pub(super) types: &'a Types,
    in_function: bool,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl<'a> Step<'a> {
    pub(super) fn new(
        model: &'a mut Model,
        node: NodeId,
        types: &'a Types,
        in_function: bool,
        diagnostics: &'a mut Vec<Diagnostic>,
    ) -> Self {
        Self { model, node, types, in_function, diagnostics }
    }

    pub(super) fn node(&self) -> &Node {
        self.model.node(self.node)
    }

    pub(super) fn warn(&mut self, code: &'static str, message: impl Into<String>) {
        let on = self.model.node_label(self.node);
        self.diagnostics.push(Diagnostic::warning(code, message).on(on));
    }

    /// An input that the operator demands.
    pub(super) fn input(&self, i: usize) -> Result<ValueId> {
        self.node().input(i).ok_or_else(|| Error::malformed(format!("lacks input {i}")))
    }

    /// The element type of a value; `float` where nothing is known, for that is what old exporters wrote.
    pub(super) fn dtype(&self, v: ValueId) -> DType {
        self.types.dtype(v).or_else(|| self.model.value(v).dtype()).unwrap_or(DType::Float)
    }

    /// The constant that the node reads as input `i`: an initializer or a Constant node.
    pub(super) fn constant_input(&self, i: usize) -> Option<Tensor> {
        let v = self.node().input(i)?;
        let made = || self.model.producer(v).and_then(|n| constant_tensor(self.model.node(n)));
        self.model.value(v).constant().cloned().or_else(made)
    }

    /// A string attribute.
    pub(super) fn word(&self, name: &str) -> Result<Option<&str>> {
        match self.node().attr(name) {
            None => Ok(None),
            Some(AttrValue::Reference(of, _)) => Err(unknown(name, of)),
            Some(_) => self.node().string(name).map(Some).ok_or_else(|| wrong(name, "a string")),
        }
    }

    /// Takes an attribute off the node.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<AttrValue>> {
        let attributes = &mut self.model.node_mut(self.node).attributes;
        let Some(i) = attributes.iter().position(|a| a.name == name) else { return Ok(None) };
        if let AttrValue::Reference(of, _) = &attributes[i].value {
            return Err(unknown(name, of));
        }
        Ok(Some(attributes.remove(i).value))
    }

    pub(super) fn take_int(&mut self, name: &str) -> Result<Option<i64>> {
        match self.take(name)? {
            Some(AttrValue::Int(i)) => Ok(Some(i)),
            None => Ok(None),
            Some(_) => Err(wrong(name, "an integer")),
        }
    }

    pub(super) fn take_float(&mut self, name: &str) -> Result<Option<f32>> {
        match self.take(name)? {
            Some(AttrValue::Float(f)) => Ok(Some(f)),
            None => Ok(None),
            Some(_) => Err(wrong(name, "a float")),
        }
    }

    pub(super) fn take_ints(&mut self, name: &str) -> Result<Option<Vec<i64>>> {
        match self.take(name)? {
            Some(AttrValue::Ints(v)) => Ok(Some(v)),
            None => Ok(None),
            Some(_) => Err(wrong(name, "a list of integers")),
        }
    }

    pub(super) fn take_floats(&mut self, name: &str) -> Result<Option<Vec<f32>>> {
        match self.take(name)? {
            Some(AttrValue::Floats(v)) => Ok(Some(v)),
            None => Ok(None),
            Some(_) => Err(wrong(name, "a list of floats")),
        }
    }

    /// Sets an attribute.
    pub(super) fn set(&mut self, name: &str, value: impl Into<AttrValue>) {
        let attributes = &mut self.model.node_mut(self.node).attributes;
        attributes.retain(|a| a.name != name);
        attributes.push(Attr::new(name, value));
    }

    /// A new constant beside the node, named after it: an initializer, or in a function, which has none, a node.
    pub(super) fn constant(&mut self, suffix: &str, tensor: Tensor) -> ValueId {
        let name = format!("{}_{suffix}", self.model.node_label(self.node));
        if !self.in_function {
            return self.model.add_initializer(self.node().graph(), &name, tensor);
        }
        let spec = NodeSpec::new("Constant").attr("value", tensor).output(name);
        self.insert_before(spec)
    }

    /// A constant list of integers.
    pub(super) fn ints(&mut self, suffix: &str, values: &[i64]) -> ValueId {
        self.constant(suffix, Tensor::from_i64(&[values.len()], values))
    }

    /// A constant of rank 0 in the floating point type of the value `like`.
    pub(super) fn scalar(&mut self, suffix: &str, value: f32, like: ValueId) -> Result<ValueId> {
        let dtype = self.dtype(like);
        let tensor = scalar(value, dtype)?;
        Ok(self.constant(suffix, tensor))
    }

    /// Inserts an operator in front of the node, named after it; returns its only output.
    pub(super) fn before(&mut self, op: &str, inputs: &[ValueId], attributes: Vec<Attr>) -> ValueId {
        let name = format!("{}_{op}", self.model.node_label(self.node));
        let spec = NodeSpec::new(op)
            .name(&name)
            .inputs(inputs.iter().map(|&v| Some(v)))
            .attrs(attributes)
            .output(format!("{name}_output"));
        self.insert_before(spec)
    }

    fn insert_before(&mut self, spec: NodeSpec) -> ValueId {
        let made = self.model.insert(spec, Place::Before(self.node));
        self.model.node(made).output(0).expect("it was made with an output")
    }

    /// Makes the node itself compute its outputs by another operator; it keeps its name and its output values.
    pub(super) fn become_op(&mut self, op: &str, inputs: &[ValueId], attributes: Vec<Attr>) {
        let inputs: Vec<_> = inputs.iter().map(|&v| Some(v)).collect();
        support::convert::convert(self.model, self.node, op, &inputs, attributes);
    }

    /// Makes everything that uses `old` use `new`, under the name of `old`.
    pub(super) fn replace(&mut self, old: ValueId, new: ValueId) {
        let uses: Vec<Use> = self.model.value(old).uses().to_vec();
        for used in uses {
            self.model.redirect(used, new);
        }
        self.model.take_output_name(old, new);
    }
}

fn wrong(name: &str, want: &str) -> Error {
    Error::malformed(format!("attribute {name:?} is not {want}"))
}

fn unknown(name: &str, of: &str) -> Error {
    Error::unsupported(format!(
        "attribute {name:?} must be known, but its value is attribute {of:?} of the function around it"
    ))
    .help("inline the function first")
}

/// One element of rank 0.
fn scalar(value: f32, dtype: DType) -> Result<Tensor> {
    let bytes = match dtype {
        DType::Float => value.to_le_bytes().to_vec(),
        DType::Double => f64::from(value).to_le_bytes().to_vec(),
        DType::Float16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        DType::Bfloat16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        other => return Err(Error::unsupported(format!("its input is {other}, which the old form does not take"))),
    };
    Tensor::new(dtype, vec![], bytes)
}
