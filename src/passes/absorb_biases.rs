//! Takes from the channels of a clamped value what the plan says: the bias of the layer in front of the clamp loses it, and
//! those of the layers that read the value get what they miss. Where no channel falls below what it loses, the model computes
//! the same.
//!
//! Markus Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.1.3. Layers
//! that pad what they read are left out: on the border they would see a 0 that stands for more.
//!
//! ```text
//! before: v = Conv(x, w, b); r = Relu(v); y = Conv(r, u, d)
//! after:  v = Conv(x, w, b - c); r = Relu(v); y = Conv(r, u, d + u·c)
//! ```

use super::{
    Context,
    support::{
        constants::Growth,
        linear::{Kind, Linear, Rescale},
    },
};
use crate::{
    analysis::types::{Types, infer},
    error::{Error, Result},
    ir::{Model, Use, ValueId},
    ops,
    plan::{Clamped, Plan},
};

/// See the module's documentation. Without a plan there is nothing to do.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let Some(plan) = cx.plan.take() else { return Ok(0) };
    let done = absorb_all(model, &plan);
    cx.plan = Some(plan);
    done
}

fn absorb_all(model: &mut Model, plan: &Plan) -> Result<usize> {
    if plan.absorbed_biases.is_empty() {
        return Ok(0);
    }
    // Numbers of biases change, and nothing that types or the places of others depend on.
    let types = infer(model);
    for (name, by) in &plan.absorbed_biases {
        let Some(value) = model.find_value(model.main(), name) else {
            let text = "absorbed_biases names it, but the model has no such value";
            return Err(Error::config(text).value(name).help("make the plan again, with this model"));
        };
        let Some(mut chain) = Chain::of(model, &types, value) else {
            let text = "biases cannot be absorbed there: it is not made by a layer and a clamp at 0, or something else than \
                        layers with constant weights and without padding reads it";
            return Err(Error::config(text).value(name).help("leave it out of absorbed_biases"));
        };
        by.check(chain.clamped.channels).map_err(|e| e.value(name))?;
        let in_shift: Vec<f64> = by.shifts.iter().map(|&s| f64::from(s)).collect();
        let taken: Vec<f64> = in_shift.iter().map(|s| -s).collect();
        let mut finite = chain.maker.shift(model, &taken)?;
        let by = Rescale { in_shift, ..Rescale::default() };
        for reader in &mut chain.readers {
            finite &= reader.rescale(model, &by, &mut Growth::unlimited())?;
        }
        if !finite {
            let text = "with what it absorbs, a bias is too large for float";
            return Err(Error::config(text).value(name).help("leave it out of absorbed_biases"));
        }
    }
    Ok(plan.absorbed_biases.len())
}

/// The values of the model from whose channels something can be taken.
pub fn places(model: &Model) -> Vec<Clamped> {
    let types = infer(model);
    let outputs = model.nodes(model.main()).into_iter().filter_map(|n| model.node(n).output(0));
    outputs.filter_map(|v| Chain::of(model, &types, v)).map(|chain| chain.clamped).collect()
}

/// A layer, a clamp and the layers behind it.
struct Chain {
    clamped: Clamped,
    maker: Linear,
    readers: Vec<Linear>,
}

impl Chain {
    fn of(model: &Model, types: &Types, value: ValueId) -> Option<Self> {
        let clamp = model.producer(value)?;
        let (_, most) = ops::clamp_bounds(model, clamp).filter(|(lo, most)| *lo == 0.0 && most > lo)?;
        let before = model.node(clamp).input(0)?;
        let alone = model.sole_reader(before) == Some((clamp, 0));
        let maker = Linear::ending_at(model, types, before).filter(|l| alone && l.takes_bias())?;
        let readers: Vec<Linear> =
            model.value(value).uses().iter().map(|u| reader(model, types, u)).collect::<Option<_>>()?;
        let channels = maker.outs;
        if readers.is_empty() || readers.iter().any(|r| r.ins != channels) {
            return None;
        }
        let axis = matches!(maker.kind, Kind::Conv | Kind::ConvTranspose).then_some(1);
        Some(Self { clamped: Clamped { before, value, axis, channels, most }, maker, readers })
    }
}

/// A layer that can make up for a number that each of its input's channels has lost.
fn reader(model: &Model, types: &Types, used: &Use) -> Option<Linear> {
    let Use::Input(node, 0) = *used else { return None };
    if model.node(node).graph() != model.main() {
        return None;
    }
    let layer = Linear::of(model, types, node)?;
    let batched = layer.kind == Kind::MatMul && model.constant_input(node, 1).is_none_or(|w| w.rank() > 2);
    let turned = model.node(node).int("transA").unwrap_or(0) != 0;
    (layer.takes_bias() && layer.pads_nothing(model) && !batched && !turned).then_some(layer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::{Tensor, text},
        passes::testing::check_with,
        plan::ChannelShifts,
        runtime::{Runtime, tract::Tract},
    };

    const HEAD: &str = "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1, 1, 4, 4] x) => (float y)";

    fn cx(value: &str, shifts: &[f32]) -> Context {
        let by = ChannelShifts { shifts: shifts.to_vec() };
        let plan = Plan { absorbed_biases: [(value.to_owned(), by)].into(), ..Plan::default() };
        Context { plan: Some(plan), ..Context::default() }
    }

    fn run_once(model: &mut Model, cx: &mut Context) -> Result<usize> {
        let changes = run(model, cx)?;
        cx.plan = None;
        Ok(changes)
    }

    #[test]
    fn the_next_layer_has_what_a_channel_loses() {
        check_with(
            run_once,
            &mut cx("r", &[0.5, 2.0]),
            &format!(
                "{HEAD} <float[2, 1, 1, 1] w = {{2, 8}}, float[2] b = {{1, 4}}, float[1, 2, 2, 1] u = {{3, 1, 5, 2}}>
                 {{ v = Conv(x, w, b) r = Relu(v) y = Conv(r, u) }}"
            ),
            // 0.5 * (3 + 1) + 2 * (5 + 2)
            &format!(
                "{HEAD} <float[2, 1, 1, 1] w = {{2, 8}}, float[2] b = {{0.5, 2}}, float[1, 2, 2, 1] u = {{3, 1, 5, 2}}, float[1] y_bias = {{16}}>
                 {{ v = Conv(x, w, b) r = Relu(v) y = Conv(r, u, y_bias) }}"
            ),
        );
    }

    #[test]
    fn depthwise_layers_and_matrices_too() {
        let constants = "float[2, 1, 1, 1] w = {2, 8}, float[2] b = {100, 40}, float[2, 1, 2, 2] d = {1, -2, 3, 4, 5, 6, 7, 8}, \
                         float[2] e = {7, 1}, float[2, 3] m = {1, 2, 3, 4, 5, -6}, float[3] n = {1, 2, 3}";
        let nodes = "v = Conv(x, w, b) r = Clip(v, zero, most) t = Conv<group = 2>(r, d, e) s = Relu(t) p = GlobalMaxPool(s) \
                     f = Flatten(p) g0 = Gemm(f, k) h = Relu(g0) y = Gemm(h, m, n)";
        let more = "float zero = {0}, float most = {200}, float[2, 2] k = {1, 0, 0, 1}";
        let model = text::parse(&format!("{HEAD} <{constants}, {more}> {{ {nodes} }}")).unwrap();
        let input = [Tensor::from_f32(&[1, 1, 4, 4], &(0..16).map(|i| (i as f32).sin()).collect::<Vec<_>>())];
        let answer = |m: &Model| Tract.load(m, &[]).unwrap().run(&input).unwrap()[0].to_f32().unwrap();
        for (value, shifts) in [("r", [90.0, 30.0]), ("h", [10.0, 100.0])] {
            let mut changed = model.clone();
            assert_eq!(run(&mut changed, &mut cx(value, &shifts)).unwrap(), 1);
            changed.verify().unwrap();
            let (before, after) = (answer(&model), answer(&changed));
            assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs()), "{before:?} {after:?}");
        }
    }

    #[test]
    fn where_it_would_not_be_exact_it_is_refused() {
        let refused = |nodes: &str, shifts: &[f32]| {
            let constants = "float[2, 1, 1, 1] w = {2, 8}, float[2] b = {1, 4}, float[1, 2, 1, 1] u = {3, 5}";
            let mut model = text::parse(&format!("{HEAD} <{constants}> {{ {nodes} }}")).unwrap();
            let error = run(&mut model, &mut cx("r", shifts)).unwrap_err().to_string();
            assert_eq!(places(&model).len(), usize::from(!error.contains("cannot be absorbed")));
            error
        };
        for nodes in [
            // The border sees zeros.
            "v = Conv(x, w, b) r = Relu(v) y = Conv<pads = [1, 1, 1, 1]>(r, u)",
            "v = Conv(x, w, b) r = LeakyRelu(v) y = Conv(r, u)",
            "v = Conv(x, w, b) r = Relu(v) a = Conv(r, u) y = Add(a, r)",
            "v = Conv(x, w, b) r = Relu(v) a = Conv(r, u) y = Add(a, v)",
            "v = Sin(x) r = Relu(v) y = Conv(r, w)",
        ] {
            assert!(refused(nodes, &[0.5, 0.5]).contains("biases cannot be absorbed there"), "{nodes}");
        }
        let fits = "v = Conv(x, w, b) r = Relu(v) y = Conv(r, u)";
        assert!(refused(fits, &[0.5]).contains("1 shifts are given, it has 2 channels"));
        assert!(refused(fits, &[0.5, -1.0]).contains("the shift of a channel is -1"));
        assert!(refused(fits, &[0.5, 3e38]).contains("too large for float"));
        let mut model = text::parse(&format!("{HEAD} <float[2, 1, 1, 1] w = {{2, 8}}> {{ y = Conv(x, w) }}")).unwrap();
        assert!(run(&mut model, &mut cx("r", &[1.0])).unwrap_err().to_string().contains("no such value"));
        assert_eq!(run(&mut model, &mut Context::default()).unwrap(), 0);
    }
}
