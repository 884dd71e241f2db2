//! Signs: where training goes on with the sign of what a product makes, integers find the very same sign.
//!
//! With data and weights on grids, a product without its bias is a whole multiple of the product of both scales. So the sign of the sum is
//! that of the sum with the bias rounded down to such a multiple; and codes with that product as their scale, saturated
//! wherever they like, keep it.

use std::collections::BTreeMap;

use super::grids::Grids;
use crate::{
    error::Result,
    ir::{DType, Model, NodeId, NodeSpec, Place, Tensor, ValueId},
    ops::{self, Class, Role},
    passes::support::constants::set_constant_input,
    plan::Learned,
    quant::{Grid, QParams},
};

/// How near a bias must be to the next multiple to be it.
const NEAR: f64 = 1e-4;

/// Rounds biases down in front of signs, and gives what the products make grids that keep the sign.
pub(super) fn keep(model: &mut Model, learned: &Learned, grids: &mut Grids) -> Result<()> {
    let mut found: BTreeMap<ValueId, Grid> = BTreeMap::new();
    for id in model.nodes(model.main()) {
        // Signs behind those that came before may be gone.
        let Some(product) = model.try_node(id).and_then(|_| Product::before_sign(model, id)) else { continue };
        let Some(input) = model.node(id).input(0).and_then(|v| grids.all.get(&v)).copied() else { continue };
        let Some(q) = learned.weight_of(model, id)? else { continue };
        let steps: Vec<f64> = q.scales().iter().map(|s| f64::from(*s) * f64::from(input.params.scale)).collect();
        if let Some((at, bias)) = product.bias {
            let numbers = bias.to_f32()?;
            let steps_at = |i: usize| steps[i % steps.len()];
            if steps.len() != 1 && steps.len() != numbers.len() {
                continue;
            }
            let part = |(i, b): (usize, &f32)| {
                let steps = f64::from(*b) / steps_at(i);
                (steps - steps.round()).abs() > NEAR
            };
            if let Some(sign) = product.three_valued {
                // Where the bias is a multiple, the sum may be 0, and its sign is.
                let parts = numbers.iter().enumerate().filter(|&(i, b)| part((i, b))).count();
                match parts {
                    0 => {}
                    n if n == numbers.len() => two_valued(model, sign)?,
                    _ => continue,
                }
            }
            let down = |(i, &b): (usize, &f32)| {
                let step = steps_at(i);
                ((f64::from(b) / step + NEAR).floor() * step) as f32
            };
            let rounded: Vec<f32> = numbers.iter().enumerate().map(down).collect();
            set_constant_input(model, id, at, Tensor::from_f32(bias.dims(), &rounded), "bias");
        }
        let least = steps.iter().copied().fold(f64::INFINITY, f64::min) as f32;
        let params = QParams { scale: least, zero_point: 128, dtype: DType::Uint8 };
        found.insert(product.output, Grid::of(params)?);
    }
    grids.all.extend(found);
    Ok(())
}

/// Writes a Sign of what is never 0 as a choice between 1 and -1: rounded down to a multiple, what is a part of one above 0 becomes 0.
fn two_valued(model: &mut Model, sign: NodeId) -> Result<()> {
    let (Some(x), outputs) = (model.node(sign).input(0), model.take_outputs(sign)) else { return Ok(()) };
    let output = outputs.first().copied().flatten();
    let name = output.map_or("sign", |v| model.value(v).name()).to_owned();
    let graph = model.node(sign).graph();
    let mut number =
        |part: &str, x: f32| Some(model.add_initializer(graph, &format!("{name}_{part}"), Tensor::from_f32(&[], &[x])));
    let (zero, one, minus) = (number("zero", 0.0), number("one", 1.0), number("minus_one", -1.0));
    let positive = NodeSpec::new("GreaterOrEqual").inputs([Some(x), zero]).output(format!("{name}_sign"));
    let positive = model.insert_value(positive, Place::Before(sign))?;
    let chosen = NodeSpec::new("Where").inputs([Some(positive), one, minus]).output_value(output);
    model.insert(chosen, Place::Before(sign));
    model.remove_node(sign);
    Ok(())
}

/// A product of which nothing but the sign goes on.
struct Product {
    bias: Option<(usize, Tensor)>,
    output: ValueId,
    /// The node that makes the sign, if that of 0 is 0.
    three_valued: Option<NodeId>,
}

impl Product {
    fn before_sign(model: &Model, id: NodeId) -> Option<Self> {
        let spec = ops::spec(model, id).filter(|s| s.class == Class::Product)?;
        let output = model.node(id).output(0)?;
        let (reader, 0) = model.sole_reader(output)? else { return None };
        let three_valued = Some(reader).filter(|&r| model.node(r).is("Sign"));
        let zero = || model.constant_input(reader, 1)?.scalar_f32();
        let sign = three_valued.is_some() || model.node(reader).is("GreaterOrEqual") && zero()? == 0.0;
        let plain =
            model.node(id).float("alpha").unwrap_or(1.0) == 1.0 && model.node(id).float("beta").unwrap_or(1.0) == 1.0;
        let given = |role| spec.index_of(role).filter(|&i| model.node(id).input(i).is_some());
        let bias = match given(Role::Bias) {
            None => None,
            Some(i) => Some((i, model.constant_input(id, i)?.clone())),
        };
        (sign && plain).then_some(Self { bias, output, three_valued })
    }
}
