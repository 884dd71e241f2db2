//! Fuses a Gelu that is spelled out with Erf into the operator, which opset 20 brought; before that, into the one
//! spelling that ONNX Runtime fuses itself when it loads the model.
//!
//! ```text
//! before: e = Erf(Div(x, 1.4142135)); h = Mul(0.5, Add(e, 1)); y = Mul(x, h)
//! after:  y = Gelu(x)                                                      opset 20 and later
//! after:  e = Erf(Div(x, 1.4142135)); h = Mul(x, Add(e, 1)); y = Mul(h, 0.5)       earlier
//! ```
//!
//! The spelling above is what PyTorch's newer exporter writes, and none that ONNX Runtime knows: it runs as five nodes.

use super::{
    Context,
    support::{constants, convert::convert, walk},
};
use crate::{
    analysis::types::{Types, infer},
    error::Result,
    ir::{Model, NodeId, Tensor, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let has_operator = model.opset("").is_some_and(|v| v >= 20);
    let types = &infer(model);
    let mut changes = 0;
    for node in model.all_nodes() {
        let Some(gelu) = Gelu::ending_at(model, types, node) else { continue };
        if has_operator {
            convert(model, node, "Gelu", &[Some(gelu.x)], Vec::new());
            changes += 1;
        } else if !gelu.known {
            gelu.spell(model, node);
            changes += 1;
        }
    }
    Ok(changes)
}

struct Gelu {
    x: ValueId,
    half: ValueId,
    /// `Erf(…) + 1`
    sum: ValueId,
    /// The node that divides x.
    divide: NodeId,
    /// The Mul of two of `x`, `half` and `sum`, and its output.
    inner: NodeId,
    product: ValueId,
    /// Whether ONNX Runtime knows this spelling.
    known: bool,
}

impl Gelu {
    fn ending_at(model: &Model, types: &Types, node: NodeId) -> Option<Self> {
        let n = model.node(node);
        let (a, b) = (n.input(0)?, n.input(1).filter(|_| n.is("Mul"))?);
        [(a, b), (b, a)].into_iter().find_map(|(product, third)| {
            let inner = walk::sole_producer(model, product).filter(|&m| model.node(m).is("Mul"))?;
            let (c, d) = (model.node(inner).input(0)?, model.node(inner).input(1)?);
            let factors = [c, d, third];
            let half = factors.into_iter().find(|&v| near(constants::scalar(model, v), 0.5))?;
            let (sum, x, divide) = factors.into_iter().find_map(|v| erf_plus_one(model, types, v))?;
            if !factors.contains(&x) || constants::scalar_beside(model, types, half, x).is_none() {
                return None;
            }
            let known = third != x && model.node(divide).is("Div");
            Some(Self { x, half, sum, divide, inner, product, known })
        })
    }

    fn spell(&self, model: &mut Model, end: NodeId) {
        // Behind what it reads now: the sum.
        model.move_node(self.inner, crate::ir::Place::Before(end));
        convert(model, self.inner, "Mul", &[Some(self.x), Some(self.sum)], Vec::new());
        convert(model, end, "Mul", &[Some(self.product), Some(self.half)], Vec::new());
        if !model.node(self.divide).is("Div") {
            let graph = model.node(end).graph();
            let root = Tensor::from_f32(&[], &[std::f32::consts::SQRT_2]);
            let root = model.add_initializer(graph, &format!("{}_sqrt_2", model.node_label(end)), root);
            convert(model, self.divide, "Div", &[Some(self.x), Some(root)], Vec::new());
        }
    }
}

fn near(value: Option<f32>, want: f32) -> bool {
    value.is_some_and(|v| (v - want).abs() < 1e-5)
}

/// `(v, x, the node that divides)` where `v` is `Erf(x / √2) + 1`.
fn erf_plus_one(model: &Model, types: &Types, v: ValueId) -> Option<(ValueId, ValueId, NodeId)> {
    let add = walk::sole_producer(model, v).filter(|&n| model.node(n).is("Add"))?;
    let (e, one, _) = constants::with_scalar(model, types, add)?;
    let erf = walk::sole_producer(model, e).filter(|&n| near(Some(one), 1.0) && model.node(n).is("Erf"))?;
    let divide = walk::sole_producer(model, model.node(erf).input(0)?)?;
    let (x, c, second) = constants::with_scalar(model, types, divide)?;
    let fits = match model.node(divide).op_type.as_str() {
        "Div" => second && near(Some(c), std::f32::consts::SQRT_2),
        "Mul" => near(Some(c), std::f32::consts::FRAC_1_SQRT_2),
        _ => false,
    };
    fits.then_some((v, x, divide))
}

#[cfg(test)]
mod tests {
    use super::{super::support::testing::after_at, run};

    fn fuse(opset: i64, nodes: &str) -> String {
        let text = "
            float[n] x
            float[] root = {1.4142135}
            float[] inverse = {0.70710677}
            float[] one = {1}
            float[] half = {0.5}
        ";
        after_at(opset, run, &format!("{text}{nodes}\nreturn y"))
    }

    #[test]
    fn every_spelling() {
        let outer_half = "d = Div(x, root)\ne = Erf(d)\na = Add(e, one)\nm = Mul(x, a)\ny = Mul(m, half)";
        let inner_half = "d = Mul(x, inverse)\ne = Erf(d)\na = Add(one, e)\nm = Mul(half, a)\ny = Mul(x, m)";
        let early_half = "m = Mul(x, half)\nd = Div(x, root)\ne = Erf(d)\na = Add(e, one)\ny = Mul(m, a)";
        for nodes in [outer_half, inner_half, early_half] {
            assert_eq!(fuse(20, nodes), "y = Gelu(x)");
        }
        let known = "d = Div(x, [1.4142135]); e = Erf(d); a = Add(e, [1.0]); m = Mul(x, a); y = Mul(m, [0.5])";
        assert_eq!(fuse(18, outer_half), known);
        assert_eq!(fuse(18, inner_half), known.replace("Add(e, [1.0])", "Add([1.0], e)"));
        assert!(fuse(20, &outer_half.replace("Add(e, one)", "Add(e, half)")).contains("Erf"));
    }
}
