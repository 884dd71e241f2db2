//! Quantizers of training: QuantizeLinear, perhaps a Clip of the codes, and DequantizeLinear with the same scale.

use super::{constants::set_constant_input, pairs::Linear};
use crate::{
    analysis::types::Types,
    error::{Error, Result},
    ir::{DType, Model, NodeId, NodeSpec, Place, Tensor, ValueId},
    quant::{
        Granularity, Grid, QParams, Range,
        arith::{Quantizer, dequantize_one},
        pack,
        params::type_range,
    },
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
        let mut codes = back.input;
        let mut bounds = None;
        if let Some(clip) = model.producer(codes).filter(|&n| model.node(n).is("Clip")) {
            let bound = |i: usize| match model.node(clip).input(i) {
                None => Some(None),
                Some(v) => model.value(v).constant().and_then(Tensor::scalar_i64).map(Some),
            };
            bounds = Some((bound(1)?, bound(2)?));
            codes = model.node(clip).input(0)?;
        }
        let there = Linear::of(model, model.producer(codes)?, "QuantizeLinear")?;
        let (scales, zero_points) = (there.scales(model)?, zero_points(model, &there)?);
        let alike = back.scales(model)? == scales && self::zero_points(model, &back)? == zero_points;
        let several = scales.len() > 1;
        if !alike || several && there.axis != back.axis {
            return None;
        }
        let dtype = there.codes(model, types)?;
        let (least, most) = type_range(dtype).ok()?;
        let (low, high) = bounds.unwrap_or((None, None));
        let within = |b: Option<i64>, default: i32| b.map_or(default, |b| b.clamp(least.into(), most.into()) as i32);
        let bounds = (within(low, least), within(high, most));
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
        let of = |(&scale, &zero_point): (&f32, &i32)| {
            let params = QParams { scale, zero_point, dtype: self.dtype };
            Grid::between(params, self.bounds.0, self.bounds.1)
        };
        let each = self.scales.iter().zip(&self.zero_points).map(of).collect::<Result<Vec<Grid>>>()?;
        match &each[..] {
            [one] => Ok(*one),
            _ => {
                let all = each.iter().map(Grid::range).reduce(Range::union).unwrap_or(Range::new(0.0, 0.0));
                Grid::of(QParams::from_range(all, DType::Uint8, false, false)?)
            }
        }
    }

    /// The codes of constant numbers.
    pub fn codes(&self, tensor: &Tensor) -> Result<Codes> {
        let numbers = tensor.to_f32()?;
        let linear = (self.dtype, &self.scales[..], &self.zero_points[..]);
        let mut codes = Codes::with(vec![0; numbers.len()], tensor.dims(), linear, self.axis)?;
        let of: Vec<Quantizer> = codes.params().map(|p| Quantizer::within(p, self.bounds)).collect();
        let inner = codes.inner;
        for (i, (code, x)) in codes.codes.iter_mut().zip(numbers).enumerate() {
            *code = of[i / inner % of.len()].code(x);
        }
        Ok(codes)
    }
}

/// Codes of a constant with their scales.
#[derive(Debug, Clone)]
pub struct Codes {
    /// In the order of the elements.
    pub codes: Vec<i32>,
    /// The type of the codes.
    pub dtype: DType,
    /// One, or one for each index of the axis.
    pub scales: Vec<f32>,
    /// As many.
    pub zero_points: Vec<i32>,
    /// The axis of several scales.
    pub axis: Option<usize>,
    inner: usize,
}

impl Codes {
    /// Codes of a tensor of this shape.
    ///
    /// Errors: there are several scales, but not one for each index of the axis.
    pub fn with(
        codes: Vec<i32>,
        dims: &[usize],
        (dtype, scales, zero_points): (DType, &[f32], &[i32]),
        axis: i64,
    ) -> Result<Self> {
        let at = if axis < 0 { axis + dims.len() as i64 } else { axis };
        let axis = (scales.len() > 1).then_some(usize::try_from(at).unwrap_or(usize::MAX));
        let granularity = Granularity::from_axis(axis);
        let (channels, inner) = granularity.layout(dims)?;
        if channels != scales.len() || zero_points.len() != scales.len() {
            return Err(Error::malformed(format!(
                "a quantizer of a tensor of shape {dims:?} has {} scales and {} zero points",
                scales.len(),
                zero_points.len()
            )));
        }
        Ok(Self { codes, dtype, scales: scales.to_vec(), zero_points: zero_points.to_vec(), axis, inner })
    }

    fn params(&self) -> impl Iterator<Item = QParams> + '_ {
        let each = self.scales.iter().zip(&self.zero_points);
        each.map(|(&scale, &zero_point)| QParams { scale, zero_point, dtype: self.dtype })
    }

    /// Codes less their zero points.
    pub fn steps(&self) -> Vec<i32> {
        let n = self.zero_points.len();
        self.codes.iter().enumerate().map(|(i, c)| c - self.zero_points[i / self.inner % n]).collect()
    }

    /// The numbers that the codes stand for.
    pub fn numbers(&self) -> Vec<f32> {
        let params: Vec<QParams> = self.params().collect();
        let each = self.codes.iter().enumerate();
        each.map(|(i, &c)| dequantize_one(c, params[i / self.inner % params.len()])).collect()
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
