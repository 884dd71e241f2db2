//! Constant codes with a DequantizeLinear behind them.

use super::{super::Context, biases};
use crate::{
    error::{Error, Result},
    ir::{DType, Model, NodeId, Tensor},
    ops::{self, Role},
    passes::support::{constants::set_constant_input, pairs::Linear, quantizer::stored},
    quant::{
        QuantizedWeight,
        error::sqnr_db,
        granularity::Granularity,
        pack::{pack, unpack},
    },
};

/// A weight in codes.
#[derive(Debug, Clone)]
pub struct Weight {
    /// Its DequantizeLinear.
    pub dq: Linear,
    /// Codes, scales and zero points.
    pub codes: QuantizedWeight,
}

impl Weight {
    /// The constant codes that a DequantizeLinear without blocks reads, of a type of up to 16 bits.
    pub fn of(model: &Model, dq: NodeId) -> Option<Self> {
        let dq = Linear::of(model, dq, "DequantizeLinear")?;
        let codes = stored(model, &dq).ok()??;
        (!codes.values.is_empty() && codes.values.dtype().bits() <= 16).then_some(Self { dq, codes })
    }

    /// The weight of a node, with the number of its input.
    pub fn at(cx: &Context<'_>, n: NodeId) -> Option<(usize, Self)> {
        let i = ops::spec(cx.model, n)?.index_of(Role::Weight)?;
        let made = cx.model.producer(cx.model.node(n).input(i)?)?;
        Some((i, Self::of(cx.model, made)?))
    }

    /// The type of its codes.
    pub fn dtype(&self) -> DType {
        self.codes.values.dtype()
    }

    /// Its codes as a tensor of its shape, and how far other codes are from it, in decibel.
    pub fn distance(&self, other: &QuantizedWeight) -> Result<f64> {
        let (a, b) = (self.codes.dequantized()?, other.dequantized()?);
        let signal = a.iter().map(|&a| f64::from(a).powi(2)).sum();
        let noise = a.iter().zip(&b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
        Ok(sqnr_db(signal, noise))
    }
}

/// Gives a DequantizeLinear other codes, scales and zero points. Others that read its constants keep theirs.
pub fn set(model: &mut Model, dq: NodeId, to: &QuantizedWeight) -> Result<()> {
    let name = model.node(dq).input(0).map(|v| model.value(v).name().to_owned());
    let name = name.ok_or_else(|| Error::bug("a DequantizeLinear has no input"))?;
    let all = [
        (&to.values, name.clone()),
        (&to.scale, format!("{name}_scale")),
        (&to.zero_point, format!("{name}_zero_point")),
    ];
    for (i, (tensor, name)) in all.into_iter().enumerate() {
        if !model.constant_input(dq, i).is_some_and(|old| old.same_content(tensor)) {
            set_constant_input(model, dq, i, tensor.clone(), &name);
        }
    }
    let attributes = &mut model.node_mut(dq).attributes;
    attributes.retain(|a| a.name != "axis");
    if let Some(axis) = to.axis {
        attributes.push(crate::ir::Attr::new("axis", axis as i64));
    }
    Ok(())
}

/// A repair that gives the weight of a node other codes, scales and zero points, and refits the node's bias.
pub fn exchange(n: NodeId, dq: NodeId, to: QuantizedWeight) -> impl Fn(&mut Model) -> Result<bool> {
    move |model| {
        if model.try_node(dq).is_none() || model.try_node(n).is_none() {
            return Ok(false);
        }
        set(model, dq, &to)?;
        biases::refit(model, n)?;
        Ok(true)
    }
}

/// int8 codes as the uint8 codes of the same numbers.
pub fn as_uint8(weight: &QuantizedWeight) -> Result<QuantizedWeight> {
    let shifted = |t: &Tensor| -> Result<Tensor> {
        let codes: Vec<i32> = unpack(t)?.into_iter().map(|c| c + 128).collect();
        pack(DType::Uint8, t.dims(), &codes)
    };
    Ok(QuantizedWeight {
        values: shifted(&weight.values)?,
        zero_point: shifted(&weight.zero_point)?,
        scale: weight.scale.clone(),
        axis: weight.axis,
        params: weight.params.iter().map(|p| p.as_uint8()).collect(),
    })
}

/// The channel of each run of elements: how many channels there are, and how many elements each run has.
pub fn channels(weight: &QuantizedWeight, axis: Option<usize>) -> Result<(usize, usize)> {
    Granularity::from_axis(axis).layout(weight.values.dims())
}
