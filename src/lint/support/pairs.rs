//! A QuantizeLinear together with every DequantizeLinear that reads its codes: one scale and zero point for all.

use std::collections::HashSet;

use super::biases;
use crate::{
    analysis::types::Types,
    error::Result,
    ir::{AttrValue, DType, Model, NodeId, Tensor, Type, Use, ValueId, types::TypeKind},
    passes::support::pairs::{Linear, moves_codes},
    quant::{
        pack::pack,
        params::{QParams, Range},
    },
};

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The QuantizeLinear.
    pub q: Linear,
    /// The DequantizeLinears.
    pub dq: Vec<Linear>,
    /// Scale, zero point and type of the codes.
    pub params: QParams,
}

impl Pair {
    /// The pair of a QuantizeLinear with one constant scale, if DequantizeLinears with the same numbers are all that reads its
    /// codes.
    pub fn of(model: &Model, types: &Types, q: NodeId) -> Option<Self> {
        let q = Linear::of(model, q, "QuantizeLinear")?;
        let told = model.node(q.node).int("output_dtype").and_then(|t| DType::from_onnx(i32::try_from(t).ok()?));
        let default = || q.zero_point.is_none().then(|| told.unwrap_or(DType::Uint8));
        let dtype = q.codes(model, types).or_else(default).filter(|t| t.is_integer())?;
        let (scale, zero_point) = q.per_tensor(model)?;
        let uses = model.value(q.output).uses();
        let dq: Option<Vec<Linear>> = uses
            .iter()
            .map(|u| match *u {
                Use::Input(d, 0) => Linear::of(model, d, "DequantizeLinear"),
                _ => None,
            })
            .collect();
        let dq =
            dq.filter(|dq| !dq.is_empty() && dq.iter().all(|d| d.per_tensor(model) == Some((scale, zero_point))))?;
        let params = QParams { scale, zero_point: i32::try_from(zero_point).ok()?, dtype };
        params.representable().ok()?;
        Some(Self { q, dq, params })
    }

    /// The same pair as it is now, after other repairs.
    pub fn again(&self, model: &Model) -> Option<Self> {
        model.try_node(self.q.node)?;
        let now = Self::of(model, &Types::default(), self.q.node)?;
        Some(now)
    }

    /// The value that is quantized.
    pub fn value(&self) -> ValueId {
        self.q.input
    }

    /// The nodes of the pair.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        std::iter::once(self.q.node).chain(self.dq.iter().map(|d| d.node))
    }

    /// What reads the dequantized values: nodes with the number of the input.
    pub fn readers(&self, model: &Model) -> Vec<(NodeId, usize)> {
        self.dq.iter().flat_map(|d| model.value(d.output).readers()).collect()
    }

    /// Whether a graph hands the dequantized value out.
    pub fn is_output(&self, model: &Model) -> bool {
        self.dq.iter().any(|d| model.value(d.output).is_graph_output())
    }

    /// The numbers that its codes end at.
    pub fn range(&self) -> Range {
        self.params.representable().unwrap_or(Range::new(f32::NEG_INFINITY, f32::INFINITY))
    }

    /// Whether saturation at the ends of the codes does what a clamp with these bounds does.
    pub fn saturates_at(&self, (lo, hi): (f32, f32)) -> bool {
        let range = self.range();
        lo <= range.lo && hi >= range.hi
    }

    /// Gives all its nodes other parameters; biases of what reads the values are requantized to the new scale.
    pub fn set(&self, model: &mut Model, params: QParams) -> Result<()> {
        let graph = model.node(self.q.node).graph();
        let name = model.value(self.value()).name().to_owned();
        let scale = model.add_initializer(graph, &format!("{name}_scale"), Tensor::from_f32(&[], &[params.scale]));
        let zero = pack(params.dtype, &[], &[params.zero_point])?;
        let zero = model.add_initializer(graph, &format!("{name}_zero_point"), zero);
        for n in self.nodes() {
            model.set_input(n, 1, Some(scale));
            model.set_input(n, 2, Some(zero));
        }
        set_dtype(model, self.q.output, params.dtype);
        if let Some(told) = model.node_mut(self.q.node).attributes.iter_mut().find(|a| a.name == "output_dtype") {
            told.value = AttrValue::Int(i64::from(params.dtype.to_onnx()));
        }
        let readers: HashSet<NodeId> = self.readers(model).into_iter().map(|(n, _)| n).collect();
        let mut readers: Vec<_> = readers.into_iter().collect();
        readers.sort_unstable();
        for n in readers {
            biases::refit(model, n)?;
        }
        Ok(())
    }

    /// As [`Self::set`], also for the pairs behind nodes that only move elements and had the same parameters, and so on.
    pub fn set_through(&self, model: &mut Model, types: &Types, params: QParams) -> Result<()> {
        let mut stack = vec![self.clone()];
        let mut seen = HashSet::new();
        while let Some(pair) = stack.pop() {
            if !seen.insert(pair.q.node) {
                continue;
            }
            for (n, i) in pair.readers(model) {
                if i == 0 && moves_codes(model, n) {
                    let outputs: Vec<ValueId> = model.node(n).outputs().iter().copied().flatten().collect();
                    let behind = outputs.into_iter().filter_map(|v| Linear::only_quantized(model, v));
                    let behind = behind.filter_map(|q| Self::of(model, types, q.node));
                    stack.extend(behind.filter(|p| p.params == self.params));
                }
            }
            pair.set(model, params)?;
        }
        Ok(())
    }

    /// Lets some readers of the dequantized value read another value. Returns whether any did.
    pub fn redirect(&self, model: &mut Model, to: ValueId, which: impl Fn(&Model, NodeId) -> bool) -> bool {
        let mut any = false;
        for d in &self.dq {
            let chosen: Vec<_> = model.value(d.output).readers().filter(|&(n, _)| which(model, n)).collect();
            for (n, i) in chosen {
                model.set_input(n, i, Some(to));
                any = true;
            }
        }
        any
    }
}

/// Corrects the declared type of a value of codes.
pub fn set_dtype(model: &mut Model, v: ValueId, dtype: DType) {
    if let Some(Type { kind: TypeKind::Tensor { dtype: declared, .. }, .. }) = &mut model.value_mut(v).ty {
        *declared = Some(dtype);
    }
}
