//! Computes what depends on constants alone.
//!
//! ```text
//! before: t = Transpose(w); y = Gemm(x, t)      after: y = Gemm(x, t)      where t is a constant
//! ```
//!
//! Constants on the way to a result are never written, only the results are. Groups of results that share constants are
//! weighed together: whatever does not make the model larger is folded, further growth is bounded by
//! [`super::Options::fold_growth_limit`] over all runs of the pass. DequantizeLinear stays: it is a quantized weight.

mod args;
mod arithmetic;
mod bits;
mod cast;
mod cone;
mod index;
mod join;
mod layout;
mod logic;
mod make;
mod reduce;
mod strided;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, OnceLock},
};

use super::{Context, support::replace::replace_by_constant};
use crate::{
    analysis::types::{self, Types},
    error::{Error, Result},
    ir::{DType, Model, Node, NodeId, Tensor, ValueId, tensor::element_count},
};
use args::Args;

/// Evaluates a node: its outputs in order, `None` where it cannot be done exactly.
type Eval = fn(&Args<'_>) -> Option<Vec<Tensor>>;

/// All that can be computed, one file per family.
const FAMILIES: &[&[(&[&str], Eval)]] = &[
    arithmetic::EVALS,
    cast::EVALS,
    index::EVALS,
    join::EVALS,
    layout::EVALS,
    logic::EVALS,
    make::EVALS,
    reduce::EVALS,
];

fn find(node: &Node) -> Option<Eval> {
    static EVALS: OnceLock<HashMap<&'static str, Eval>> = OnceLock::new();
    let all = EVALS.get_or_init(|| {
        let pairs = FAMILIES.iter().flat_map(|f| f.iter()).flat_map(|(ops, eval)| ops.iter().map(|&op| (op, *eval)));
        pairs.collect()
    });
    node.in_onnx_domain().then(|| all.get(node.op_type.as_str()).copied()).flatten()
}

/// See the module's documentation.
pub fn run(model: &mut Model, cx: &mut Context) -> Result<usize> {
    let types = types::infer(model);
    let mut folded = 0;
    let results = cone::results(model, |n| find(model.node(n)).is_some());
    for group in results.groups() {
        let all = results.growth(model, group, |v| size(model, &types, v));
        // Together if that fits, else one by one as far as it does.
        let parts: Vec<Vec<ValueId>> = match all {
            Some(g) if fits(g, cx) => vec![group.clone()],
            _ => group.iter().map(|&v| vec![v]).collect(),
        };
        for part in parts {
            let growth = results.growth(model, &part, |v| size(model, &types, v));
            let Some(growth) = growth.filter(|&g| fits(g, cx)) else { continue };
            let mut made = BTreeMap::new();
            if part.iter().all(|&v| compute(model, v, &mut made, find).is_some()) {
                cx.folded_bytes = cx.folded_bytes.saturating_add_signed(growth.max(0));
                for v in part {
                    if let Some(t) = made.get(&v) {
                        replace_by_constant(model, v, t.clone());
                        folded += 1;
                    }
                }
            }
        }
    }
    Ok(folded)
}

/// Makes constants of weights that the model computes of codes, by the nodes that `unpacks` picks and others behind them: each is
/// computed when it is written, so size is no matter. Returns how many there are.
pub fn fold_later(model: &mut Model, unpacks: impl Fn(&Model, NodeId) -> bool) -> Result<usize> {
    let chosen: HashSet<NodeId> = model.all_nodes().into_iter().filter(|&n| unpacks(model, n)).collect();
    if chosen.is_empty() {
        return Ok(0);
    }
    let types = types::infer(model);
    let results = cone::results(model, |n| find_with_bytes(model.node(n)).is_some());
    let found = results.groups().iter().flatten().copied();
    let found: Vec<ValueId> = found.filter(|&v| results.needs_any(model, v, &chosen)).collect();
    let (whole, mut folded) = (Arc::new(model.clone()), 0);
    for v in found {
        let (Some(dtype), Some(dims)) = (types.dtype(v), types.known_shape(v)) else { continue };
        if !dtype.is_float() || args::room(DType::Int64, &dims).is_none() {
            continue;
        }
        let (from, name) = (whole.clone(), model.value(v).name().to_owned());
        let make = move || {
            let mut made = BTreeMap::new();
            let tensor = compute(&from, v, &mut made, find_with_bytes).and_then(|()| made.remove(&v));
            tensor.ok_or_else(|| Error::unsupported("a weight cannot be computed of its codes").value(&name))?.bytes()
        };
        replace_by_constant(model, v, Tensor::deferred(dtype, dims, Arc::new(make))?);
        folded += 1;
    }
    Ok(folded)
}

/// A node that unpacks bytes or makes floats of codes, of which the runtime makes a weight when it loads the file.
pub fn unpacks(model: &Model, n: NodeId) -> bool {
    let node = model.node(n);
    let Some(codes) = model.constant_input(n, 0).filter(|t| t.rank() > 0 && t.len() > 1) else { return false };
    let bytes = codes.dtype() == DType::Uint8 && ["BitShift", "BitwiseAnd"].iter().any(|op| node.is(op));
    let to = node.int("to").and_then(|i| DType::from_onnx(i32::try_from(i).ok()?));
    let small = matches!(codes.dtype(), DType::Uint8 | DType::Int8);
    bytes || small && node.is("Cast") && to.is_some_and(DType::is_float)
}

fn find_with_bytes(node: &Node) -> Option<Eval> {
    // Bytes first: of these the others compute nothing.
    bits::find(node).or_else(|| find(node))
}

fn fits(growth: isize, cx: &Context) -> bool {
    growth <= 0 || cx.folded_bytes.saturating_add_signed(growth) <= cx.options.fold_growth_limit
}

/// Bytes of a value, as inferred.
fn size(model: &Model, types: &Types, v: ValueId) -> Option<usize> {
    if let Some(t) = model.value(v).constant() {
        return Some(t.byte_len());
    }
    types.dtype(v)?.byte_len(element_count(&types.known_shape(v)?)?)
}

/// Computes a value and what it needs; the results stand in `made`. `None` where something cannot be computed.
fn compute(
    model: &Model,
    v: ValueId,
    made: &mut BTreeMap<ValueId, Tensor>,
    find: fn(&Node) -> Option<Eval>,
) -> Option<()> {
    let mut stack: Vec<NodeId> = vec![model.producer(v)?];
    while let Some(&n) = stack.last() {
        let node = model.node(n);
        let mut inputs = Vec::with_capacity(node.inputs().len());
        let waiting = stack.len();
        for input in node.inputs() {
            inputs.push(match input {
                None => None,
                Some(i) => match made.get(i).cloned().or_else(|| args::constant(model, *i)) {
                    Some(t) => Some(t),
                    None => {
                        stack.push(model.producer(*i)?);
                        None
                    }
                },
            });
        }
        if stack.len() > waiting {
            continue;
        }
        stack.pop();
        if node.outputs().iter().flatten().all(|o| made.contains_key(o)) {
            continue;
        }
        let outputs = find(node)?(&Args::new(model, n, inputs))?;
        for (o, t) in node.outputs().iter().zip(outputs).filter_map(|(o, t)| Some(((*o)?, t))) {
            made.insert(o, t);
        }
        if !node.outputs().iter().flatten().all(|o| made.contains_key(o)) {
            return None;
        }
    }
    made.contains_key(&v).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped, check_with};

    fn limit(bytes: usize) -> Context {
        let mut cx = Context::default();
        cx.options.fold_growth_limit = bytes;
        cx
    }

    #[test]
    fn whole_subgraphs_become_their_result() {
        check(
            run,
            "(float[b,2] x) => (y) <float[2,2] w = {1, 2, 3, 4}, float two = {2}> {
                t = Transpose(w)
                s = Div(t, two)
                y = MatMul(x, s)
             }",
            "(float[b,2] x) => (y) <float[2,2] s = {0.5, 1.5, 1, 2}> { y = MatMul(x, s) }",
        );
    }

    #[test]
    fn parts_of_a_constant_that_dies_are_no_growth() {
        check_with(
            run,
            &mut limit(0),
            "(float[b,9] x, float[b,9] z) => (y) <float[18] w = {1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0}, int64[2] sizes = {9, 9}> {
                a, c = Split(w, sizes)
                p = Add(x, a)
                q = Add(z, c)
                y = Mul(p, q)
             }",
            "(float[b,9] x, float[b,9] z) => (y) <float[9] a = {1, 0, 0, 0, 0, 0, 0, 0, 0}, float[9] c = {2, 0, 0, 0, 0, 0, 0, 0, 0}> {
                p = Add(x, a)
                q = Add(z, c)
                y = Mul(p, q)
             }",
        );
    }

    #[test]
    fn growth_is_bounded() {
        let large = "(float[1000,1000] x) => (y) <int64[2] n = {1000, 1000}> { c = ConstantOfShape(n) y = Add(x, c) }";
        check_skipped(run, large, "");
        // What is large on the way does not count.
        check_with(
            run,
            &mut limit(64),
            "(float[b,2] x) => (y) <int64[2] n = {1000, 1000}, int64[2] from = {0, 0}, int64[2] to = {1, 2}> {
                c = ConstantOfShape(n)
                s = Slice(c, from, to)
                y = Add(x, s)
             }",
            "(float[b,2] x) => (y) <float[1,2] s = {0, 0}> { y = Add(x, s) }",
        );
    }

    #[test]
    fn quantized_weights_and_outputs_stay() {
        let quantized =
            "(float[b,2] x) => (y) <int8[2] q = {1, 2}, float s = {0.5}> { w = DequantizeLinear(q, s) y = Mul(x, w) }";
        check_skipped(run, quantized, "");
        check_skipped(run, "() => (y) <float[2] c = {1, 2}> { y = Neg(c) }", "");
    }
}
