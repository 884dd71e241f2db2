//! Layers of the form `y = x·W + b` with constant `float` weights, seen alike: Conv, ConvTranspose, Gemm, MatMul
//! (with the Add behind it, if that is its bias).

use super::{
    constants::{Growth, set_constant_input},
    walk,
};
use crate::{
    analysis::types::Types,
    error::Result,
    ir::{DType, Model, NodeId, NodeSpec, Place, Tensor, ValueId},
};

/// How the weight is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `[M, C/group, k…]`
    Conv,
    /// `[C, M/group, k…]`
    ConvTranspose,
    /// `[K, N]`, or `[N, K]` if `trans_b`.
    Gemm {
        /// The attribute `transB`.
        trans_b: bool,
    },
    /// `[…, K, N]`
    MatMul,
}

/// Where the bias is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bias {
    None,
    /// Input 2, a constant.
    Input,
    /// An Add behind a MatMul; its constant is input `.1`.
    Add(NodeId, usize),
}

/// A linear layer.
#[derive(Debug, Clone)]
pub struct Linear {
    /// The Conv, ConvTranspose, Gemm or MatMul.
    pub node: NodeId,
    /// Its operator and layout.
    pub kind: Kind,
    /// Channels of its output.
    pub outs: usize,
    /// Channels of its input.
    pub ins: usize,
    /// The layer's result: the output of the node, or of the Add that is its bias.
    pub output: ValueId,
    group: usize,
    bias: Bias,
}

impl Linear {
    /// The layer of this node, if its weights and its bias (if any) are `float` constants and it scales neither.
    pub fn of(model: &Model, types: &Types, node: NodeId) -> Option<Self> {
        let n = model.node(node);
        if !n.in_onnx_domain() {
            return None;
        }
        let w = model.constant_input(node, 1).filter(|t| t.dtype() == DType::Float && !t.is_empty())?;
        let (dims, rank) = (w.dims(), w.rank());
        let group = match n.op_type.as_str() {
            "Conv" | "ConvTranspose" => n.int("group").map_or(Some(1), |g| usize::try_from(g).ok())?,
            _ => 1,
        };
        let (kind, ins, outs) = match n.op_type.as_str() {
            "Conv" if rank >= 3 => (Kind::Conv, dims[1].checked_mul(group)?, dims[0]),
            "ConvTranspose" if rank >= 3 => (Kind::ConvTranspose, dims[0], dims[1].checked_mul(group)?),
            "Gemm" if rank == 2 => match n.int("transB").unwrap_or(0) {
                0 => (Kind::Gemm { trans_b: false }, dims[0], dims[1]),
                _ => (Kind::Gemm { trans_b: true }, dims[1], dims[0]),
            },
            "MatMul" if rank >= 2 => (Kind::MatMul, dims[rank - 2], dims[rank - 1]),
            _ => return None,
        };
        if group == 0 || ins % group != 0 || outs % group != 0 {
            return None;
        }
        let mut layer = Self { node, kind, outs, ins, output: n.output(0)?, group, bias: Bias::None };
        match kind {
            Kind::MatMul => layer.find_bias_add(model, types),
            _ if n.input(2).is_some() => {
                let one = |name| n.float(name).is_none_or(|v| v == 1.0);
                let fits = one("beta") && layer.bias_fits(model.constant_input(node, 2)?);
                layer.bias = fits.then_some(Bias::Input)?;
            }
            _ => {}
        }
        n.float("alpha").is_none_or(|v| v == 1.0).then_some(layer)
    }

    /// The layer whose result is this value.
    pub fn ending_at(model: &Model, types: &Types, value: ValueId) -> Option<Self> {
        let node = model.producer(value)?;
        let n = model.node(node);
        let mut before = n.inputs().iter().filter_map(|v| model.producer((*v)?));
        let node = if n.is("Add") { before.find(|&p| model.node(p).is("MatMul"))? } else { node };
        Self::of(model, types, node).filter(|l| l.output == value)
    }

    fn find_bias_add(&mut self, model: &Model, types: &Types) {
        let Some((add, i)) = model.sole_reader(self.output) else { return };
        let n = model.node(add);
        let Some(out) = n.output(0).filter(|_| n.is("Add") && n.inputs().len() == 2 && i < 2) else { return };
        let Some(c) = model.constant_input(add, 1 - i) else { return };
        if c.dtype() == DType::Float && self.per_channel_dims(model, types, c.dims()) {
            self.bias = Bias::Add(add, 1 - i);
            self.output = out;
        }
    }

    fn bias_fits(&self, c: &Tensor) -> bool {
        let (last, lead) = c.dims().split_last().map_or((1, &[][..]), |(l, r)| (*l, r));
        let rank_fits = matches!(self.kind, Kind::Gemm { .. }) || (c.rank() == 1 && last == self.outs);
        c.dtype() == DType::Float && rank_fits && (last == self.outs || last == 1) && lead.iter().all(|&d| d == 1)
    }

    /// The rank that the layer's output has at least.
    fn least_rank(&self, model: &Model, types: &Types) -> usize {
        let known = walk::rank(model, types, self.output).unwrap_or(0);
        let weight = model.constant_input(self.node, 1).map_or(0, Tensor::rank);
        known.max(match self.kind {
            // A vector times a matrix is a vector.
            Kind::MatMul => weight - 1,
            _ => weight,
        })
    }

    /// Whether a tensor of these dims, broadcast with the layer's output, has one number for all or one per output
    /// channel, and leaves the output's shape as it is.
    pub fn per_channel_dims(&self, model: &Model, types: &Types, dims: &[usize]) -> bool {
        let weight_rank = model.constant_input(self.node, 1).map_or(0, Tensor::rank);
        if dims.len() > self.least_rank(model, types) {
            return false;
        }
        // Axis of the channels, counted from the last.
        let back = match self.kind {
            Kind::Conv | Kind::ConvTranspose => weight_rank - 2,
            _ => 0,
        };
        dims.iter().rev().enumerate().all(|(i, &d)| d == 1 || (i == back && d == self.outs))
    }

    /// A constant as one number per output channel; see [`Self::per_channel_dims`].
    pub fn per_channel(&self, model: &Model, types: &Types, constant: &Tensor) -> Result<Option<Vec<f64>>> {
        if constant.dtype() != DType::Float || !self.per_channel_dims(model, types, constant.dims()) {
            return Ok(None);
        }
        let v: Vec<f64> = constant.to_f32()?.into_iter().map(f64::from).collect();
        Ok(Some(if v.len() == 1 { vec![v[0]; self.outs] } else { v }))
    }

    /// Output and input channel of the weight's element at a flat index.
    fn channels(&self, dims: &[usize]) -> impl Fn(usize) -> (usize, usize) + use<> {
        let (kind, group, outs, ins) = (self.kind, self.group, self.outs, self.ins);
        let taps: usize = dims.iter().skip(2).product();
        move |i| match kind {
            Kind::Conv => {
                let (o, c) = (i / (taps * (ins / group)), i / taps % (ins / group));
                (o, o / (outs / group) * (ins / group) + c)
            }
            Kind::ConvTranspose => {
                let (c, o) = (i / (taps * (outs / group)), i / taps % (outs / group));
                (c / (ins / group) * (outs / group) + o, c)
            }
            Kind::Gemm { trans_b: true } => (i / ins, i % ins),
            Kind::Gemm { trans_b: false } | Kind::MatMul => (i % outs, i / outs % ins),
        }
    }

    /// Whether there is a bias, or room for one in the node itself.
    pub fn takes_bias(&self) -> bool {
        self.bias != Bias::None || self.kind != Kind::MatMul
    }

    /// What the layer makes of an input with these `means` (one for each of its channels), on average, with other numbers in
    /// the weight's place and no bias; nothing for ConvTranspose. `seen` is the share of output positions in which a tap of the kernel meets the input and not
    /// its padding; empty means all.
    pub fn mean_of(&self, weight: &[f32], means: &[f32], seen: &[f64]) -> Vec<f64> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        match self.kind {
            Kind::Gemm { trans_b: true } => weight.chunks_exact(self.ins.max(1)).map(|row| dot(row, means)).collect(),
            Kind::Gemm { trans_b: false } | Kind::MatMul => {
                let mut sums = vec![0.0; self.outs];
                for (row, &mean) in weight.chunks_exact(self.outs).zip(means) {
                    sums.iter_mut().zip(row).for_each(|(s, &w)| *s += f64::from(w) * f64::from(mean));
                }
                sums
            }
            Kind::Conv => {
                let inputs = self.ins / self.group;
                let taps = weight.len() / (self.outs * inputs).max(1);
                let output = |(o, filter): (usize, &[f32])| {
                    let first = o / (self.outs / self.group) * inputs;
                    let channels = filter.chunks_exact(taps.max(1)).zip(&means[first..]);
                    let sum = |window: &[f32]| match seen {
                        [] => window.iter().map(|&w| f64::from(w)).sum::<f64>(),
                        shares => window.iter().zip(shares).map(|(&w, &s)| f64::from(w) * s).sum(),
                    };
                    channels.map(|(window, &mean)| sum(window) * f64::from(mean)).sum()
                };
                weight.chunks_exact((inputs * taps).max(1)).enumerate().map(output).collect()
            }
            // Outputs overlap there: each sees its own share of the kernel.
            Kind::ConvTranspose => vec![0.0; self.outs],
        }
    }

    /// The bias as one number per output channel; zeros where there is none.
    pub fn bias(&self, model: &Model) -> Result<Vec<f64>> {
        let constant = match self.bias {
            Bias::None => None,
            Bias::Input => model.constant_input(self.node, 2),
            Bias::Add(add, i) => model.constant_input(add, i),
        };
        let v: Vec<f64> =
            constant.map(Tensor::to_f32).transpose()?.unwrap_or_default().into_iter().map(f64::from).collect();
        Ok(match v.len() {
            0 => vec![0.0; self.outs],
            1 => vec![v[0]; self.outs],
            _ => v,
        })
    }

    /// Replaces the layer by `(x·in_scale + in_shift)·W·out_scale + b·out_scale + out_shift`, in f64, if the result is
    /// finite and the growth allowed. Where `in_shift` is not zero, the caller has seen that the layer pads nothing.
    pub fn rescale(&mut self, model: &mut Model, by: &Rescale, growth: &mut Growth) -> Result<bool> {
        if by.in_scale.is_empty() && by.in_shift.is_empty() && by.out_scale.is_empty() {
            return self.shift(model, &by.out_shift);
        }
        let Some(w) = model.constant_input(self.node, 1).cloned() else { return Ok(false) };
        if growth.forbids(&w) {
            return Ok(false);
        }
        let at = self.channels(w.dims());
        let old = w.to_f32()?;
        let mut bias = self.bias(model)?;
        let mut new = Vec::with_capacity(old.len());
        let mut from_shift = vec![0.0; self.outs];
        for (i, &w) in old.iter().enumerate() {
            let (o, c) = at(i);
            from_shift[o] += f64::from(w) * get(&by.in_shift, c, 0.0);
            new.push((f64::from(w) * get(&by.in_scale, c, 1.0) * get(&by.out_scale, o, 1.0)) as f32);
        }
        for (o, b) in bias.iter_mut().enumerate() {
            *b = (*b + from_shift[o]) * get(&by.out_scale, o, 1.0) + get(&by.out_shift, o, 0.0);
        }
        let bias: Vec<f32> = bias.into_iter().map(|b| b as f32).collect();
        let batched = self.kind == Kind::MatMul && w.rank() > 2 && by.in_shift.iter().any(|&s| s != 0.0);
        if batched || !new.iter().chain(&bias).all(|v| v.is_finite()) {
            return Ok(false);
        }
        let new_weight = new != old;
        if new_weight && !growth.allows(model, self.node, 1) {
            return Ok(false);
        }
        if new_weight {
            let weight = Tensor::from_f32(w.dims(), &new);
            set_constant_input(model, self.node, 1, weight, "weight");
        }
        if self.bias != Bias::None || bias.iter().any(|&b| b != 0.0) {
            self.set_bias(model, &bias);
        }
        Ok(true)
    }

    /// Adds to the bias, if the result is finite.
    pub fn shift(&mut self, model: &mut Model, by: &[f64]) -> Result<bool> {
        let bias = self.bias(model)?;
        let shifted: Vec<f32> = bias.iter().enumerate().map(|(o, b)| (b + get(by, o, 0.0)) as f32).collect();
        let finite = shifted.iter().all(|v| v.is_finite());
        if finite && (self.bias != Bias::None || shifted.iter().any(|&b| b != 0.0)) {
            self.set_bias(model, &shifted);
        }
        Ok(finite)
    }

    fn set_bias(&mut self, model: &mut Model, bias: &[f32]) {
        let tensor = Tensor::from_f32(&[bias.len()], bias);
        let name = format!("{}_bias", model.node_label(self.node));
        match self.bias {
            Bias::Add(add, i) => {
                set_constant_input(model, add, i, tensor, &name);
            }
            Bias::None if self.kind == Kind::MatMul => {
                let graph = model.node(self.node).graph();
                let constant = model.add_initializer(graph, &name, tensor);
                let old = self.output;
                let ty = model.value(old).ty.clone();
                let spec = NodeSpec::new("Add").name(format!("{name}_Add")).typed_output(format!("{name}_output"), ty);
                let add = model.insert(spec, Place::After(self.node));
                let Some(out) = model.node(add).output(0) else { return };
                model.replace_all_uses(old, out);
                model.push_input(add, Some(old));
                model.push_input(add, Some(constant));
                (self.bias, self.output) = (Bias::Add(add, 1), out);
            }
            Bias::None | Bias::Input => {
                set_constant_input(model, self.node, 2, tensor, &name);
                self.bias = Bias::Input;
            }
        }
    }

    /// Whether every element of the output sees all taps of the kernel: no padding.
    pub fn pads_nothing(&self, model: &Model) -> bool {
        let n = model.node(self.node);
        match self.kind {
            Kind::Gemm { .. } | Kind::MatMul => true,
            Kind::ConvTranspose => false,
            Kind::Conv => {
                let taps = model.constant_input(self.node, 1).map_or(&[][..], Tensor::dims);
                let same = matches!(n.string("auto_pad"), Some("SAME_UPPER" | "SAME_LOWER"));
                n.ints("pads").is_none_or(|p| p.iter().all(|&p| p == 0))
                    && (!same || taps.iter().skip(2).all(|&k| k == 1))
            }
        }
    }
}

/// Per-channel factors and summands around a layer; an empty list means 1 or 0.
#[derive(Debug, Clone, Default)]
pub struct Rescale {
    /// By input channel, before `in_shift`.
    pub in_scale: Vec<f64>,
    /// By input channel.
    pub in_shift: Vec<f64>,
    /// By output channel, before `out_shift`.
    pub out_scale: Vec<f64>,
    /// By output channel.
    pub out_shift: Vec<f64>,
}

fn get(list: &[f64], i: usize, default: f64) -> f64 {
    list.get(i).copied().unwrap_or(default)
}
