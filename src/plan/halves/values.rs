//! What the numbers of values ask for.

use std::collections::BTreeSet;

use super::{Work, constants::least_sqnr, short};
use crate::{
    calibrate::halves::Rounding,
    ir::{NodeId, ValueId},
    quant::halves::largest,
};

/// Data that were not seen may be this many times as large as those that were.
const RESERVE: f32 = 4.0;
/// A divisor, or what a logarithm is taken of, may be off by this share.
const DIVISOR: f32 = 1.0 / 256.0;
/// Numbers that are usual in networks are within this; for sums of data that nobody has seen.
const USUAL: f32 = 32.0;
/// How far sums of one slice may exceed those of the usual slice.
const UNEVEN: f64 = 8.0;

/// What data show.
pub(super) fn look(work: &mut Work<'_>) {
    let (model, dtype) = (work.model(), work.task.dtype);
    let most = largest(dtype);
    for v in model.value_ids() {
        let Some(seen) = work.seen(v).filter(|_| work.is_float(v)) else { continue };
        // A mask may be as low as it likes.
        let top = if work.masked.contains(&v) { seen.highest } else { seen.largest() };
        if top * RESERVE > most {
            let text = format!("overflows: up to {} in the data, {} is the most", short(top), short(most));
            work.keep_value(v, &text);
        } else if seen.sqnr() < least_sqnr(dtype) && !work.masked.contains(&v) {
            let text = format!("is too small for 16 bits: {} at most", short(top));
            work.keep_value(v, &text);
        } else if (seen.vanished > 0 || seen.worst > DIVISOR)
            && let Some((n, _)) = model.value(v).readers().find(|&(n, i)| divides(work, n, i))
        {
            let text =
                format!("divides or is taken the logarithm of, and loses its smallest numbers: {}", seen.vanished);
            log::debug!("{}: {text}", model.node_label(n));
            work.keep_value(v, &text);
        }
    }
    for n in work.nodes.clone() {
        if let Some(sum) = largest_sum(work, n).filter(|sum| *sum > f64::from(most)) {
            work.keep(n, format!("its sums may overflow: up to {}", short(sum as f32)));
        }
    }
    // What bodies of If and Loop compute is not looked at.
    let inner = work.nodes.iter().copied().filter(|&n| model.node(n).graph() != model.main()).collect();
    dangerous(work, inner, "in a subgraph, whose values are not looked at");
    long_sums(work);
}

/// What is known to be dangerous, where nobody has seen data.
pub(super) fn suspect(work: &mut Work<'_>) {
    dangerous(work, work.nodes.clone(), "without data");
    long_sums(work);
}

fn dangerous(work: &mut Work<'_>, nodes: Vec<NodeId>, unseen: &str) {
    let model = work.model();
    if largest(work.task.dtype) > 1e30 {
        return;
    }
    for n in nodes {
        let node = model.node(n);
        if node.is("Exp") {
            work.keep(n, format!("{unseen}: exponentials of more than 11 overflow"));
        } else if is_square(work, n) {
            work.keep(n, format!("{unseen}: squares of more than 255 overflow"));
            after_square(work, n, unseen);
        } else if let Some(count) = summed(work, n, None).filter(|c| *c as f32 * USUAL > largest(work.task.dtype)) {
            work.keep(n, format!("{unseen}: its sums may overflow: {count} numbers each"));
        }
    }
}

/// Sums of more numbers than the target can add without losing the small ones.
fn long_sums(work: &mut Work<'_>) {
    let Some(longest) = work.task.target.half(work.task.dtype).longest_sum else { return };
    for n in work.nodes.clone() {
        if let Some(length) = depth(work, n).or_else(|| summed(work, n, None)).filter(|length| *length > longest) {
            work.keep(n, format!("its sums are too long for 16 bits: {length} numbers, {longest} are the most"));
        }
    }
}

/// How many products a product adds into one number, as far as that is known.
fn depth(work: &Work<'_>, n: NodeId) -> Option<usize> {
    let node = work.model().node(n);
    let group = node.int("group").and_then(|g| usize::try_from(g).ok()).unwrap_or(1).max(1);
    let dims = node.input(1).and_then(|w| work.types.known_shape(w))?;
    match (node.op_type.as_str(), &dims[..]) {
        _ if !node.in_onnx_domain() => None,
        ("Gemm", [a, b]) => Some(if node.int("transB").unwrap_or(0) != 0 { *b } else { *a }),
        ("MatMul", [.., depth, _] | [depth]) => Some(*depth),
        ("Conv", [_, rest @ ..]) => Some(rest.iter().product()),
        // Each place of a kernel adds to a place of its own, where they do not overlap.
        ("ConvTranspose", [channels, ..]) => Some(channels / group),
        _ => None,
    }
}

fn is_square(work: &Work<'_>, n: NodeId) -> bool {
    let node = work.model().node(n);
    let constant = |i: usize| work.model().constant_input(n, i).and_then(crate::ir::Tensor::scalar_f32);
    let squared = node.is("Pow") && constant(1).is_none_or(|p| p.abs() > 1.0);
    squared
        || node.is("Mul") && node.input(0) == node.input(1)
        || ["ReduceL2", "ReduceSumSquare", "LpNormalization"].iter().any(|op| node.is(op))
}

/// What a decomposed normalization makes of the squares, up to the root.
fn after_square(work: &mut Work<'_>, square: NodeId, unseen: &str) {
    let model = work.model();
    let steps = ["ReduceMean", "ReduceSum", "Add", "Sqrt", "Reciprocal", "Div", "Max", "Clip", "Pow"];
    let (mut seen, mut todo) = (BTreeSet::new(), vec![square]);
    while let Some(maker) = todo.pop() {
        let values = model.node(maker).outputs().iter().copied().flatten();
        for (n, _) in values.flat_map(|v| model.value(v).readers()) {
            let node = model.node(n);
            if !steps.iter().any(|op| node.is(op)) || !seen.insert(n) {
                continue;
            }
            work.keep(n, format!("{unseen}: part of a normalization, whose squares and roots need 32 bits"));
            // Behind these numbers are of usual size again.
            if !node.is("Div") && !node.is("Reciprocal") && !node.is("Sqrt") {
                todo.push(n);
            }
        }
    }
}

/// Whether small errors of an input make large ones.
fn divides(work: &Work<'_>, n: NodeId, input: usize) -> bool {
    let model = work.model();
    let node = model.node(n);
    let negative = || model.constant_input(n, 1).and_then(crate::ir::Tensor::scalar_f32).is_none_or(|p| p < 0.0);
    match input {
        0 => ["Reciprocal", "Log"].iter().any(|op| node.is(op)) || node.is("Pow") && negative(),
        1 => node.is("Div"),
        _ => false,
    }
}

/// How many numbers an operator adds into one, as far as it is known; `lengths` are of its input and output.
fn summed(work: &Work<'_>, n: NodeId, lengths: Option<[usize; 2]>) -> Option<usize> {
    const SUMS: &[&str] = &[
        "ReduceSum",
        "ReduceMean",
        "ReduceSumSquare",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "GlobalAveragePool",
        "AveragePool",
        "CumSum",
    ];
    let node = work.model().node(n);
    if !SUMS.iter().any(|op| node.is(op)) {
        return None;
    }
    if node.is("AveragePool") {
        return node.ints("kernel_shape").map(|k| k.iter().map(|&k| usize::try_from(k).unwrap_or(1)).product());
    }
    let known = |v: ValueId| work.types.known_shape(v).map(|dims| dims.iter().product::<usize>());
    let (x, y) = match lengths {
        Some([x, y]) => (x, y),
        None => (known(node.input(0)?)?, known(node.output(0)?)?),
    };
    if node.is("CumSum") { Some(x) } else { Some(x / y.max(1)) }
}

/// The greatest sum that an operator may come to on the way, by what was seen of its input.
fn largest_sum(work: &Work<'_>, n: NodeId) -> Option<f64> {
    let node = work.model().node(n);
    let seen = |v: ValueId| work.seen(v);
    let x: &Rounding = seen(node.input(0)?)?;
    let y = seen(node.output(0)?)?;
    let top = f64::from(x.largest());
    let squares = ["ReduceSumSquare", "ReduceL2"].iter().any(|op| node.is(op));
    let of = |k: f64, usual: f64| (k * usual * UNEVEN).min(k * if squares { top * top } else { top });
    if let Some(count) = summed(work, n, Some([x.elements, y.elements])) {
        let usual = if squares { x.usual() * x.usual() } else { x.usual() };
        return Some(of(count as f64, usual));
    }
    // They compute the mean of squares inside.
    let normalizes =
        ["InstanceNormalization", "LpNormalization", "MeanVarianceNormalization"].iter().any(|op| node.is(op));
    normalizes.then_some(top * top)
}
