//! Quantizers of training: QuantizeLinear, perhaps a Clip of the codes, and DequantizeLinear with the same scale.

use super::{constants::set_constant_input, pairs::Linear};
use crate::{
    analysis::types::Types,
    error::{Error, Result},
    ir::{DType, Model, NodeId, NodeSpec, Place, Tensor, ValueId},
    quant::{Granularity, Grid, QParams, QuantizedWeight, Range, arith::Quantizer, pack, params::type_range},
};

/// A quantizer whose scales and zero points are constants.
#[derive(Debug, Clone)]
pub struct FakeQuantizer {
    /// Its DequantizeLinear.
    pub dequantize: NodeId,
    /// What it rounds.
    pub input: ValueId,
    /// The rounded numbers.
    pub output: ValueId,
    /// The type of the codes.
    pub dtype: DType,
    /// One scale, or one for each index of the axis.
    pub scales: Vec<f32>,
    /// As many zero points.
    pub zero_points: Vec<i32>,
    /// The axis of several scales, perhaps counted from the end.
    pub axis: i64,
    /// The least and greatest code.
    pub bounds: (i32, i32),
}

impl FakeQuantizer {
    /// The quantizer that this DequantizeLinear ends.
    pub fn ending_with(model: &Model, types: &Types, id: NodeId) -> Option<Self> {
        let back = Linear::of(model, id, "DequantizeLinear")?;
        let clip = model.producer(back.input).filter(|&n| model.node(n).is("Clip"));
        let (codes, (low, high)) = match clip {
            Some(clip) => clamp_of_codes(model, clip)?,
            None => (back.input, (i64::MIN, i64::MAX)),
        };
        let there = Linear::of(model, model.producer(codes)?, "QuantizeLinear")?;
        let (scales, zero_points) = (there.scales(model)?, zero_points(model, &there)?);
        let alike = back.scales(model)? == scales && self::zero_points(model, &back)? == zero_points;
        let several = scales.len() > 1;
        if !alike || several && there.axis != back.axis {
            return None;
        }
        let dtype = there.codes(model, types)?;
        let (least, most) = type_range(dtype).ok()?;
        let within = |code: i64| code.clamp(least.into(), most.into()) as i32;
        let bounds = (within(low), within(high));
        let fits = bounds.0 <= bounds.1 && zero_points.len() == scales.len();
        fits.then_some(Self {
            dequantize: id,
            input: there.input,
            output: back.output,
            dtype,
            scales,
            zero_points,
            axis: there.axis,
            bounds,
        })
    }

    /// What it lets through; with several scales, codes of uint8 that hold all of it.
    pub fn grid(&self) -> Result<Grid> {
        self.grid_of(DType::Uint8)
    }

    /// What it lets through; with several scales, codes of this type that hold all of it.
    pub fn grid_of(&self, dtype: DType) -> Result<Grid> {
        let of = |(&scale, &zero_point): (&f32, &i32)| {
            let params = QParams { scale, zero_point, dtype: self.dtype };
            Grid::between(params, self.bounds.0, self.bounds.1)
        };
        let each = self.scales.iter().zip(&self.zero_points).map(of).collect::<Result<Vec<Grid>>>()?;
        match &each[..] {
            [one] => Ok(*one),
            _ => {
                let all = each.iter().map(Grid::range).reduce(Range::union).unwrap_or(Range::new(0.0, 0.0));
                Grid::of(QParams::from_range(all, dtype, false, false)?)
            }
        }
    }

    /// The codes of constant numbers.
    ///
    /// Errors: there are several scales, but not one for each index of the axis.
    pub fn codes(&self, tensor: &Tensor) -> Result<QuantizedWeight> {
        let axis = axis_of(self.scales.len(), self.axis, tensor.rank());
        let (inner, params) = params(tensor.dims(), axis, self.dtype, (&self.scales, &self.zero_points))?;
        let of: Vec<Quantizer> = params.iter().map(|p| Quantizer::within(*p, self.bounds)).collect();
        let numbers = tensor.to_f32()?;
        let codes: Vec<i32> = numbers.iter().enumerate().map(|(i, &x)| of[i / inner % of.len()].code(x)).collect();
        let dims = Granularity::from_axis(axis).scale_dims(params.len());
        Ok(QuantizedWeight {
            values: pack::pack(self.dtype, tensor.dims(), &codes)?,
            scale: Tensor::from_f32(&dims, &self.scales),
            zero_point: pack::pack(self.dtype, &dims, &self.zero_points)?,
            axis,
            params,
        })
    }
}

/// The constant codes that a DequantizeLinear without blocks reads, where scales and zero points are constants, too.
///
/// Errors: there are several scales, but not one for each index of the axis.
pub fn stored(model: &Model, linear: &Linear) -> Result<Option<QuantizedWeight>> {
    let constant = |v: ValueId| model.value(v).constant().filter(|t| !t.is_deferred()).cloned();
    let (Some(values), Some(scale)) = (constant(linear.input), constant(linear.scale)) else { return Ok(None) };
    let (Some(scales), Some(zeros)) = (linear.scales(model), zero_points(model, linear)) else { return Ok(None) };
    let zero_point = match linear.zero_point {
        Some(z) => constant(z),
        None => Some(pack::pack(values.dtype(), scale.dims(), &zeros)?),
    };
    let Some(zero_point) = zero_point else { return Ok(None) };
    let axis = axis_of(scales.len(), linear.axis, values.rank());
    let (_, params) = params(values.dims(), axis, values.dtype(), (&scales, &zeros))?;
    Ok(Some(QuantizedWeight { values, scale, zero_point, axis, params }))
}

/// The axis of so many scales; of one there is none.
fn axis_of(scales: usize, axis: i64, rank: usize) -> Option<usize> {
    let at = if axis < 0 { axis + rank as i64 } else { axis };
    (scales > 1).then(|| usize::try_from(at).unwrap_or(usize::MAX))
}

/// The parameters of each channel, and how many elements lie behind each index of the axis.
fn params(
    dims: &[usize],
    axis: Option<usize>,
    dtype: DType,
    (scales, zero_points): (&[f32], &[i32]),
) -> Result<(usize, Vec<QParams>)> {
    let (channels, inner) = Granularity::from_axis(axis).layout(dims)?;
    if channels != scales.len() || zero_points.len() != scales.len() {
        return Err(Error::malformed(format!(
            "a quantizer of a tensor of shape {dims:?} has {} scales and {} zero points",
            scales.len(),
            zero_points.len()
        )));
    }
    let each = scales.iter().zip(zero_points);
    Ok((inner, each.map(|(&scale, &zero_point)| QParams { scale, zero_point, dtype }).collect()))
}

/// A node that clamps codes between constants: what it clamps, and to what.
pub fn clamp_of_codes(model: &Model, id: NodeId) -> Option<(ValueId, (i64, i64))> {
    let node = model.node(id);
    if !node.in_onnx_domain() {
        return None;
    }
    let x = node.input(0)?;
    let scalar = |i: usize| model.constant_input(id, i).and_then(Tensor::scalar_i64);
    let bound = |i: usize, none: i64| match node.input(i) {
        None => Some(none),
        Some(_) => scalar(i),
    };
    match node.op_type.as_str() {
        "Relu" => Some((x, (0, i64::MAX))),
        "Clip" => Some((x, (bound(1, i64::MIN)?, bound(2, i64::MAX)?))),
        "Max" | "Min" if node.inputs().len() == 2 => {
            let (x, c) = match (scalar(0), scalar(1)) {
                (None, Some(c)) => (x, c),
                (Some(c), None) => (node.input(1)?, c),
                _ => return None,
            };
            Some((x, if node.op_type == "Max" { (c, i64::MAX) } else { (i64::MIN, c) }))
        }
        _ => None,
    }
}

/// The zero points, zeros where there are none: as many as there are scales.
pub fn zero_points(model: &Model, linear: &Linear) -> Option<Vec<i32>> {
    match linear.zero_point {
        None => Some(vec![0; linear.scales(model)?.len()]),
        Some(z) => pack::unpack(model.value(z).constant()?).ok(),
    }
}

/// What a quantizer is to be written of.
#[derive(Debug, Clone)]
pub struct Written<'a> {
    /// What it rounds.
    pub input: ValueId,
    /// The type of the codes.
    pub dtype: DType,
    /// One scale, or one for each index of the axis.
    pub scales: &'a [f32],
    /// As many zero points.
    pub zero_points: &'a [i32],
    /// The axis of several scales.
    pub axis: usize,
    /// The least and greatest code.
    pub bounds: (i32, i32),
}

impl Written<'_> {
    /// Puts QuantizeLinear, Clip where the type has more codes, and DequantizeLinear in the place of a node with one output; with
    /// `codes`, DequantizeLinear of these alone.
    pub fn instead_of(&self, model: &mut Model, id: NodeId, codes: Option<Tensor>) -> Result<()> {
        let (graph, output) = (model.node(id).graph(), model.take_outputs(id));
        let output = output.first().copied().flatten();
        let name = output.map_or("quantizer", |v| model.value(v).name()).to_owned();
        let several = self.scales.len() > 1;
        let dims = if several { vec![self.scales.len()] } else { vec![] };
        let scale = Tensor::from_f32(&dims, self.scales);
        let scale = model.add_initializer(graph, &format!("{name}_scale"), scale);
        let zero = pack::pack(self.dtype, &dims, self.zero_points)?;
        let zero = model.add_initializer(graph, &format!("{name}_zero_point"), zero);
        let node = |op: &str, x: ValueId| {
            let spec = NodeSpec::new(op).inputs([Some(x), Some(scale), Some(zero)]);
            if several { spec.attr("axis", self.axis as i64) } else { spec }
        };
        let codes = match codes {
            Some(codes) => model.add_initializer(graph, &format!("{name}_quantized"), codes),
            None => {
                let there = node("QuantizeLinear", self.input).output(format!("{name}_QuantizeLinear_Output"));
                let codes = model.insert_value(there, Place::Before(id))?;
                match self.bounds == type_range(self.dtype)? {
                    true => codes,
                    false => self.clip(model, id, codes, &name)?,
                }
            }
        };
        model.insert(node("DequantizeLinear", codes).output_value(output), Place::Before(id));
        model.remove_node(id);
        Ok(())
    }

    fn clip(&self, model: &mut Model, before: NodeId, codes: ValueId, name: &str) -> Result<ValueId> {
        let spec = NodeSpec::new("Clip").inputs([Some(codes), None, None]).output(format!("{name}_Clip_Output"));
        let clip = model.insert(spec, Place::Before(before));
        for (i, bound, end) in [(1, self.bounds.0, "least"), (2, self.bounds.1, "greatest")] {
            set_constant_input(model, clip, i, pack::pack(self.dtype, &[], &[bound])?, &format!("{name}_{end}"));
        }
        model.node(clip).output(0).ok_or_else(|| Error::bug("the new node has no output"))
    }
}

/// The axis of scales in a tensor of a rank: they are broadcast from the last axis on. 0 for one scale; `None` where they
/// lie along several axes.
pub fn broadcast_axis(scale: &Tensor, rank: Option<usize>) -> Option<usize> {
    if scale.len() == 1 {
        return Some(0);
    }
    let rank = rank.filter(|&r| scale.rank() <= r)?;
    let mut long = (0..scale.rank()).filter(|&i| scale.dims()[i] > 1);
    let (Some(axis), None) = (long.next(), long.next()) else { return None };
    Some(rank - scale.rank() + axis)
}

/// Zero points of so many scales from numbers that are whole, one for each or one for all.
pub fn spread_zero_points(zeros: &[f32], scales: usize) -> Option<Vec<i32>> {
    match zeros {
        &[one] => Some(vec![one as i32; scales]),
        several => (several.len() == scales).then(|| several.iter().map(|&z| z as i32).collect()),
    }
}
