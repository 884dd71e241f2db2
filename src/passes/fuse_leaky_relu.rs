//! Fuses a leaky Relu that is spelled otherwise into the operator, which has an integer kernel.
//!
//! ```text
//! before: a = Mul(x, 0.1); y = Max(x, a)      after: y = LeakyRelu<alpha = 0.1>(x)      for factors from 0 to 1
//! before: y = PRelu(x, slope)                 after: y = LeakyRelu<alpha = …>(x)        where all slopes are the same
//! ```

use super::{
    Context,
    support::{constants, convert::convert, walk},
};
use crate::{
    analysis::types::{Types, infer},
    error::Result,
    ir::{Attr, DType, Model, NodeId, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let types = &infer(model);
    let mut changes = 0;
    for node in model.all_nodes() {
        let Some((x, alpha)) = find(model, types, node) else { continue };
        convert(model, node, "LeakyRelu", &[Some(x)], vec![Attr::new("alpha", alpha)]);
        changes += 1;
    }
    Ok(changes)
}

fn find(model: &Model, types: &Types, node: NodeId) -> Option<(ValueId, f32)> {
    let n = model.node(node);
    let (a, b) = (n.input(0)?, n.input(1)?);
    if n.is("PRelu") {
        let slopes = model.value(b).constant().filter(|t| t.dtype() == DType::Float)?.to_f32().ok()?;
        let first = *slopes.first()?;
        return slopes.iter().all(|&s| s == first).then_some((a, first));
    }
    if !n.is("Max") || n.inputs().len() != 2 {
        return None;
    }
    [(a, b), (b, a)].into_iter().find_map(|(x, scaled)| {
        let mul = walk::sole_producer(model, scaled).filter(|&m| model.node(m).is("Mul"))?;
        let (of, alpha, _) = constants::with_scalar(model, types, mul)?;
        (of == x && (0.0..=1.0).contains(&alpha)).then_some((x, alpha))
    })
}

#[cfg(test)]
mod tests {
    use super::{super::support::testing::after, run};

    #[test]
    fn every_spelling() {
        let text = "float[n,2] x\nfloat[1] tenth = {0.1}\nfloat[] two = {2}\nfloat[2] same = {0.1, 0.1}\nfloat[2] other = {0.1, 0.2}";
        let fuse = |nodes: &str| after(run, &format!("{text}\n{nodes}\nreturn y"));
        assert_eq!(fuse("a = Mul(tenth, x)\ny = Max(x, a)"), "y = LeakyRelu(x)");
        assert_eq!(fuse("y = PRelu(x, same)"), "y = LeakyRelu(x)");
        assert!(fuse("y = PRelu(x, other)").contains("PRelu"));
        // A factor above 1 makes it another function.
        assert!(fuse("a = Mul(x, two)\ny = Max(x, a)").contains("Max"));
    }
}
