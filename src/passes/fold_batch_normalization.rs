//! Folds a BatchNormalization with constant statistics into the linear layer behind or in front of it.
//!
//! ```text
//! before: c = Conv(x, W, b); y = BatchNormalization(c, scale, B, mean, var)      after: y = Conv(x, W', b')
//! ```
//!
//! With `s = scale / sqrt(var + epsilon)` and `t = B - mean·s`, the layer's weights are multiplied by `s` by output
//! channel and its bias becomes `b·s + t`; computed in f64. The layer is a Conv, ConvTranspose or Gemm, or a MatMul
//! (with or without an Add as its bias) of rank 2, since BatchNormalization's channels are axis 1.
//!
//! A BatchNormalization in front of a layer folds into it by input channel where the layer pads nothing (a padded zero
//! would not be normalised). This takes the normalisation out of the value that is quantized: with channels of very
//! different ranges, the one scale of the layer's input would serve the widest channel and nothing else. The statistics
//! say how wide the channels are, so it is done only where the step of the quantized input, as the layer sees it, grows
//! by no more than a bit.

use super::{
    Context,
    support::{
        constants::{Growth, floats},
        linear::{Kind, Linear, Rescale},
        walk,
    },
};
use crate::{
    analysis::types::{Types, infer},
    error::Result,
    ir::{Model, NodeId, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let mut growth = Growth::new(cx);
    let types = &infer(model);
    let mut changes = 0;
    for node in model.all_nodes() {
        let Some(norm) = Norm::of(model, node)? else { continue };
        if fold_behind(model, types, node, &norm, &mut growth)?
            || fold_in_front(model, types, node, &norm, &mut growth)?
        {
            changes += 1;
        }
    }
    Ok(changes)
}

/// `y = x·scale + shift` by channel, and how far the channels reach.
struct Norm {
    x: ValueId,
    y: ValueId,
    scale: Vec<f64>,
    shift: Vec<f64>,
    /// How much coarser the input's quantization becomes, seen behind the normalisation, if it is not normalised.
    coarser: f64,
}

impl Norm {
    fn of(model: &Model, node: NodeId) -> Result<Option<Self>> {
        let n = model.node(node);
        let trains = n.int("training_mode").unwrap_or(0) != 0 || n.int("spatial") == Some(0);
        let more_outputs = n.outputs().iter().skip(1).flatten().any(|&v| !model.value(v).uses().is_empty());
        let (Some(x), Some(y)) = (n.input(0), n.output(0)) else { return Ok(None) };
        if !n.is("BatchNormalization") || trains || more_outputs {
            return Ok(None);
        }
        let epsilon = f64::from(n.float("epsilon").unwrap_or(1e-5));
        let of = |i| floats(model, node, i);
        let (Some(gamma), Some(beta), Some(mean), Some(var)) = (of(1)?, of(2)?, of(3)?, of(4)?) else {
            return Ok(None);
        };
        let c = gamma.len();
        if c == 0 || [beta.len(), mean.len(), var.len()] != [c; 3] {
            return Ok(None);
        }
        let scale: Vec<f64> = gamma.iter().zip(&var).map(|(g, v)| g / (v + epsilon).sqrt()).collect();
        let shift = (0..c).map(|i| beta[i] - mean[i] * scale[i]).collect();
        // The range of three standard deviations around the mean, and 0, which every quantized range includes.
        let widest = |center: &[f64], spread: &dyn Fn(usize) -> f64| {
            let (lo, hi) = center
                .iter()
                .enumerate()
                .fold((0.0f64, 0.0f64), |(lo, hi), (i, m)| (lo.min(m - 3.0 * spread(i)), hi.max(m + 3.0 * spread(i))));
            hi - lo
        };
        let before = widest(&mean, &|i| (var[i] + epsilon).sqrt());
        let after = widest(&beta, &|i| gamma[i].abs());
        let steepest = scale.iter().fold(0.0f64, |m, s| m.max(s.abs()));
        Ok(Some(Self { x, y, scale, shift, coarser: before * steepest / after }))
    }
}

fn fold_behind(model: &mut Model, types: &Types, node: NodeId, norm: &Norm, growth: &mut Growth) -> Result<bool> {
    if walk::sole_element_reader(model, norm.x).is_none() {
        return Ok(false);
    }
    let Some(mut layer) = Linear::ending_at(model, types, norm.x) else { return Ok(false) };
    let on_axis_1 = layer.kind != Kind::MatMul || walk::rank(model, types, norm.x) == Some(2);
    if !on_axis_1 || layer.outs != norm.scale.len() {
        return Ok(false);
    }
    let by = Rescale { out_scale: norm.scale.clone(), out_shift: norm.shift.clone(), ..Rescale::default() };
    if !layer.rescale(model, &by, growth)? {
        return Ok(false);
    }
    walk::replace_and_remove(model, node, norm.y, layer.output);
    Ok(true)
}

fn fold_in_front(model: &mut Model, types: &Types, node: NodeId, norm: &Norm, growth: &mut Growth) -> Result<bool> {
    let Some((reader, 0)) = model.sole_reader(norm.y) else { return Ok(false) };
    let Some(mut layer) = Linear::of(model, types, reader) else { return Ok(false) };
    let no_shift = norm.shift.iter().all(|&s| s == 0.0);
    let fits = layer.ins == norm.scale.len()
        && (no_shift || layer.pads_nothing(model))
        // Written so that a NaN, from statistics that make no sense, does not fold.
        && norm.coarser <= 2.0
        // The channels are axis 1 of x, the last axis of what Gemm and MatMul read.
        && match layer.kind {
            Kind::Gemm { .. } => model.node(reader).int("transA").unwrap_or(0) == 0,
            Kind::MatMul => walk::rank(model, types, norm.y) == Some(2),
            Kind::Conv | Kind::ConvTranspose => true,
        };
    let by = Rescale { in_scale: norm.scale.clone(), in_shift: norm.shift.clone(), ..Rescale::default() };
    if !fits || !layer.rescale(model, &by, growth)? {
        return Ok(false);
    }
    model.set_input(reader, 0, Some(norm.x));
    model.remove_node(node);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::{super::support::testing::after, run};

    /// Factors 1 and 2, summands 0 and 2.
    const NORM: &str = "
        float[2] gamma = {2, 4}
        float[2] beta = {1, 0}
        float[2] mean = {1, -1}
        float[2] var = {3, 3}
    ";

    fn fold(layer: &str) -> String {
        let norm = "y = BatchNormalization <epsilon = 1.0> (c, gamma, beta, mean, var)\nreturn y";
        after(run, &format!("{NORM}{layer}\n{norm}"))
    }

    #[test]
    fn behind_convolutions() {
        let x = "float[1,2,4,4] x\nfloat[2] b = {8, 16}";
        let conv = format!("{x}\nfloat[2,1,1,1] w = {{3, 5}}\nc = Conv <group = 2> (x, w, b)");
        assert_eq!(fold(&conv), "y = Conv(x, [3.0, 10.0], [8.0, 34.0])");
        let dense = format!("{x}\nfloat[2,2,1,1] w = {{1, 2, 3, 4}}\nc = Conv(x, w)");
        assert_eq!(fold(&dense), "y = Conv(x, [1.0, 2.0, 6.0, 8.0], [0.0, 2.0])");
        // The output's channels are axis 1 of this weight, within each group.
        let back = format!("{x}\nfloat[2,2,1,1] w = {{1, 2, 3, 4}}\nc = ConvTranspose(x, w, b)");
        assert_eq!(fold(&back), "y = ConvTranspose(x, [1.0, 4.0, 3.0, 8.0], [8.0, 34.0])");
        let grouped = format!("{x}\nfloat[2,1,1,2] w = {{1, 2, 3, 4}}\nc = ConvTranspose <group = 2> (x, w)");
        assert_eq!(fold(&grouped), "y = ConvTranspose(x, [1.0, 2.0, 6.0, 8.0], [0.0, 2.0])");
    }

    #[test]
    fn behind_matrices() {
        let gemm = "float[5,3] x\nfloat[2,3] w = {1, 1, 1, 2, 2, 2}\nfloat[1] b = {8}\nc = Gemm <transB = 1> (x, w, b)";
        assert_eq!(fold(gemm), "y = Gemm(x, [1.0, 1.0, 1.0, 4.0, 4.0, 4.0], [8.0, 18.0])");
        let matmul = "float[5,1] x\nfloat[1,2] w = {3, 5}\nfloat[1,2] b = {8, 16}\nm = MatMul(x, w)\nc = Add(b, m)";
        assert_eq!(fold(matmul), "m = MatMul(x, [3.0, 10.0]); y = Add([8.0, 34.0], m)");
        let bare = "float[5,1] x\nfloat[1,2] w = {3, 5}\nc = MatMul(x, w)";
        assert!(fold(bare).ends_with("MatMul(x, [3.0, 10.0]); y = Add(c, [0.0, 2.0])"), "{}", fold(bare));
        // Axis 1 is not the MatMul's axis of channels here.
        let batched = "float[7,2,1] x\nfloat[1,2] w = {3, 5}\nc = MatMul(x, w)";
        assert!(fold(batched).contains("BatchNormalization"));
    }

    #[test]
    fn not_where_the_layer_has_other_readers() {
        let read_twice = "float[1,2,4,4] x\nfloat[2,2,1,1] w = {1, 2, 3, 4}\nc = Conv(x, w)\nz = Relu(c)\nreturn z";
        assert!(fold(read_twice).contains("BatchNormalization"));
        let output = "float[1,2,4,4] x\nfloat[2,2,1,1] w = {1, 2, 3, 4}\nc = Conv(x, w)\nreturn c";
        assert!(fold(output).contains("BatchNormalization"));
    }

    #[test]
    fn a_shared_weight_stays_as_it_is_for_its_other_reader() {
        let shared = "float[1,2,4,4] x\nfloat[2,2,1,1] w = {1, 2, 3, 4}\nz = Conv(x, w)\nreturn z\nc = Conv(x, w)";
        assert_eq!(fold(shared), "z = Conv(x, [1.0, 2.0, 3.0, 4.0]); y = Conv(x, [1.0, 2.0, 6.0, 8.0], [0.0, 2.0])");
    }

    #[test]
    fn in_front() {
        let layer = |norm: &str, attrs: &str| {
            let text = "float[1,2,4,4] x\nfloat[1,2,1,1] w = {1, 2}\nfloat[1] b = {8}";
            let n = "n = BatchNormalization <epsilon = 1.0> (x, gamma, beta, mean, var)";
            after(run, &format!("{text}\n{norm}\n{n}\ny = Conv {attrs} (n, w, b)\nreturn y"))
        };
        assert_eq!(layer(NORM, "<group = 1>"), "y = Conv(x, [1.0, 4.0], [12.0])");
        assert!(layer(NORM, "<pads = [0,0,1,1]>").contains("BatchNormalization"));
        // Channels that reach to 6 and to 6000 would share one scale.
        let wide = NORM.replace("var = {3, 3}", "var = {3, 3999999}");
        assert!(layer(&wide, "<group = 1>").contains("BatchNormalization"));
    }

    #[test]
    fn statistics_that_make_no_sense_stay() {
        let dense = "float[1,2,4,4] x\nfloat[2,2,1,1] w = {1, 2, 3, 4}\nc = Conv(x, w)";
        let norm = "y = BatchNormalization <epsilon = 1.0> (c, gamma, beta, mean, var)\nreturn y";
        let bad = NORM.replace("var = {3, 3}", "var = {3, -5}");
        assert!(after(run, &format!("{bad}\n{dense}\n{norm}")).contains("BatchNormalization"));
        let short = NORM.replace("float[2] var = {3, 3}", "float[1] var = {3}");
        assert!(after(run, &format!("{short}\n{dense}\n{norm}")).contains("BatchNormalization"));
    }
}
