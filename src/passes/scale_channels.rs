//! Divides values by a factor for each channel, as the plan says, so that one scale fits all their channels. What the model
//! computes stays: constants around them take the factors in, or a Mul divides and the matrices behind it take them in.
//!
//! Guangxuan Xiao et al., "SmoothQuant" (2022); Markus Nagel et al., "Data-Free Quantization Through Weight Equalization and
//! Bias Correction" (2019), section 4.1.
//!
//! ```text
//! before: v = Conv(x, w, b); r = Relu(v); y = Conv(r, u)
//! after:  v = Conv(x, w/s, b/s); r = Relu(v); y = Conv(r, u·s)
//!
//! before: v = Gelu(x); y = MatMul(v, w)
//! after:  v = Gelu(x); d = Mul(v, 1/s); y = MatMul(d, w·s)
//! ```

use super::{Context, support::constants::set_constant_input};
use crate::{
    analysis::{factors::Take, types::infer},
    error::{Error, Result},
    ir::{Model, NodeSpec, Place, Tensor, ValueId},
    plan::{ChannelFactors, Plan, TakenBy},
};

/// See the module's documentation. Without a plan there is nothing to do.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let Some(plan) = cx.plan.take() else { return Ok(0) };
    let done = divide_all(model, &plan);
    cx.plan = Some(plan);
    done
}

fn divide_all(model: &mut Model, plan: &Plan) -> Result<usize> {
    if plan.channel_factors.is_empty() {
        return Ok(0);
    }
    plan.check_factors(model)?;
    // A Mul that comes in changes neither shapes nor who reads the constants of others.
    let types = infer(model);
    for (name, by) in &plan.channel_factors {
        let Some(value) = model.find_value(model.main(), name) else { continue };
        let takes = by.takes(model, &types, name, value)?;
        for take in &takes {
            take_in(model, take, by).map_err(|e| e.value(name))?;
        }
        if by.taken_by == TakenBy::Mul {
            multiply(model, value, by, &takes);
        }
    }
    Ok(plan.channel_factors.len())
}

fn take_in(model: &mut Model, take: &Take, by: &ChannelFactors) -> Result<()> {
    let (node, input) = (take.node, take.input);
    let Some(old) = model.constant_input(node, input).cloned() else {
        return Err(
            Error::bug("a constant for factors is gone").node(model.node_label(node), &model.node(node).op_type)
        );
    };
    let Some(new) = take.scaled(&old, &by.factors)? else {
        let e = Error::config("with the factors of its channels, a number of a constant is too large for float");
        return Err(e.node(model.node_label(node), &model.node(node).op_type));
    };
    set_constant_input(model, node, input, new, "factors");
    Ok(())
}

/// Puts a Mul between the value and the products that took its factors in.
fn multiply(model: &mut Model, value: ValueId, by: &ChannelFactors, takes: &[Take]) {
    let name = model.value(value).name().to_owned();
    let place = model.producer(value).map_or(Place::Start(model.main()), Place::After);
    let inverse: Vec<f32> = by.factors.iter().map(|f| (1.0 / f64::from(*f)) as f32).collect();
    let constant =
        model.add_initializer(model.main(), &format!("{name}_factors"), Tensor::from_f32(&[inverse.len()], &inverse));
    let ty = model.value(value).ty.clone();
    let spec = NodeSpec::new("Mul").name(format!("{name}_Mul")).input(value).input(constant);
    let mul = model.insert(spec.typed_output(format!("{name}_even"), ty), place);
    let Some(divided) = model.node(mul).output(0) else { return };
    for take in takes {
        model.set_input(take.node, 0, Some(divided));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::text,
        passes::testing::check_with,
        runtime::{Runtime, tract::Tract},
    };

    fn factors(value: &str, taken_by: TakenBy, factors: &[f32]) -> Context {
        let factors = ChannelFactors { taken_by, factors: factors.to_vec() };
        let plan = Plan { channel_factors: [(value.to_owned(), factors)].into(), ..Plan::default() };
        Context { plan: Some(plan), ..Context::default() }
    }

    fn run_once(model: &mut Model, cx: &mut Context) -> Result<usize> {
        let changes = run(model, cx)?;
        cx.plan = None;
        Ok(changes)
    }

    #[test]
    fn constants_take_the_factors_in() {
        let head = "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1, 1, 4, 4] x) => (float y)";
        check_with(
            run_once,
            &mut factors("v", TakenBy::Constants, &[2.0, 4.0]),
            &format!(
                "{head} <float[2, 1, 1, 1] w = {{2, 8}}, float[2] b = {{1, 1}}, float[1, 2, 1, 1] u = {{3, 5}}>
                 {{ v = Conv(x, w, b) r = Relu(v) y = Conv(r, u) }}"
            ),
            &format!(
                "{head} <float[2, 1, 1, 1] w = {{1, 2}}, float[2] b = {{0.5, 0.25}}, float[1, 2, 1, 1] u = {{6, 20}}>
                 {{ v = Conv(x, w, b) r = Relu(v) y = Conv(r, u) }}"
            ),
        );
    }

    #[test]
    fn a_mul_divides_for_products_alone() {
        let head = "<ir_version: 8, opset_import: [\"\" : 17]> g (float[n, 2] x) => (float y, float z)";
        check_with(
            run_once,
            &mut factors("v", TakenBy::Mul, &[2.0, 4.0]),
            &format!("{head} <float[2, 1] w = {{3, 5}}> {{ v = Tanh(x) y = MatMul(v, w) z = Exp(v) }}"),
            &format!(
                "{head} <float[2] v_factors = {{0.5, 0.25}}, float[2, 1] w = {{6, 20}}>
                 {{ v = Tanh(x) v_even = Mul(v, v_factors) y = MatMul(v_even, w) z = Exp(v) }}"
            ),
        );
    }

    #[test]
    fn what_cannot_be_divided_is_refused() {
        let text = "<ir_version: 8, opset_import: [\"\" : 17]> g (float[n, 2] x) => (float y)
                    <float[2, 2] w = {1, 2, 3, 4}, float[2, 1] u = {3, 5}> { v = MatMul(x, w) t = Tanh(v) y = MatMul(t, u) }";
        let model = text::parse(text).unwrap();
        let refused = |value: &str, taken_by, list: &[f32]| {
            run(&mut model.clone(), &mut factors(value, taken_by, list)).unwrap_err().to_string()
        };
        let constants = TakenBy::Constants;
        assert!(refused("v", constants, &[2.0, 4.0]).contains("Tanh t: it computes something else"));
        assert!(refused("nobody", constants, &[2.0]).contains("no such value"));
        assert!(refused("t", TakenBy::Mul, &[2.0]).contains("1 factors are given, it has 2 channels"));
        assert!(refused("t", TakenBy::Mul, &[2.0, 0.0]).contains("factor of a channel is 0"));
        assert!(refused("t", TakenBy::Mul, &[2.0, f32::MAX]).contains("ends of float"));
        assert!(refused("t", TakenBy::Mul, &[2.0, 8e37]).contains("too large for float"));
    }

    /// A stack of layers of random shapes between residual sums, pools and clamps, and a head of matrices.
    fn random(seed: u64) -> Model {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f32 / (1u64 << 31) as f32
        };
        let (mut constants, mut nodes, mut now) = (Vec::new(), Vec::new(), "x".to_owned());
        let channels = 4;
        for i in 0..5 {
            let (kind, before) = ((next() * 4.0) as usize, now.clone());
            let group = if kind == 1 && i > 0 { channels } else { 1 };
            let ins = if i == 0 { 2 } else { channels };
            let count = channels * ins / group * 9;
            let mut list = |n: usize| (0..n).map(|_| format!("{}", next() - 0.5)).collect::<Vec<_>>().join(", ");
            constants.push(format!("float[{channels}, {}, 3, 3] w{i} = {{{}}}", ins / group, list(count)));
            constants.push(format!("float[{channels}] b{i} = {{{}}}", list(channels)));
            nodes.push(format!("c{i} = Conv <pads = [1, 1, 1, 1], group = {group}> ({before}, w{i}, b{i})"));
            nodes
                .push(format!("r{i} = {}", if kind == 2 { format!("LeakyRelu(c{i})") } else { format!("Relu(c{i})") }));
            now = format!("r{i}");
            if kind == 3 && i > 0 {
                nodes.push(format!("s{i} = Add({before}, {now})"));
                now = format!("s{i}");
            }
        }
        let list: Vec<_> = (0..channels).map(|_| next().to_string()).collect();
        constants.push(format!("float[{channels}, 1] head = {{{}}}", list.join(", ")));
        nodes.push(format!("a = GlobalAveragePool({now}) f = Flatten(a) y = MatMul(f, head)"));
        let head = "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1, 2, 6, 6] x) => (float y)";
        text::parse(&format!("{head} <{}> {{ {} }}", constants.join(", "), nodes.join(" "))).unwrap()
    }

    #[test]
    fn the_function_stays() {
        let mut divided = 0;
        for seed in 1..30 {
            let model = random(seed);
            let types = infer(&model);
            let input: Vec<f32> = (0..72).map(|i| ((i as f32 + seed as f32) * 0.7).sin()).collect();
            let input = [Tensor::from_f32(&[1, 2, 6, 6], &input)];
            let answer = |m: &Model| Tract.load(m, &[]).unwrap().run(&input).unwrap()[0].to_f32().unwrap()[0];
            let mut plan = Plan::default();
            for v in model.value_ids() {
                let name = model.value(v).name().to_owned();
                let factors: Vec<f32> = (0..4).map(|i| ((i as f32 + seed as f32).sin() * 3.0).exp2()).collect();
                let by = ChannelFactors { taken_by: TakenBy::Constants, factors };
                if by.takes(&model, &types, &name, v).is_ok() {
                    plan.channel_factors.insert(name, by);
                }
            }
            divided += plan.channel_factors.len();
            let mut changed = model.clone();
            run(&mut changed, &mut Context { plan: Some(plan), ..Context::default() }).unwrap();
            changed.verify().unwrap();
            let (before, after) = (answer(&model), answer(&changed));
            // 100 dB.
            assert!((before - after).abs() <= 1e-5 * before.abs(), "{seed}: {before} {after}");
        }
        assert!(divided > 100, "{divided}");
    }
}
