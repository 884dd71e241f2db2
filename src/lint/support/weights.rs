//! Constant codes with a DequantizeLinear behind them.

use super::super::Context;
use crate::{
    error::{Error, Result},
    ir::{DType, Model, NodeId, Tensor},
    ops::{self, Role},
    passes::support::{constants::set_constant_input, pairs::Linear},
    quant::{
        QuantizedWeight,
        error::sqnr_db,
        granularity::Granularity,
        pack::{pack, unpack},
        params::QParams,
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
        let values = model.value(dq.input).constant().filter(|t| !t.is_deferred() && !t.is_empty())?.clone();
        let scale = model.value(dq.scale).constant()?.clone();
        let scales = dq.scales(model)?;
        let axis = match scales.len() {
            1 => None,
            _ => Some(dq.axis_of(values.rank())?),
        };
        let fits = axis.is_none_or(|a| values.dims().get(a) == Some(&scales.len()));
        let zero_point = match dq.zero_point {
            Some(z) => model.value(z).constant()?.clone(),
            None => pack(values.dtype(), scale.dims(), &vec![0; scales.len()]).ok()?,
        };
        let zeros = unpack(&zero_point).ok()?;
        if !fits || zeros.len() != scales.len() || values.dtype().bits() > 16 {
            return None;
        }
        let dtype = values.dtype();
        let params =
            scales.iter().zip(zeros).map(|(&scale, zero_point)| QParams { scale, zero_point, dtype }).collect();
        Some(Self { dq, codes: QuantizedWeight { values, scale, zero_point, axis, params } })
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
