//! Averages over everything, whose kernel refuses to run where the scales around it are too far apart.
//!
//! The mean of thousands of numbers that cancel out has a range far smaller than theirs. Where the output's scale is below the
//! 256th part of the kernel's own step (the input's scale over the number of elements), ONNX Runtime loads the file and fails
//! when it runs. Leaving the node in float would not help: the runtime makes the kernel of any pooling between codes. So
//! the output's codes are spread wider. Nothing is lost, because sums of codes have no finer steps.

use std::collections::BTreeMap;

use crate::{
    analysis::{
        placement::{Decision, Placement},
        types::Types,
    },
    ir::{Model, NodeId, ValueId},
    quant::{QParams, integer::mean_scale},
};

/// How many elements a node averages, if its kernel may be the one over everything; sizes that are not known count as one.
pub(super) fn averaged(model: &Model, types: &Types, id: NodeId) -> Option<usize> {
    let node = model.node(id);
    let dims: Option<Vec<_>> = types.shape(node.input(0)?).map(|s| s.iter().skip(2).map(|d| d.known()).collect());
    if node.is("GlobalAveragePool") {
        return Some(dims.unwrap_or_default().into_iter().flatten().fold(1, usize::saturating_mul));
    }
    let kernel = node.ints("kernel_shape").filter(|_| node.is("AveragePool"))?;
    let covers = |(k, d): (&i64, Option<usize>)| d.is_none_or(|d| usize::try_from(*k) == Ok(d));
    let all = dims.is_none_or(|d| kernel.iter().zip(d).all(covers));
    let padded = node.ints("pads").is_some_and(|p| p.iter().any(|&p| p != 0));
    let count = kernel.iter().map(|&k| usize::try_from(k).unwrap_or(1)).fold(1, usize::saturating_mul);
    (all && !padded).then_some(count)
}

/// Spreads the codes of averages so that their kernels run. `params` are those of the roots.
pub(super) fn widen(model: &Model, types: &Types, placement: &Placement, params: &mut BTreeMap<ValueId, QParams>) {
    let root = |v: ValueId| placement.values.get(&v).map(|q| q.root);
    // In the order of the graph: the output of one may be the input of the next.
    for (id, decision) in &placement.nodes {
        let Some(count) = averaged(model, types, *id).filter(|_| matches!(decision, Decision::Integer(_))) else {
            continue;
        };
        let node = model.node(*id);
        let behind = |v: &ValueId| {
            let reader = model.value(*v).readers().next().filter(|_| root(*v).is_none());
            reader.and_then(|(n, _)| model.node(n).output(0))
        };
        // Absorbed clamps stand between a node and what is quantized.
        let made = std::iter::successors(node.output(0), behind).take(placement.nodes.len()).find_map(root);
        let read = node.input(0).and_then(root).and_then(|x| params.get(&x)).map(|x| x.scale);
        if let (Some(x), Some(y)) = (read, made.and_then(|y| params.get_mut(&y))) {
            y.scale = fitting(x, y.scale, count);
        }
    }
}

/// The scale nearest to `y` with which the kernel runs.
fn fitting(x: f32, y: f32, count: usize) -> f32 {
    if mean_scale(x, y, count).is_ok() {
        return y;
    }
    // 255 and 2^31, for the kernel rounds, too.
    let own = x / count as f32;
    let near = if y < own { own / 255.0 } else { own * 2_147_483_648.0 };
    near.clamp(f32::MIN_POSITIVE, f32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{analysis::types, ir::testing::model};

    #[test]
    fn averages_that_may_be_over_everything() {
        let count = |call: &str, dims: &str| {
            let m = model(&format!("float[{dims}] x \n y = {call} \n return y"));
            averaged(&m, &types::infer(&m), m.nodes(m.main())[0])
        };
        assert_eq!(count("GlobalAveragePool(x)", "1,2,7,6"), Some(42));
        assert_eq!(count("GlobalAveragePool(x)", "1,2,h,6"), Some(6));
        let pool = "AveragePool <kernel_shape = [4, 4]> (x)";
        assert_eq!(
            [count(pool, "1,2,4,4"), count(pool, "1,2,h,w"), count(pool, "1,2,8,4")],
            [Some(16), Some(16), None]
        );
        assert_eq!(count("AveragePool <kernel_shape = [4, 4], pads = [1, 1, 1, 1]> (x)", "1,2,4,4"), None);
        assert_eq!(count("Relu(x)", "1,2,4,4"), None);
    }

    #[test]
    fn scales_are_changed_where_the_kernel_would_refuse_them() {
        assert_eq!(fitting(0.5, 0.01, 16), 0.01);
        assert_eq!(fitting(1.0, 1.0 / 16.0 / 255.9, 16), 1.0 / 16.0 / 255.9);
        for (x, y, count) in [(1.0, 1e-6, 16), (1.0, 1e-30, 1), (0.1, 1e12, 4), (1e-37, 1.2e-38, 1_000_000)] {
            let made = fitting(x, y, count);
            assert!(
                made.is_normal() && (mean_scale(x, made, count).is_ok() || made == f32::MIN_POSITIVE),
                "{x} {y} {count}"
            );
        }
    }
}
