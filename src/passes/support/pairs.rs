//! QuantizeLinear and DequantizeLinear as passes see them.

use crate::{
    analysis::types::Types,
    diagnostics::count,
    error::{Error, Result},
    ir::{DType, Model, Node, NodeId, NodeSpec, Place, Use, ValueId},
    ops::{self, Class, MICROSOFT},
    quant::pack::pack,
};

/// A QuantizeLinear or DequantizeLinear without blocks.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// The node.
    pub node: NodeId,
    /// What it makes codes of, or the codes.
    pub input: ValueId,
    /// What it makes.
    pub output: ValueId,
    /// Its scale.
    pub scale: ValueId,
    /// Its zero point; zero if there is none.
    pub zero_point: Option<ValueId>,
    /// The axis of scales that are not a scalar.
    pub axis: i64,
}

impl Linear {
    /// The node as a QuantizeLinear (or DequantizeLinear), if it is one.
    pub fn of(model: &Model, id: NodeId, op: &str) -> Option<Self> {
        let node = model.node(id);
        let plain = node.op_type == op && has_pairs(node) && node.int("block_size").unwrap_or(0) == 0;
        plain.then_some(())?;
        Some(Self {
            node: id,
            input: node.input(0)?,
            output: node.output(0)?,
            scale: node.input(1)?,
            zero_point: node.input(2),
            axis: node.int("axis").unwrap_or(1),
        })
    }

    /// The DequantizeLinear that makes a value.
    pub fn dequantized(model: &Model, value: ValueId) -> Option<Self> {
        Self::of(model, model.producer(value)?, "DequantizeLinear")
    }

    /// The QuantizeLinear that is the only use of a value.
    pub fn only_quantized(model: &Model, value: ValueId) -> Option<Self> {
        match model.value(value).uses() {
            &[Use::Input(reader, 0)] => Self::of(model, reader, "QuantizeLinear"),
            _ => None,
        }
    }

    /// The scales, where they are constant and sound.
    pub fn scales(&self, model: &Model) -> Option<Vec<f32>> {
        let scales = model.value(self.scale).constant().filter(|t| t.dtype() == DType::Float)?.to_f32().ok()?;
        scales.iter().all(|s| s.is_finite() && *s > 0.0).then_some(scales)
    }

    /// Scale and zero point, where there is one of each.
    pub fn per_tensor(&self, model: &Model) -> Option<(f32, i64)> {
        let &[scale] = &self.scales(model)?[..] else { return None };
        let zero_point = match self.zero_point {
            None => 0,
            Some(z) => model.value(z).constant()?.scalar_i64()?,
        };
        Some((scale, zero_point))
    }

    /// The type of the codes, as far as it is known.
    pub fn codes(&self, model: &Model, types: &Types) -> Option<DType> {
        let named = self.zero_point.and_then(|z| model.value(z).dtype());
        let made = model.node(self.node).op_type == "QuantizeLinear";
        let codes = if made { self.output } else { self.input };
        named.or_else(|| model.value(codes).dtype()).or_else(|| types.dtype(codes))
    }

    /// The axis of the scales of codes of a rank.
    pub fn axis_of(&self, rank: usize) -> Option<usize> {
        usize::try_from(if self.axis < 0 { self.axis + rank as i64 } else { self.axis }).ok()
    }

    /// The zero point, or a new constant zero in its place. The type of the codes must be known and the scale be constant.
    pub fn zero_point_or_new(&self, model: &mut Model, types: &Types) -> Result<ValueId> {
        if let Some(given) = self.zero_point {
            return Ok(given);
        }
        let scale = model.value(self.scale);
        let (name, graph) = (format!("{}_zero_point", scale.name()), scale.graph());
        let known = self.codes(model, types).zip(scale.constant());
        let (dtype, scales) = known.ok_or_else(|| Error::bug("codes of a type that is not known are fused"))?;
        let zeros = pack(dtype, scales.dims(), &vec![0; scales.len()])?;
        Ok(model.add_initializer(graph, &name, zeros))
    }
}

/// DynamicQuantizeLinear of a value, its outputs named after that.
pub fn dynamic_quantize(model: &Model, x: ValueId) -> NodeSpec {
    let name = model.value(x).name();
    let parts = ["quantized", "scale", "zero_point"];
    let spec = NodeSpec::new("DynamicQuantizeLinear").input(x);
    parts.iter().fold(spec, |spec, part| spec.output(format!("{name}_{part}")))
}

/// Inserts DynamicQuantizeLinear of a value and, behind it, the DequantizeLinear of that. Returns what this makes.
pub fn dynamic_pair(model: &mut Model, x: ValueId, place: Place) -> Result<ValueId> {
    let name = format!("{}_DequantizeLinear_Output", model.value(x).name());
    let spec = dynamic_quantize(model, x);
    let quantize = model.insert(spec, place);
    let parts = model.node(quantize).outputs().to_vec();
    model.insert_value(NodeSpec::new("DequantizeLinear").inputs(parts).output(name), Place::After(quantize))
}

/// Whether a node only moves elements, so that with codes it makes the codes of what it makes with numbers: not if it also
/// makes indices, or computes what lies between elements.
pub fn moves_codes(model: &Model, id: NodeId) -> bool {
    let node = model.node(id);
    let indices = node.op_type == "MaxPool" && node.output(1).is_some();
    let between = node.op_type == "Resize" && node.string("mode").is_some_and(|mode| mode != "nearest");
    !indices && !between && ops::spec(model, id).is_some_and(|s| s.class == Class::Movement)
}

/// What stays in the form in which it is, in words: one by its name, several by their number and that of the first.
pub fn stay(nodes: &[String], what: &str) -> String {
    match nodes {
        [] => String::new(),
        [one] => format!("{one:?} stays as it is"),
        [first, ..] => format!("{} stay as they are ({first:?} and others)", count(nodes.len(), what)),
    }
}

/// ONNX Runtime has the two in its own domain as well, for types that older operator sets do not have.
fn has_pairs(node: &Node) -> bool {
    node.in_onnx_domain() || node.domain.as_deref() == Some(MICROSOFT)
}

/// Adds the import of a domain of which the model now holds a node, in version 1, unless it is there.
pub fn import(model: &mut Model, domain: &str) {
    if model.opset(domain).is_none() {
        model.set_opset(domain, 1);
    }
}

/// Removes the import of a domain that no node of the model is of.
pub fn forget_import(model: &mut Model, domain: &str) {
    let of = |n: &NodeId| model.node(*n).domain.as_deref() == Some(domain);
    if !model.all_nodes().iter().any(of) {
        model.opset_imports.retain(|(d, _)| d.as_deref() != Some(domain));
    }
}
