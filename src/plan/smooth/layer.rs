//! A layer with a constant weight: what it answers on some rows of its data, in float and in integers.

use super::{Smoothing, seen::Seen};
use crate::{
    analysis::{factors::Take, placement::Decision},
    error::Result,
    ir::{Model, Node, NodeId, Tensor, ValueId},
    plan::{Known, Weight},
    quant::{
        QuantTarget, Range,
        arith::{Quantizer, dot},
        integer::window::{Window, Windows},
    },
};

/// Shares of the whole range that calibration may choose.
const CUTS: [f32; 6] = [1.0, 0.9, 0.8, 0.65, 0.5, 0.35];

/// A Conv, Gemm or MatMul.
pub(super) struct Layer {
    /// What it reads.
    pub data: ValueId,
    /// Its output channels.
    pub outs: usize,
    /// Its weight.
    pub take: Take,
    how: Weight,
    /// Numbers in a row of data: what one window sees in all channels.
    pub width: usize,
    /// Positions of the window; 1 for matrices.
    taps: usize,
    /// Whether the weight is `[depth, outs]`.
    turned: bool,
}

impl Layer {
    /// The layer whose weight takes the factors of its data in; `None` where its weight is a batch of matrices.
    pub fn of(model: &Model, take: Take, how: Weight) -> Option<Self> {
        let n = model.node(take.node);
        let dims = model.constant_input(take.node, 1)?.dims();
        let data = n.input(0)?;
        let ins = take.channels(dims)?;
        let (outs, taps, turned) = match n.op_type.as_str() {
            "Conv" => (dims[0], dims[2..].iter().product(), false),
            "Gemm" | "MatMul" if dims.len() == 2 => (dims[1 - take.axes[0]], 1, take.axes[0] == 0),
            _ => return None,
        };
        (outs > 0 && taps > 0 && outs % take.groups == 0).then(|| Self {
            data,
            outs,
            take,
            how,
            width: ins * taps,
            taps,
            turned,
        })
    }

    /// At most `most` rows of the layer's data, evenly spread, at other places for each `turn`.
    pub fn rows(&self, model: &Model, dims: &[usize], values: &[f32], most: usize, turn: usize) -> Vec<f32> {
        let n = model.node(self.take.node);
        if !n.is("Conv") {
            let rows = values.len() / self.width.max(1);
            let row = |i: usize| &values[place(i, most.min(rows), rows, turn) * self.width..][..self.width];
            return (0..most.min(rows)).flat_map(|i| row(i).to_vec()).collect();
        }
        let kernel = model.constant_input(self.take.node, 1).map_or(&[][..], Tensor::dims);
        let windows = kernel.get(2..).zip(dims.get(2..)).and_then(|(k, d)| Some((k, d, window(n, k, d)?)));
        let Some((kernel, spatial, (strides, dilations, pads))) = windows else { return Vec::new() };
        let window = Window { strides: &strides, dilations: &dilations, pads: &pads };
        let Ok(windows) = Windows::new(window, spatial, kernel, false) else { return Vec::new() };
        let (positions, inner) = (windows.out.iter().product::<usize>(), spatial.iter().product::<usize>());
        let count = most.min(positions);
        let mut rows = vec![0f32; count * self.width];
        for (i, row) in rows.chunks_exact_mut(self.width).enumerate() {
            let position = place(i, count, positions, turn + i);
            let taps = windows.taps(position);
            for (channel, numbers) in row.chunks_exact_mut(self.taps).enumerate() {
                for &(tap, at) in &taps {
                    numbers[tap] = values.get(channel * inner + at).copied().unwrap_or(0.0);
                }
            }
        }
        rows
    }

    /// What its data are quantized to.
    pub fn types(&self, task: &Smoothing<'_>) -> QuantTarget {
        let at_run_time = |(n, d): &(NodeId, Decision)| *n == self.take.node && matches!(d, Decision::Dynamic(_));
        match task.placement.nodes.iter().any(at_run_time) {
            true => QuantTarget::ACTIVATION,
            false => task.scheme.activations.get(&self.data).copied().unwrap_or(task.scheme.activation),
        }
    }

    /// What the layer answers in float, for each half of the samples.
    pub fn answers(&self, model: &Model, rows: &[Vec<f32>; 2]) -> Result<[Vec<f32>; 2]> {
        let weight = model.constant_input(self.take.node, 1).map(Tensor::to_f32).transpose()?.unwrap_or_default();
        let weight = self.matrix(weight);
        Ok([self.product(&rows[0], &weight), self.product(&rows[1], &weight)])
    }

    /// What the layer answers, for each half of the samples, with data divided by `factors` and quantized as `types` say, and
    /// this weight, which has taken them in, rounded as planned.
    pub fn rounded(
        &self,
        weight: &Tensor,
        factors: &[f32],
        seen: &Seen,
        types: QuantTarget,
        clips: bool,
        rows: &[Vec<f32>; 2],
    ) -> Result<[Vec<f32>; 2]> {
        let rounded = self.matrix(self.how.quantize_alike(weight, Known::default())?.dequantized()?);
        let divided = [0, 1].map(|half: usize| -> Vec<f32> {
            let by = factors.iter().flat_map(|&f| std::iter::repeat_n(f, self.taps)).cycle();
            rows[half].iter().zip(by).map(|(x, f)| x / f).collect()
        });
        let whole = seen.range(factors);
        let quantizer = |cut: f32| Quantizer::new(types.params(Range::new(whole.lo * cut, whole.hi * cut))?);
        let mut codes = quantizer(1.0)?;
        let mut least = f64::INFINITY;
        for &cut in CUTS.iter().filter(|_| clips) {
            let these = quantizer(cut)?;
            let off = |x: &f32| f64::from(these.round_trip(*x) - x).powi(2);
            // Calibration chooses by both halves.
            let error: f64 = divided.iter().flatten().map(off).sum();
            if error < least {
                (least, codes) = (error, these);
            }
        }
        Ok([0, 1].map(|half: usize| {
            let kept: Vec<f32> = divided[half].iter().map(|&x| codes.round_trip(x)).collect();
            self.product(&kept, &rounded)
        }))
    }

    /// The weight as `[outs, depth]`.
    fn matrix(&self, numbers: Vec<f32>) -> Vec<f32> {
        if !self.turned {
            return numbers;
        }
        let depth = numbers.len() / self.outs;
        (0..self.outs).flat_map(|o| (0..depth).map(move |d| (o, d))).map(|(o, d)| numbers[d * self.outs + o]).collect()
    }

    /// Rows times the weight, `[rows, outs]`.
    fn product(&self, rows: &[f32], weight: &[f32]) -> Vec<f32> {
        let depth = (weight.len() / self.outs).max(1);
        let each = self.outs / self.take.groups;
        let answer = |row: &[f32]| -> Vec<f32> {
            let filters = weight.chunks_exact(depth).enumerate();
            filters.map(|(o, filter)| dot(&row[o / each * depth..][..depth], filter)).collect()
        };
        rows.chunks_exact(self.width.max(1)).flat_map(answer).collect()
    }
}

/// A place of `all` in part `i` of `count`: another one in each turn.
fn place(i: usize, count: usize, all: usize, turn: usize) -> usize {
    let (from, to) = (i * all / count, (i + 1) * all / count);
    from + turn.wrapping_mul(7919) % (to - from).max(1)
}

/// Noise over signal of answers; NaN and infinities are left out.
pub(super) fn noise(float: &[f32], integer: &[f32]) -> f64 {
    let (mut signal, mut noise) = (0.0, 0.0);
    for (&float, &integer) in float.iter().zip(integer).filter(|(f, _)| f.is_finite()) {
        signal += f64::from(float).powi(2);
        noise += f64::from(float - integer).powi(2);
    }
    if signal > 0.0 { noise / signal } else { 0.0 }
}

/// The power that a channel is taken to have at least, as a share of the mean of all: dead ones have nothing to lose.
const DEAD: f64 = 0.01;

/// The share of its channels that a layer loses: the mean of noise over signal, at most 1 for each channel. `factors` are
/// those that the integer answers are divided by; none means 1.
pub(super) fn lost(float: &[f32], integer: &[f32], outs: usize, factors: Option<&[f32]>) -> f64 {
    let mut powers = vec![(0.0, 0.0); outs];
    for (float, integer) in float.chunks_exact(outs).zip(integer.chunks_exact(outs)) {
        for (o, (signal, noise)) in powers.iter_mut().enumerate().filter(|(o, _)| float[*o].is_finite()) {
            let by = factors.and_then(|f| f.get(o)).copied().unwrap_or(1.0);
            *signal += f64::from(float[o]).powi(2);
            *noise += f64::from(float[o] - integer[o] * by).powi(2);
        }
    }
    let mean = powers.iter().map(|(signal, _)| signal).sum::<f64>() / outs as f64;
    let share = |&(signal, noise): &(f64, f64)| (noise / (signal + DEAD * mean).max(f64::MIN_POSITIVE)).min(1.0);
    powers.iter().map(share).sum::<f64>() / outs as f64
}

/// Strides, dilations and pads of a convolution over these dims; `None` where they make no sense.
fn window(node: &Node, kernel: &[usize], dims: &[usize]) -> Option<(Vec<usize>, Vec<usize>, Vec<usize>)> {
    let rank = kernel.len();
    let list = |name: &str, count: usize, default: usize| -> Option<Vec<usize>> {
        match node.ints(name) {
            Some(v) if v.len() == count => v.iter().map(|&i| usize::try_from(i).ok()).collect(),
            _ => Some(vec![default; count]),
        }
    };
    let (strides, dilations) = (list("strides", rank, 1)?, list("dilations", rank, 1)?);
    let auto = node.string("auto_pad").unwrap_or("NOTSET");
    let mut pads = if auto == "NOTSET" { list("pads", 2 * rank, 0)? } else { vec![0; 2 * rank] };
    if auto.starts_with("SAME") {
        for i in 0..rank {
            let steps = dims[i].div_ceil(strides[i].max(1)).max(1);
            let reach = kernel[i].checked_sub(1)?.checked_mul(dilations[i])?.checked_add(1)?;
            let padding = ((steps - 1).checked_mul(strides[i])?.checked_add(reach)?).saturating_sub(dims[i]);
            let less = padding / 2;
            (pads[i], pads[i + rank]) =
                if auto == "SAME_LOWER" { (padding - less, less) } else { (less, padding - less) };
        }
    }
    (dims.len() == rank).then_some((strides, dilations, pads))
}
