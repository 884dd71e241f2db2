//! Biases in int32: kernels take their scale to be that of the data times that of the weight, whatever the file says.

use super::weights::{self, Weight};
use crate::{
    error::Result,
    ir::{DType, Model, NodeId, NodeSpec, Place, Tensor},
    ops::{self, Role},
    passes::support::{constants::set_constant_input, pairs::Linear},
    quant::{
        QParams, QuantTarget,
        bias::weight_scales_for_bias,
        granularity::{Granularity, quantize_with},
        pack::{pack, unpack},
    },
};

/// A bias beside the scales that it should follow.
#[derive(Debug, Clone)]
pub struct Bias {
    /// Its DequantizeLinear.
    pub dq: Linear,
    /// Its number among the inputs of its reader.
    pub input: usize,
    /// The scale of the data times those of the weight.
    pub wanted: Vec<f32>,
    codes: Vec<i32>,
    scales: Vec<f32>,
    zeros: Vec<i32>,
}

impl Bias {
    /// The bias of a node whose data, weight and bias are dequantized with constant scales.
    pub fn of(model: &Model, n: NodeId) -> Option<Self> {
        let (node, spec) = (model.node(n), ops::spec(model, n)?);
        let input = spec.index_of(Role::Bias)?;
        let dq = Linear::dequantized(model, node.input(input)?)?;
        let codes = model.value(dq.input).constant().filter(|t| t.dtype() == DType::Int32 && !t.is_deferred())?;
        let (x, _) = Linear::dequantized(model, node.input(0)?)?.per_tensor(model)?;
        let weight = Linear::dequantized(model, node.input(spec.index_of(Role::Weight)?)?)?;
        let wanted: Vec<f32> = weight.scales(model)?.iter().map(|w| x * w).collect();
        let codes = unpack(codes).ok()?;
        let scales = dq.scales(model)?;
        let zeros = match dq.zero_point {
            None => vec![0],
            Some(z) => unpack(model.value(z).constant()?).ok()?,
        };
        let per = |n: usize| n == 1 || n == codes.len();
        (per(wanted.len()) && per(scales.len()) && per(zeros.len())).then_some(Self {
            dq,
            input,
            wanted,
            codes,
            scales,
            zeros,
        })
    }

    fn scale(&self, i: usize) -> f32 {
        self.scales[i % self.scales.len()]
    }

    fn zero(&self, i: usize) -> i32 {
        self.zeros[i % self.zeros.len()]
    }

    /// The greatest share by which a scale is off, and whether a zero point is not 0.
    pub fn off(&self) -> (f32, bool) {
        let off = |i: usize| (self.scale(i) / self.wanted[i % self.wanted.len()] - 1.0).abs();
        ((0..self.codes.len()).map(off).fold(0.0, f32::max), self.zeros.iter().any(|&z| z != 0))
    }

    /// The number that a code stands for.
    fn real(&self, i: usize) -> f64 {
        f64::from(self.scale(i)) * (f64::from(self.codes[i]) - f64::from(self.zero(i)))
    }

    /// The codes under the scales that they should have; `None` where one does not fit 32 bits.
    pub fn refitted(&self) -> Option<Vec<i32>> {
        let code = |(i, _): (usize, &i32)| {
            let real = self.real(i);
            let code = (real / f64::from(self.wanted[i % self.wanted.len()])).round_ties_even();
            (code.abs() <= f64::from(i32::MAX)).then_some(code as i32)
        };
        self.codes.iter().enumerate().map(code).collect()
    }
}

/// How far the scale of a bias may be off: tools compute the product in other ways, and round.
pub const SAME: f32 = 1e-5;

/// Gives a node's bias the scale that it should have. Returns whether it had another one and could have it.
pub fn refit(model: &mut Model, n: NodeId) -> Result<bool> {
    let Some(bias) = Bias::of(model, n) else { return Ok(false) };
    let (off, shifted) = bias.off();
    if off <= SAME && !shifted {
        return Ok(false);
    }
    let Some(codes) = bias.refitted() else {
        // With greater scales of the weight it fits; beside such a bias the weight hardly counts.
        return Ok(raise_weight(model, n, &bias)? && refit(model, n)?);
    };
    let mut dq = bias.dq;
    if model.value(dq.output).uses().len() > 1 {
        // Others read it beside other scales.
        let name = format!("{}_DequantizeLinear_Output", model.value(dq.input).name());
        let mut spec = NodeSpec::new("DequantizeLinear").attrs(model.node(dq.node).attributes.clone()).output(name);
        if let Some(domain) = model.node(dq.node).domain.clone() {
            spec = spec.domain(domain);
        }
        spec = spec.inputs(model.node(dq.node).inputs().to_vec());
        let own = model.insert_value(spec, Place::After(dq.node))?;
        model.set_input(n, bias.input, Some(own));
        let Some(linear) = Linear::dequantized(model, own) else { return Ok(false) };
        dq = linear;
    }
    let name = model.value(dq.input).name().to_owned();
    let dims = model.value(dq.input).constant().map_or_else(|| vec![codes.len()], |t| t.dims().to_vec());
    let scale_dims: Vec<usize> = if bias.wanted.len() == 1 { vec![] } else { vec![bias.wanted.len()] };
    set_constant_input(model, dq.node, 0, pack(DType::Int32, &dims, &codes)?, &name);
    set_constant_input(model, dq.node, 1, Tensor::from_f32(&scale_dims, &bias.wanted), &format!("{name}_scale"));
    if dq.zero_point.is_some() {
        let zeros = Tensor::from_i32(&scale_dims, &vec![0; bias.wanted.len()]);
        set_constant_input(model, dq.node, 2, zeros, &format!("{name}_zero_point"));
    }
    if bias.wanted.len() > 1 {
        let attributes = &mut model.node_mut(dq.node).attributes;
        attributes.retain(|a| a.name != "axis");
        attributes.push(crate::ir::Attr::new("axis", 0));
    }
    Ok(true)
}

/// Raises the scales of a node's weight so far that its bias fits 32 bits. Returns whether that could be done.
fn raise_weight(model: &mut Model, n: NodeId, bias: &Bias) -> Result<bool> {
    let input = |role| ops::spec(model, n).and_then(|s| s.index_of(role)).and_then(|i| model.node(n).input(i));
    let made = |v| Linear::dequantized(model, v);
    let (Some(x), Some(w)) = (input(Role::Data).and_then(made), input(Role::Weight).and_then(made)) else {
        return Ok(false);
    };
    let alone = model.value(w.output).uses().len() == 1;
    let Some((s_x, _)) = x.per_tensor(model) else { return Ok(false) };
    let Some(weight) = Weight::of(model, w.node).filter(|_| alone) else { return Ok(false) };
    let real: Vec<f32> = (0..bias.codes.len()).map(|i| bias.real(i) as f32).collect();
    let scales = weight.codes.scales();
    if !(scales.len() == 1 || scales.len() == real.len()) {
        return Ok(false);
    }
    let (raised, count) = weight_scales_for_bias(&real, s_x, &scales);
    if count == 0 {
        return Ok(false);
    }
    let target = QuantTarget { dtype: weight.dtype(), symmetric: true, reduce_range: false };
    let params = weight.codes.params.iter().zip(raised).map(|(p, scale)| QParams { scale, ..*p }).collect();
    let granularity = Granularity::from_axis(weight.codes.axis);
    let anew = quantize_with(&weight.codes.dequantized()?, weight.codes.values.dims(), granularity, target, params)?;
    weights::set(model, w.node, &anew)?;
    Ok(true)
}
